"""One kind of refusal, and the few checks every room shares (floor 0).

A refusal is a single sentence: what was found, what was expected, what to type. It is raised on the host, before any
compile, or while tracing; traced values pass through the range checks untouched, since their value is not known yet.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


class Refused(ValueError):
    """A wrong input, refused before compute was spent. The command line turns it into exit code 2."""


def nearest(found: str, known: Iterable[str]) -> str:
    """The sentence fragment that lists the names closest to `found`, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(found, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}."


def one_of(what: str, found: str, known: Iterable[str]) -> str:
    """Returns `found` if it is one of `known`.

    Raises:
      Refused: naming the nearest known values.
    """
    names = list(known)
    if found not in names:
        raise Refused(f"{what} is {found!r}, which does not exist; {nearest(str(found), names)}")
    return found


def within(
    what: str,
    found: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """Returns `found` if it is a number in the interval; arrays and tracers pass (their value may not be known).

    Raises:
      Refused: naming the interval.
    """
    if not isinstance(found, numbers.Real) or isinstance(found, bool):
        if isinstance(found, str | bool | None | list | tuple | dict):
            raise Refused(f"{what} is {found!r}; expected a number.")
        return found
    left = "(" if open_low or low is None else "["
    right = ")" if open_high or high is None else "]"
    value = float(found)
    ok = value == value
    ok &= low is None or (value > low if open_low else value >= low)
    ok &= high is None or (value < high if open_high else value <= high)
    if not ok:
        interval = f"{left}{'-inf' if low is None else low}, {'inf' if high is None else high}{right}"
        raise Refused(f"{what} is {found!r}; expected a number in {interval}.")
    return found


def positive(what: str, found: Any) -> Any:
    """Returns `found` if it is a number > 0 (or a tracer)."""
    return within(what, found, 0.0, open_low=True)

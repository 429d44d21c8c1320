"""One kind of refusal, and the few checks everything shares.

A refusal is a single sentence: what was found, what was expected, what to type. It is raised on the host, before any
compile, or while tracing; traced values pass through the range checks untouched, since their value is not known yet.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class Refused(ValueError):
    """A wrong input, refused before compute was spent. The command line turns it into exit code 2."""


class Held(Refused):
    """A directory that another process is at work in: come back later.

    `holder` says which process, in the same words each time, where the sentence may count seconds.
    """

    def __init__(self, sentence: str, holder: str = ""):
        super().__init__(sentence)
        self.holder = holder or sentence


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: the known names closest to `name`, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}."


OUTSIDE = "One of your own? Type --import MODULE, or in Python import it first."
"""The end of a sentence on a name that `kdjax.register` could have made known."""


def one_of(what: str, value: str, known: Iterable[str], *, registered: bool = False) -> str:
    """Returns `value` if it is one of `known`.

    Args:
      registered: code from outside the package may have such names too, which the sentence then says.

    Raises:
      Refused: naming the nearest known values.
    """
    names = list(known)
    if value not in names:
        hint = f"{nearest(str(value), names)}{f' {OUTSIDE}' * registered}"
        raise Refused(f"{what} is {value!r}, which does not exist; {hint}")
    return value


def within(
    what: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """Returns `value` if it is a number in the interval; arrays and tracers pass (their value may not be known).

    Raises:
      Refused: naming the interval.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        if isinstance(value, str | bool | None | list | tuple | dict):
            raise Refused(f"{what} is {value!r}; expected a number.")
        return value
    left = "(" if open_low or low is None else "["
    right = ")" if open_high or high is None else "]"
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    ok = number == number
    ok &= low is None or (number > low if open_low else number >= low)
    ok &= high is None or (number < high if open_high else number <= high)
    if not ok:
        interval = f"{left}{'-inf' if low is None else low}, {'inf' if high is None else high}{right}"
        raise Refused(f"{what} is {value!r}; expected a number in {interval}.")
    return value


DEEPEST = 2002
"""Layers; the deepest published network of these families has 1202, and tracing takes a second per hundred."""


def deepest(what: str, name: str, layers: int) -> None:
    """Refuses a network that would take minutes to trace and has never been trained.

    Raises:
      Refused: with its number of layers.
    """
    if layers > DEEPEST:
        raise Refused(
            f"{what} is {name!r}, a network of {layers:,} layers, which takes some {layers / 3.6e5:,.1f} hours to "
            f"trace; expected at most {DEEPEST:,}."
        )


def positive(what: str, value: Any) -> Any:
    """Returns `value` if it is a number > 0 (or a tracer)."""
    return within(what, value, 0.0, open_low=True)


def printable(text: str, longest: int = 1000) -> str:
    """`literal(text)`, cut where it is longer than a sentence should be."""
    line = literal(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def literal(text: str) -> str:
    """The text with control characters, lone surrogates and invisible format characters as Python's escapes.

    For names that come from people and from files, wherever they are shown.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

"""Which code a registered function is, so that changed code is never taken for the same."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from kdjax.errors import Refused

P, T = ParamSpec("P"), TypeVar("T")

REGISTERED: list[str] = []
"""What was registered in this process, in order; another process knows of it only if it imports the same modules."""


def source_version(what: str, function: Callable[..., Any], version: str = "") -> str:
    """The version its author gives, or the SHA-256 of the source code of the module that defines the function.

    A module imports others, whose changes this does not see: an author who relies on such gives a version.

    Args:
      what: for the sentence, such as "data set 'mine'".

    Raises:
      Refused: the source cannot be found (a notebook cell that is gone, a compiled function) and no version is given.
    """
    REGISTERED.append(what)
    if not isinstance(version, str):
        raise Refused(f"the version of {what} is {version!r}; expected text, such as '1.0'.")
    if version:
        return version
    inner = inspect.unwrap(function)
    while not inspect.isfunction(inner) and not inspect.isclass(inner) and hasattr(inner, "func"):
        inner = inner.func  # a partial
    module = inspect.getmodule(inner)
    try:
        # What is typed at a prompt or into a notebook has no file of its own: then the function alone is taken.
        text = inspect.getsource(module if module is not None and hasattr(module, "__file__") else inner)
    except (OSError, TypeError) as error:
        raise Refused(
            f"the source code of {what} cannot be found, so a change of it could not be noticed; pass version='1', and "
            "another one whenever the code changes."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


_REPLACED = [0]


def replaces(old: Any, new: Any) -> None:
    """Counts that a registered name gets other code, if it is another."""
    _REPLACED[0] += old != new


def replaced() -> int:
    """How often a registered name has got other code in this process, as when a notebook's cell is run again."""
    return _REPLACED[0]


def remembered(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`functools.lru_cache` for what is made of code that has a registered name: emptied, in effect, once a name gets
    other code."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        cached = functools.lru_cache(maxsize)(lambda _, *args, **options: function(*args, **options))

        @functools.wraps(function)
        def get(*args: P.args, **options: P.kwargs) -> T:
            return cached(replaced(), *args, **options)

        return get

    return decorate


def identity(function: Any) -> tuple[str, str]:
    """Module and name, by which code that was changed is known again."""
    inner = getattr(function, "func", function)  # a partial
    return getattr(inner, "__module__", ""), getattr(inner, "__qualname__", repr(inner))

"""Hyper-parameters: immutable options, and ranges that are declared once, beside the function they belong to.

@hyper(gamma=at_least(0), form=choice("offtarget", "uniform"))
def loss(logits, labels, *, gamma=3.0, form="offtarget"): ...

loss(logits, labels, gamma=-1.0)     # Refused: loss.gamma is -1.0; expected a number in [0, inf).
loss.hyper                           # {"gamma": at_least(0), ...}: a registry reads defaults and ranges from here
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from kdjax.errors import Refused, nearest, one_of, within

Check = Callable[[str, Any], Any]
F = TypeVar("F", bound=Callable)


class Options(Mapping[str, Any]):
    """An immutable, hashable mapping of option names to values; lists and mappings inside become tuples and Options.

    Options(T=4.0, target="wclip").replace(T=2.0)
    """

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, given: Any = (), /, **more: Any):
        try:
            items = dict(given, **more)
        except (TypeError, ValueError) as error:
            raise Refused(
                f"options are {given!r}; expected a mapping of names to values, such as {{'gamma': 2.0}}."
            ) from error
        for name in items:
            if not isinstance(name, str):
                raise Refused(f"an option is named {name!r}; expected a name, such as 'gamma'.")
        object.__setattr__(self, "_items", {name: frozen(items[name]) for name in sorted(items)})

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"options are immutable; type options.replace({name}=...).")

    def __reduce__(self) -> tuple:
        return Options, (dict(self),)

    def __repr__(self) -> str:
        return f"Options({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def replace(self, **changes: Any) -> Options:
        """The same options with some values changed or added."""
        return Options({**self, **changes})


def frozen(value: Any) -> Any:
    """Lists to tuples and mappings to Options, at every depth: what a recipe holds is hashable."""
    if isinstance(value, Mapping):
        return value if isinstance(value, Options) else Options(value)
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Options to dicts and tuples to lists, at every depth: what JSON and a ConfigDict hold."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def between(low: float | None, high: float | None, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A number in the interval. Traced arrays pass: their value is not known yet."""

    def check(what: str, value: Any) -> Any:
        return within(what, value, low, high, open_low=open_low, open_high=open_high)

    return check


def at_least(low: float) -> Check:
    """A number >= low."""
    return between(low, None)


def above(low: float) -> Check:
    """A number > low."""
    return between(low, None, open_low=True)


def choice(*known: str) -> Check:
    """One of the names."""
    return lambda what, value: one_of(what, value, known)


def each(check: Check, length: int | None = None) -> Check:
    """A list (of that length) whose items pass `check`."""

    def check_all(what: str, value: Any) -> Any:
        if not isinstance(value, tuple | list) or length not in (None, len(value)):
            many = "values" if length is None else f"{length} values"
            raise Refused(f"{what} is {value!r}; expected a list of {many}.")
        for item in value:
            if not isinstance(item, jax.Array):
                check(what, item)
        return value

    return check_all


def integer(low: int, high: int | None = None) -> Check:
    """A Python integer in [low, high]."""

    def check(what: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < low:
            raise Refused(f"{what} is {value!r}; expected an integer of at least {low}.")
        if high is not None and int(value) > high:
            raise Refused(f"{what} is {value!r}; expected an integer of at most {high}.")
        return value

    return check


def flag() -> Check:
    """True or False."""

    def check(what: str, value: Any) -> Any:
        if not isinstance(value, bool):
            raise Refused(f"{what} is {value!r}; expected True or False.")
        return value

    return check


def hyper(**checks: Check) -> Callable[[F], F]:
    """Declares the ranges of a function's keyword-only hyper-parameters, and checks them at each call.

    The declaration stays readable as `function.hyper`; the name in a refusal is `function.parameter`.
    """

    def declare(function: F) -> F:
        known = inspect.signature(function).parameters
        keywords = {name for name, p in known.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        takes_others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        if unknown := set(checks) - keywords:
            raise TypeError(f"{function.__name__} has no keyword-only parameter {sorted(unknown)}")

        @functools.wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            for name, value in given.items():
                if name not in known and not takes_others:
                    raise Refused(f"{function.__name__} has no option {name!r}; {nearest(name, keywords)}")
                if name in checks and not isinstance(value, jax.Array):
                    checks[name](f"{function.__name__}.{name}", value)
            return function(*args, **given)

        checked.hyper = dict(checks)  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return declare


def defaults(function: Callable) -> dict[str, Any]:
    """The keyword-only parameters of a function with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def resolve(what: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> Options:
    """`given` laid over the defaults, integers as floats where the default is one.

    Raises:
      Refused: an option that does not exist, with the nearest names; or one of another kind than its default.
    """
    for name, value in given.items():
        if name not in known:
            hint = nearest(name, known) if known else "it has none."
            raise Refused(f"{what} has no option {name!r}; {hint}")
        check_kind(f"{what}.{name}", value, known[name])
    floats = {n: float(v) for n, v in given.items() if isinstance(known[n], float) and type(v) is int}
    return Options({**known, **given, **floats})


def check_kind(what: str, value: Any, default: Any) -> None:
    """Refuses text for a number, a number for a list, and the like; arrays pass."""
    if isinstance(default, bool) or isinstance(value, bool):
        right = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, int | float):
        right = isinstance(value, int | float) or hasattr(value, "dtype")
    elif isinstance(default, tuple | list):
        right = isinstance(value, tuple | list) or hasattr(value, "dtype")
    elif isinstance(default, str):
        right = isinstance(value, str)
    elif isinstance(default, Mapping):
        right = isinstance(value, Mapping)
    else:
        right = True
    if not right:
        raise Refused(f"{what} is {value!r}; expected {_KINDS.get(type(default), 'a value')} like {default!r}.")


_KINDS: dict[type, str] = {
    bool: "True or False,",
    int: "a number",
    float: "a number",
    str: "text",
    tuple: "a list",
    list: "a list",
    Options: "a mapping",
    dict: "a mapping",
}


def concrete(path: str, value: Any) -> Any:
    """The numbers and arrays of NumPy and JAX as Python's, at every depth, so that a recipe can be hashed and stored.

    Raises:
      Refused: a traced value, which has no number yet.
    """
    if isinstance(value, Mapping):
        return {name: concrete(f"{path}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(concrete(path, inner) for inner in value)
    if isinstance(value, jax.core.Tracer):
        raise Refused(f"{path} is a traced value; expected a number: make the recipe outside of jit.")
    if isinstance(value, np.longdouble):  # whose own tolist keeps it
        return float(value)
    return concrete(path, value.tolist()) if isinstance(value, np.generic | np.ndarray | jax.Array) else value


def as_kind(path: str, value: Any, default: Any, remedies: Mapping[str, str] = {}) -> Any:
    """The value as a field of that default holds it: tuples for lists, Options for mappings, floats for integers.

    What NumPy or JAX made of a number is a Python number in it (`concrete`).

    Args:
      path: the field, as people write it.
      remedies: name of a field -> what to type instead of a value of another kind.

    Raises:
      Refused: a value of another kind.
    """
    if default is None or dataclasses.is_dataclass(default):
        if dataclasses.is_dataclass(default) and not isinstance(value, type(default)):
            kind = type(default).__name__
            raise Refused(f"{path} is {value!r}; expected {kind}(...), such as {kind}().")
        return value
    value = concrete(path, value)
    if isinstance(default, Options):
        if not isinstance(value, Mapping | tuple | list):
            raise Refused(f"{path} is {value!r}; expected a mapping of names to values, such as {{'gamma': 2.0}}.")
        return Options(value)
    if isinstance(default, tuple):
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise Refused(f"{path} is {value!r}; expected a list such as {list(default) or ['...']}.")
        return frozen(concrete(path, tuple(value)))
    if isinstance(default, bool) or isinstance(value, bool):
        right = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        right = isinstance(value, int | float)
        value = float(value) if right else value
    else:
        right = isinstance(value, type(default))
    if not right:
        remedy = remedies.get(path.split(".")[-1], "")
        raise Refused(f"{path} is {value!r}; expected {type(default).__name__}, like {default!r}.{remedy}")
    return value

"""One line of the catalog: a network's factory, whose network it is, and the options that its name leaves open."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.errors import Refused, nearest
from kdjax.options import Check

NOT_OPTIONS = ("num_classes", "dtype", "rngs", "parent", "name")
IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """What a name stands for.

    Attributes:
      factory: (num_classes=, dtype=, **options) -> a Linen network. `factory.hyper`, if it exists, maps options to
        their checks (`kdjax.options`); a `partial`'s keywords are fixed by the name.
      whose: whose network it is, as `--plan` prints it.
      defaults: options that the name sets and a recipe may change.
      options: names of the options where the factory's signature does not tell them.
      example: shapes of one batch of inputs, for the parameter count.
      version: "" for the package's own networks; what stands for the source in a stage's id for all others.
    """

    factory: Callable[..., Any]
    whose: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Iterable[str] | None = None
    example: Any = IMAGE
    version: str = ""


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword parameters of a factory that it does not fix itself."""
    inner, fixed = (factory.func, factory.keywords) if isinstance(factory, partial) else (factory, {})
    # NNX classes have a metaclass, which hides the parameters of __init__ from a signature of the class.
    made_by = inner.__init__ if inspect.isclass(inner) else inner
    return {name: p for name, p in inspect.signature(made_by).parameters.items() if name not in (*fixed, "self")}


def option_names(entry: Entry) -> set[str]:
    names = parameters(entry.factory) if entry.options is None else entry.options
    return set(names) - set(NOT_OPTIONS)


def check_options(name: str, entry: Entry, options: Mapping[str, Any]) -> None:
    """Refuses options that the network does not have, naming the nearest, and values out of range."""
    takes_any = entry.options is None and any(p.kind is p.VAR_KEYWORD for p in parameters(entry.factory).values())
    known = option_names(entry)
    factory = entry.factory.func if isinstance(entry.factory, partial) else entry.factory
    checks: Mapping[str, Check] = getattr(factory, "hyper", {})
    for option, value in options.items():
        if option not in known and not takes_any:
            hint = nearest(option, known) if known else "it takes none."
            raise Refused(f"model {name!r} has no option {option!r}; {hint}")
        if option in checks:
            checks[option](f"{name}.{option}", value)

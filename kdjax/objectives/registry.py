"""Every method by name: the only place where a string becomes an objective (floor 2)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from kdjax.errors import Refused, one_of
from kdjax.objectives.calibrators import CALIBRATORS
from kdjax.objectives.core import Method, Objective, blend
from kdjax.objectives.distillers import DISTILLERS
from kdjax.options import Options, resolve

METHODS: dict[str, Method] = {**CALIBRATORS, **DISTILLERS}


def options(name: str) -> dict[str, Any]:
    """The hyper-parameters of a method with their defaults."""
    one_of("method", name, METHODS)
    parameters = inspect.signature(METHODS[name].build).parameters.values()
    return {p.name: p.default for p in parameters}


def checked(name: str, given: Mapping[str, Any], role: str | None = None) -> Options:
    """`given` laid over the method's defaults.

    Raises:
      Refused: unknown method or option, with the nearest names; or a method of the other role.
    """
    names = [n for n, m in METHODS.items() if role is None or m.role == role]
    if name in METHODS and name not in names:
        raise Refused(
            f"{name!r} is a {METHODS[name].role} and stands where a {role} is expected; known: {', '.join(names)}."
        )
    one_of(role or "method", name, names)
    return resolve(name, given, options(name))


def build(name: str, **given: Any) -> Objective:
    """The objective of that name. See `docs/methods.md` for names and options."""
    resolved = checked(name, given)
    return METHODS[name].build(**resolved)


def distilled(hard: Objective, soft: Objective, *, alpha: Any = 0.9, weights: tuple = ()) -> Objective:
    """(1 - alpha) * hard + alpha * soft, or weights[0] * hard + weights[1] * soft where a paper uses free weights."""
    w_hard, w_soft = weights or (1 - alpha, alpha)
    return blend((w_hard, hard), (w_soft, soft))

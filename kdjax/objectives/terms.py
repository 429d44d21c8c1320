"""Objectives from losses: what a loss reads is in the names of its arguments, what it is given in its signature.

mbls(logits, *, margin=10.0)                 reads the student's logits, one option
kd(logits, teacher_logits, *, T=1.0)         reads the teacher's logits too
mdca(logits, labels, *, weight=None)         a statistic of the batch: takes the weights, returns a scalar
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from kdjax.errors import Refused, nearest
from kdjax.losses.numerics import at_least_float32
from kdjax.objectives.core import Objective, need, stateless
from kdjax.options import Check, above, hyper
from kdjax.types import Batch, Output, Scalar

Builder = Callable[..., Objective]

FIELDS = {"labels": "label", "target": "target", "teacher_logits": "teacher"}
"""Argument of a loss -> the Batch field that it is read from."""

NOT_OPTIONS = ("weight", "elements")
"""Keywords of losses that are no hyper-parameters: the batch's weights, and a memory limit that changes no value."""


def teacher_logits(batch: Batch, output: Output, method: str, T_c: Scalar = 1.0) -> Array:
    """The teacher's logits divided by T_c, without gradient.

    Raises:
      Refused: while tracing, if the batch has no teacher, or one with other classes.
    """
    teacher = need(batch, "teacher", method)
    if teacher.logits.shape != output.logits.shape:
        raise Refused(
            f"{method}: the student's logits have shape {tuple(output.logits.shape)} and the teacher's "
            f"{tuple(teacher.logits.shape)}; expected a teacher with the same classes, on the same batch."
        )
    return jax.lax.stop_gradient(at_least_float32(teacher.logits)) / T_c


def arguments(loss: Callable) -> list[str]:
    """The names of a loss's positional arguments.

    Raises:
      Refused: a name that no batch has.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, p in inspect.signature(loss).parameters.items() if p.kind in kinds]
    for name in names:
        if name not in ("logits", *FIELDS):
            raise Refused(
                f"the loss {loss.__name__!r} takes the argument {name!r}; expected logits, "
                f"{', '.join(FIELDS)}; and hyper-parameters after a *."
            )
    return names


def reads(loss: Callable) -> tuple[str, ...]:
    """The Batch fields that a loss reads."""
    return tuple(FIELDS[name] for name in arguments(loss) if name in FIELDS)


def keywords(function: Callable) -> dict[str, inspect.Parameter]:
    """The hyper-parameters of a loss or builder: its keyword-only parameters, a loss's NOT_OPTIONS left out."""
    parameters = inspect.signature(function).parameters
    of_loss = any(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    known = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    return {name: p for name, p in known.items() if not (of_loss and name in NOT_OPTIONS)}


def is_number(value: Any, number: float) -> bool:
    """Whether an option is that Python number; a traced one may be any."""
    return isinstance(value, int | float) and value == number


def term(loss: Callable, method: str, name: str = "", **options: Any) -> Objective:
    """A loss with its options as an objective of one term, called `name` (or as the method) in the logs.

    A loss of rows returns [M], which is averaged under the weights; one that takes `weight` returns a scalar.
    """
    names = arguments(loss)
    coupled = "weight" in inspect.signature(loss).parameters

    def value(batch: Batch, output: Output, clock: Any) -> Array:
        def read(argument: str) -> Array:
            if argument == "logits":
                return output.logits
            if argument == "teacher_logits":
                return teacher_logits(batch, output, method)
            return need(batch, FIELDS[argument], method)

        weight = {"weight": batch.weight} if coupled else {}
        return loss(*map(read, names), **weight, **options)

    return stateless(name or method, value)


def with_teacher_temperature(objective: Objective, T_c: Scalar, method: str) -> Objective:
    """The objective with the teacher's logits divided by T_c before it looks at them: RTC's calibrated teacher."""

    def apply(params, state, batch, output, clock):
        logits = teacher_logits(batch, output, method, T_c)
        batch = batch._replace(teacher=batch.teacher._replace(logits=logits))
        return objective.apply(params, state, batch, output, clock)

    return objective._replace(apply=apply)


def takes(*losses: Callable, but: Sequence[str] = ()) -> Callable[[Builder], Builder]:
    """Gives a builder the hyper-parameters of these losses, with defaults and ranges, except those named in `but`.

    The builder receives those that were typed as `**options`; a default of its own replaces the loss's.
    """

    def declare(build: Builder) -> Builder:
        parameters = keywords(build)
        for loss in losses:
            parameters |= {n: p for n, p in keywords(loss).items() if n not in parameters and n not in but}
        checks: dict[str, Check] = {}
        for function in (*losses, build):
            checks |= getattr(function, "hyper", {})
        return _declared(build, build.__name__, parameters, checks)

    return declare


def setting(method: str, build: Builder, shows: Sequence[str], **fixed: Any) -> Builder:
    """A builder with some options fixed, under a name of its own; `shows` names the options that stay open."""

    def made(**given: Any) -> Objective:
        return build(**{**fixed, **given})

    made.__doc__ = build.__doc__
    known = keywords(build)
    parameters = {name: known[name].replace(default=fixed.get(name, known[name].default)) for name in shows}
    return _declared(made, method, parameters, getattr(build, "hyper", {}), getattr(build, "composed", {}))


def of_loss(loss: Callable, method: str) -> Builder:
    """The builder of a plain loss; one that reads a teacher also takes `T_c`, unless it has its own."""
    adds_T_c = "teacher" in reads(loss) and "T_c" not in keywords(loss)

    @hyper(T_c=above(0))
    def with_T_c(*, T_c: Scalar = 1.0, **options: Any) -> Objective:
        return with_teacher_temperature(term(loss, method, **options), T_c, method)

    def plain(**options: Any) -> Objective:
        return term(loss, method, **options)

    build = with_T_c if adds_T_c else plain
    build.__name__, build.__doc__ = method, loss.__doc__
    return takes(loss)(build)


def _declared(
    build: Builder,
    method: str,
    parameters: Mapping[str, inspect.Parameter],
    checks: Mapping[str, Check],
    composed: Mapping[str, Any] | None = None,
) -> Builder:
    """`build` behind the checks of its options; `inspect.signature`, `hyper` and `composed` tell what it takes."""

    @functools.wraps(build)
    def checked(**given: Any) -> Objective:
        for name, value in given.items():
            if name not in parameters:
                hint = nearest(name, parameters) if parameters else "it has none."
                raise Refused(f"{method} has no option {name!r}; {hint}")
            if name in checks and not isinstance(value, jax.Array):
                checks[name](f"{method}.{name}", value)
        return build(**given)

    checked.__name__ = method
    checked.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    checked.hyper = {name: check for name, check in checks.items() if name in parameters}  # type: ignore[attr-defined]
    checked.composed = {  # type: ignore[attr-defined]
        name: known for name, known in (composed or getattr(build, "composed", {})).items() if name in parameters
    }
    return checked

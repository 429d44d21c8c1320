"""The one abstraction: an Objective is a triple of pure functions, as an optimizer is in optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import Refused
from kdjax.types import Batch, Clock, Key, Output, Spec

Params = Any
State = Any


class Terms(NamedTuple):
    """Named parts of a loss.

    Attributes:
      losses: weighted scalars; their sum is what is differentiated.
      logs: scalars that are only written down (a firing rate, an effective temperature).
    """

    losses: Mapping[str, Float[Array, ""]]
    logs: Mapping[str, Float[Array, ""]] = {}

    @property
    def total(self) -> Float[Array, ""]:
        return sum(self.losses.values(), jnp.float32(0))


class Objective(NamedTuple):
    """A calibration or distillation method.

    Attributes:
      init: (Spec, key) -> (params, state), two pytrees of arrays (`()` where there is none). The parameters are trained
        by the student's optimizer and saved with it; they are no part of the student that is loaded later.
      apply: (params, state, batch, output, clock) -> (Terms, state). Pure; runs inside `value_and_grad`, the new state
        leaves as aux.
      refresh: (state, logits, labels) -> state, once an epoch on the calibration split in evaluation mode; `None`
        when the method has nothing to refresh, and then no pass is run.
    """

    init: Callable[[Spec, Key], tuple[Params, State]]
    apply: Callable[[Params, State, Batch, Output, Clock], tuple[Terms, State]]
    refresh: Callable[[State, Float[Array, "N K"], Array], State] | None = None


def need(batch: Batch, field: str, method: str) -> Any:
    """Returns `batch.<field>`.

    Raises:
      Refused: while tracing, if the field is None.
    """
    value = getattr(batch, field)
    if value is None:
        reason = {
            "label": "no labels (a transform such as mixup replaced them by soft targets); "
            "use an objective for soft targets, or drop that transform",
            "target": "no soft targets; add the mixup transform, or use an objective for hard labels",
            "index": "no example indices; use a data set that numbers its examples",
            "teacher": "no teacher; give the stage a parent (recipe.distill) or pick a method without one",
        }.get(field, "no such field")
        raise Refused(f"objective {method!r} needs batch.{field}, and this batch has {reason}.")
    return value


def weighted_mean(values: Float[Array, "M"], weight: Float[Array, "M"] | None) -> Float[Array, ""]:
    """sum(w * v) / sum(w), and 0 when all weights are; `as_rows` has made the values of rows of weight 0 finite."""
    if weight is None:
        return jnp.mean(values)
    total = jnp.sum(weight)
    return jnp.sum(weight * values) / jnp.where(total > 0, total, 1.0)


def stateless(name: str, fn: Callable[[Batch, Output, Clock], Any]) -> Objective:
    """An objective without memory.

    Args:
      name: the term's name in the logs.
      fn: (batch, output, clock) -> [B] per-example values (averaged here, with the batch's weights), or a batch
        scalar (the function has used the weights itself), or a pair (either of these, {name: scalar to log}).
    """

    def apply(params, state, batch, output, clock):
        value = fn(batch, output, clock)
        value, logs = value if isinstance(value, tuple) else (value, {})
        loss = weighted_mean(value, batch.weight) if value.ndim == 1 else value
        return Terms({name: loss}, logs), state

    return Objective(init=lambda spec, key: ((), ()), apply=apply)


def blend(*parts: tuple[Any, Objective]) -> Objective:
    """sum_i w_i * objective_i. Weights may be traced scalars; a Python weight of exactly 0 drops the part's term but
    keeps its state, so that `alpha=0` never evaluates a teacher term to NaN."""

    def init(spec, key):
        made = [objective.init(spec, jax.random.fold_in(key, i)) for i, (_, objective) in enumerate(parts)]
        return tuple(params for params, _ in made), tuple(state for _, state in made)

    def apply(params, state, batch, output, clock):
        losses: dict[str, Array] = {}
        logs: dict[str, Array] = {}
        new = []
        for (w, objective), part_params, part_state in zip(parts, params, state, strict=True):
            if isinstance(w, int | float) and w == 0:
                new.append(part_state)
                continue
            terms, part_state = objective.apply(part_params, part_state, batch, output, clock)
            for name, value in terms.losses.items():
                losses[_free(name, losses)] = w * value
            for name, value in terms.logs.items():
                logs[_free(name, logs)] = value
            new.append(part_state)
        return Terms(losses, logs), tuple(new)

    def refresh(state, logits, labels):
        return tuple(
            objective.refresh(part, logits, labels) if objective.refresh is not None else part
            for (_, objective), part in zip(parts, state, strict=True)
        )

    refreshing = any(objective.refresh is not None for _, objective in parts)
    return Objective(init, apply, refresh if refreshing else None)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Two parts of one name stay two terms: the second is `name_2`."""
    if name not in taken:
        return name
    n = 2
    while f"{name}_{n}" in taken:
        n += 1
    return f"{name}_{n}"


class Method(NamedTuple):
    """One line of the registry: how a method is built, and all that `docs/methods.md` says of it.

    Attributes:
      build: keyword-only hyper-parameters with defaults -> Objective. Out-of-range values are refused here.
      role: "calibrator" (a label term, for a teacher or as a student's label term) or "distiller" (reads the teacher).
      needs: the Batch fields it reads.
      formula: one line.
      source: paper, and repository where there is one.
      published: the figure the KD(C), RTC or CUD tables print for it, or "-".
      verified: "golden" (the authors' code), "law" (identities and finite differences) or "paper" (formula only).
      transform: hyper-parameters -> batch transform that the method brings along (mixup, two views), or None. It is
        given `num_classes` and those keywords of `build` that it names.
      state: what the objective remembers, in words and bytes, or "".
      weights: of a distiller, the source's weights of label term and soft term; () is (1 - alpha, alpha).
      params: what the objective trains beside the student, in words, or "".
      features: whether it may read the teacher's intermediate features, so that the logits alone do not do.
      version: of a method from outside the package, what stands for its code in a stage's id; "" otherwise.
    """

    build: Callable[..., Objective]
    role: str
    needs: tuple[str, ...]
    formula: str
    source: str
    published: str = "-"
    verified: str = "law"
    transform: Callable[..., Any] | None = None
    state: str = ""
    weights: tuple[float, ...] = ()
    params: str = ""
    features: bool = False
    version: str = ""

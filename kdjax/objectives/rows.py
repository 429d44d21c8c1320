"""Rows: what every objective sees, one row of logits per label, and absent rows emptied."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import Refused
from kdjax.losses.numerics import at_least_float32
from kdjax.types import Batch, Output


def as_rows(batch: Batch, output: Output) -> tuple[Batch, Output]:
    """The batch and the student's output as M rows: logits [M, K], label, weight [M], target [M, K].

    [B, R, K] becomes [B·R, K], for student, teacher, label, target and weight alike; a label below 0 marks a region
    that does not exist, and gets weight 0. `index`, which numbers examples, stays only where R is absent, M = B.
    Features stay per example. In rows of weight 0 logits, labels, targets and the teacher's logits become 0, and so do
    the features of an example whose rows all have weight 0: not even a NaN there can reach a gradient. So objectives
    and losses only multiply by the weights.

    Raises:
      Refused: while tracing, labels, weights or teacher's logits that are not one per row of logits.
    """
    logits, features = at_least_float32(output.logits), output.features
    *shape, k = logits.shape
    regions = len(shape) > 1
    label, target, weight, teacher = batch.label, batch.target, batch.weight, batch.teacher
    for name, value, wanted in (("labels", label, shape), ("targets", target, [*shape, k])):
        if value is not None and list(value.shape) != list(wanted):
            raise Refused(
                f"{name} have shape {list(value.shape)} and logits {list(logits.shape)}; expected {list(wanted)}."
            )
    if weight is not None and list(weight.shape) != shape[: weight.ndim]:
        raise Refused(
            f"weights have shape {list(weight.shape)} and logits {list(logits.shape)}; expected {shape[:1]}"
            + (f" or {shape}." if regions else ".")
        )
    if weight is not None and weight.ndim < len(shape):
        weight = jnp.broadcast_to(weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim)), shape)
    if regions and label is not None:
        exists = (label >= 0).astype(logits.dtype)
        weight = exists if weight is None else weight * exists
    if teacher is not None and regions and teacher.logits.shape[:-1] != tuple(shape):
        raise Refused(
            f"the student's logits have shape {list(logits.shape)} and the teacher's {list(teacher.logits.shape)}; "
            "expected a teacher that looks at the same regions."
        )
    if regions:
        logits = logits.reshape(-1, k)
        label = None if label is None else label.reshape(-1)
        target = None if target is None else target.reshape(-1, k)
        weight = None if weight is None else weight.reshape(-1)
        if teacher is not None:
            teacher = teacher._replace(logits=teacher.logits.reshape(-1, teacher.logits.shape[-1]))
    if weight is not None:
        kept = weight > 0
        example = jnp.any(kept.reshape(shape[0], -1), axis=1)
        features = _emptied(features, example)
        weight = jnp.where(kept, weight, 0).astype(logits.dtype)
        logits = jnp.where(kept[:, None], logits, 0)
        label = None if label is None else jnp.where(kept, label, 0)
        target = None if target is None else jnp.where(kept[:, None], target, 0)
        if teacher is not None:
            emptied = jnp.where(kept[:, None], teacher.logits, 0)
            teacher = teacher._replace(logits=emptied, features=_emptied(teacher.features, example))
    index = None if regions else batch.index
    rows = batch._replace(label=label, target=target, index=index, teacher=teacher, weight=weight)
    return rows, output._replace(logits=logits, features=features)


def _emptied(features: Mapping[str, Array], kept: Bool[Array, "B"]) -> dict[str, Array]:
    """The features with zeros where an example is not kept."""
    return {name: jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for name, x in features.items()}


def example_weight(weight: Float[Array, "M"] | None, examples: int) -> Float[Array, "B"] | None:
    """The weights of B examples from those of their M rows: the largest of each, so that padding does not count."""
    return None if weight is None else jnp.max(weight.reshape(examples, -1), axis=1)

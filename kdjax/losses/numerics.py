"""The few guarded operations every loss is made of.

Three rules are kept here once: whatever comes in is computed in float32 at least; the gradient of a maximum
over classes goes to the first arg max alone, as in the reference code; values that are compared with each other are
computed once (`materialized`), because a compiler may round two copies of one expression differently.

Rows of weight 0 are expected to be finite: `kdjax.objectives.rows.as_rows` writes zeros into them before any loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.errors import Refused


def at_least_float32(logits: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """`logits` in float32, or in float64 if they are.

    Raises:
      Refused: the logits are not floating point.
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise Refused(f"logits are {logits.dtype}; expected floating point, [batch, classes].")
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def checked(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> tuple[Float[Array, "*B K"], Int[Array, "*B"]]:
    """`at_least_float32(logits)` and the labels as an array, K in the place of negative ones.

    Raises:
      Refused: labels are not integers, or are not one per row of logits.
    """
    logits, labels = at_least_float32(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise Refused(f"labels are {labels.dtype} {list(labels.shape)}; expected integer class numbers.")
    if labels.shape != logits.shape[:-1]:
        raise Refused(
            f"labels have shape {list(labels.shape)} and logits {list(logits.shape)}; "
            "expected one label per row, the class axis last."
        )
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # K may not fit in int8
    # Negative numbers would count classes from the end; K is outside, and gives NaN.
    return logits, jnp.where(labels < 0, logits.shape[-1], labels)


def classes(logits: Array, least: int, name: str) -> int:
    """K, the size of the last axis.

    Raises:
      Refused: fewer classes than the method is defined for.
    """
    k = logits.shape[-1]
    if k < least:
        raise Refused(f"{name} is defined for at least {least} classes; these logits have {k}.")
    return k


def picked(values: Float[Array, "*B K"], index: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """values[..., index]: one entry of each row."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def first_max(values: Float[Array, "*B K"]) -> tuple[Float[Array, "*B"], Int[Array, "*B"]]:
    """(maximum, lowest index that attains it); `jnp.max` would share the gradient among ties."""
    index = jnp.argmax(values, axis=-1)
    return picked(values, index), index


def probability(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """p_y as a quotient, a constant for the gradient: exactly 1/K where all logits are equal, unlike exp(log p_y).

    For comparing p_y with a threshold or the edges of bins.
    """
    return jax.lax.stop_gradient(picked(jax.nn.softmax(logits, axis=-1), labels))


def one_minus_exp(log_p: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """1 - exp(log_p), exact where p is close to 1."""
    return -jnp.expm1(log_p)


def power(base: Float[Array, "*B"], exponent: Float[Array, "*B"] | float) -> Float[Array, "*B"]:
    """base ** exponent for base >= 0, exponent >= 0; 0 ** 0 = 1 and the derivative at base 0 is 0."""
    positive = base > 0
    raised = jnp.power(jnp.where(positive, base, 1.0), exponent)
    return jnp.where(positive, raised, jnp.where(jnp.asarray(exponent) == 0, 1.0, 0.0).astype(raised.dtype))


def weights(logits: Float[Array, "B K"], weight: Float[Array, "B"] | None) -> Float[Array, "B"]:
    """The example weights in the dtype of the logits; ones where there are none."""
    return jnp.ones(logits.shape[:1], logits.dtype) if weight is None else jnp.asarray(weight).astype(logits.dtype)


def materialized(values: Float[Array, "B"] | Int[Array, "B"]) -> Array:
    """The same values, written to memory once: for values that are compared with each other at several places.

    Without it XLA may compute an expression anew for each use, round the copies differently, and so find a value
    unequal to itself. A sort by position is what no compiler computes twice; on CPUs XLA removes
    `optimization_barrier` before it fuses.
    """
    return jax.lax.sort((jnp.arange(values.shape[0]), values), num_keys=1)[1]


def ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 with zero gradient where the denominator is 0."""
    some = denominator != 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1.0), 0.0)


def batch_mean(values: Float[Array, "B *rest"], weight: Float[Array, "B"]) -> Float[Array, "*rest"]:
    """sum_i w_i v_i / sum_i w_i over the batch; 0 when all weights are 0."""
    weight = weight.reshape(weight.shape + (1,) * (values.ndim - 1))
    return ratio(jnp.sum(weight * values, axis=0), jnp.sum(weight))


def softmax_pair(
    logits: Float[Array, "B K"], labels: Int[Array, "B"]
) -> tuple[Float[Array, "B K"], Float[Array, "B"], Float[Array, "B"]]:
    """(p, confidence r of the first arg max, hit c = 1[arg max = label], a constant)."""
    p = jax.nn.softmax(logits, axis=-1)
    index = jnp.argmax(logits, axis=-1)
    return p, picked(p, index), (index == labels).astype(p.dtype)

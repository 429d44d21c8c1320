"""Distillation losses on intermediate features, `Output.features`.

Each takes one student array and one teacher array of the same shape, leading axis B, and returns [B]. Networks of
different width need a projection, which the objectives of `kdjax.objectives` learn beside the student.
Computed in float32 at least; the teacher receives no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.errors import Refused
from kdjax.targets.simple import as_float


def _pair(
    student: Array, teacher: Array, what: str, *, same: int | None = None, axes: int | None = None
) -> tuple[Array, Array]:
    """Both as floats, the teacher cut off from the gradient; `same` leading axes (all by default) must agree."""
    if axes is not None and student.ndim != axes:
        raise Refused(f"the {what} has shape {tuple(student.shape)}; expected {axes} axes: name a layer that has them.")
    if student.ndim != teacher.ndim or student.shape[:same] != teacher.shape[:same]:
        raise Refused(
            f"the {what} of the student has shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; "
            "they must agree: name layers of equal size, or project one of them first."
        )
    return as_float(student), jax.lax.stop_gradient(as_float(teacher))


def _masked_mean(x: Array, mask: Array | None) -> Array:
    """Mean over all axes but the first; `mask` [B, S] keeps entries of axis 1."""
    x = jnp.mean(x.reshape(*x.shape[:2], -1), axis=-1) if x.ndim > 1 else x[:, None]
    if mask is None:
        return jnp.mean(x, axis=-1)
    n = jnp.sum(mask, axis=-1)
    return jnp.sum(jnp.where(mask, x, 0.0), axis=-1) / jnp.maximum(n, 1)


def hidden_state(
    student: Float[Array, "B ..."], teacher: Float[Array, "B ..."], *, mask: Bool[Array, "B S"] | None = None
) -> Float[Array, "B"]:
    """Mean squared difference of hidden states (FitNets; TinyBERT's hidden loss without its projection).

    Args:
      student, teacher: [B, D], [B, S, D] or [B, H, W, C].
      mask: [B, S], true for real tokens; masked ones do not enter the mean.

    Raises:
      Refused: shapes that differ.

    Source: Romero et al., ICLR 2015, arXiv 1412.6550; Jiao et al., TinyBERT, arXiv 1909.10351.
    """
    s, t = _pair(student, teacher, "hidden state")
    return _masked_mean((s - t) ** 2, mask)


def attention(
    student: Float[Array, "B H S S"], teacher: Float[Array, "B H S S"], *, mask: Bool[Array, "B S"] | None = None
) -> Float[Array, "B"]:
    """Mean squared difference of attention matrices (TinyBERT), scores or weights as the model offers them.

    Scores at or below -100 count as 0, as in the authors' code: that is how masked positions are stored.

    Args:
      student, teacher: [B, heads, S, S].
      mask: [B, S], true for real tokens; queries and keys that are not real do not enter the mean.

    Raises:
      Refused: not four axes; shapes that differ.

    Source: Jiao et al., TinyBERT, arXiv 1909.10351.
    """
    s, t = _pair(student, teacher, "attention", axes=4)
    squared = (jnp.where(s <= -100, 0.0, s) - jnp.where(t <= -100, 0.0, t)) ** 2
    if mask is None:
        return jnp.mean(squared.reshape(squared.shape[0], -1), axis=-1)
    both = (mask[:, None, :, None] & mask[:, None, None, :]) & jnp.ones(squared.shape, bool)
    n = jnp.sum(both, axis=(1, 2, 3))
    return jnp.sum(jnp.where(both, squared, 0.0), axis=(1, 2, 3)) / jnp.maximum(n, 1)


def attention_transfer(student: Float[Array, "B H W C"], teacher: Float[Array, "B H W C2"]) -> Float[Array, "B"]:
    """Attention transfer for convolutional maps: mean_hw (a_s - a_t)^2, a = mean_c x^2 flattened to unit norm.

    Channels may differ in number, height and width may not. A map that is 0 everywhere stays 0.

    Raises:
      Refused: not four axes; height or width that differ.

    Source: Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928.
    """
    s, t = _pair(student, teacher, "feature map", same=-1, axes=4)
    a_s, a_t = (_unit(jnp.mean(x**2, axis=-1).reshape(x.shape[0], -1)) for x in (s, t))
    return jnp.mean((a_s - a_t) ** 2, axis=-1)


def pkd(student: Float[Array, "B *L D"], teacher: Float[Array, "B *L D"]) -> Float[Array, "B"]:
    """Patient KD: sum over layers of || h_s/|h_s| - h_t/|h_t| ||^2, h the hidden state of the classification token.

    The paper sums over the D entries; the authors' code takes their mean, so its weight is D times as large.

    Raises:
      Refused: shapes that differ.

    Source: Sun et al., EMNLP 2019, arXiv 1908.09355.
    """
    s, t = _pair(student, teacher, "hidden state")
    squared = (_unit(s) - _unit(t)) ** 2
    return jnp.sum(squared.reshape(squared.shape[0], -1), axis=-1)


def _unit(x: Array) -> Array:
    """x / |x| over the last axis; 0 stays 0."""
    size = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(size > 0, size, 1.0))

"""Shaping a teacher's distribution: the pointwise forms.

A target takes log-probabilities `log_p` [..., K] (any logits of that distribution do) and returns normalized
log-probabilities of the same shape. Class axis last, leading axes free; float32 at least, float64 when given float64.
Nothing here stops a gradient: a teacher's output arrives without one.

Order of use, after CUD's algorithm 1: calibrate (T_c), then shape, then temper with the distillation temperature.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.options import above, at_least, between, hyper
from kdjax.types import Scalar

EXCLUDED = -1e30
"""What a logit of -inf is read as: its class keeps probability exactly 0 and every gradient stays finite."""

FLOOR = -1e4
"""log-probability below which a class counts as impossible when a projection has to hand it mass."""


def as_float(x: Any) -> Array:
    """`x` in float64 if it is float64, else in float32."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _per_row(T: Scalar, like: Array) -> Array:
    """A temperature as something that divides [..., K]: a scalar, or one value per row."""
    T = jnp.asarray(T, like.dtype)
    return T[..., None] if T.ndim else T


def temper(log_p: Float[Array, "*B K"], T: Scalar) -> Float[Array, "*B K"]:
    """softmax(log p / T) in log space, i.e. p^(1/T) renormalized.

    Args:
      log_p: logits or log-probabilities.
      T: scalar or one value per row, > 0. T > 1 flattens: for T >= 1 this is the exact KL projection onto an entropy
        floor (`kdjax.targets.projection.project`), and so RTC's temperature scaling of the teacher.

    Raises:
      Refused: a Python number T <= 0.
    """
    above(0)("T", T)
    log_p = jnp.maximum(as_float(log_p), EXCLUDED)
    return jax.nn.log_softmax(log_p / _per_row(T, log_p), axis=-1)


def entropy(log_p: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """-sum_k p_k log p_k in nats, [0, log K]; a class of probability 0 contributes exactly 0."""
    log_p = as_float(log_p)
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)


def top(log_p: Float[Array, "*B K"]) -> Int[Array, "*B"]:
    """k*, the predicted class: the lowest index among ties. Taken from the logits as given, before any rounding."""
    return jnp.argmax(log_p, axis=-1)


def mistaken(log_p: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Bool[Array, "*B"]:
    """k* != y: where W-Clip and knowledge adjustment fire."""
    return top(log_p) != labels


def _at(x: Array, k: Array) -> Array:
    return jnp.take_along_axis(x, k[..., None], axis=-1)[..., 0]


def _put(x: Array, k: Array, value: Array) -> Array:
    return jnp.where(jnp.arange(x.shape[-1]) == k[..., None], value[..., None], x)


@hyper(eta=between(0, 1, open_low=True), m=between(0, 1, open_low=True))
def wclip(
    log_p: Float[Array, "*B K"], labels: Int[Array, "*B"], *, eta: Scalar = 0.5, m: Scalar = 0.7
) -> Float[Array, "*B K"]:
    """W-Clip (CUD eqs. 4-8): a wrong teacher gives part of its top class's mass to the label.

    With k* = argmax p != y: delta = min(eta p_k*, m (p_k* - p_y)); p_y + delta, p_k* - delta, the rest untouched.
    With k* = y: p, unchanged to the bit.

    What it is: the squared-Euclidean projection of p onto {q : q_y - q_k* >= -(p_k* - p_y) + 2 delta}. It is *not* the
    KL projection onto {q_k* <= p_k* - delta}, as the paper's appendix suggests: that one spreads the freed mass over
    every other class in proportion (`kdjax.targets.projection.project`). At m = eta = 1 it swaps the two
    probabilities: knowledge adjustment (`swap`) is its undamped limit.

    Args:
      log_p: logits or log-probabilities of the teacher at temperature 1 (clip first, then temper).
      labels: integers in [0, K).
      eta: budget, in (0, 1]: no more than this share of p_k* is moved. Paper: 0.5.
      m: margin, in (0, 1]: no more than this share of p_k* - p_y. Paper: 0.7.

    Raises:
      Refused: Python numbers outside these ranges.

    Source: Trust the uncertain teacher (CUD), arXiv 2602.12687, section 3.4.
    """
    k = top(log_p)
    log_p = temper(log_p, 1.0)
    l_y, l_k = _at(log_p, labels), _at(log_p, k)
    # delta / p_k*, exact however small p_y is; 0 where k* = y, and then both updates below are the identity.
    eta, m = jnp.asarray(eta, log_p.dtype), jnp.asarray(m, log_p.dtype)
    share = jnp.minimum(eta, -jnp.expm1(l_y - l_k) * m)
    # log(1 - share) from its parts: at m = eta = 1 the difference would round a small p_y to 0.
    kept = jnp.maximum(jnp.log1p(-eta), jnp.logaddexp(jnp.log1p(-m), jnp.log(m) + l_y - l_k))
    clipped = _put(_put(log_p, k, l_k + kept), labels, jnp.logaddexp(l_y, l_k + jnp.log(share)))
    return jnp.where((k != labels)[..., None], clipped, log_p)


def swap(log_p: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B K"]:
    """Knowledge adjustment by probability shift: where k* != y, p_y and p_k* change places.

    Source: Wen et al., Preparing lessons, arXiv 1911.07471.
    """
    k = top(log_p)
    log_p = temper(log_p, 1.0)
    return _put(_put(log_p, k, _at(log_p, labels)), labels, _at(log_p, k))


@hyper(c=between(0, 1, open_high=True))
def margin(log_p: Float[Array, "*B K"], labels: Int[Array, "*B"], *, c: Scalar = 0.0) -> Float[Array, "*B K"]:
    """KL projection onto {q : q_y - q_k >= c}, k the label's strongest rival (k* where the teacher is wrong).

    q is proportional to p with p_y multiplied by t and p_k divided by it,
    t = [c R + sqrt(c^2 R^2 + 4 (1 - c^2) p_y p_k)] / (2 (1 - c) p_y), R = 1 - p_y - p_k.
    Rows that satisfy the constraint are returned unchanged; a third class may still lead (`top1` rules that out).

    Args:
      log_p: logits or log-probabilities.
      labels: integers in [0, K).
      c: in [0, 1).

    Raises:
      Refused: a Python number c outside [0, 1).
    """
    log_p = temper(log_p, 1.0)
    safe = jnp.maximum(log_p, FLOOR)
    c = jnp.asarray(c, log_p.dtype)
    k = top(_put(safe, labels, jnp.full(labels.shape, -jnp.inf, safe.dtype)))
    l_y, l_k = _at(safe, labels), _at(safe, k)
    pair = (jnp.arange(safe.shape[-1]) == labels[..., None]) | (jnp.arange(safe.shape[-1]) == k[..., None])
    l_cr = jnp.log(c) + jax.nn.logsumexp(jnp.where(pair, -jnp.inf, safe), axis=-1)
    root = 0.5 * jnp.logaddexp(2 * l_cr, jnp.log(4 * (1 - c) * (1 + c)) + l_y + l_k)
    l_t = jnp.logaddexp(l_cr, root) - jnp.log(2 * (1 - c)) - l_y
    moved = jax.nn.log_softmax(_put(_put(safe, labels, l_y + l_t), k, l_k - l_t), axis=-1)
    violated = jnp.exp(l_y) - jnp.exp(l_k) < c
    # Differences of probabilities round away where both are tiny; the order of the two never does.
    violated |= l_y < l_k
    return jnp.where(violated[..., None], moved, log_p)


@hyper(eps=at_least(0))
def standardize(logits: Float[Array, "*B K"], *, eps: Scalar = 1e-7) -> Float[Array, "*B K"]:
    """LSKD's Z(x) = (x - mean_j x) / (s + eps), s the standard deviation over classes with divisor K - 1.

    eps stands outside the root, as in the authors' code (the paper writes no eps). A constant row gives zeros; the
    derivative of s is taken as 0 there, so that its gradient is finite (of size 1/eps). A class excluded by -inf stays
    excluded and enters neither mean nor s.

    Source: Sun et al., Logit standardization in knowledge distillation, CVPR 2024, arXiv 2403.01427.
    """
    logits = as_float(logits)
    kept = logits > EXCLUDED
    n = jnp.sum(kept, axis=-1, keepdims=True)
    safe = jnp.where(kept, logits, 0.0)
    centered = jnp.where(kept, safe - jnp.sum(safe, axis=-1, keepdims=True) / jnp.maximum(n, 1), 0.0)
    variance = jnp.sum(centered**2, axis=-1, keepdims=True) / jnp.maximum(n - 1, 1)
    spread = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return jnp.where(kept | jnp.isnan(logits), centered / (spread + eps), EXCLUDED)

"""Calibration terms: added to a label loss, most of them statistics of the whole batch.

A batch-coupled term takes `weight=None`, non-negative example weights, and returns a scalar. Weight 0 is the
same as absence, in value and gradient, for every row of finite logits; a weight of 2 is the same as a repeated
example (CRL excepted, where it weighs the example's pair). Under sharding the batch is the global one: the
authors' codes compute the same statistics per process, so theirs depend on the number of devices.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses.numerics import (
    at_least_float32,
    batch_mean,
    checked,
    first_max,
    materialized,
    picked,
    ratio,
    softmax_pair,
    weights,
)
from kdjax.options import above, at_least, choice, hyper
from kdjax.types import Scalar

Weight = Float[Array, "B"] | None


def mdca(logits: Float[Array, "B K"], labels: Int[Array, "B"], *, weight: Weight = None) -> Float[Array, ""]:
    """(1/K) Σ_j |mean_i p_ij - mean_i 1[y_i = j]|: multi-class difference in confidence and accuracy.

    Args:
      logits: [B, K].
      labels: [B], integers in [0, K).
      weight: [B] or None.
    Returns:
      a scalar in [0, 2/K]. Gradient through p; exactly 0 for a class whose two means agree.
    Source: Hebbalaguppe et al., CVPR 2022; KD(C) and MDCA `solvers/loss.py` (identical). The value depends on
      the batch size: with B << K most classes are absent and it only pushes mass down. Never average it over
      micro-batches.
    """
    logits, labels = checked(logits, labels)
    weight = weights(logits, weight)
    p = jax.nn.softmax(logits, axis=-1)
    onehot = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return jnp.mean(jnp.abs(batch_mean(p, weight) - batch_mean(onehot, weight)))


def dca(logits: Float[Array, "B K"], labels: Int[Array, "B"], *, weight: Weight = None) -> Float[Array, ""]:
    """|mean_i r_i - mean_i c_i|, r the confidence and c the hit of the predicted class.

    Args:
      logits: [B, K].
      labels: [B], integers in [0, K).
      weight: [B] or None.
    Returns:
      a scalar in [0, 1]. Gradient through r, to the first arg max; c is constant.
    Source: Liang et al., BMVC 2020; GB-TonyLiang/DCA `loss_fn.py`. KD(C) ships it but does not register it.
    """
    logits, labels = checked(logits, labels)
    weight = weights(logits, weight)
    _, r, c = softmax_pair(logits, labels)
    return jnp.abs(batch_mean(r, weight) - batch_mean(c, weight))


def _smoothed(r: Float[Array, "B"], values: Float[Array, "B"], width: float | Array) -> Float[Array, "B"]:
    """Σ_j k(r_i, r_j) values_j. A sum: accelerators multiply matrices at reduced precision by default."""
    gap = r[:, None] - r[None, :]
    # Equal confidences differ by the rounding of their sums, whose sign is no direction: the slope there is 0.
    gap = jnp.where(jnp.abs(gap) > 4 * jnp.finfo(r.dtype).eps, gap, 0.0)
    return jnp.sum(jnp.exp(-jnp.abs(gap) / width) * values, axis=1)


@hyper(width=above(0))
def mmce(
    logits: Float[Array, "B K"],
    labels: Int[Array, "B"],
    *,
    width: Scalar = 0.4,
    weight: Weight = None,
) -> Float[Array, ""]:
    """(1/B²) Σ_ij (c_i - r_i)(c_j - r_j) k(r_i, r_j), k(a, b) = exp(-|a - b| / width).

    The squared maximum mean calibration error of the predicted class.

    Args:
      logits: [B, K].
      labels: [B], integers in [0, K).
      width: > 0, of the Laplacian kernel.
      weight: [B] or None.
    Returns:
      a scalar in [0, 1]. Gradient through r, in the errors and in the kernel; c is constant. Memory O(B²).
    Source: Kumar, Sarawagi, Jain, ICML 2018; focal_calibration `Losses/mmce.py` MMCE. The paper's objective
      is the square root of this; neither the original code nor its ports take the root.
    """
    logits, labels = checked(logits, labels)
    weight = weights(logits, weight)
    _, r, c = softmax_pair(logits, labels)
    e = weight * (c - r)
    return ratio(jnp.sum(e * _smoothed(r, e, width)), jnp.square(jnp.sum(weight)))


@hyper(width=above(0), normalization=choice("code", "paper"))
def mmce_weighted(
    logits: Float[Array, "B K"],
    labels: Int[Array, "B"],
    *,
    width: Scalar = 0.4,
    normalization: str = "code",
    weight: Weight = None,
) -> Float[Array, ""]:
    """sqrt(S(u,u)/m² + S(v,v)/n² - 2 S(u,v)/(mn)): MMCE with hits and errors weighed apart.

    m = Σ c_i hits, n = B - m errors, u_i = c_i (1 - r_i), v_i = (1 - c_i) r_i, S(a, b) = Σ_ij a_i b_j
    k(r_i, r_j).

    Args:
      logits: [B, K].
      labels: [B], integers in [0, K).
      width: > 0, of the Laplacian kernel.
      normalization: "paper" is the formula above; "code" divides each of the three terms once more, by m² +
        1e-5, n² + 1e-5 and mn + 1e-5. The original TensorFlow code and every port of it do that, so a
        published weight only has meaning with it: the rarer side, usually the errors, dominates.
      weight: [B] or None; m and n are sums of weights.
    Returns:
      a scalar >= 0; 0 with zero gradient when all are right or all are wrong. sqrt(. + 1e-10) caps the slope
      at 5e4.
    Raises:
      Refused: unknown normalization.
    Source: Kumar et al., ICML 2018; focal_calibration `Losses/mmce.py` MMCE_weighted, KD(C) `solvers/loss.py`
      MMCE.
    """
    logits, labels = checked(logits, labels)
    weight = weights(logits, weight)
    _, r, c = softmax_pair(logits, labels)
    m, n = jnp.sum(weight * c), jnp.sum(weight * (1.0 - c))
    mixed = (m > 0) & (n > 0)
    m, n = jnp.where(mixed, m, 1.0), jnp.where(mixed, n, 1.0)
    u, v = weight * c * (1.0 - r), weight * (1.0 - c) * r
    ku, kv = _smoothed(r, u, width), _smoothed(r, v, width)
    terms = jnp.stack([jnp.sum(u * ku), jnp.sum(v * kv), -2.0 * jnp.sum(u * kv)])
    pairs = jnp.stack([m * m, n * n, m * n])
    if normalization == "code":
        pairs = pairs * (pairs + 1e-5)
    # The offsets can push the difference a hair below 0, and a root is not taken where it is not used.
    squared = jax.nn.relu(jnp.sum(terms / pairs))
    return jnp.where(mixed, jnp.sqrt(jnp.where(mixed, squared + 1e-10, 1.0)), 0.0)


def crl_history(
    counts: Int[Array, "*B"], least: Int[Array, ""] | int, most: Int[Array, ""] | int
) -> Float[Array, "*B"]:
    """(counts - least) / (most - least): how often an example was right, in [0, 1] of what was possible.

    Args:
      counts: [*B], times each example was classified correctly during training.
      least: the minimum of the counts over the whole training set (in the code alone, not in the paper).
      most: H = max(1, epochs completed).
    Returns:
      [*B]; 0 for all when least = most (every example always right), where the reference divides 0 by 0 into
      a NaN loss.
    """
    span = jnp.asarray(most - least).astype(jnp.result_type(float))
    return ratio((counts - least).astype(span.dtype), span)


def _ranked_confidence(logits: Float[Array, "B K"], confidence: str, normalizer: Scalar) -> Float[Array, "B"]:
    """The confidence that CRL ranks: "softmax", "entropy" or "margin"."""
    p = jax.nn.softmax(logits, axis=-1)
    if confidence == "entropy":
        log_p = jnp.where(jnp.isneginf(logits), 0.0, jax.nn.log_softmax(logits, axis=-1))
        return jnp.sum(p * log_p, axis=-1) / jnp.where(jnp.asarray(normalizer) > 0, normalizer, math.log(p.shape[-1]))
    _, top = first_max(logits)
    if confidence == "softmax":
        return picked(p, top)
    rest = jnp.where(jnp.arange(p.shape[-1]) == top[:, None], -jnp.inf, logits)
    return picked(p, top) - picked(p, jnp.argmax(rest, axis=-1))


@hyper(span=at_least(0), confidence=choice("softmax", "entropy", "margin"), normalizer=at_least(0))
def crl(
    logits: Float[Array, "B K"],
    counts: Int[Array, "B"] | Float[Array, "B"],
    *,
    span: Scalar = 1.0,
    confidence: str = "softmax",
    normalizer: Scalar = 0.0,
    weight: Weight = None,
) -> Float[Array, ""]:
    """mean_i relu(-s_i (κ_i - κ_i+1) + d_i) where s_i != 0: correctness ranking loss.

    s_i = sign(n_i - n_i+1) and d_i = |n_i - n_i+1| / span for the counts n; the partner of an example is the next
    one of positive weight in the batch, cyclically. So the value depends on the order of the batch.

    Args:
      logits: [B, K].
      counts: n, [B], how often each example was right, integers; constant for the gradient. Integers are compared,
        because a compiler may round two equal quotients differently.
      span: largest count minus smallest that is possible by now (H - min over the training set, see
        `crl_history`); 0 gives a loss of 0. With span = 1 the counts may be a history in [0, 1].
      confidence: κ: "softmax" is the largest probability, "entropy" Σ_j p_j log p_j / normalizer
        (negative), "margin" the largest minus the second largest probability.
      normalizer: >= 0, of the entropy; 0 is log K. The code hard-codes 4.605170 for CIFAR-100 and 2.302585 for
        all else.
      weight: [B] or None.
    Returns:
      a scalar >= 0. Pairs with s = 0 add 0 but count in the mean. Gradient through κ of both partners.
    Raises:
      Refused: unknown confidence, span or normalizer < 0.
    Source: Moon et al., ICML 2020; daintlab/confidence-aware-learning `train.py`, `crl_utils.py`.
    """
    logits = at_least_float32(logits)
    weight = weights(logits, weight)
    kappa = _ranked_confidence(logits, confidence, normalizer)
    b = logits.shape[0]
    here = jnp.where(weight > 0, jnp.arange(b), 2 * b)
    # For each position, the first example with a weight at or after it, the batch written out twice.
    ahead = jax.lax.cummin(jnp.concatenate([here, here + b]), reverse=True)
    partner = ahead[1 : b + 1] % b
    counts = materialized(jax.lax.stop_gradient(jnp.asarray(counts)))
    difference = counts - counts[partner]
    sign = jnp.sign(difference).astype(kappa.dtype)
    apart = ratio(jnp.abs(difference).astype(kappa.dtype), jnp.asarray(span, kappa.dtype))
    loss = jax.nn.relu(-sign * (kappa - kappa[partner]) + apart)
    ranked = (sign != 0) & (jnp.asarray(span) > 0)
    return batch_mean(jnp.where(ranked, loss, 0.0), weight)

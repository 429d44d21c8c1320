"""AdaFocal's pure pieces: the bins, the loss that reads them, and the update on held-out data.

Source: Ghosh, Schaaf, Gormley, NeurIPS 2022; 3mcloud/adafocal `losses/adafocal.py`, `utils/metrics.py`.
  Checked against the authors' code, loss and update sequences. The sum over the batch and the gradient-norm
  clip at 2 are in the code alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses.numerics import checked, one_minus_exp, picked, power, probability, ratio
from kdjax.options import above, between, hyper, integer
from kdjax.types import Scalar


class AdaFocalState(NamedTuple):
    """Equal-mass bins of confidence, identified by rank: a bin keeps its gamma while its edges move.

    Attributes:
      gamma: [M], the exponent of each bin; negative means inverse focal.
      lower, upper: [M], edges in [0, 1], upper[b] = lower[b + 1].
    """

    gamma: Float[Array, "M"]
    lower: Float[Array, "M"]
    upper: Float[Array, "M"]


@hyper(num_bins=integer(1))
def adafocal_start(*, num_bins: int = 15, gamma: Scalar = 1.0) -> AdaFocalState:
    """Equal-width bins, all with the same gamma: how training starts."""
    edges = jnp.arange(num_bins + 1, dtype=jnp.float32) / num_bins
    return AdaFocalState(jnp.full(num_bins, gamma, jnp.float32), edges[:-1], edges[1:])


def adafocal_bin(probability: Float[Array, "*B"], state: AdaFocalState) -> Int[Array, "*B"]:
    """The bin of a true-class probability: the first b with lower_b <= p < upper_b, the ends open to 0 and 1.

    That is the number of inner upper edges <= p, also where edges coincide.
    """
    return jnp.sum(probability[..., None] >= state.upper[:-1], axis=-1)


def adafocal(
    logits: Float[Array, "*B K"], labels: Int[Array, "*B"], *, gamma: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """-(1 - sign(g) p_y)^|g| log p_y: focal for g > 0, inverse focal (1 + p_y)^|g| for g < 0, NLL for g = 0.

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
      gamma: g, one per example (`state.gamma[adafocal_bin(p_y, state)]`) or one for all; a constant for the
        gradient.
    Returns:
      [*B]. The code adds 1e-20 to the base against 0 to a negative power; here p_y = 1 gives 0 without it.
    """
    logits, labels = checked(logits, labels)
    log_p_y = picked(jax.nn.log_softmax(logits, axis=-1), labels)
    g = jax.lax.stop_gradient(jnp.asarray(gamma)).astype(log_p_y.dtype)
    # Not 1 - sign(g) p: near p = 1 that difference keeps no digits.
    base = jnp.where(g > 0, one_minus_exp(log_p_y), 1.0 + jnp.exp(log_p_y))
    return power(base, jnp.abs(g)) * -log_p_y


def true_probability(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """p_y, a constant for the gradient."""
    logits, labels = checked(logits, labels)
    return probability(logits, labels)


def adafocal_gap(
    confidence: Float[Array, "N"], hit: Bool[Array, "N"], num_bins: int
) -> tuple[Float[Array, "M"], Float[Array, "edges"]]:
    """Mean confidence minus accuracy in equal-mass bins (lo, hi].

    The M + 1 edges interpolate the sorted confidences (positions 0 .. N-1) at equally spaced positions from 0
    to N, held at the last: so the smallest confidence lies in no bin, as in the authors' code. An empty bin
    has gap 0.
    """
    n = confidence.shape[0]
    order = jnp.argsort(confidence)
    ordered, hit = confidence[order], hit[order].astype(confidence.dtype)
    # Position b N / M as an exact integer and a fraction: an edge that falls on a confidence is that confidence, and
    # whether it lies in the bin below does not hang on rounding.
    below = np.minimum(np.arange(num_bins + 1) * n // num_bins, n - 1)
    fraction = np.where(below == n - 1, 0.0, np.arange(num_bins + 1) * n % num_bins / num_bins)
    step = ordered[np.minimum(below + 1, n - 1)] - ordered[below]
    edges = ordered[below] + jnp.asarray(fraction, ordered.dtype) * step
    bin_index = jnp.searchsorted(edges, ordered, side="left") - 1
    member = jax.nn.one_hot(bin_index, num_bins, dtype=ordered.dtype, axis=0)
    # Sums, not a matrix product: accelerators multiply matrices at reduced precision by default.
    gap = jnp.sum(member * (ordered - hit), axis=1)
    return ratio(gap, jnp.sum(member, axis=1)), edges


@hyper(lam=above(0), switch=above(0), gamma_min=between(None, 0, open_high=True), gamma_max=above(0))
def adafocal_update(
    state: AdaFocalState,
    confidence: Float[Array, "N"],
    hit: Bool[Array, "N"],
    *,
    lam: Scalar = 1.0,
    switch: Scalar = 0.2,
    gamma_min: Scalar = -2.0,
    gamma_max: Scalar = 20.0,
) -> AdaFocalState:
    """gamma_b <- clip(gamma_b exp(±lam G_b)), + for gamma_b > 0; below |gamma_b| < switch it changes sign.

    Args:
      state: the bins.
      confidence: [N], probability of the predicted class, on held-out data in evaluation mode.
      hit: [N], whether the prediction was right.
      lam: > 0, step of the update.
      switch: > 0, the |gamma| below which focal and inverse focal change places (to ∓switch).
      gamma_min, gamma_max: bounds, gamma_min < 0 < gamma_max.
    Returns:
      the new bins, in the dtypes of the old.
    """
    gap, edges = adafocal_gap(confidence, hit, state.gamma.shape[0])
    up = state.gamma > 0
    gamma = state.gamma * jnp.exp(jnp.where(up, lam, -lam) * gap)
    gamma = jnp.where(jnp.abs(gamma) < switch, jnp.where(up, -switch, switch), gamma)
    new = AdaFocalState(jnp.clip(gamma, gamma_min, gamma_max), edges[:-1], edges[1:])
    return jax.tree.map(lambda value, old: value.astype(old.dtype), new, state)

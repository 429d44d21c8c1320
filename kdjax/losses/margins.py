"""Penalties on logit differences, one value per example: MbLS, ACLS and CPC.

Each is added to the NLL by its objective. A class whose logit is -inf is masked and takes no part.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses.numerics import at_least_float32, checked, classes, first_max, picked
from kdjax.options import at_least, choice, hyper, integer
from kdjax.types import Scalar


def _unmasked(logits: Float[Array, "*B K"]) -> tuple[Float[Array, "*B K"], Array]:
    """(logits with masked classes at 0, which classes are real): no inf - inf, no NaN gradient."""
    real = ~jnp.isneginf(logits)
    return jnp.where(real, logits, 0.0), real


@hyper(margin=at_least(0))
def mbls(logits: Float[Array, "*B K"], *, margin: Scalar = 10.0) -> Float[Array, "*B"]:
    """(1/K) Σ_j relu(max_k z_k - z_j - margin): margin-based label smoothing. No label enters.

    Args:
      logits: z, [*B, K].
      margin: >= 0, inf allowed (then 0). 10 by default, 6 often quoted for CIFAR-10.
    Returns:
      [*B]. Gradient through the first arg max and through z_j. The mean is over classes too, as in the code:
      with K = 100 the effective weight is 1/100 of a sum over classes.
    Source: Liu et al., CVPR 2022; by-liu/MbLS `calibrate/losses/logit_margin_l1.py`, which adds it with
      weight 0.1.
    """
    logits = at_least_float32(logits)
    top, _ = first_max(logits)
    z, real = _unmasked(logits)
    excess = jax.nn.relu(top[..., None] - z - margin)
    return jnp.mean(jnp.where(real, excess, 0.0), axis=-1)


@hyper(margin=at_least(0), pos_lambda=at_least(0), neg_lambda=at_least(0), reference=choice("max", "range"))
def acls(
    logits: Float[Array, "*B K"],
    *,
    margin: Scalar = 10.0,
    pos_lambda: Scalar = 1.0,
    neg_lambda: Scalar = 0.1,
    reference: str = "max",
) -> Float[Array, "*B"]:
    """pos_lambda Σ_top relu(h - margin)² + neg_lambda/(K-1) Σ_others relu(sg(max z) - z_j - margin)².

    Args:
      logits: z, [*B, K].
      margin: >= 0.
      pos_lambda: >= 0, weight of the predicted class.
      neg_lambda: >= 0, weight of the others.
      reference: h of the predicted class: "max" is its raw logit, as the official code has it (not invariant
        to a constant added to the logits); "range" is max z - sg(min z), as we understand the paper.
    Returns:
      [*B]. `top` holds all tied maxima; the first part's gradient goes to the first arg max (n-fold for n
      ties), the second part's to z_j alone.
    Raises:
      Refused: fewer than two classes, unknown reference.
    Source: Park et al., ICCV 2023; cvlab-yonsei/ACLS `calibrate/losses/acls.py`, which adds it with weight
      0.1.
    """
    logits = at_least_float32(logits)
    k = classes(logits, 2, "acls")
    top, _ = first_max(logits)
    z, real = _unmasked(logits)
    tied = logits == top[..., None]
    height = top
    if reference == "range":
        # Stopped like the maximum of the second part: each part moves the logit that it is about.
        height = top - jax.lax.stop_gradient(jnp.min(jnp.where(real, logits, jnp.inf), axis=-1))
    first = jnp.sum(tied, axis=-1) * jnp.square(jax.nn.relu(height - margin))
    excess = jnp.square(jax.nn.relu(jax.lax.stop_gradient(top)[..., None] - z - margin))
    second = jnp.sum(jnp.where(tied | ~real, 0.0, excess), axis=-1) / (k - 1)
    return pos_lambda * first + neg_lambda * second


def cpc_discrimination(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """(1/(K-1)) Σ_j≠y -log(p_y / (p_y + p_j)): CPC's one-against-one term.

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
    Returns:
      [*B], >= 0. Gradient through all logits.
    Raises:
      Refused: fewer than two classes.
    Source: Cheng, Vasconcelos, CVPR 2022 (Calibrating deep neural networks by pairwise constraints). No
      official code was found; the form agrees with the re-implementation in by-liu/CALS.
    """
    logits, labels = checked(logits, labels)
    k = classes(logits, 2, "cpc")
    z, real = _unmasked(logits)
    other = real & (jnp.arange(k) != labels[..., None])
    losses = jax.nn.softplus(z - picked(logits, labels)[..., None])
    return jnp.sum(jnp.where(other, losses, 0.0), axis=-1) / (k - 1)


@hyper(normalization=choice("pairs", "cals"), elements=integer(1))
def cpc_exclusion(
    logits: Float[Array, "B K"],
    labels: Int[Array, "B"],
    *,
    normalization: str = "pairs",
    elements: int = 1 << 21,
) -> Float[Array, "B"]:
    """mean over j < k, both not y, of -½[log σ(z_j - z_k) + log σ(z_k - z_j)]: CPC's exclusion term.

    It pushes every pair of wrong classes to one half.

    Args:
      logits: z, [B, K].
      labels: [B], integers in [0, K).
      normalization: "pairs" divides by the number of pairs, (K-1)(K-2)/2; "cals" is the form of by-liu/CALS,
        over ordered pairs with the diagonal: half of "pairs" plus log 2 / (2 (K-2)). Its gradient is half as
        large.
      elements: pairs held in memory at once, B·K·chunk; a memory knob that leaves the value as it is up to
        rounding.
    Returns:
      [B], >= log 2 for "pairs", the minimum being at equal logits; 0 when K < 3, where there is no pair
      (CALS: 0·∞).
    Raises:
      Refused: unknown normalization; fewer than two classes.
    Source: as `cpc_discrimination`. The pairs are walked in chunks of classes and recomputed in the backward
      pass: all B K² of them at B = 1024, K = 1000 would take 4 GB.
    """
    logits, labels = checked(logits, labels)
    k = classes(logits, 2, "cpc")
    if k < 3:
        return jnp.zeros(labels.shape, logits.dtype)
    z, real = _unmasked(logits)
    other = real & (jnp.arange(k) != labels[:, None])
    width = max(1, min(k, elements // max(1, z.shape[0] * k)))
    chunks = -(-k // width)

    @jax.checkpoint
    def chunk(start):
        # The last chunk is shifted back to fit; `fresh` leaves out the classes that were walked before.
        first = jnp.minimum(start, k - width)
        j = first + jnp.arange(width)
        d = jnp.abs(jax.lax.dynamic_slice_in_dim(z, first, width, 1)[:, :, None] - z[:, None, :])
        fresh = (jax.lax.dynamic_slice_in_dim(other, first, width, 1) & (j >= start))[:, :, None]
        pair = fresh & other[:, None, :] & (j[:, None] < jnp.arange(k))
        return jnp.sum(jnp.where(pair, 0.5 * d + jnp.log1p(jnp.exp(-d)), 0.0), axis=(1, 2))

    def step(total, start):
        return total + chunk(start), None

    total, _ = jax.lax.scan(step, jnp.zeros(labels.shape, z.dtype), width * jnp.arange(chunks))
    if normalization == "cals":
        return (total + (k - 1) * 0.5 * math.log(2.0)) / ((k - 1) * (k - 2))
    return total / ((k - 1) * (k - 2) / 2)

"""Per-example losses: the proper scores, label smoothing and the focal family.

All take logits with the class axis last and return one value per row, [*B]; the objective takes the one
weighted mean. They compute in float32 at least, and in float64 when the logits are. A class whose logit is
-inf is masked: its probability is 0 and it takes no part, in value or gradient, unless it is the label (then
the loss is infinite, as it should be).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from kdjax.errors import Refused
from kdjax.losses.numerics import (
    at_least_float32,
    checked,
    classes,
    first_max,
    one_minus_exp,
    picked,
    power,
    probability,
)
from kdjax.options import at_least, between, choice, each, hyper
from kdjax.types import Scalar


def nll(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """-log p_y: negative log-likelihood, alias cross-entropy.

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K). A label outside gives NaN.
    Returns:
      [*B], nats, in [0, inf).
    Raises:
      Refused: labels are not integers, or not one per row.
    Source: KD(C) `solvers/loss.py`, which takes the mean. The focal-calibration and AdaFocal repositories
      train it as a sum over the batch, so their learning rates are not comparable.
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(*checked(logits, labels))


def soft_nll(logits: Float[Array, "*B K"], target: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """-Σ_j t_j log p_j: cross-entropy against a distribution.

    Args:
      logits: [*B, K].
      target: [*B, K], rows that sum to 1. An entry of exactly 0 contributes exactly 0, even where log p_j =
        -inf. The gradient flows into it unless the caller stops it.
    Returns:
      [*B], nats; at least the entropy of the target.
    Raises:
      Refused: the shapes differ.
    """
    logits, target = at_least_float32(logits), jnp.asarray(target)
    if logits.shape != target.shape:
        raise Refused(f"target has shape {list(target.shape)} and logits {list(logits.shape)}; expected the same.")
    # Plain optax.losses.softmax_cross_entropy gives NaN for target 0 at logit -inf; the safe one does not.
    return optax.losses.safe_softmax_cross_entropy(logits, target.astype(logits.dtype))


@hyper(alpha=between(0, 1, open_high=True), form=choice("offtarget", "uniform"))
def label_smoothing(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    *,
    alpha: Scalar = 0.1,
    form: str = "offtarget",
) -> Float[Array, "*B"]:
    """-Σ_j t_j log p_j with t smoothed by alpha. Two losses share the name:

    - `form="offtarget"`: t = 1 - alpha on the label, alpha / (K - 1) on each other class (KD(C), MDCA
      repositories);
    - `form="uniform"`: t = (1 - alpha) onehot + alpha / K (Szegedy et al.; torch, optax, MbLS, ACLS).

    offtarget(alpha) = uniform(alpha K / (K - 1)): for K = 2 a factor 2 in alpha, for K = 100 one percent.

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
      alpha: in [0, 1); 0 is the NLL. KD(C)'s command line defaults to 5, its script passes 0.1; MbLS and ACLS
        use 0.05.
    Returns:
      [*B], nats. A masked class (logit -inf) drops its share of the smoothing mass.
    Raises:
      Refused: alpha outside [0, 1), unknown form; one class only.
    Source: KD(C) `solvers/loss.py`, which cites Szegedy et al. 2016 but codes the off-target form.
    """
    logits, labels = checked(logits, labels)
    k = classes(logits, 2, "label_smoothing")
    off = alpha / (k - 1) if form == "offtarget" else alpha / k
    on = 1.0 - alpha if form == "offtarget" else 1.0 - alpha + alpha / k
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_p_y = picked(log_p, labels)
    # Not smooth_labels + soft_nll: a masked class would get target alpha/K at log-probability -inf.
    other = (jnp.arange(k) != labels[..., None]) & ~jnp.isneginf(logits)
    return -(on * log_p_y + off * jnp.sum(jnp.where(other, log_p, 0.0), axis=-1))


@hyper(gamma=at_least(0))
def focal(
    logits: Float[Array, "*B K"], labels: Int[Array, "*B"], *, gamma: Scalar | Float[Array, "*B"] = 3.0
) -> Float[Array, "*B"]:
    """-(1 - p_y)^gamma log p_y: focal loss. The gradient flows through both factors.

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
      gamma: >= 0, one for all or one per example; 0 is the NLL. Mukhoti et al. use 3; KD(C)'s command line 1,
        its script 3.
    Returns:
      [*B], in [0, inf). At p_y = 1 value and gradient are 0 (the reference gives NaN there for gamma < 1).
    Source: Lin et al. 2017; Mukhoti et al. 2020. KD(C) takes the mean over the batch, focal_calibration the
      sum.
    """
    logits, labels = checked(logits, labels)
    log_p_y = picked(jax.nn.log_softmax(logits, axis=-1), labels)
    return power(one_minus_exp(log_p_y), gamma) * -log_p_y


@hyper(gamma=at_least(0), gammas=each(at_least(0), 2), thresholds=each(between(0, 1), 2))
def flsd(
    logits: Float[Array, "*B K"],
    labels: Int[Array, "*B"],
    *,
    gamma: Scalar = 3.0,
    gammas: tuple[Scalar, Scalar] = (5.0, 3.0),
    thresholds: tuple[Scalar, Scalar] = (0.2, 0.5),
) -> Float[Array, "*B"]:
    """Focal loss with gamma_i = 5 if p_y < 0.2, 3 if p_y < 0.5, else `gamma` (sample-dependent, "FLSD-53").

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
      gamma: >= 0, the exponent from p_y = 0.5 on, the only one that the authors' code lets one set.
      gammas: >= 0, the exponents below the first threshold and between the two.
      thresholds: two probabilities in [0, 1], ascending.
    Raises:
      Refused: thresholds in descending order.
    Returns:
      [*B]. gamma_i is a constant for the gradient; boundaries belong to the upper side.
    Source: Mukhoti et al. 2020, whose paper derives gamma(p) from Lambert's W; the shipped code uses these
      three steps. KD(C) ships the class but does not register it.
    """
    logits, labels = checked(logits, labels)
    if all(isinstance(t, int | float) for t in thresholds) and thresholds[0] > thresholds[1]:
        raise Refused(f"flsd.thresholds is {thresholds}; expected two probabilities in ascending order.")
    p_y = probability(logits, labels)
    gamma_i = jnp.where(p_y < thresholds[0], gammas[0], jnp.where(p_y < thresholds[1], gammas[1], gamma))
    return focal(logits, labels, gamma=jax.lax.stop_gradient(gamma_i))


@hyper(gamma=at_least(0))
def dual_focal(logits: Float[Array, "*B K"], labels: Int[Array, "*B"], *, gamma: Scalar = 5.0) -> Float[Array, "*B"]:
    """-(1 - p_y + p_j)^gamma log p_y, p_j the largest probability strictly below p_y (0 if there is none).

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
      gamma: >= 0; 0 is the NLL. The authors' class defaults to 0; their tuned values lie around 5.
    Returns:
      [*B]. The gradient flows through p_y and p_j; the choice of j is a constant.
    Source: Tao, Dong, Xu, ICML 2023 (arXiv 2305.13665), `Losses/dual_focal_loss.py`, which sums over the
      batch.
    """
    logits, labels = checked(logits, labels)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_p_y = picked(log_p, labels)
    below = (logits < picked(logits, labels)[..., None]) & ~jnp.isneginf(logits)
    _, j = first_max(jnp.where(below, logits, -jnp.inf))
    p_j = jnp.where(below.any(axis=-1), jnp.exp(picked(log_p, j)), 0.0)
    return power(one_minus_exp(log_p_y) + p_j, gamma) * -log_p_y


def brier(logits: Float[Array, "*B K"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Σ_j (p_j - 1[y = j])²: the Brier score.

    Args:
      logits: [*B, K].
      labels: [*B], integers in [0, K).
    Returns:
      [*B], in [0, 2].
    Source: Brier 1950; `Losses/brier_score.py` of focal_calibration. Some libraries halve it or divide by K.
    """
    logits, labels = checked(logits, labels)
    p = jax.nn.softmax(logits, axis=-1)
    return jnp.sum(jnp.square(p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)), axis=-1)

"""The calibrators that remember: AdaFocal bins, CRL counts and PSKD predictions per example (floor 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax import losses
from kdjax.errors import Refused, one_of, positive, within
from kdjax.losses.numerics import at_least_float32, softmax_pair
from kdjax.objectives.core import Objective, Terms, need, weighted_mean
from kdjax.objectives.rows import rows
from kdjax.types import Batch, Key, Spec


def _scatter_index(index: Int[Array, "B"], batch: Batch, size: int) -> Int[Array, "B"]:
    """Removed examples write past the end, where `mode="drop"` loses them."""
    return index if batch.weight is None else jnp.where(batch.weight > 0, index, size)


def adafocal(
    *,
    lam: float = 1.0,
    num_bins: int = 15,
    gamma: float = 1.0,
    switch: float = 0.2,
    gamma_min: float = -2.0,
    gamma_max: float = 20.0,
    reduction: str = "mean",
) -> Objective:
    """Focal loss whose gamma, one per confidence bin, follows the calibration gap of held-out data.

    Args:
      lam: > 0, step of the update.
      num_bins: equal-mass bins.
      gamma: start value of all bins.
      switch: > 0, |gamma| below which focal and inverse focal change places.
      gamma_min, gamma_max: bounds of gamma, below and above 0.
      reduction: "mean" over the batch, or "sum" as in the authors' code, whose learning rate (0.1) and gradient-norm
        clip (2) belong to that scale.
    """
    positive("adafocal.lam", lam)
    if not isinstance(num_bins, int) or num_bins < 1:
        raise Refused(f"adafocal.num_bins is {num_bins!r}; expected a whole number, at least 1.")
    positive("adafocal.switch", switch)
    within("adafocal.gamma_min", gamma_min, None, 0.0, open_high=True)
    positive("adafocal.gamma_max", gamma_max)
    within("adafocal.gamma", gamma, gamma_min, gamma_max)
    one_of("adafocal.reduction", reduction, ("mean", "sum"))

    def apply(params, state, batch, output, clock):
        logits, labels = rows(batch, output, "adafocal")
        chosen = losses.adafocal_bin(losses.true_probability(logits, labels), state)
        values = losses.adafocal(logits, labels, gamma=state.gamma[chosen])
        if reduction == "mean":
            loss = weighted_mean(values, batch.weight)
        else:
            loss = jnp.sum(values if batch.weight is None else jnp.where(batch.weight > 0, batch.weight * values, 0.0))
        logs = {"adafocal_gamma_min": jnp.min(state.gamma), "adafocal_gamma_max": jnp.max(state.gamma)}
        return Terms({"adafocal": loss}, logs), state

    def refresh(state, logits, labels):
        _, confidence, hit = softmax_pair(at_least_float32(logits), jnp.asarray(labels))
        return losses.adafocal_update(
            state, confidence, hit, lam=lam, switch=switch, gamma_min=gamma_min, gamma_max=gamma_max
        )

    return Objective(lambda spec, key: ((), losses.adafocal_start(num_bins=num_bins, gamma=gamma)), apply, refresh)


class CRLState(NamedTuple):
    """How often each training example was right.

    Attributes:
      counts: [N], int32, over the steps in which the example took part.
    """

    counts: Int[Array, "N"]


def crl(*, weight: float = 1.0, confidence: str = "softmax", normalizer: float = 0.0) -> Objective:
    """NLL + weight * correctness ranking loss between neighbors of the batch.

    The history of an example is its count, less the minimum over the whole training set, divided by the same of H =
    max(1, epochs completed). Counts grow from the training outputs of the very step, before its update of weights; an
    example that appears twice in a batch counts once.

    Args:
      weight: >= 0, of the ranking term.
      confidence: "softmax", "entropy" or "margin"; see `losses.crl`.
      normalizer: > 0, of the entropy; 0 is log K.
    """
    within("crl.weight", weight, 0.0)
    one_of("crl.confidence", confidence, ("softmax", "entropy", "margin"))
    within("crl.normalizer", normalizer, 0.0)

    def init(spec: Spec, key: Key) -> tuple:
        return (), CRLState(jnp.zeros(spec.num_examples, jnp.int32))

    def apply(params, state, batch, output, clock):
        logits, labels = rows(batch, output, "crl")
        index = need(batch, "index", "crl")
        seen = jnp.asarray(state.counts)
        most = jnp.maximum(clock.epoch, 1)
        options = {"span": most - jnp.min(seen), "confidence": confidence, "normalizer": normalizer}
        ranking = losses.crl(logits, seen[index], **options, weight=batch.weight)
        hard = weighted_mean(losses.nll(logits, labels), batch.weight)
        now = seen[index] + (jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
        counts = seen.at[_scatter_index(index, batch, seen.shape[0])].max(now, mode="drop")
        return Terms({"nll": hard, "crl": weight * ranking}), state._replace(counts=counts)

    return Objective(init, apply)


class PSKDState(NamedTuple):
    """What the network said of each training example when it last saw it.

    Attributes:
      predictions: [N, K], probabilities in the dtype of `memory`; a row of zeros has not been seen.
    """

    predictions: Float[Array, "N K"]


def pskd(*, alpha_T: float = 0.8, memory: str = "float32") -> Objective:
    """NLL against (1 - a_e) onehot + a_e p_before, a_e = alpha_T (e + 1) / E: progressive self-distillation.

    p_before is the training output of the example's previous epoch, under that epoch's augmentation. There is no
    temperature. Epoch 0 is the plain NLL, and so is an example that has not been seen yet.

    Args:
      alpha_T: in [0, 1], weight of the past at the end of training.
      memory: "float32" or "float16", dtype of the N·K remembered probabilities. At N = 50,000, K = 100: 20 or 10 MB;
        at the size of ImageNet 5 GB or 2.6 GB.
    """
    within("pskd.alpha_T", alpha_T, 0.0, 1.0)
    dtype = jnp.dtype(one_of("pskd.memory", memory, ("float32", "float16")))

    def init(spec: Spec, key: Key) -> tuple:
        return (), PSKDState(jnp.zeros((spec.num_examples, spec.num_classes), dtype))

    def apply(params, state, batch, output, clock):
        logits, labels = rows(batch, output, "pskd")
        index = need(batch, "index", "pskd")
        past = jnp.asarray(state.predictions)
        alpha = jnp.where(clock.epoch == 0, 0.0, alpha_T * (clock.epoch + 1) / clock.epochs).astype(logits.dtype)
        onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        before = past[index].astype(logits.dtype)
        seen = jnp.any(before > 0, axis=-1, keepdims=True)
        target = (1 - alpha) * onehot + alpha * jnp.where(seen, before, onehot)
        loss = weighted_mean(losses.soft_nll(logits, jax.lax.stop_gradient(target)), batch.weight)
        now = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1)).astype(past.dtype)
        where = _scatter_index(index, batch, past.shape[0])
        predictions = past.at[where].set(now, mode="drop")
        return Terms({"pskd": loss}, {"pskd_alpha": alpha}), state._replace(predictions=predictions)

    return Objective(init, apply)

"""The calibrators that remember: AdaFocal bins, CRL counts and PSKD predictions per example."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax import losses
from kdjax.errors import Refused, within
from kdjax.losses.numerics import at_least_float32, softmax_pair
from kdjax.objectives.core import Objective, Terms, need, weighted_mean
from kdjax.objectives.terms import is_number, takes
from kdjax.options import at_least, between, choice, defaults, hyper
from kdjax.types import Batch, Key, Scalar, Spec


def _scatter_index(index: Int[Array, "B"], batch: Batch, size: int) -> Int[Array, "B"]:
    """Examples of weight 0 write past the end, where `mode="drop"` loses them."""
    return index if batch.weight is None else jnp.where(batch.weight > 0, index, size)


@takes(losses.adafocal_start, losses.adafocal_update)
@hyper(reduction=choice("mean", "sum"))
def adafocal(*, reduction: str = "mean", **options: Any) -> Objective:
    """Focal loss whose gamma, one per confidence bin, follows the calibration gap of held-out data.

    Args:
      reduction: "mean" over the batch, or "sum" as in the authors' code, whose learning rate (0.1) and gradient-norm
        clip (2) belong to that scale.
      **options: `num_bins` equal-mass bins that start at `gamma`, as in `losses.adafocal_start`; the step `lam` of
        their update, `switch`, `gamma_min` and `gamma_max`, as in `losses.adafocal_update`.

    Raises:
      Refused: values out of range, or a start outside [gamma_min, gamma_max].
    """
    first = {name: value for name, value in options.items() if name in defaults(losses.adafocal_start)}
    later = {name: value for name, value in options.items() if name not in first}
    known = {**defaults(losses.adafocal_start), **defaults(losses.adafocal_update), **options}
    within("adafocal.gamma", known["gamma"], known["gamma_min"], known["gamma_max"])

    def apply(params, state, batch, output, clock):
        logits, labels = output.logits, need(batch, "label", "adafocal")
        chosen = losses.adafocal_bin(losses.true_probability(logits, labels), state)
        values = losses.adafocal(logits, labels, gamma=state.gamma[chosen])
        if reduction == "mean":
            loss = weighted_mean(values, batch.weight)
        else:
            loss = jnp.sum(values if batch.weight is None else batch.weight * values)
        logs = {"adafocal_gamma_min": jnp.min(state.gamma), "adafocal_gamma_max": jnp.max(state.gamma)}
        return Terms({"adafocal": loss}, logs), state

    def refresh(state, logits, labels):
        _, confidence, hit = softmax_pair(at_least_float32(logits), jnp.asarray(labels))
        return losses.adafocal_update(state, confidence, hit, **later)

    return Objective(lambda spec, key: ((), losses.adafocal_start(**first)), apply, refresh)


_NOT_MET = -1


class CRLState(NamedTuple):
    """How often each training example was right.

    Attributes:
      counts: [N], int32, over the steps in which the example took part; -1 if it never did.
    """

    counts: Int[Array, "N"]


@takes(losses.crl, but=("span",))
@hyper(weight=at_least(0))
def crl(*, weight: Scalar = 1.0, **options: Any) -> Objective:
    """NLL + weight * correctness ranking loss between neighbors of the batch.

    The history of an example is its count, less the minimum over the whole training set, divided by the same of H =
    max(1, epochs completed). Where examples have weights, those that no step has met after the first epoch (weight 0)
    are left out of the minimum. Counts grow from the training outputs of the very step, before its update of weights;
    an example that appears twice in a batch counts once.

    Args:
      weight: >= 0, of the ranking term.
      **options: `confidence` and `normalizer` of `losses.crl`.

    Raises:
      Refused: values out of range, or a normalizer where no entropy is ranked.
    """
    if options.get("confidence", "softmax") != "entropy" and not is_number(options.get("normalizer", 0), 0):
        raise Refused(
            f"crl.normalizer is {options['normalizer']} and confidence {options.get('confidence', 'softmax')!r}, which "
            "has none; set confidence='entropy', or leave the normalizer at 0."
        )

    def init(spec: Spec, key: Key) -> tuple:
        return (), CRLState(jnp.full(spec.num_examples, _NOT_MET, jnp.int32))

    def apply(params, state, batch, output, clock):
        logits, labels = output.logits, need(batch, "label", "crl")
        index = need(batch, "index", "crl")
        counts = jnp.asarray(state.counts)
        # An example that no step has met counts 0, as in the authors' code. With weights, one that a whole epoch has
        # not met has weight 0, and counting it would keep the minimum at 0.
        waiting = 0 if batch.weight is None else jnp.where(clock.epoch < 1, 0, jnp.max(counts))
        span = jnp.maximum(clock.epoch, 1) - jnp.min(jnp.where(counts < 0, waiting, counts))
        before = jnp.maximum(counts[index], 0)
        ranking = losses.crl(logits, before, span=span, weight=batch.weight, **options)
        nll = weighted_mean(losses.nll(logits, labels), batch.weight)
        new = before + (jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
        counts = counts.at[_scatter_index(index, batch, counts.shape[0])].max(new, mode="drop")
        return Terms({"nll": nll, "crl": weight * ranking}), state._replace(counts=counts)

    return Objective(init, apply)


class PSKDState(NamedTuple):
    """What the network said of each training example when it last saw it.

    Attributes:
      predictions: [N, K], probabilities in the dtype of `memory`; a row of zeros has not been seen.
    """

    predictions: Float[Array, "N K"]


@hyper(alpha_T=between(0, 1), memory=choice("float32", "float16"))
def pskd(*, alpha_T: Scalar = 0.8, memory: str = "float32") -> Objective:
    """NLL against (1 - a_e) onehot + a_e p_before, a_e = alpha_T (e + 1) / E: progressive self-distillation.

    p_before is the training output of the example's previous epoch, under that epoch's augmentation. There is no
    temperature. Epoch 0 is the plain NLL, and so is an example that has not been seen yet.

    Args:
      alpha_T: in [0, 1], weight of the past at the end of training.
      memory: "float32" or "float16", dtype of the N·K remembered probabilities. At N = 50,000, K = 100: 20 or 10 MB;
        at the size of ImageNet 5 GB or 2.6 GB.
    """

    def init(spec: Spec, key: Key) -> tuple:
        return (), PSKDState(jnp.zeros((spec.num_examples, spec.num_classes), memory))

    def apply(params, state, batch, output, clock):
        logits, labels = output.logits, need(batch, "label", "pskd")
        index = need(batch, "index", "pskd")
        predictions = jnp.asarray(state.predictions)
        alpha = jnp.where(clock.epoch == 0, 0.0, alpha_T * (clock.epoch + 1) / clock.epochs).astype(logits.dtype)
        onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        before = predictions[index].astype(logits.dtype)
        known = jnp.any(before > 0, axis=-1, keepdims=True)
        target = (1 - alpha) * onehot + alpha * jnp.where(known, before, onehot)
        loss = weighted_mean(losses.soft_nll(logits, jax.lax.stop_gradient(target)), batch.weight)
        new = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1)).astype(predictions.dtype)
        predictions = predictions.at[_scatter_index(index, batch, predictions.shape[0])].set(new, mode="drop")
        return Terms({"pskd": loss}, {"pskd_alpha": alpha}), state._replace(predictions=predictions)

    return Objective(init, apply)

"""The one KD core: Hinton, KD(C), RTC, TTM, LSKD, CUD and knowledge adjustment are settings of it (floor 2).

    teacher logits --standardize--> /T_c --target--> (control) --> T^2 D(q^T, p^T) --weighting--> weighted batch mean

Calibrate first, then shape at temperature 1, then temper with the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax import targets
from kdjax.errors import Refused, one_of, positive, within
from kdjax.losses.distillation import DIVERGENCES, kd, power_sum
from kdjax.losses.numerics import at_least_float32, mask_absent
from kdjax.objectives.core import Objective, need, stateless, weighted_mean
from kdjax.types import Batch, Output


class Shaping(NamedTuple):
    """The options of every target; each reads its own."""

    eta: Any
    m: Any
    c: Any
    distance: str
    near: tuple
    near_mass: Any
    far: str
    far_mass: Any
    floor: Any
    ceiling: Any


Target = Callable[[Array, Array, Shaping], tuple[Array, Mapping[str, Array]]]

_IMPOSSIBLE = -27.6  # log 1e-12: Euclidean projections write exact zeros, which a reverse divergence cannot take


def _moved(log_q: Array, log_p: Array) -> Array:
    """[B], which rows are not the teacher's: every target normalizes anew, and that rounding is no shaping."""
    rounding = 16 * jnp.finfo(log_p.dtype).eps * (1 + jnp.abs(log_p))
    return jnp.any(jnp.abs(log_q - log_p) > rounding, axis=-1)


def _neighbors(near: Any, k: int) -> Array:
    """[K, K] booleans from the option; every class is near itself.

    Raises:
      Refused: while tracing, another shape.
    """
    itself = jnp.eye(k, dtype=bool)
    if not len(near):
        return itself
    if np.shape(near) != (k, k):
        raise Refused(
            f"near has shape {list(np.shape(near))}; expected {[k, k]}, row y the classes that mean what y does."
        )
    return jnp.asarray(near, bool) | itself


def _project(log_p: Array, labels: Array, o: Shaping) -> tuple[Array, Mapping[str, Array]]:
    k = log_p.shape[-1]
    near = _neighbors(o.near, k)[labels]
    wrong = targets.mistaken(log_p, labels)[:, None]
    far = {"mistake": jax.nn.one_hot(targets.top(log_p), k, dtype=bool) & wrong, "rest": ~near}[o.far] & ~near
    bounds: dict[str, Any] = {}
    if o.distance == "kl":
        p_y = jnp.exp(jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0])
        bounds["h_min"] = o.floor * (1 - p_y) * jnp.log(jnp.asarray(k, log_p.dtype))
        if not (isinstance(o.ceiling, int | float) and o.ceiling == 1):
            bounds["h_max"] = o.ceiling * jnp.log(jnp.asarray(k, log_p.dtype))
    found = targets.project(log_p, near, far, alpha=o.near_mass, eps=o.far_mass, distance=o.distance, **bounds)
    flags = {"floor_clamped": found.clamped, "ceiling_failed": found.failed, "masses_infeasible": found.infeasible}
    log_q = found.log_q
    if o.distance == "l2":
        floored = jax.nn.log_softmax(jnp.maximum(log_q, _IMPOSSIBLE), axis=-1)
        log_q = jnp.where(_moved(log_q, log_p)[:, None], floored, log_q)
    return log_q, flags


TARGETS: dict[str, Target] = {
    "none": lambda log_p, labels, o: (log_p, {}),
    "wclip": lambda log_p, labels, o: (targets.wclip(log_p, labels, eta=o.eta, m=o.m), {}),
    "swap": lambda log_p, labels, o: (targets.swap(log_p, labels), {}),
    "margin": lambda log_p, labels, o: (targets.margin(log_p, labels, c=o.c), {}),
    "top1": lambda log_p, labels, o: (targets.top1(log_p, labels, distance=o.distance), {}),
    "project": _project,
}

WEIGHTINGS: dict[str, Callable[[Array, Any], Array]] = {
    "none": lambda t, T: jnp.ones(t.shape[0], t.dtype),
    "power_sum": power_sum,
}


Control = Callable[[Array, Array, Array | None, Any], tuple[Array, Mapping[str, Array]]]


def _raw(log_p: Array, log_q: Array, weight: Array | None, wanted: Any) -> tuple[Array, Mapping[str, Array]]:
    return log_q, {}


def _same_entropy(log_p: Array, log_q: Array, weight: Array | None, wanted: Any) -> tuple[Array, Mapping[str, Array]]:
    own = weighted_mean(targets.entropy(log_q), weight)
    log_q, T = targets.match_entropy(log_p, jnp.where(jnp.asarray(wanted) > 0, wanted, own), weight)
    return log_q, {"control_T": T}


CONTROLS: dict[str, Control] = {
    "none": _raw,
    "entropy": _same_entropy,
}


def logits_of(
    batch: Batch, output: Output, method: str, T_c: Any = 1.0
) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
    """Student's logits and the teacher's, these divided by T_c; 0 where the weight is 0: not even a NaN there can reach
    a gradient.

    Raises:
      Refused: while tracing, if the batch has no teacher, or one with other classes.
    """
    teacher = need(batch, "teacher", method)
    if teacher.logits.shape != output.logits.shape:
        raise Refused(
            f"{method}: the student's logits have shape {tuple(output.logits.shape)} and the teacher's "
            f"{tuple(teacher.logits.shape)}; expected a teacher with the same classes, on the same batch."
        )
    z, _, _ = mask_absent(at_least_float32(output.logits), batch.weight)
    t, _, _ = mask_absent(jax.lax.stop_gradient(at_least_float32(teacher.logits)), batch.weight)
    return z, t / jnp.asarray(T_c, t.dtype)


def labels_of(batch: Batch, method: str) -> Int[Array, "B"]:
    """The labels, 0 where the weight is 0.

    Raises:
      Refused: while tracing, if the batch has none.
    """
    labels = need(batch, "label", method)
    return labels if batch.weight is None else jnp.where(batch.weight > 0, labels, 0)


def distill(
    *,
    T: Any = 4.0,
    T_c: Any = 1.0,
    divergence: str = "forward",
    standardize: bool = False,
    weighting: str = "none",
    target: str = "none",
    control: str = "none",
    control_entropy: Any = 0.0,
    eta: Any = 0.5,
    m: Any = 0.7,
    c: Any = 0.0,
    distance: str = "kl",
    near: Any = (),
    near_mass: Any = 0.0,
    far: str = "mistake",
    far_mass: Any = 0.1,
    floor: Any = 0.0,
    ceiling: Any = 1.0,
) -> Objective:
    """T^2 D(q^T || p^T) against the teacher's, calibrated and shaped, distribution q; mean over the batch.

    The label term and its weight are not in here: `distilled(hard, soft, alpha=)` blends. Logged where labels exist:
    `firing_rate`, the share of examples with k* != y; always: `shaped_rate`, the share whose target was changed.

    Args:
      T: distillation temperature of both networks, > 0.
      T_c: calibration temperature of the teacher alone, > 0.
      divergence: "forward", "reverse" or "js".
      standardize: LSKD's standardization of both logits first.
      weighting: "none", or "power_sum": WTTM's sum_k p_k^(1/(T_c T)) of the teacher.
      target: "none"; "wclip" (eta, m); "swap" (knowledge adjustment); "margin" (c); "top1" (distance); "project" (the
        rest). All but "none" need labels. Formulas and ranges: `kdjax.targets`.
      control: "entropy" replaces the shaped target by the raw teacher, tempered by the one T at which the batch's mean
        entropy is that of the shaped target; logged as `control_T`. What shaping gains over this is not softening.
      control_entropy: > 0: the mean entropy in nats that the control takes instead, such as the `entropy` in a DUS
        teacher's result.json: the ordinary teacher, as soft as that one. 0: the shaped target's.
      near: [K, K] booleans, row y the classes that share y's meaning (N); (): the class alone.
      near_mass, far_mass: q(N) >= near_mass, q(W) <= far_mass.
      far: W: "mistake", the teacher's wrong top class (as CUD uses it), or "rest", everything outside N.
      floor: H(q) >= floor (1 - p_y) log K: doubt in proportion to difficulty; in [0, 1].
      ceiling: H(q) <= ceiling log K; in (0, 1]. Rows where it cannot hold are counted in `ceiling_failed`.
      distance: "kl", or "l2" (of "project" the masses only, floored at 1e-12).

    Raises:
      Refused: unknown names, Python numbers out of range.
    """
    positive("T", T)
    positive("T_c", T_c)
    one_of("divergence", divergence, DIVERGENCES)
    one_of("weighting", weighting, WEIGHTINGS)
    one_of("target", target, TARGETS)
    one_of("control", control, CONTROLS)
    within("control_entropy", control_entropy, 0)
    if control == "none" and isinstance(control_entropy, int | float) and control_entropy:
        raise Refused(f"control_entropy is {control_entropy} and control is 'none'; set control='entropy' as well.")
    one_of("distance", distance, ("kl", "l2"))
    one_of("far", far, ("mistake", "rest"))
    within("eta", eta, 0, 1, open_low=True)
    within("m", m, 0, 1, open_low=True)
    within("c", c, 0, 1, open_high=True)
    within("near_mass", near_mass, 0, 1)
    within("far_mass", far_mass, 0, 1)
    within("floor", floor, 0, 1)
    within("ceiling", ceiling, 0, 1, open_low=True)
    if distance == "l2" and not all(isinstance(v, int | float) and v == d for v, d in ((floor, 0), (ceiling, 1))):
        raise Refused("distance 'l2' handles masses only; leave floor and ceiling at 0 and 1, or use distance='kl'.")
    options = Shaping(eta, m, c, distance, near, near_mass, far, far_mass, floor, ceiling)

    def value(batch, output, clock):
        z, t = logits_of(batch, output, "kd")
        if standardize:
            z, t = targets.standardize(jnp.stack([z, t]))  # as one, so that equal logits stay equal when compiled
        known = batch.label is not None or target != "none"
        labels = labels_of(batch, f"kd with target {target!r}") if known else jnp.zeros(t.shape[0], jnp.int32)
        log_p = targets.temper(t, T_c)
        shaped, flags = TARGETS[target](log_p, labels, options)
        logs = {"shaped_rate": _moved(shaped, log_p), **flags}
        if known:
            logs["firing_rate"] = targets.mistaken(log_p, labels)
        logs = {name: weighted_mean(rate.astype(jnp.float32), batch.weight) for name, rate in logs.items()}
        log_q, more = CONTROLS[control](log_p, shaped, batch.weight, control_entropy)
        # A row left alone keeps the teacher's own logits: where the student agrees, loss and gradient are exactly 0.
        log_q = jnp.where(_moved(log_q, log_p)[:, None], log_q, t / jnp.asarray(T_c, t.dtype))
        loss = kd(z, log_q, T=T, divergence=divergence)
        return loss * WEIGHTINGS[weighting](t, T_c * T), {**logs, **more}

    return stateless("kd", value)

"""The one KD: Hinton, KD(C), RTC, TTM, LSKD, CUD and knowledge adjustment are settings of it.

    teacher logits --standardize--> /T_c --target--> (control) --> T^2 D(q^T, p^T) --weighting--> weighted batch mean

Calibrate first, then shape at temperature 1, then temper with the student.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from kdjax import losses, targets
from kdjax.errors import Refused
from kdjax.losses.distillation import zero_where_equal
from kdjax.objectives.core import Objective, need, stateless, weighted_mean
from kdjax.objectives.shaping import CONTROLS, TARGETS, WEIGHTINGS, composed, moved, part
from kdjax.objectives.terms import is_number, setting, takes, teacher_logits
from kdjax.options import flag, hyper
from kdjax.types import Scalar


def _name(target: str | Callable) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "of its own")


PARTS = {"target": TARGETS, "control": CONTROLS, "weighting": WEIGHTINGS}
_CHECKS = {name: part(name, known) for name, known in PARTS.items()}


@takes(losses.kd)
@hyper(standardize=flag(), **_CHECKS)
def kd(
    *,
    T: Scalar = 4.0,
    T_c: Scalar = 1.0,
    divergence: str = "forward",
    standardize: bool = False,
    weighting: str | Callable = "none",
    target: str | Callable = "none",
    control: str | Callable = "none",
) -> Objective:
    """T^2 D(q^T || p^T) against the teacher's, calibrated and shaped, distribution q; mean over the batch.

    The label term and its weight are not in here: `distilled(label_term, kd(...), alpha=)` blends. Logged where labels
    exist: `firing_rate`, the share of examples with k* != y; always: `shaped_rate`, the share whose target was changed.

    Args:
      T: distillation temperature of both networks, > 0.
      T_c: calibration temperature of the teacher alone, > 0.
      divergence: "forward" (KL from teacher to student), "reverse", or "js" (Jensen-Shannon).
      standardize: LSKD: logits of both are standardized first.
      weighting: "power_sum" weighs an example with Z = sum_k p_k^(1/(T_c T)) of the teacher (WTTM).
      target: "wclip(eta=0.5, m=0.7)", "swap", "margin(c=0.0)", "top1(distance='kl')", or "project(...)" with the
        options of `kdjax.objectives.shaping.project`; options at their default may be left out. Or a function
        (logits [M, K], labels [M]) -> log-probabilities [M, K].
      control: "entropy" replaces the shaped target by the raw teacher, tempered by the one T at which the batch's mean
        entropy is that of the shaped target, or `nats` in "entropy(nats=1.2)"; logged as `control_T`. What shaping
        gains over this is not softening.

    Raises:
      Refused: unknown names or options, Python numbers out of range, a control that would change nothing.
    """
    shape, match, weigh = (
        composed(name, given, PARTS[name])
        for name, given in (("target", target), ("control", control), ("weighting", weighting))
    )
    if shape is None and isinstance(match, partial) and is_number(match.keywords.get("nats", 0), 0):
        raise Refused(
            "kd has control='entropy' and no target, so there is no entropy to match; name a target such as "
            "target='wclip', or a mean entropy as in control='entropy(nats=1.2)'."
        )

    def value(batch, output, clock):
        student, teacher = output.logits, teacher_logits(batch, output, "kd")
        z, t = student, teacher
        if standardize:
            z, t = targets.standardize(jnp.stack([z, t]))
        raw, t = t, t / jnp.asarray(T_c, t.dtype)
        log_p = log_q = targets.temper(t, 1.0)
        logs: dict[str, Any] = {}
        if shape is not None:
            shaped = shape(t, need(batch, "label", f"kd with target {_name(target)}"))
            log_q, logs = shaped if isinstance(shaped, tuple) else (shaped, {})
        logs = {"shaped_rate": moved(log_q, log_p), **logs}
        if batch.label is not None:
            logs["firing_rate"] = targets.mistaken(teacher, batch.label)
        logs = {name: weighted_mean(rate.astype(jnp.float32), batch.weight) for name, rate in logs.items()}
        if match is not None:
            log_q, more = match(log_p, log_q, batch.weight)
            logs |= more
        # A row left alone keeps the teacher's own logits: where the student agrees, loss and gradient are exactly 0.
        changed = moved(log_q, log_p)
        loss = losses.kd(z, jnp.where(changed[:, None], log_q, t), T=T, divergence=divergence)
        if standardize:
            loss = jnp.where(changed | (jnp.asarray(T_c) != 1), loss, zero_where_equal(student, teacher, loss))
        return loss if weigh is None else loss * weigh(raw, T_c * T), logs

    return stateless("kd", value)


kd.composed = PARTS  # type: ignore[attr-defined]

rtc = setting("rtc", kd, ("T", "T_c"), T=1.0, T_c=1.5)
ttm = setting("ttm", kd, ("T_c",), T=1.0, T_c=10.0)
wttm = setting("wttm", kd, ("T_c",), T=1.0, T_c=10.0, weighting="power_sum")
lskd = setting("lskd", kd, ("T",), T=2.0, standardize=True)
knowledge_adjustment = setting("knowledge_adjustment", kd, ("T", "T_c", "control"), target="swap")


@takes(losses.kd, targets.wclip, but=("divergence",))
@hyper(control=_CHECKS["control"])
def cud(*, T: Scalar = 4.0, T_c: Scalar = 1.0, control: str | Callable = "none", **options: Any) -> Objective:
    """KD against the teacher's distribution after W-Clip, whose options `eta` and `m` are taken here."""

    def wclip(logits, labels):
        return targets.wclip(logits, labels, **options)

    return kd(T=T, T_c=T_c, control=control, target=wclip)


cud.composed = {"control": CONTROLS}  # type: ignore[attr-defined]

"""Optimizers and learning-rate schedules by name, all of them optax's."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import optax

from kdjax.errors import Refused, one_of, positive, within
from kdjax.types import PyTree

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "multistep", "cosine", "linear", "onecycle")
DECAY_MASKS = ("all", "kernels")


def schedule(
    *,
    schedule: str = "constant",
    lr: float,
    total_steps: int,
    milestones: tuple[int, ...] = (),
    gamma: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """step -> learning rate, the step counted from 0; what `build` uses, so that a trainer can log it.

    With w = warmup_steps and n = total_steps:

        constant   lr
        multistep  lr·gamma^(number of milestones <= step)
        cosine     lr·(1 + cos(π(step − w)/(n − w)))/2, 0 at the end
        linear     lr·(1 − (step − w)/(n − w)), 0 at the end
        onecycle   cosine from lr/25 up to lr at 30 % of the run, then down to lr/250 000

    and before step w every one of them but onecycle, which warms up by itself, rises linearly from 0:
    lr·step/w.

    Args:
      schedule: one of `SCHEDULES`.
      lr: > 0, the highest value.
      total_steps: >= 1, length of the run.
      milestones: multistep only; strictly increasing steps inside (warmup_steps, total_steps).
      gamma: > 0, multistep's factor.
      warmup_steps: in [0, total_steps).

    Raises:
      Refused: unknown name; a number out of range; milestones outside the run, or for another schedule.
    """
    positive("optimizer.lr", lr)
    positive("optimizer.gamma", gamma)
    within("total_steps", total_steps, 1)
    check_times(schedule, milestones, warmup_steps, total_steps)
    if schedule == "onecycle":
        # optax needs a peak after step 0, which 30 % of a run of less than 4 steps is not.
        return optax.cosine_onecycle_schedule(total_steps, lr, pct_start=max(0.3, 1 / total_steps))
    rest = total_steps - warmup_steps
    after: optax.Schedule
    if schedule == "multistep":
        after = optax.piecewise_constant_schedule(lr, {m - warmup_steps: gamma for m in milestones})
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, rest)
    elif schedule == "linear":
        after = optax.linear_schedule(lr, 0.0, rest)
    else:
        after = optax.constant_schedule(lr)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), after], [warmup_steps])


def check_milestones(whose: str, milestones: tuple[float, ...], epochs: int) -> None:
    """Refuses milestones outside the run; those of a longer one, whose epochs alone were changed, with others to type.

    Args:
      whose: in the sentence, "the student's".

    Raises:
      Refused: naming the epochs.
    """
    for milestone in milestones:
        if milestone < epochs:
            within("optimizer.milestones", milestone, 0, epochs, open_low=True, open_high=True)
    if milestones and not max(milestones) < epochs:
        # In proportion, and the last one where three quarters of the run are over.
        scaled = tuple(float(f"{0.75 * epochs * m / max(milestones):.4g}") for m in milestones)
        raise Refused(
            f"{whose} optimizer.milestones is {milestones} and its epochs is {epochs}; expected epochs in "
            f"(0, {epochs}): where you set epochs, set optimizer.milestones too, to {scaled} perhaps."
        )


def check_times(
    schedule: str, milestones: tuple[float, ...], warmup: float, length: float, *, unit: str = "steps"
) -> None:
    """Refuses milestones and a warm-up that do not fit the schedule or the run, in the unit they were typed in.

    Args:
      schedule: one of `SCHEDULES`.
      milestones, warmup, length: moments of the run, counted in `unit`.
      unit: "steps", or "epochs" when a recipe is checked before the number of steps is known.

    Raises:
      Refused: an unknown schedule; milestones for a schedule without any, not increasing, or outside the run; a warm-up
        as long as the run, or for a schedule that has its own.
    """
    one_of("optimizer.schedule", schedule, SCHEDULES)
    within(f"warmup_{unit}", warmup, 0, length, open_high=True)
    if milestones and schedule != "multistep":
        raise Refused(
            f"optimizer.milestones is {tuple(milestones)} ({unit}) and optimizer.schedule {schedule!r} has none; "
            "expected milestones=() or schedule='multistep'."
        )
    if warmup and schedule == "onecycle":
        raise Refused(f"warmup_{unit} is {warmup} and the schedule 'onecycle' warms up by itself; expected 0.")
    if milestones and any(a >= b for a, b in itertools.pairwise((warmup, *milestones, length))):
        raise Refused(
            f"optimizer.milestones is {tuple(milestones)} ({unit}); expected strictly increasing {unit} "
            f"after {warmup} (end of the warm-up) and before {length} (end of the run)."
        )


def build(
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    nesterov: bool | None = None,
    weight_decay: float = 0.0,
    decay_mask: str = "all",
    clip_norm: float = 0.0,
    **shape: Any,
) -> optax.GradientTransformation:
    """The optimizer.

        sgd    g <- clip(g) + λw;  v <- μv + g;  w <- w − lr·(g + μv if nesterov else v)
        adamw  w <- w − lr·(m̂/(√v̂ + 1e-8) + λw) on clip(g), β₁ = momentum, β₂ = 0.999

    These are PyTorch's: SGD's decay enters the gradient before the momentum and is scaled by the learning
    rate of every later step; AdamW's is decoupled. The momentum buffer holds gradients, not updates, so a
    change of the learning rate acts at once.

    Args:
      name: one of `OPTIMIZERS`.
      momentum: μ (or β₁) in [0, 1).
      nesterov: True takes SGD's gradient at the place the momentum leads to, and is refused without such a momentum;
        None is True for sgd with momentum > 0 and False otherwise, so that a change of `name` asks for nothing else.
      weight_decay: λ >= 0.
      decay_mask: "all" decays every parameter, BatchNorm and biases included, as the KD(C) code does;
        "kernels" spares parameters called `bias` or `scale`.
      clip_norm: global 2-norm to which the raw gradient is cut; 0 leaves it alone.
      **shape: the arguments of `schedule`.

    Raises:
      Refused: unknown names, numbers out of range, and all that `schedule` refuses.
    """
    one_of("optimizer.name", name, OPTIMIZERS)
    one_of("optimizer.decay_mask", decay_mask, DECAY_MASKS)
    within("optimizer.momentum", momentum, 0.0, 1.0, open_high=True)
    within("optimizer.weight_decay", weight_decay, 0.0)
    within("optimizer.clip_norm", clip_norm, 0.0)
    rate = schedule(**shape)
    looks_ahead = name == "sgd" and momentum > 0
    if nesterov is None:
        nesterov = looks_ahead
    elif nesterov and not looks_ahead:
        raise Refused(
            f"optimizer.nesterov is True with {name!r} at momentum {momentum}; "
            "expected None or False, or 'sgd' with a momentum."
        )
    mask = spares_bias_and_scale if decay_mask == "kernels" else None
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name == "adamw":
        return optax.chain(*parts, optax.adamw(rate, b1=momentum, weight_decay=weight_decay, mask=mask))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask))
    return optax.chain(*parts, optax.sgd(rate, momentum=momentum or None, nesterov=nesterov))


def spares_bias_and_scale(params: PyTree) -> PyTree:
    """True where weight decay applies: on every leaf whose own name is neither `bias` nor `scale`."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return str(getattr(path[-1], "key", path[-1])) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)

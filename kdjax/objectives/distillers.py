"""Distillation methods by name.

A line of the registry is a loss of `kdjax.losses` that reads the teacher, a setting of KD, or a builder of this file.
Each gives the soft term alone; `kdjax.objectives.registry.distilled` adds the label term. `T_c` divides the teacher's
logits before anything else: RTC's calibrated teacher, under whatever loss. The weights of label and soft term that a
source publishes are in the registry line; choosing the method in a config string takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.objectives.core import Method, Objective, Terms, need, stateless, weighted_mean
from kdjax.objectives.features import attention, attention_transfer, hidden_state
from kdjax.objectives.kd import cud, kd, knowledge_adjustment, lskd, rtc, ttm, wttm
from kdjax.objectives.terms import of_loss, reads, takes, teacher_logits
from kdjax.objectives.transformer import pkd, tinybert
from kdjax.options import above, at_least, hyper
from kdjax.transforms import two_views
from kdjax.types import Key, Scalar, Spec, Transform


@takes(losses.dkd)
@hyper(T_c=above(0), warmup=at_least(0))
def dkd(*, T_c: Scalar = 1.0, warmup: Scalar = 20, **options: Any) -> Objective:
    """Decoupled KD times min(e / warmup, 1), e the epoch counted from 1; warmup = 0 is none."""

    def apply(params, state, batch, output, clock):
        t = teacher_logits(batch, output, "dkd", T_c)
        values = losses.dkd(output.logits, t, need(batch, "label", "dkd"), **options)
        ramp = jnp.minimum((clock.epoch + 1) / jnp.maximum(warmup, 1e-6), 1.0).astype(values.dtype)
        return Terms({"dkd": ramp * weighted_mean(values, batch.weight)}, {"warmup": ramp}), state

    return Objective(lambda spec, key: ((), ()), apply)


@takes(losses.mlld)
@hyper(T_c=above(0))
def mlld(
    *, T_c: Scalar = 1.0, weak: tuple[str, ...] = (), strong: tuple[str, ...] = ("rand_augment",), **options: Any
) -> Objective:
    """Three levels over two views; `weak` and `strong` name the transforms of the views that the method brings along.

    The recipe's own transform (crop and flip) runs before them and is shared by both views; the authors draw it anew
    for each.
    """
    two_views(weak, strong, num_classes=2)  # refuses unknown names

    def value(batch, output, clock):
        levels = losses.mlld(output.logits, teacher_logits(batch, output, "mlld", T_c), weight=batch.weight, **options)
        return sum(levels), {f"mlld_{name}": level for name, level in levels._asdict().items()}

    return stateless("mlld", value)


def _mlld_views(*, weak: tuple[str, ...], strong: tuple[str, ...], num_classes: int) -> Transform:
    return two_views(weak, strong, num_classes=num_classes)


def reversed_gradient(x: Float[Array, ""], strength: Float[Array, ""] | float) -> Float[Array, ""]:
    """x, whose gradient is multiplied by -strength: whoever minimizes the loss makes x climb it."""
    still = jax.lax.stop_gradient(x)
    return still - strength * (x - still)


@hyper(T_start=above(0), T_range=above(0), T_c=above(0), loops=above(0))
def ctkd(*, T_start: Scalar = 1.0, T_range: Scalar = 20.0, T_c: Scalar = 1.0, loops: Scalar = 10) -> Objective:
    """Curriculum temperature, global form: the student minimizes KD at T, T maximizes it by gradient reversal.

    T = T_start + T_range sigmoid(theta), theta = 1 at the start. As in the authors' code, theta is a parameter of the
    student's optimizer (its learning rate, momentum and weight decay) behind a gradient reversal of strength lambda(e),
    which rises along a half cosine from 0 to 1 over `loops` epochs, e counted from 1. The factor T^2 is part of what
    theta climbs, and so theta is pulled up by it.

    Source: Li et al., AAAI 2023, arXiv 2211.16231; zhengli97/CTKD.
    """

    def init(spec: Spec, key: Key) -> tuple:
        return {"theta": jnp.float32(1.0)}, ()

    def apply(params, state, batch, output, clock):
        e = jnp.minimum(clock.epoch + 1, loops)
        strength = 0.5 * (1 - jnp.cos(jnp.pi * e / loops))
        t = teacher_logits(batch, output, "ctkd", T_c)
        theta = reversed_gradient(params["theta"], strength)
        T = (T_start + T_range * jax.nn.sigmoid(theta)).astype(t.dtype)
        value = weighted_mean(losses.kd(output.logits, t, T=T), batch.weight)
        return Terms({"ctkd": value}, {"T": T, "ctkd_lambda": strength}), state

    return Objective(init, apply)


def _of(loss: Callable, formula: str, source: str, **more: Any) -> Method:
    """The line of a loss as it stands."""
    return _method(of_loss(loss, loss.__name__), formula, source, reads(loss), **more)


def _method(
    build: Callable[..., Objective], formula: str, source: str, needs: tuple[str, ...] = ("teacher",), **more: Any
) -> Method:
    return Method(build, "distiller", needs, formula, source, **more)


_LABELLED = ("teacher", "label")

DISTILLERS: dict[str, Method] = {
    "kd": _method(
        kd,
        "T²·KL(softmax(t/T) ‖ softmax(z/T))",
        "Hinton et al. 2015; KD(C), rhebbalaguppe/CalibrationXferViaKD solvers/kdloss.py (alpha 0.9, T 1 to 20)",
        published="KD(C), CIFAR-100 top-1 / ECE %, WRN-40-2 to WRN-40-1: NLL teacher 69.60 / 15.18, "
        "MDCA teacher 71.07 / 0.98",
        verified="golden",
    ),
    "rtc": _method(
        rtc,
        "T²·KL(softmax(t/(T_c·T)) ‖ softmax(z/T)), T = 1, T_c = 1.5: the teacher alone is tempered",
        "The role of teacher calibration, arXiv 2508.20224; no code found",
        published="CIFAR-100, gain over KD in top-1: VGG13 to MobileNetV2 +2.17, ResNet50 to MobileNetV2 +1.93",
        verified="law",
    ),
    "ttm": _method(
        ttm,
        "KL(p_t^(1/T_c)/Z ‖ p_s)",
        "Zheng & Yang 2024, arXiv 2402.11148; zkxufo/TTM (its example: T_c = 10, VGG13 to VGG8)",
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 74.32",
        weights=(1.0, 45.0),
    ),
    "wttm": _method(
        wttm,
        "Z·KL(p_t^(1/T_c)/Z ‖ p_s), Z = Σ_k p_t,k^(1/T_c)",
        "Zheng & Yang 2024, arXiv 2402.11148; zkxufo/TTM (its weights are per pair; alpha here)",
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 74.58",
    ),
    "lskd": _method(
        lskd,
        "T²·KL(softmax(Z(t)/T) ‖ softmax(Z(z)/T)), Z(x) = (x - mean)/(sd + 1e-7)",
        "Sun et al. 2024, arXiv 2403.01427; sunshangquan/logit-standardization-KD",
        published="CIFAR-100 top-1: ResNet32x4 to ResNet8x4 76.62",
        weights=(0.1, 9.0),
        verified="golden",
    ),
    "cud": _method(
        cud,
        "T²·KL(p̃^(T) ‖ p_s^(T)), p̃ = W-Clip(p_t, y): δ = min(η p_k*, m(p_k* - p_y)) moved from k* to y if k* ≠ y",
        "Trust the uncertain teacher, arXiv 2602.12687 (T not given, 4 is ours); no code found",
        _LABELLED,
        weights=(0.2, 0.8),
        published="Banking77 accuracy %, BERT-base to 4L-256: 91.22",
    ),
    "knowledge_adjustment": _method(
        knowledge_adjustment,
        "T²·KL(p̃^(T) ‖ p_s^(T)), p̃ = p_t with p_y and p_k* exchanged",
        "Wen et al. 2019, arXiv 1911.07471 (probability shift)",
        _LABELLED,
    ),
    "dkd": _method(
        dkd,
        "min(e/warmup, 1)·T²·[α·KL(b_t ‖ b_s) + β·KL(n_t ‖ n_s)], b = (p_y, 1-p_y), n = p given not y",
        "Zhao et al. 2022, arXiv 2203.08679; megvii-research/mdistiller",
        _LABELLED,
        weights=(1.0, 1.0),
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 74.81",
        verified="golden",
    ),
    "dist": _of(
        losses.dist,
        "T²·[β(1 - mean_i ρ(p_i·, q_i·)) + γ(1 - mean_k ρ(p_·k, q_·k))], ρ Pearson's correlation",
        "Huang et al. 2022, arXiv 2205.10536; hunto/DIST_KD",
        weights=(1.0, 1.0),
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 74.73",
    ),
    "mlld": _method(
        mlld,
        "Σ_τ [instance τ²KL + ‖Q'Q - P'P‖²/K + ‖QQ' - PP'‖²/B] over two views, τ in (T, 3, 5, 2, 6)",
        "Jin et al. 2023; Jin-Ying/Multi-Level-Logit-Distillation (0.1 on the label term of each view)",
        weights=(0.2, 0.9),
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 75.35",
        verified="golden",
        transform=_mlld_views,
    ),
    "ctkd": _method(
        ctkd,
        "T²·KL(softmax(t/T) ‖ softmax(z/T)), T learned against the student by gradient reversal",
        "Li et al. 2023, arXiv 2211.16231; zhengli97/CTKD",
        weights=(0.1, 0.9),
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 73.93",
        params="the temperature",
    ),
    "hidden_state": _method(
        hidden_state,
        "Σ_layers mean (W h_s - h_t)², W learned where the widths differ, else 1",
        "Romero et al. 2015, arXiv 1412.6550; TinyBERT, arXiv 1909.10351",
        params="a matrix for each pair of layers of unequal width",
        features=True,
    ),
    "attention": _method(
        attention,
        "Σ_layers mean (W A_s - A_t)², W learned over heads where their numbers differ, else 1",
        "TinyBERT, Jiao et al. 2020, arXiv 1909.10351",
        params="a matrix for each pair of layers of unequal width",
        features=True,
    ),
    "attention_transfer": _method(
        attention_transfer,
        "Σ_layers mean_hw (a_s - a_t)², a = mean_c x² at unit norm",
        "Zagoruyko & Komodakis 2017, arXiv 1612.03928",
        published="CIFAR-100 top-1, as zkxufo/TTM quotes it: WRN-40-2 to WRN-40-1 72.77",
        features=True,
    ),
    "pkd": _method(
        pkd,
        "kd·T²·KL(softmax(t/T) ‖ softmax(z/T)) + β·mean_l,d (W h_s/|W h_s| - h_t/|h_t|)², h the first token's state",
        "Sun et al. 2019, arXiv 1908.09355; intersun/PKD-for-BERT-Model-Compression",
        weights=(0.5, 1.0),
        published="Banking77 accuracy %, as CUD prints it: BERT-base to 6L-768 89.87, to 4L-256 86.60",
        params="a matrix for each pair of layers of unequal width",
        features=True,
    ),
    "tinybert": _method(
        tinybert,
        "first Σ_l mean (W h_s - h_t)² + Σ_l mean (a_s - a_t)², a the attention's scores; then KL(t ‖ z)/K",
        "Jiao et al. 2020, arXiv 1909.10351; huawei-noah TinyBERT, task_distill.py",
        weights=(0.0, 1.0),
        published="Banking77 accuracy %, without its augmentation, as CUD prints it: BERT-base to 6L-768 89.47",
        params="a matrix for the layers, where the widths differ, and one for each pair of other numbers of heads",
        features=True,
    ),
}

"""Distillation methods by name (floor 2).

Each builder takes keyword hyper-parameters with defaults, which may be traced arrays, and gives the soft term alone;
`kdjax.objectives.registry.distilled` adds the label term. `T_c` divides the teacher's logits before anything else:
RTC's calibrated teacher, under whatever loss. The weights of label and soft term that a source publishes are in the
registry line; choosing the method in a config string takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import Refused, nearest, one_of, positive, within
from kdjax.losses import distillation, features, uncertainty
from kdjax.losses.mlld import mlld as mlld_levels
from kdjax.objectives.core import Method, Objective, Terms, stateless, weighted_mean
from kdjax.objectives.kd_core import distill, labels_of, logits_of
from kdjax.objectives.rows import per_example
from kdjax.transforms import two_views
from kdjax.types import Key, Spec, Transform


def dkd(*, alpha: Any = 1.0, beta: Any = 8.0, T: Any = 4.0, T_c: Any = 1.0, warmup: Any = 20) -> Objective:
    """Decoupled KD times min(e / warmup, 1), e the epoch counted from 1; warmup = 0 is none."""
    within("alpha", alpha, 0)
    within("beta", beta, 0)
    positive("T", T)
    positive("T_c", T_c)
    within("warmup", warmup, 0)

    def apply(params, state, batch, output, clock):
        z, t = logits_of(batch, output, "dkd", T_c)
        values = distillation.dkd(z, t, labels_of(batch, "dkd"), alpha=alpha, beta=beta, T=T)
        ramp = jnp.minimum((clock.epoch + 1) / jnp.maximum(warmup, 1e-6), 1.0).astype(values.dtype)
        return Terms({"dkd": ramp * weighted_mean(values, batch.weight)}, {"warmup": ramp}), state

    return Objective(lambda spec, key: ((), ()), apply)


def dist(*, beta: Any = 1.0, gamma: Any = 1.0, T: Any = 1.0, T_c: Any = 1.0) -> Objective:
    """Correlations between and within classes."""
    within("beta", beta, 0)
    within("gamma", gamma, 0)
    positive("T", T)
    positive("T_c", T_c)

    def value(batch, output, clock):
        z, t = logits_of(batch, output, "dist", T_c)
        return distillation.dist(z, t, beta=beta, gamma=gamma, T=T, weight=batch.weight)

    return stateless("dist", value)


def mlld(
    *,
    T: Any = 4.0,
    T_c: Any = 1.0,
    variant: str = "reference",
    standardize: bool = False,
    weak: tuple[str, ...] = (),
    strong: tuple[str, ...] = ("rand_augment",),
) -> Objective:
    """Three levels over two views; `weak` and `strong` name the transforms of the views that the method brings along.

    The recipe's own transform (crop and flip) runs before them and is shared by both views; the authors draw it anew
    for each.
    """
    positive("T", T)
    positive("T_c", T_c)
    one_of("variant", variant, ("reference", "selecting"))
    two_views(weak, strong, num_classes=2)

    def value(batch, output, clock):
        z, t = logits_of(batch, output, "mlld", T_c)
        levels = mlld_levels(z, t, T=T, variant=variant, standardize=standardize, weight=batch.weight)
        return sum(levels), {f"mlld_{name}": level for name, level in levels._asdict().items()}

    return stateless("mlld", value)


def _mlld_views(*, weak: tuple[str, ...], strong: tuple[str, ...], num_classes: int, **_: Any) -> Transform:
    return two_views(weak, strong, num_classes=num_classes)


class CTKDState(NamedTuple):
    """theta: [], float32, T = T_start + T_range sigmoid(theta)."""

    theta: Float[Array, ""]


def ctkd(*, T_start: Any = 1.0, T_range: Any = 20.0, T_c: Any = 1.0, lr: Any = 0.05, loops: Any = 10) -> Objective:
    """Curriculum temperature, global form: the student minimizes KD at T, T maximizes it by gradient reversal.

    T = T_start + T_range sigmoid(theta), theta = 1 at the start. theta is state, not a parameter: each step ascends
    it, theta <- theta + lr lambda(e) dL/dtheta, lambda rising along a half cosine from 0 to 1 over `loops` epochs.
    The authors put theta into the student's optimizer (momentum, weight decay, its learning rate) behind a gradient
    reversal layer of strength lambda; this is the same game with plain gradient steps of its own size `lr`. As there,
    the factor T^2 is part of what theta climbs, and so is pulled up by it.
    """
    positive("T_start", T_start)
    positive("T_range", T_range)
    positive("T_c", T_c)
    within("lr", lr, 0)
    positive("loops", loops)

    def init(spec: Spec, key: Key) -> tuple:
        return (), CTKDState(jnp.float32(1.0))

    def apply(params, state, batch, output, clock):
        z, t = logits_of(batch, output, "ctkd", T_c)

        def loss(theta, z):
            T = (T_start + T_range * jax.nn.sigmoid(theta)).astype(z.dtype)
            return weighted_mean(distillation.kd(z, t, T=T), batch.weight), T

        value, T = loss(jax.lax.stop_gradient(state.theta), z)
        slope = jax.grad(loss, has_aux=True)(state.theta, jax.lax.stop_gradient(z))[0]
        e = jnp.minimum(clock.epoch + 1, loops)
        strength = 0.5 * (1 - jnp.cos(jnp.pi * e / loops))
        theta = jax.lax.stop_gradient(state.theta + lr * strength * slope).astype(jnp.float32)
        return Terms({"ctkd": value}, {"T": T}), state._replace(theta=theta)

    return Objective(init, apply)


def _on_features(name: str, loss: Callable, layers: tuple[str, ...], axes: int | None = None) -> Objective:
    """A feature loss summed over pairs of layers "student:teacher" (or one name for both).

    Without layers: over all common names, of arrays with that many axes if `axes` is given.
    """
    pairs = [(entry.split(":") * 2)[:2] for entry in ([layers] if isinstance(layers, str) else layers)]

    def pick(found: Any, wanted: str, whose: str) -> Array:
        if wanted not in found:
            hint = nearest(wanted, found) if found else "it offers none."
            raise Refused(f"{name} wants the feature {wanted!r} of the {whose}; {hint}")
        return found[wanted]

    def value(batch, output, clock):
        _, t = logits_of(batch, output, name)
        ours, theirs = output.features, batch.teacher.features
        common = pairs or [(f, f) for f in sorted(set(ours) & set(theirs)) if axes in (None, ours[f].ndim)]
        if not common:
            raise Refused(
                f"{name} compares features, and student ({', '.join(sorted(ours)) or 'none'}) and teacher "
                f"({', '.join(sorted(theirs)) or 'none'}) share none that fits; set layers, e.g. ('stage3:stage3',)."
            )
        kept = jnp.ones(t.shape[0], bool) if batch.weight is None else batch.weight > 0

        def mask_absent(x):
            return jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

        return sum(
            loss(mask_absent(pick(ours, s, "student")), mask_absent(pick(theirs, u, "teacher"))) for s, u in common
        )

    return stateless(name, value)


def hidden_state(*, layers: tuple[str, ...] = ()) -> Objective:
    """Mean squared difference of features; `layers` holds "student:teacher" or common names, () all common ones."""
    return _on_features("hidden_state", features.hidden_state, layers)


def attention(*, layers: tuple[str, ...] = ()) -> Objective:
    """TinyBERT's attention loss on features [B, heads, S, S]; `layers` as for hidden_state."""
    return _on_features("attention", features.attention, layers, axes=4)


def attention_transfer(*, layers: tuple[str, ...] = ()) -> Objective:
    """Attention transfer on convolutional features [B, H, W, C]; `layers` as for hidden_state."""
    return _on_features("attention_transfer", features.attention_transfer, layers, axes=4)


def pkd(*, layers: tuple[str, ...] = ()) -> Objective:
    """Patient KD on hidden states of the classification token, [B, D] each; `layers` as for hidden_state."""
    return _on_features("pkd", features.pkd, layers)


def dus(
    *,
    lambda_ce: Any = 0.1,
    lambda_f: Any = 1.0,
    lambda_h: Any = 0.1,
    gamma: Any = 10.0,
    alpha_y: Any = 1.0,
    tau: Any = 0.5,
    rho: Any = 0.0,
    beta: Any = 1.0,
    stop_gate: bool = True,
) -> Objective:
    """CUD's teacher loss; see `kdjax.losses.uncertainty.dus` for what the paper gives and what is ours."""
    for what, found in (("lambda_ce", lambda_ce), ("lambda_f", lambda_f), ("lambda_h", lambda_h)):
        within(what, found, 0)
    for what, found in (("gamma", gamma), ("rho", rho), ("beta", beta)):
        within(what, found, 0)
    within("alpha_y", alpha_y, 0, 1, open_low=True)
    within("tau", tau, 0, 1)
    options = {"lambda_ce": lambda_ce, "lambda_f": lambda_f, "lambda_h": lambda_h, "gamma": gamma, "alpha_y": alpha_y}
    gate = {"tau": tau, "rho": rho, "beta": beta, "stop_gate": stop_gate}
    return per_example("dus", "dus", partial(uncertainty.dus, **options, **gate))


def _method(build: Any, formula: str, source: str, needs: tuple[str, ...] = ("teacher",), **more: Any) -> Method:
    return Method(build, more.pop("role", "distiller"), needs, formula, source, **more)


_LABELLED = ("teacher", "label")
_TINYBERT = "Banking77 accuracy %, BERT-base to 6L-768, both TinyBERT losses without its augmentation: 89.47"

DISTILLERS: dict[str, Method] = {
    "kd": _method(
        distill,
        "T²·KL(softmax(t/T) ‖ softmax(z/T))",
        "Hinton et al. 2015; KD(C), rhebbalaguppe/CalibrationXferViaKD solvers/kdloss.py (alpha 0.9, T 1 to 20)",
        published="KD(C), CIFAR-100 top-1 / ECE %, WRN-40-2 to WRN-40-1: NLL teacher 69.60 / 15.18, "
        "MDCA teacher 71.07 / 0.98",
        verified="golden",
    ),
    "rtc": _method(
        partial(distill, T=1.0, T_c=1.5),
        "T²·KL(softmax(t/(T_c·T)) ‖ softmax(z/T)), T = 1, T_c = 1.5: the teacher alone is tempered",
        "The role of teacher calibration, arXiv 2508.20224; no code found",
        published="CIFAR-100, gain over KD in top-1: VGG13 to MobileNetV2 +2.17, ResNet50 to MobileNetV2 +1.93",
        verified="law",
    ),
    "ttm": _method(
        partial(distill, T=1.0, T_c=10.0),
        "KL(p_t^(1/T_c)/Z ‖ p_s)",
        "Zheng & Yang 2024, arXiv 2402.11148; zkxufo/TTM (its example: T_c = 10, VGG13 to VGG8)",
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 74.32",
        weights=(1.0, 45.0),
    ),
    "wttm": _method(
        partial(distill, T=1.0, T_c=10.0, weighting="power_sum"),
        "Z·KL(p_t^(1/T_c)/Z ‖ p_s), Z = Σ_k p_t,k^(1/T_c)",
        "Zheng & Yang 2024, arXiv 2402.11148; zkxufo/TTM (its weights are per pair; alpha here)",
        published="CIFAR-100 top-1: WRN-40-2 to WRN-40-1 74.58",
    ),
    "lskd": _method(
        partial(distill, T=2.0, standardize=True),
        "T²·KL(softmax(Z(t)/T) ‖ softmax(Z(z)/T)), Z(x) = (x - mean)/(sd + 1e-7)",
        "Sun et al. 2024, arXiv 2403.01427; sunshangquan/logit-standardization-KD",
        published="CIFAR-100 top-1: ResNet32x4 to ResNet8x4 76.62",
        weights=(0.1, 9.0),
        verified="golden",
    ),
    "cud": _method(
        partial(distill, target="wclip"),
        "T²·KL(p̃^(T) ‖ p_s^(T)), p̃ = W-Clip(p_t, y): δ = min(η p_k*, m(p_k* - p_y)) moved from k* to y if k* ≠ y",
        "Trust the uncertain teacher, arXiv 2602.12687 (T not given, 4 is ours); no code found",
        _LABELLED,
        weights=(0.2, 0.8),
        published="Banking77 accuracy %, BERT-base to 4L-256: 91.22",
    ),
    "knowledge_adjustment": _method(
        partial(distill, target="swap"),
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
        state="",
    ),
    "dist": _method(
        dist,
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
        state="the temperature's parameter, 4 bytes",
    ),
    "hidden_state": _method(
        hidden_state,
        "Σ_layers mean (h_s - h_t)²",
        "Romero et al. 2015, arXiv 1412.6550; TinyBERT, arXiv 1909.10351",
        published=_TINYBERT,
    ),
    "attention": _method(
        attention,
        "Σ_layers mean (A_s - A_t)²",
        "TinyBERT, Jiao et al. 2020, arXiv 1909.10351",
        published=_TINYBERT,
    ),
    "attention_transfer": _method(
        attention_transfer,
        "Σ_layers mean_hw (a_s - a_t)², a = mean_c x² at unit norm",
        "Zagoruyko & Komodakis 2017, arXiv 1612.03928",
        published="CIFAR-100 top-1, as zkxufo/TTM quotes it: WRN-40-2 to WRN-40-1 72.77",
    ),
    "pkd": _method(
        pkd,
        "Σ_layers ‖h_s/|h_s| - h_t/|h_t|‖²",
        "Sun et al. 2019, arXiv 1908.09355",
        published="Banking77 accuracy %, BERT-base to 4L-256: 86.60",
    ),
    "dus": _method(
        dus,
        "(λ_CE + λ_F α_y (1-p_y)^γ)·(-log p_y) - λ_H w H(p), w = 1[p_y < τ] + ρ(1-p_y)^β",
        "Trust the uncertain teacher (CUD), arXiv 2602.12687, eq. 3; no code found",
        ("label",),
        role="calibrator",
        published="Banking77 accuracy % of the 4L-256 student: 90.62 (LKD + DUS)",
    ),
}

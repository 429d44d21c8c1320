"""Calibrators by name: hard-label objectives that a teacher is trained with, or a student's label term (floor 2).

Each builder takes keyword hyper-parameters with defaults and refuses those out of range before anything is traced. A
traced array passes, so that one compiled step can train a grid of weights. MACC is left out: its certainty is the
variance of the logits over several stochastic forward passes, and an objective sees one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp

from kdjax import losses, transforms
from kdjax.errors import Refused, one_of, positive, within
from kdjax.losses.numerics import at_least_float32, mask_absent
from kdjax.objectives import stateful
from kdjax.objectives.core import Method, Objective, blend, need, stateless
from kdjax.objectives.rows import per_batch, per_example


def nll() -> Objective:
    """Negative log-likelihood."""
    return per_example("nll", "nll", losses.nll)


def label_smoothing(*, alpha: float = 0.1, form: str = "offtarget") -> Objective:
    """Label smoothing; `form` "offtarget" is KD(C)'s, "uniform" that of torch and optax."""
    within("label_smoothing.alpha", alpha, 0.0, 1.0, open_high=True)
    one_of("label_smoothing.form", form, ("offtarget", "uniform"))
    return per_example("label_smoothing", "label_smoothing", partial(losses.label_smoothing, alpha=alpha, form=form))


def focal(*, gamma: float = 3.0) -> Objective:
    """Focal loss."""
    within("focal.gamma", gamma, 0.0)
    return per_example("focal", "focal", partial(losses.focal, gamma=gamma))


def flsd(
    *, gamma: float = 3.0, gammas: tuple[float, float] = (5.0, 3.0), thresholds: tuple[float, float] = (0.2, 0.5)
) -> Objective:
    """Sample-dependent focal loss; `gamma` is the exponent from p_y = 0.5 on."""
    within("flsd.gamma", gamma, 0.0)
    return per_example("flsd", "flsd", partial(losses.flsd, gamma=gamma, gammas=gammas, thresholds=thresholds))


def dual_focal(*, gamma: float = 5.0) -> Objective:
    """Dual focal loss."""
    within("dual_focal.gamma", gamma, 0.0)
    return per_example("dual_focal", "dual_focal", partial(losses.dual_focal, gamma=gamma))


def brier() -> Objective:
    """Brier score."""
    return per_example("brier", "brier", losses.brier)


def _off(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def mdca(*, beta: float = 1.0, gamma: float = 0.0, alpha: float = 0.0) -> Objective:
    """Hard loss + beta * MDCA.

    The hard loss is the NLL, focal(gamma) when gamma is given, or off-target label smoothing when alpha is: the three
    that the authors register.
    """
    within("mdca.beta", beta, 0.0)
    within("mdca.gamma", gamma, 0.0)
    within("mdca.alpha", alpha, 0.0, 1.0, open_high=True)
    if not _off(gamma) and not _off(alpha):
        raise Refused(f"mdca has gamma={gamma} (focal) and alpha={alpha} (label smoothing); set one of them to 0.")
    if not _off(gamma):
        hard = per_example("focal", "mdca", partial(losses.focal, gamma=gamma))
    elif not _off(alpha):
        hard = per_example("label_smoothing", "mdca", partial(losses.label_smoothing, alpha=alpha))
    else:
        hard = per_example("nll", "mdca", losses.nll)
    return blend((1, hard), (beta, per_batch("mdca", "mdca", losses.mdca)))


def dca(*, alpha: float = 1.0, beta: float = 1.0) -> Objective:
    """alpha * NLL + beta * DCA; the authors' own repository uses alpha = 1, beta = 10."""
    within("dca.alpha", alpha, 0.0)
    within("dca.beta", beta, 0.0)
    return blend((alpha, per_example("nll", "dca", losses.nll)), (beta, per_batch("dca", "dca", losses.dca)))


def mmce(*, beta: float = 2.0, form: str = "weighted", width: float = 0.4, normalization: str = "code") -> Objective:
    """NLL + beta * MMCE, `form` "weighted" (KD(C)'s) or "unweighted"; `normalization` is of the weighted form."""
    within("mmce.beta", beta, 0.0)
    positive("mmce.width", width)
    one_of("mmce.form", form, ("weighted", "unweighted"))
    one_of("mmce.normalization", normalization, ("code", "paper"))
    term = partial(losses.mmce, width=width)
    if form == "weighted":
        term = partial(losses.mmce_weighted, width=width, normalization=normalization)
    return blend((1, per_example("nll", "mmce", losses.nll)), (beta, per_batch("mmce", "mmce", term)))


def mixup(*, alpha: float = 0.2) -> Objective:
    """NLL against the mixed labels that its transform writes; `alpha` is the transform's."""
    within("mixup.alpha", alpha, 0.0)

    def value(batch, output, clock):
        target = need(batch, "target", "mixup")
        logits, _, kept = mask_absent(at_least_float32(output.logits), batch.weight)
        return losses.soft_nll(logits, jnp.where(kept[:, None], target, 0.0))

    return stateless("mixup", value)


def cpc(*, lam1: float = 0.1, lam2: float = 1.0, normalization: str = "pairs") -> Objective:
    """NLL + lam1 * discrimination + lam2 * exclusion; the paper's weights could not be verified, these are CALS's."""
    within("cpc.lam1", lam1, 0.0)
    within("cpc.lam2", lam2, 0.0)
    one_of("cpc.normalization", normalization, ("pairs", "cals"))
    return blend(
        (1, per_example("nll", "cpc", losses.nll)),
        (lam1, per_example("cpc_discrimination", "cpc", losses.cpc_discrimination)),
        (lam2, per_example("cpc_exclusion", "cpc", partial(losses.cpc_exclusion, normalization=normalization))),
    )


def mbls(*, alpha: float = 0.1, margin: float = 10.0) -> Objective:
    """NLL + alpha * margin penalty."""
    within("mbls.alpha", alpha, 0.0)
    within("mbls.margin", margin, 0.0)
    penalty = per_example("mbls", "mbls", lambda logits, labels: losses.mbls(logits, margin=margin))
    return blend((1, per_example("nll", "mbls", losses.nll)), (alpha, penalty))


def acls(
    *,
    alpha: float = 0.1,
    margin: float = 10.0,
    pos_lambda: float = 1.0,
    neg_lambda: float = 0.1,
    reference: str = "max",
) -> Objective:
    """NLL + alpha * adaptive label-smoothing penalty; `reference` "max" is the code's, "range" the paper's."""
    within("acls.alpha", alpha, 0.0)
    within("acls.margin", margin, 0.0)
    within("acls.pos_lambda", pos_lambda, 0.0)
    within("acls.neg_lambda", neg_lambda, 0.0)
    one_of("acls.reference", reference, ("max", "range"))

    def penalty(logits, labels):
        return losses.acls(logits, margin=margin, pos_lambda=pos_lambda, neg_lambda=neg_lambda, reference=reference)

    return blend((1, per_example("nll", "acls", losses.nll)), (alpha, per_example("acls", "acls", penalty)))


def _kdc(teacher: str, student: str) -> str:
    """The line that Table 1 of KD(C) prints: CIFAR-100, top-1 / ECE in percent."""
    return f"CIFAR-100 top-1 / ECE %: WRN-40-2 {teacher}, WRN-40-1 {student}"


def _method(build: Any, formula: str, source: str, **more: Any) -> Method:
    return Method(
        build, "calibrator", **{"needs": ("label",), "verified": "golden", **more}, formula=formula, source=source
    )


CALIBRATORS: dict[str, Method] = {
    "nll": _method(
        nll,
        "-log p_y",
        "KD(C) solvers/loss.py",
        published=_kdc("74.39 / 13.04", "70.04 / 11.16"),
    ),
    "label_smoothing": _method(
        label_smoothing,
        "-Σ_j t_j log p_j, t = 1-α on y and α/(K-1) elsewhere (offtarget), or (1-α)·onehot + α/K (uniform)",
        "Szegedy et al. 2016; KD(C) solvers/loss.py, by-liu/MbLS",
        published=_kdc("75.15 / 2.32", "70.07 / 1.30"),
    ),
    "focal": _method(
        focal,
        "-(1-p_y)^γ log p_y",
        "Lin et al. 2017, Mukhoti et al. 2020; KD(C) solvers/loss.py, torrvision/focal_calibration",
    ),
    "flsd": _method(
        flsd,
        "focal with γ = 5 for p_y < 0.2, 3 for p_y < 0.5, else γ",
        "Mukhoti et al. 2020; torrvision/focal_calibration",
    ),
    "dual_focal": _method(
        dual_focal,
        "-(1-p_y+p_j)^γ log p_y, p_j the largest probability below p_y",
        "Tao et al. 2023, arXiv 2305.13665; Linwei94/ICML2023-DualFocalLoss",
        verified="law",
    ),
    "brier": _method(brier, "Σ_j (p_j - 1[y=j])²", "Brier 1950; torrvision/focal_calibration"),
    "mdca": _method(
        mdca,
        "hard + β·(1/K) Σ_j |mean_i p_ij - mean_i 1[y_i=j]|, hard = NLL, focal(γ) or label smoothing(α)",
        "Hebbalaguppe et al. 2022; mdca-loss/MDCA-Calibration, KD(C) solvers/loss.py",
        published=_kdc("74.17 / 1.57", "68.51 / 1.35"),
    ),
    "dca": _method(
        dca,
        "α·NLL + β·|mean_i r_i - mean_i c_i|",
        "Liang et al. 2020; GB-TonyLiang/DCA",
    ),
    "mmce": _method(
        mmce,
        "NLL + β·sqrt(S(u,u)/m² + S(v,v)/n² - 2S(u,v)/(mn)), each term once more divided as in the code; "
        "or β·(1/B²) Σ_ij (c_i-r_i)(c_j-r_j) exp(-|r_i-r_j|/0.4)",
        "Kumar et al. 2018; torrvision/focal_calibration, KD(C) solvers/loss.py",
        published=_kdc("72.82 / 5.62", "69.69 / 7.34"),
    ),
    "mixup": _method(
        mixup,
        "λ·NLL(y) + (1-λ)·NLL(y_π) on λx + (1-λ)x_π, λ ~ Beta(α, α) once a batch",
        "Zhang et al. 2018, Thulasidasan et al. 2019; facebookresearch/mixup-cifar10",
        needs=("target",),
        published=_kdc("76.23 / 4.76", "72.04 / 2.57"),
        transform=transforms.mixup,
    ),
    "crl": _method(
        stateful.crl,
        "NLL + w·mean_i relu(-s_i(κ_i - κ_i+1) + |u_i - u_i+1|), u the normalized count of correct epochs",
        "Moon et al. 2020; daintlab/confidence-aware-learning",
        needs=("label", "index"),
        published=_kdc("70.86 / 11.97", "65.80 / 13.91"),
        state="correct count per training example: 4N bytes",
    ),
    "pskd": _method(
        stateful.pskd,
        "-Σ_j t_j log p_j, t = (1-a_e)·onehot + a_e·p of the previous epoch, a_e = α_T(e+1)/E",
        "Kim et al. 2021; lgcnsai/PS-KD-Pytorch",
        needs=("label", "index"),
        published=_kdc("75.22 / 7.82", "72.56 / 3.73"),
        state="probabilities per training example: 4NK bytes, 2NK with memory=float16",
    ),
    "adafocal": _method(
        stateful.adafocal,
        "-(1 - sign(g)p_y)^|g| log p_y, g = γ_b of p_y's bin; γ_b ← clip(γ_b exp(±λ(conf_b - acc_b))) once an epoch",
        "Ghosh et al. 2022; 3mcloud/adafocal",
        published=_kdc("73.12 / 2.24", "67.36 / 2.10"),
        state="γ and edges of 15 bins, refreshed on the calibration split: 180 bytes",
    ),
    "cpc": _method(
        cpc,
        "NLL + λ₁·(1/(K-1)) Σ_j≠y -log(p_y/(p_y+p_j)) + λ₂·mean_{j<k≠y} -½[log σ(z_j-z_k) + log σ(z_k-z_j)]",
        "Cheng & Vasconcelos 2022; no official code, form as in by-liu/CALS",
        verified="paper",
        published=_kdc("74.92 / 10.70", "69.99 / 7.61"),
    ),
    "mbls": _method(
        mbls,
        "NLL + α·(1/K) Σ_j relu(max_k z_k - z_j - m)",
        "Liu et al. 2022; by-liu/MbLS",
        published=_kdc("74.79 / 7.81", "69.97 / 5.37"),
    ),
    "acls": _method(
        acls,
        "NLL + α·[λ_p Σ_top relu(max z - m)² + λ_n/(K-1) Σ_rest relu(sg(max z) - z_j - m)²]",
        "Park et al. 2023; cvlab-yonsei/ACLS",
        published=_kdc("74.90 / 6.03", "69.92 / 7.00"),
    ),
}

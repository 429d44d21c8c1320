"""Calibrators by name: objectives of labels that a teacher is trained with, or a student's label term.

A line of the registry is a loss of `kdjax.losses`, whose options, defaults and ranges are taken from its signature, or
a builder of this file that adds terms. Values out of range are refused before anything is traced; a traced array
passes, so that one compiled step can train a grid of weights. MACC is left out: its certainty is the variance of the
logits over several stochastic forward passes, and an objective sees one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdjax import losses, transforms
from kdjax.errors import Refused
from kdjax.objectives import stateful
from kdjax.objectives.core import Method, Objective, blend
from kdjax.objectives.terms import is_number, of_loss, reads, takes, term
from kdjax.options import at_least, choice, hyper
from kdjax.types import Scalar


@takes(losses.focal, losses.label_smoothing, but=("form",))
@hyper(beta=at_least(0))
def mdca(*, beta: Scalar = 1.0, gamma: Scalar = 0.0, alpha: Scalar = 0.0) -> Objective:
    """Label loss + beta * MDCA.

    The label loss is the NLL, focal(gamma) when gamma is given, or off-target label smoothing when alpha is: the three
    that the authors register.
    """
    if not is_number(gamma, 0) and not is_number(alpha, 0):
        raise Refused(f"mdca has gamma={gamma} (focal) and alpha={alpha} (label smoothing); set one of them to 0.")
    if not is_number(gamma, 0):
        label_term = term(losses.focal, "mdca", "focal", gamma=gamma)
    elif not is_number(alpha, 0):
        label_term = term(losses.label_smoothing, "mdca", "label_smoothing", alpha=alpha)
    else:
        label_term = term(losses.nll, "mdca", "nll")
    return blend((1, label_term), (beta, term(losses.mdca, "mdca")))


@takes(losses.dca)
@hyper(alpha=at_least(0), beta=at_least(0))
def dca(*, alpha: Scalar = 1.0, beta: Scalar = 1.0) -> Objective:
    """alpha * NLL + beta * DCA. The authors' own repository uses beta = 10; MDCA's and KD(C)'s use 1."""
    return blend((alpha, term(losses.nll, "dca", "nll")), (beta, term(losses.dca, "dca")))


@takes(losses.mmce, losses.mmce_weighted)
@hyper(beta=at_least(0), form=choice("weighted", "unweighted"))
def mmce(*, beta: Scalar = 2.0, form: str = "weighted", **options: Any) -> Objective:
    """NLL + beta * MMCE, `form` "weighted" (KD(C)'s) or "unweighted"; `normalization` is of the weighted form."""
    if form == "unweighted" and options.get("normalization", "code") != "code":
        raise Refused("mmce has normalization='paper' and form='unweighted', which has none; set form='weighted'.")
    if form == "unweighted":
        options.pop("normalization", None)
    squared = term(losses.mmce if form == "unweighted" else losses.mmce_weighted, "mmce", **options)
    return blend((1, term(losses.nll, "mmce", "nll")), (beta, squared))


@hyper(alpha=at_least(0))
def mixup(*, alpha: Scalar = 0.2) -> Objective:
    """NLL against the mixed labels that its transform writes; `alpha` is the transform's."""
    return term(losses.soft_nll, "mixup")


@takes(losses.cpc_exclusion)
@hyper(lam1=at_least(0), lam2=at_least(0))
def cpc(*, lam1: Scalar = 0.1, lam2: Scalar = 1.0, **options: Any) -> Objective:
    """NLL + lam1 * discrimination + lam2 * exclusion; the paper's weights could not be verified, these are CALS's."""
    return blend(
        (1, term(losses.nll, "cpc", "nll")),
        (lam1, term(losses.cpc_discrimination, "cpc", "cpc_discrimination")),
        (lam2, term(losses.cpc_exclusion, "cpc", "cpc_exclusion", **options)),
    )


@takes(losses.mbls)
@hyper(alpha=at_least(0))
def mbls(*, alpha: Scalar = 0.1, **options: Any) -> Objective:
    """NLL + alpha * margin penalty."""
    return blend((1, term(losses.nll, "mbls", "nll")), (alpha, term(losses.mbls, "mbls", **options)))


@takes(losses.acls)
@hyper(alpha=at_least(0))
def acls(*, alpha: Scalar = 0.1, **options: Any) -> Objective:
    """NLL + alpha * adaptive label-smoothing penalty; `reference` "max" is the code's, "range" the paper's."""
    return blend((1, term(losses.nll, "acls", "nll")), (alpha, term(losses.acls, "acls", **options)))


def _kdc(teacher: str, student: str) -> str:
    """The line that Table 1 of KD(C) prints: CIFAR-100, top-1 / ECE in percent."""
    return f"CIFAR-100 top-1 / ECE %: WRN-40-2 {teacher}, WRN-40-1 {student}"


def _of(loss: Callable, formula: str, source: str, **more: Any) -> Method:
    """The line of a loss as it stands."""
    return _method(of_loss(loss, loss.__name__), formula, source, needs=reads(loss), **more)


def _method(build: Callable[..., Objective], formula: str, source: str, **more: Any) -> Method:
    return Method(
        build, "calibrator", **{"needs": ("label",), "verified": "golden", **more}, formula=formula, source=source
    )


CALIBRATORS: dict[str, Method] = {
    "nll": _of(
        losses.nll,
        "-log p_y",
        "KD(C) solvers/loss.py",
        published=_kdc("74.39 / 13.04", "70.04 / 11.16"),
    ),
    "label_smoothing": _of(
        losses.label_smoothing,
        "-Σ_j t_j log p_j, t = 1-α on y and α/(K-1) elsewhere (offtarget), or (1-α)·onehot + α/K (uniform)",
        "Szegedy et al. 2016; KD(C) solvers/loss.py, by-liu/MbLS",
        published=_kdc("75.15 / 2.32", "70.07 / 1.30"),
    ),
    "focal": _of(
        losses.focal,
        "-(1-p_y)^γ log p_y",
        "Lin et al. 2017, Mukhoti et al. 2020; KD(C) solvers/loss.py, torrvision/focal_calibration",
    ),
    "flsd": _of(
        losses.flsd,
        "focal with γ = 5 for p_y < 0.2, 3 for p_y < 0.5, else γ",
        "Mukhoti et al. 2020; torrvision/focal_calibration",
    ),
    "dual_focal": _of(
        losses.dual_focal,
        "-(1-p_y+p_j)^γ log p_y, p_j the largest probability below p_y",
        "Tao et al. 2023, arXiv 2305.13665; Linwei94/ICML2023-DualFocalLoss",
        verified="law",
    ),
    "brier": _of(losses.brier, "Σ_j (p_j - 1[y=j])²", "Brier 1950; torrvision/focal_calibration"),
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
    "dus": _of(
        losses.dus,
        "(λ_CE + λ_F α_y (1-p_y)^γ)·(-log p_y) - λ_H w H(p), w = 1[p_y < τ] + ρ(1-p_y)^β",
        "Trust the uncertain teacher (CUD), arXiv 2602.12687, eq. 3; no code found",
        verified="law",
        published="Banking77 accuracy % of the 4L-256 student: 90.62 (LKD + DUS)",
    ),
}

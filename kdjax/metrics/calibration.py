"""Top-label calibration errors: confidence of the predicted class against its being right.

All take `confidence` [N] and `correct` [N] (see `top_label`) and return a fraction; tables print it times 100. Bin m
of M is (m/M, (m+1)/M]; the first also holds exactly 0, the last holds exactly 1. An empty bin contributes 0; with
N < M most are empty and nothing else changes. JAX arrays are computed where they are (also under jit), the rest in
float64 on the host. They refuse N = 0, bins < 1 and, where the values are known (not under jit), confidences that are
NaN or outside [0, 1], and labels in the place of hits.

The code in the wild differs at edges only: KD(C), torrvision, Guo et al., CRL and verified_calibration use (lo, hi] and
drop a confidence of exactly 0; netcal and Google's GCE use [lo, hi), netcal with the last bin closed; torchmetrics
and GCE give a confidence of exactly 1 an extra bin. `binned(closed=..., ends=...)` reproduces each of them, and the
measures below are the properties of the `Bins` it returns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from kdjax.metrics import _check
from kdjax.metrics.bins import binned, interpolated_edges

Confidence = Float[ArrayLike, "N"]
Correct = Bool[ArrayLike, "N"]
Scalar = Float[Any, ""]


def ece(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """Expected calibration error Σ_b (n_b/N) |acc_b - conf_b|, in [0, 1].

    Equals `ece_over` + `ece_under`. Source: Naeini et al. 2015; Guo et al. 2017. PSKD's own code takes 10 bins.
    """
    return binned(confidence, correct, bins=bins).ece


def ece_over(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """The over-confident part of the ECE, Σ_b (n_b/N) max(conf_b - acc_b, 0), in [0, 1]."""
    return binned(confidence, correct, bins=bins).over


def ece_under(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """The under-confident part of the ECE, Σ_b (n_b/N) max(acc_b - conf_b, 0), in [0, 1]."""
    return binned(confidence, correct, bins=bins).under


def mce(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """Maximum calibration error max_b |acc_b - conf_b|, in [0, 1]; a single example can decide it.

    Source: Naeini et al. 2015. Where 1.0 has an extra bin (torchmetrics) the maximum can be larger.
    """
    return binned(confidence, correct, bins=bins).mce


def oe(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """Overconfidence error Σ_b (n_b/N) conf_b max(conf_b - acc_b, 0), in [0, 1]. Source: Thulasidasan et al. 2019."""
    return binned(confidence, correct, bins=bins).oe


def rms(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """Root mean squared calibration error sqrt(Σ_b (n_b/N) (acc_b - conf_b)²), in [0, 1], equal-width bins.

    torrvision's `l2_error`; Hendrycks et al. 2019 use equal-mass bins of 100 instead. Biased upwards: `debiased_l2`.
    """
    return binned(confidence, correct, bins=bins).rms


def average_ce(confidence: Confidence, correct: Correct, *, bins: int = 15) -> Scalar:
    """Average calibration error: unweighted mean of |acc_b - conf_b| over the bins that are not empty, in [0, 1].

    This is what netcal and torrvision's `average_calibration_error` call ACE (Neumann et al. 2018).
    """
    return binned(confidence, correct, bins=bins).average


def ace(confidence: Confidence, correct: Correct, *, bins: int = 15) -> float:
    """Adaptive ECE (AdaECE, AECE): the ECE over bins of equal mass, in [0, 1]. On the host.

    The ACE columns of the KD(C) tables are this quantity; the `ACELoss` of its repository is `ace_classwise_kdc`.
    Bins are (lo, hi] between interpolated edges (`interpolated_edges`); ties stay together. The smallest confidence
    is in the first bin; torrvision's code, and AdaFocal, MbLS and ACLS which copy it, leave it out of every bin (its
    weight, 1/N if it is unique, is lost; a constant confidence gives 0). With N < M some bins are empty.

    Source: Nguyen & O'Connor 2015; Mukhoti et al. 2020. GCE and netcal cut at other quantiles; verified_calibration
    midway between neighbors.
    """
    confidence, correct = _check.confidences(confidence, correct)
    return float(binned(confidence, correct, bins=interpolated_edges(confidence, bins)).ece)


def debiased_l2(
    confidence: Confidence, correct: Correct, *, bins: int = 15, root: bool = True, edges: Any = None
) -> float:
    """L2 calibration error with the sampling noise of the bins' accuracies taken off. On the host.

    Σ_b (n_b/N) [(acc_b - conf_b)² - acc_b (1 - acc_b)/(n_b - 1)]: an unbiased estimate of the squared L2 error of the
    model whose confidences are replaced by their bin means, which bounds that of the model itself from below. A bin
    with one member contributes 0.

    Args:
      confidence, correct, bins: as `ece`; the bins have equal mass (`interpolated_edges`).
      root: return sqrt(max(0, ·)), in [0, 1], which is no longer unbiased; if False the square, which may be negative.
      edges: M + 1 fixed edges instead (a binned or discrete model).

    Source: Kumar, Liang & Ma 2019, verified_calibration, which cuts midway between neighboring chunks.
    """
    confidence, correct = _check.confidences(confidence, correct)
    by_mass = binned(confidence, correct, bins=interpolated_edges(confidence, bins) if edges is None else edges)
    several = by_mass.count > 1
    noise = by_mass.accuracy * (1 - by_mass.accuracy) / np.where(several, by_mass.count - 1, 1)
    square = float((by_mass.weight * np.where(several, by_mass.gap**2 - noise, 0.0)).sum())
    return max(square, 0.0) ** 0.5 if root else square

"""Post-hoc calibration: fit/apply pairs on a model's logits (floor 2).

    temperature = posthoc.POSTHOC["temperature"]
    params = temperature.fit(logits, labels)          # host, float64, on the calibration split
    calibrated = temperature.apply(params, logits)    # pure, jittable; logits again

Every `fit` takes `(logits [N, K], labels [N], *, weight=None, **hyper-parameters)` and returns a dict of
arrays; every `apply` takes `(params, logits [B, K])` and returns logits of the same shape, in float32 at
least. Since both ends are logits, a fitted calibrator composes with any frozen teacher, and params travel as
that teacher's variables.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from kdjax import metrics
from kdjax.errors import one_of
from kdjax.posthoc.affine import (
    apply_dirichlet,
    apply_vector,
    dirichlet_loss,
    fit_dirichlet,
    fit_vector,
    select_odir,
)
from kdjax.posthoc.core import Params, PostHoc
from kdjax.posthoc.isotonic import apply_isotonic, fit_isotonic
from kdjax.posthoc.temperature import (
    apply_classwise_temperature,
    apply_temperature,
    fit_classwise_temperature,
    fit_temperature,
    fit_temperature_grid_kdc,
    fit_temperature_grid_mdca,
    fit_temperature_grid_torrvision,
)

POSTHOC: dict[str, PostHoc] = {
    "temperature": PostHoc(
        fit_temperature,
        apply_temperature,
        "softmax(z/T), T = argmin NLL by convex search in [0.01, 100]",
        "Guo et al. 2017, arXiv 1706.04599; gpleiss/temperature_scaling",
        "KD(C), by its grid, CIFAR-100 top-1 / ECE %: WRN-40-2 74.39 / 2.68, WRN-40-1 70.04 / 2.57",
        "golden",
    ),
    "temperature_grid_kdc": PostHoc(
        fit_temperature_grid_kdc,
        apply_temperature,
        "softmax(z/T), T = argmin of the batches' NLL over 0.2, 0.4, ..., 2.8",
        "KD(C), rhebbalaguppe/CalibrationXferViaKD",
        "KD(C), CIFAR-100 top-1 / ECE %: WRN-40-2 74.39 / 2.68, WRN-40-1 70.04 / 2.57",
        "golden",
    ),
    "temperature_grid_mdca": PostHoc(
        fit_temperature_grid_mdca,
        apply_temperature,
        "softmax(z/T), T = argmin of the batches' NLL over 0.1, 0.2, ..., 10",
        "mdca-loss/MDCA-Calibration",
        verified="golden",
    ),
    "temperature_grid_torrvision": PostHoc(
        fit_temperature_grid_torrvision,
        apply_temperature,
        "softmax(z/T), T = argmin of ECE or NLL over 0.1, 0.2, ..., 10",
        "torrvision/focal_calibration",
        verified="golden",
    ),
    "classwise_temperature": PostHoc(
        fit_classwise_temperature,
        apply_classwise_temperature,
        "softmax(z/T_k*), one T for each predicted class k*",
        "Frenkel & Goldberger 2021, by NLL instead of their ECE grid",
    ),
    "vector": PostHoc(
        fit_vector, apply_vector, "softmax(w ⊙ z + b), convex, from the identity", "Guo et al. 2017, arXiv 1706.04599"
    ),
    "dirichlet": PostHoc(
        fit_dirichlet,
        apply_dirichlet,
        "softmax(W log p + b), NLL + λ/(K(K-1))·Σ_j≠k W_jk² + μ/K·Σ b_j² (ODIR), convex, from the identity",
        "Kull et al. 2019, arXiv 1910.12656; loss as in KD(C) and mdca-loss/MDCA-Calibration",
        verified="golden",
    ),
    "isotonic": PostHoc(
        fit_isotonic,
        apply_isotonic,
        "f_k(p_k) / Σ_j f_j(p_j), f_k isotonic, one class against the rest",
        "Zadrozny & Elkan 2002; scikit-learn's IsotonicRegression",
    ),
}


def refitted(
    calibration_logits: Any, calibration_labels: Any, logits: Any, labels: Any, *, bins: int = 15
) -> dict[str, float]:
    """What one fitted temperature leaves: `temperature`, and on the other split `ece_refit` and `nll_refit`.

    ECE before and after the refit split miscalibration into a global scale, which one number mends, and the rest.

    Args:
      calibration_logits, calibration_labels: [M, K], [M], on which T is fitted.
      logits, labels: [N, K], [N], on which the errors are measured (fractions; nats).

    Raises:
      Refused: as `fit_temperature` and `metrics.evaluate`.
    """
    with warnings.catch_warnings():
        # That the fit ended at a clamp is seen in the temperature returned.
        warnings.filterwarnings("ignore", "the temperature ended at its clamp")
        fitted = fit_temperature(calibration_logits, calibration_labels)
    scaled = np.asarray(logits, np.float64) / fitted["T"]
    confidence, correct = metrics.top_label(scaled, labels)
    return {
        "temperature": float(fitted["T"]),
        "ece_refit": float(metrics.ece(confidence, correct, bins=bins)),
        "nll_refit": float(metrics.nll(scaled, labels)),
    }


def get(name: str) -> PostHoc:
    """The calibrator of that name.

    Raises:
      Refused: if there is none; names the nearest ones.
    """
    return POSTHOC[one_of("the post-hoc method", name, POSTHOC)]


__all__ = ["POSTHOC", "Params", "PostHoc", "dirichlet_loss", "get", "refitted", "select_odir"]

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
    "temperature": PostHoc(fit_temperature, apply_temperature),
    "temperature_grid_kdc": PostHoc(fit_temperature_grid_kdc, apply_temperature),
    "temperature_grid_mdca": PostHoc(fit_temperature_grid_mdca, apply_temperature),
    "temperature_grid_torrvision": PostHoc(fit_temperature_grid_torrvision, apply_temperature),
    "classwise_temperature": PostHoc(fit_classwise_temperature, apply_classwise_temperature),
    "vector": PostHoc(fit_vector, apply_vector),
    "dirichlet": PostHoc(fit_dirichlet, apply_dirichlet),
    "isotonic": PostHoc(fit_isotonic, apply_isotonic),
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

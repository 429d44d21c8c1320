"""Every post-hoc calibrator by name, and the door for those from outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax import metrics
from kdjax.errors import Refused, one_of
from kdjax.posthoc.affine import apply_dirichlet, apply_vector, fit_dirichlet, fit_vector
from kdjax.posthoc.core import Params, PostHoc
from kdjax.posthoc.isotonic import apply_isotonic, fit_isotonic
from kdjax.posthoc.portable import Calibrator
from kdjax.posthoc.temperature import (
    apply_classwise_temperature,
    apply_temperature,
    fit_classwise_temperature,
    fit_temperature,
    fit_temperature_grid_kdc,
    fit_temperature_grid_mdca,
    fit_temperature_grid_torrvision,
)
from kdjax.source_code import replaces

POSTHOC: dict[str, PostHoc] = {
    "temperature": PostHoc(
        fit_temperature,
        apply_temperature,
        "softmax(z/T), T = argmin NLL by convex search in [0.01, 100]",
        "Guo et al. 2017, arXiv 1706.04599; gpleiss/temperature_scaling",
        "KD(C), by its grid, CIFAR-100 top-1 / ECE %: WRN-40-2 74.39 / 2.68, WRN-40-1 70.04 / 2.57",
        "golden",
        form="temperature",
    ),
    "temperature_grid_kdc": PostHoc(
        fit_temperature_grid_kdc,
        apply_temperature,
        "softmax(z/T), T = argmin of the batches' NLL over 0.2, 0.4, ..., 2.8",
        "KD(C), rhebbalaguppe/CalibrationXferViaKD",
        "KD(C), CIFAR-100 top-1 / ECE %: WRN-40-2 74.39 / 2.68, WRN-40-1 70.04 / 2.57",
        "golden",
        form="temperature",
    ),
    "temperature_grid_mdca": PostHoc(
        fit_temperature_grid_mdca,
        apply_temperature,
        "softmax(z/T), T = argmin of the batches' NLL over 0.1, 0.2, ..., 10",
        "mdca-loss/MDCA-Calibration",
        verified="golden",
        form="temperature",
    ),
    "temperature_grid_torrvision": PostHoc(
        fit_temperature_grid_torrvision,
        apply_temperature,
        "softmax(z/T), T = argmin of ECE or NLL over 0.1, 0.2, ..., 10",
        "torrvision/focal_calibration",
        verified="golden",
        form="temperature",
    ),
    "classwise_temperature": PostHoc(
        fit_classwise_temperature,
        apply_classwise_temperature,
        "softmax(z/T_k*), one T for each predicted class k*",
        "Frenkel & Goldberger 2021, by NLL instead of their ECE grid",
        form="classwise_temperature",
    ),
    "vector": PostHoc(
        fit_vector,
        apply_vector,
        "softmax(w ⊙ z + b), convex, from the identity",
        "Guo et al. 2017, arXiv 1706.04599",
        form="vector",
    ),
    "dirichlet": PostHoc(
        fit_dirichlet,
        apply_dirichlet,
        "softmax(W log p + b), NLL + λ/(K(K-1))·Σ_j≠k W_jk² + μ/K·Σ b_j² (ODIR), convex, from the identity",
        "Kull et al. 2019, arXiv 1910.12656; loss as in KD(C) and mdca-loss/MDCA-Calibration",
        verified="golden",
        form="dirichlet",
    ),
    "isotonic": PostHoc(
        fit_isotonic,
        apply_isotonic,
        "f_k(p_k) / Σ_j f_j(p_j), f_k isotonic, one class against the rest",
        "Zadrozny & Elkan 2002; scikit-learn's IsotonicRegression",
        form="isotonic",
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
        T = float(fit_temperature(calibration_logits, calibration_labels)["T"])
    scaled = np.asarray(logits, np.float64) / T
    confidence, correct = metrics.top_label(scaled, labels)
    return {
        "temperature": T,
        "ece_refit": float(metrics.ece(confidence, correct, bins=bins)),
        "nll_refit": float(metrics.nll(scaled, labels)),
    }


def get(name: str) -> PostHoc:
    """The calibrator of that name.

    Raises:
      Refused: if there is none; names the nearest ones.
    """
    return POSTHOC[one_of("the post-hoc method", name, POSTHOC, registered=True)]


def register(name: str, fit: Callable[..., Params], apply: Callable[..., Any], version: str = "") -> PostHoc:
    """Puts a calibrator from outside under a name, for `get`, for recipes and for the command line.

    Args:
      name: letters, digits and underscores; a name of kdjax's own is refused.
      fit: (logits [N, K], labels [N], *, weight=None, **options) -> a flat dict of arrays, on the host.
      apply: (params, logits [B, K]) -> logits [B, K], pure and jittable.
      version: what stands for the code in ids and files; by default the SHA-256 of the source of the module that
        defines `fit`, so that changed code is another method. Give one where there is no source file.

    Returns:
      The `PostHoc` now under that name. Registering the same code again changes nothing.

    Raises:
      Refused: a name that is taken by other code, or is none; no source and no version; something not callable.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise Refused(f"the post-hoc method is named {name!r}; expected a name such as 'my_scaling'.")
    for role, function in (("fit", fit), ("apply", apply)):
        if not callable(function):
            raise Refused(f"{role} of the post-hoc method {name!r} is {function!r}; expected a function.")
    made = PostHoc(fit, apply, source="from outside", stated_version=version)
    version = made.version
    if name in POSTHOC and (POSTHOC[name].form or POSTHOC[name].version != version):
        raise Refused(f"the post-hoc method {name!r} exists already, with other code; choose another name.")
    if name in POSTHOC:
        replaces((POSTHOC[name].fit, POSTHOC[name].apply), (fit, apply))
    POSTHOC[name] = made
    return made


def fitted(method: str, params: Params, *, num_classes: int, **more: Any) -> Calibrator:
    """What a fit returned as a `Calibrator`, to be applied with NumPy or saved as JSON.

    Args:
      method: name in `POSTHOC`.
      params: what its `fit` returned.
      num_classes: K.
      **more: `classes`, `scores` and `about` of `Calibrator`.

    Raises:
      Refused: an unknown method, parameters that are not its own, or a field that `load` would not read.
    """
    pair = get(method)
    version = "" if pair.form else pair.version
    return Calibrator(method, params, num_classes, form=pair.form, version=version, **more)


def applied_from_outside(calibrator: Calibrator, logits: np.ndarray) -> np.ndarray:
    """The logits as a registered calibrator's own `apply` leaves them.

    Raises:
      Refused: the method is not registered here, or its code is another than that which was fitted.
    """
    if calibrator.method not in POSTHOC:
        raise Refused(
            f"the calibrator {calibrator.method!r} comes from outside kdjax; import the module that registers it first."
        )
    pair = POSTHOC[calibrator.method]
    if pair.form or pair.version != calibrator.version:
        raise Refused(
            f"the calibrator {calibrator.method!r} was fitted by version {calibrator.version[:12]} of its code, and "
            f"{pair.version[:12] or 'another method'} is registered; fit it again."
        )
    return np.asarray(pair.apply(calibrator.params, jnp.asarray(logits)), np.float64)

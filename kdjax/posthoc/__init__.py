"""Post-hoc calibration: fit/apply pairs on a model's logits.

    temperature = posthoc.POSTHOC["temperature"]
    params = temperature.fit(logits, labels)          # host, float64, on the calibration split
    calibrated = temperature.apply(params, logits)    # pure, jittable; logits again

    posthoc.fitted("temperature", params, num_classes=10).save("calibrator.json")
    posthoc.load("calibrator.json")(logits)           # probabilities, with NumPy alone

Every `fit` takes `(logits [N, K], labels [N], *, weight=None, **hyper-parameters)` and returns a dict of
arrays; every `apply` takes `(params, logits [B, K])` and returns logits of the same shape, in float32 at
least. Since both ends are logits, a fitted calibrator composes with any frozen teacher, and params travel as
that teacher's variables.

Only `load` is imported with the package; the rest, and JAX with it, at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdjax.posthoc.portable import Calibrator, load

if TYPE_CHECKING:
    from kdjax.posthoc.affine import dirichlet_loss, select_odir
    from kdjax.posthoc.core import Params, PostHoc
    from kdjax.posthoc.registry import POSTHOC, fitted, get, refitted, register

_HOME = {
    "POSTHOC": "registry",
    "Params": "core",
    "PostHoc": "core",
    "dirichlet_loss": "affine",
    "fitted": "registry",
    "get": "registry",
    "refitted": "registry",
    "register": "registry",
    "select_odir": "affine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "POSTHOC",
    "Calibrator",
    "Params",
    "PostHoc",
    "dirichlet_loss",
    "fitted",
    "get",
    "load",
    "refitted",
    "register",
    "select_odir",
]

"""Ten lines that apply a calibrator in production, with NumPy and without kdjax."""

from __future__ import annotations

from kdjax.posthoc import Calibrator

_START = """import json
import numpy as np
fitted = json.load(open({path}))["params"]
z = {load}
"""
_SOFTMAX = """p = np.exp(z - z.max(axis=1, keepdims=True))
p /= p.sum(axis=1, keepdims=True)"""
_FORMS = {
    "temperature": 'z = z / fitted["T"]\n' + _SOFTMAX,
    "classwise_temperature": 'z = z / np.array(fitted["T"])[z.argmax(axis=1)][:, None]\n' + _SOFTMAX,
    "vector": 'z = z * np.array(fitted["w"]) + np.array(fitted["b"])\n' + _SOFTMAX,
    "dirichlet": (
        "z = z - z.max(axis=1, keepdims=True)\n"
        "z = z - np.log(np.exp(z).sum(axis=1, keepdims=True))\n"
        'z = z @ np.array(fitted["W"]).T + np.array(fitted["b"])\n' + _SOFTMAX
    ),
    "isotonic": (
        _SOFTMAX
        + '\np = np.stack([np.interp(p[:, k], x, y) for k, (x, y) in enumerate(zip(fitted["x"], fitted["y"]))], 1)'
        '\np = np.maximum(p, fitted["floor"])\np /= p.sum(axis=1, keepdims=True)'
    ),
}
_LOGITS = 'np.load("logits.npy").astype(float)  # your model\'s logits, [examples, classes]'
_PROBABILITIES = 'np.log(np.maximum(np.load("probabilities.npy"), 1e-12))  # your model\'s, [examples, classes]'


def snippet(calibrator: Calibrator, path: str) -> str:
    """Python that reads logits.npy (or probabilities.npy) and ends with calibrated probabilities `p`."""
    if not calibrator.form:
        first = f"import kdjax  # and the module that registers {calibrator.method}"
        return f"{first}\np = kdjax.posthoc.load({path!r})(logits)"
    load = _PROBABILITIES if calibrator.scores == "probabilities" else _LOGITS
    return _START.format(path=repr(path), load=load) + _FORMS[calibrator.form]

"""What every metric refuses on the host, before it computes anything.

Traced arrays pass: their values are not known yet. Everything that returns an array returns float64 (or int64) NumPy.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from kdjax.errors import Refused

# Softmax in float32 leaves 1 by a few units in the last place; sums over many float16 classes by more.
VALUE_SLACK = 1e-6
SUM_SLACK = 1e-3


def bin_count(bins: Any) -> int:
    """Returns `bins` if it is an integer >= 1."""
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise Refused(f"bins is {bins!r}; expected an integer of at least 1 (the usual choice is 15).")
    return int(bins)


def unit_interval(what: str, values: Any) -> None:
    """Refuses an empty array, NaN and values outside [0, 1]; tracers pass if they are not empty."""
    if values.size == 0:
        raise Refused(f"{what} is empty (shape {tuple(values.shape)}); expected at least one example.")
    if isinstance(values, jax.core.Tracer):
        return
    low, high = float(values.min()), float(values.max())
    if not (low >= -VALUE_SLACK and high <= 1 + VALUE_SLACK):
        held = "NaN" if low != low or high != high else f"values from {low:.6g} to {high:.6g}"
        raise Refused(f"{what} holds {held}; expected probabilities in [0, 1] (apply a softmax to logits first).")


def hits(correct: Any) -> None:
    """Refuses anything but 0 and 1, of any type; tracers pass."""
    if isinstance(correct, jax.core.Tracer):
        return
    if not (known := (correct == 0) | (correct == 1)).all():
        raise Refused(
            f"correct holds {correct[~known][0]}; expected hits, 1 where the prediction is right and 0 where it is "
            "wrong: predicted == labels."
        )


def confidences(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """Top-label pairs ([N] in [0, 1], [N] of 0 and 1) as float64."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise Refused(
            f"confidence has shape {confidence.shape} and correct {correct.shape}; expected two equal shapes [N]."
        )
    unit_interval("confidence", confidence)
    hits(correct)
    return np.clip(confidence, 0.0, 1.0), correct


def classes(labels: Any, num_examples: int, num_classes: int) -> np.ndarray:
    """[N] integer labels in [0, K)."""
    labels = np.asarray(labels)
    if labels.shape != (num_examples,):
        raise Refused(f"labels have shape {labels.shape}; expected [{num_examples}], one for each row.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise Refused(f"labels are {labels.dtype}; expected integers in [0, {num_classes}).")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise Refused(
            f"{wrong.size} labels lie outside [0, {num_classes}), the first is {labels[wrong[0]]} at index {wrong[0]}."
        )
    return labels.astype(np.int64)


def matrix(what: str, values: Any) -> np.ndarray:
    """[N, K] floating point, N >= 1 and K >= 1, in its own precision."""
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise Refused(f"{what} have shape {values.shape}; expected [N, K] with at least one example and one class.")
    if values.dtype.kind not in "fiu":
        # bfloat16 and the float8 family are not NumPy's own kinds.
        values = values.astype(np.float32)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def probabilities(probs: Any) -> np.ndarray:
    """[N, K] rows that are distributions, as float64."""
    probs = matrix("probs", probs).astype(np.float64)
    unit_interval("probs", probs)
    off = np.abs(probs.sum(axis=1) - 1)
    if off.max() > SUM_SLACK:
        row = int(off.argmax())
        raise Refused(f"probs row {row} sums to {probs[row].sum():.6g}; expected 1 (logits need a softmax first).")
    return probs


def logits(values: Any, what: str = "logits") -> np.ndarray:
    """[N, K] logits without NaN or +inf, in their own precision; warns when they look like probabilities."""
    values = matrix(what, values)
    top = values.max(axis=1)
    if not np.isfinite(top).all():
        row = int(np.flatnonzero(~np.isfinite(top))[0])
        raise Refused(f"{what} row {row} holds NaN, +inf or only -inf; expected a finite maximum in every row.")
    # A NaN makes the row's maximum NaN, so the rows are clean here.
    if values.shape[1] > 1 and top.max() <= 1 and values.min() >= 0:
        sums = values.sum(axis=1, dtype=np.float64)
        if np.abs(sums - 1).max() <= SUM_SLACK:
            warnings.warn(
                f"{what} look like probabilities (every row lies in [0, 1] and sums to 1); "
                "a softmax will be applied to them. Pass logits, or the logarithm of the probabilities.",
                UserWarning,
                stacklevel=3,
            )
    return values

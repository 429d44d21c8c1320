"""Isotonic regression, one class against the rest (Zadrozny and Elkan 2002), on scikit-learn's fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax

from kdjax.options import between, hyper
from kdjax.posthoc.core import Params, inspect, prepared


def apply_isotonic(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """log of the normalized max(f_k(softmax(z)_k), floor); f_k is linear between knots, flat outside.

    A row on which every f_k is 0 becomes uniform, as in scikit-learn. The argmax may move, and ties appear,
    since f_k is flat in places.
    """
    z, fitted = prepared("isotonic", params, logits)
    p = jax.nn.softmax(z, axis=-1)
    q = jax.vmap(jnp.interp, in_axes=(-1, 0, 0), out_axes=-1)(p, fitted["x"], fitted["y"])
    return jax.nn.log_softmax(jnp.log(jnp.maximum(q, fitted["floor"])), axis=-1)


@hyper(floor=between(0.0, 0.1, open_low=True))
def fit_isotonic(logits: Any, labels: Any, *, weight: Any = None, floor: float = 1e-6) -> Params:
    """For each class k the non-decreasing f_k that fits 1[y = k] to softmax(z)_k by weighted least squares.

    Pool-adjacent-violators minimizes every proper score at once, so each one-vs-rest log loss on the split is
    not worse than before; after the rows are normalized this holds for the multi-class NLL in practice but
    not by a theorem.

    Ties: examples with equal softmax(z)_k share one value, their weighted mean label. Zeros: a block without
    a positive has f_k = 0, and `floor` keeps its log finite; what another split finds there costs at most
    about −log(floor). A class absent from the split has f_k = 0 throughout.

    Args:
      logits: [N, K].
      labels: [N], integers in [0, K).
      weight: [N] or None.
      floor: in (0, 0.1], least unnormalized probability.

    Returns:
      {"x": [K, M], "y": [K, M], "floor": []}: the knots of f_k, padded to a common length by repeating the
        last one.

    Raises:
      Refused: see `core.inspect`; floor out of range.
    """
    from sklearn.isotonic import IsotonicRegression  # here, so that `import kdjax` stays light

    sample = inspect(logits, labels, weight)
    p = softmax(sample.logits, axis=1)
    knots = []
    for k in range(p.shape[1]):
        f = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        f.fit(p[:, k], sample.labels == k, sample_weight=sample.weight)
        knots.append((f.X_thresholds_, f.y_thresholds_))
    longest = max(len(x) for x, _ in knots)
    x, y = (np.stack([np.pad(row[i], (0, longest - len(row[i])), mode="edge") for row in knots]) for i in (0, 1))
    return {"x": x.astype(np.float64), "y": y.astype(np.float64), "floor": np.float64(floor)}

"""Split conformal prediction sets: LAC, APS and RAPS. On the host, in float64.

    q = fit(aps, calibration_probs, calibration_labels, alpha=0.1)
    chosen = sets(aps, test_probs, q)                      # [N, K] bool
    coverage(chosen, test_labels), size(chosen)

If calibration and test examples are exchangeable, the label lies in the set with probability at least 1 - alpha, over
the draw of both, whatever the model; without ties at most 1 - alpha + 1/(n + 1). Calibration of the probabilities
changes the size of the sets, not this promise. A score is a function (probs [N, K], u [N] or None) -> [N, K], small
where a class conforms; with a `key` the scores are randomized by u ~ U(0, 1), which makes coverage exact instead of
conservative. Give `fit` and `sets` a key each (not the same one), or neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from kdjax.errors import Refused, within
from kdjax.metrics import _check
from kdjax.types import Key

Score = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def lac(probs: np.ndarray, u: np.ndarray | None = None) -> np.ndarray:
    """Least ambiguous sets: 1 - p_j. Smallest sets on average, uneven over hard and easy examples; has no random form.

    Source: Sadinle, Lei & Wasserman 2019 (also called THR).
    """
    return 1.0 - probs


def _ranked(probs: np.ndarray, u: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mass of the classes down to and including each one (less u p_j if randomized), and its rank from 1."""
    order = np.argsort(-probs, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    mass = np.take_along_axis(np.cumsum(np.take_along_axis(probs, order, 1), axis=1), rank, 1)
    return (mass if u is None else mass - u[:, None] * probs), rank + 1


def aps(probs: np.ndarray, u: np.ndarray | None = None) -> np.ndarray:
    """Adaptive prediction sets: mass of the classes at least as likely, p_j included; minus u p_j when randomized.

    Source: Romano, Sesia & Candès 2020. The deterministic form counts p_j fully, as the RAPS authors' code does.
    """
    return _ranked(probs, u)[0]


def raps(*, lam: float = 0.01, k_reg: int = 5) -> Score:
    """Regularized APS: aps + λ max(rank - k_reg, 0), rank from 1: keeps the sets of K >> 10 classes short.

    Raises:
      Refused: lam < 0 or k_reg < 0.

    Source: Angelopoulos et al., ICLR 2021 (2009.14193), who tune λ and k_reg on further held-out data.
    """
    within("lam", lam, 0.0)
    within("k_reg", k_reg, 0)

    def score(probs: np.ndarray, u: np.ndarray | None = None) -> np.ndarray:
        mass, rank = _ranked(probs, u)
        return mass + lam * np.maximum(rank - k_reg, 0)

    return score


def threshold(scores: Float[ArrayLike, "n"], alpha: float) -> float:
    """The ⌈(n+1)(1-α)⌉-th smallest score; +inf (every class) when n is too small for that rank to exist.

    Raises:
      Refused: n = 0, NaN, alpha outside (0, 1).
    """
    within("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or scores.size == 0 or np.isnan(scores).any():
        raise Refused(f"conformal scores have shape {scores.shape}; expected [n], n >= 1, without NaN.")
    # (n + 1)(1 - α) is often whole, and its floating-point value just above it would ask for one rank more.
    rank = max(1, int(np.ceil((scores.size + 1) * (1 - alpha) - 1e-9)))
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= scores.size else float("inf")


def _scored(score: Score, probs: Any, key: Key | None) -> np.ndarray:
    probs = _check.probabilities(probs)
    u = None if key is None else np.asarray(jax.random.uniform(key, (len(probs),)), np.float64)
    return score(probs, u)


def fit(
    score: Score,
    probs: Float[ArrayLike, "n K"],
    labels: Int[ArrayLike, "n"],
    *,
    alpha: float = 0.1,
    key: Key | None = None,
) -> float:
    """The threshold q on the calibration split: `threshold` of the labels' scores.

    Args:
      score: `lac`, `aps`, `raps(...)` or one's own.
      probs: [n, K], of examples that the model was not trained on.
      labels: [n], integers in [0, K).
      alpha: allowed miss rate, in (0, 1).
      key: makes the scores random; None for the deterministic ones.

    Raises:
      Refused: n = 0, probabilities or labels out of range, rows that do not sum to 1, alpha outside (0, 1).
    """
    scores = _scored(score, probs, key)
    labels = _check.classes(labels, *scores.shape)
    return threshold(scores[np.arange(len(labels)), labels], alpha)


def fit_classwise(
    score: Score,
    probs: Float[ArrayLike, "n K"],
    labels: Int[ArrayLike, "n"],
    *,
    alpha: float = 0.1,
    key: Key | None = None,
) -> Float[np.ndarray, "K"]:
    """One threshold per class (Mondrian): the promise then holds for each class by itself. Absent classes get +inf."""
    scores = _scored(score, probs, key)
    labels = _check.classes(labels, *scores.shape)
    within("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
    of_label = scores[np.arange(len(labels)), labels]
    members = (of_label[labels == j] for j in range(scores.shape[1]))
    return np.array([threshold(m, alpha) if m.size else np.inf for m in members])


def sets(
    score: Score,
    probs: Float[ArrayLike, "N K"],
    q: float | Float[np.ndarray, "K"],
    *,
    key: Key | None = None,
    allow_empty: bool = True,
) -> Bool[np.ndarray, "N K"]:
    """The prediction sets {j: score_j <= q}, as a mask.

    Args:
      score, key: as in `fit`.
      q: from `fit` or `fit_classwise`.
      allow_empty: if False the predicted class is always a member; coverage can only grow. (The RAPS authors' code
        forbids empty sets by default; exact coverage of the randomized form needs them.)

    Raises:
      Refused: N = 0, probabilities out of range, rows that do not sum to 1.
    """
    scores = _scored(score, probs, key)
    chosen = scores <= q
    if not allow_empty:
        chosen[np.arange(len(chosen)), np.asarray(probs).argmax(1)] = True
    return chosen


def coverage(chosen: Bool[ArrayLike, "N K"], labels: Int[ArrayLike, "N"]) -> float:
    """Fraction of examples whose label is in the set."""
    chosen = np.asarray(chosen, bool)
    labels = _check.classes(labels, *chosen.shape)
    return float(chosen[np.arange(len(labels)), labels].mean())


def size(chosen: Bool[ArrayLike, "N K"]) -> float:
    """Mean number of classes in a set."""
    return float(np.asarray(chosen, bool).sum(1).mean())

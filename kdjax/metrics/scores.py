"""Accuracy, proper scores and entropy. All on the host, in float64, averaged over the examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from kdjax.errors import Refused
from kdjax.metrics import _check
from kdjax.metrics._rows import rows
from kdjax.metrics.bins import binned


def top_k(logits: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, k: int = 1) -> float:
    """Fraction of examples whose label is among the k largest logits; among equal logits the lower index ranks first.

    The reference (KD(C), and every code built on `torch.topk`) leaves ties to the sort and prints percent.

    Raises:
      Refused: k outside [1, K]; otherwise as `nll`.
    """
    rank = rows(logits, labels).rank
    num_classes = np.shape(logits)[1]
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= num_classes:
        raise Refused(f"k is {k!r}; expected an integer between 1 and the {num_classes} classes.")
    return float((rank < k).mean())


def nll(logits: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"]) -> float:
    """Mean negative log-likelihood, -log softmax(z)_y, in nats; inf if a label's own logit is -inf.

    CRL's code prints ten times this.

    Raises:
      Refused: N = 0, NaN or +inf logits, labels outside [0, K). Warns if the logits look like probabilities.
    """
    return float(rows(logits, labels).nll.mean())


def brier(probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"]) -> float:
    """Brier score, mean over examples of Σ_j (p_j - 1[j = y])², in [0, 2].

    Source: Brier 1950; KD(C) and CRL agree (CRL prints 100 times it). scikit-learn's binary `brier_score_loss` is half
    of it for K = 2, and some codes divide by K.

    Raises:
      Refused: N = 0, values outside [0, 1], rows that do not sum to 1, labels outside [0, K).
    """
    probs = _check.probabilities(probs)
    labels = _check.classes(labels, *probs.shape)
    of_label = probs[np.arange(len(labels)), labels]
    others = np.einsum("nk,nk->n", probs, probs) - of_label**2
    return float((np.maximum(others, 0.0) + (1 - of_label) ** 2).mean())


class BrierParts(NamedTuple):
    """Brier score = reliability - resolution + uncertainty + within.

    Attributes:
      reliability: Σ_b w_b (conf_b - acc_b)²: the squared calibration error, 0 is best.
      resolution: Σ_b w_b (acc_b - base rate)²: what sorting into bins tells, larger is better.
      uncertainty: base rate (1 - base rate): of the data alone.
      within: the rest that binning hides, mean of (p - conf_b)² - 2 (p - conf_b)(y - acc_b); 0 if p is constant in
        each bin.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_decomposition(probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15) -> BrierParts:
    """Murphy's decomposition of the K-class Brier score: equal-width bins of p_j for each class, summed over classes.

    With the within-bin term of Stephenson et al. 2008 it is exact: `brier` = reliability - resolution + uncertainty +
    within to rounding. (Murphy 1973 decomposes distinct forecast values; three-term codes lose `within`.) Bins as
    `ece`; it is class-wise as `sce`, not top-label.

    Returns:
      `BrierParts`, each part summed over the classes.

    Raises:
      Refused: as `brier`, and bins < 1.
    """
    probs = _check.probabilities(probs)
    labels = _check.classes(labels, *probs.shape)
    onehot = np.zeros_like(probs)
    onehot[np.arange(len(labels)), labels] = 1.0
    by_class = binned(probs.clip(0, 1), onehot, bins=bins)
    rate = onehot.mean(0)
    reliability = float((by_class.weight * by_class.gap**2).sum())
    resolution = float((by_class.weight * (by_class.accuracy - rate[:, None]) ** 2).sum())
    uncertainty = float((rate * (1 - rate)).sum())
    # (p - y)² splits into three orthogonal parts; the two sums over members that Bins lacks are taken directly.
    second = float((probs**2).mean(0).sum() - (by_class.weight * by_class.mean_confidence**2).sum())
    cross = float(
        (probs * onehot).mean(0).sum() - (by_class.weight * by_class.mean_confidence * by_class.accuracy).sum()
    )
    return BrierParts(reliability, resolution, uncertainty, second - 2 * cross)


def entropy(logits: Float[ArrayLike, "N K"]) -> float:
    """Mean entropy of the predictions, -Σ_j p_j log p_j, in nats, in [0, log K]; p = 0 contributes 0.

    Raises:
      Refused: N = 0, NaN or +inf logits.
    """
    z = _check.logits(logits)
    return float(rows(z, np.zeros(len(z), np.int64)).entropy.mean())

"""Class-wise calibration errors, and every binned error of a logit matrix in one call.

All schemes share one sort of each class's column: once the column is in order, a bin of any scheme is a slice, and the
hits of a class are its own examples' values, looked up in the same edges. Columns are taken in chunks, so that the
memory beyond the input is bounded whatever K is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from kdjax.errors import within
from kdjax.metrics import _check
from kdjax.metrics._rows import TASK, Rows, rows, spread
from kdjax.metrics.bins import Bins, binned, interpolated_edges, rounded_edges, stride_edges


class Column(NamedTuple):
    """One class.

    Attributes:
      probs: [N], p_j of all examples, ascending.
      hits: [N_j], p_j of the examples of class j, ascending.
    """

    probs: np.ndarray
    hits: np.ndarray


Scheme = Callable[[Column, int], float]


def _inside(column: Column, edges: np.ndarray, side: Any, low: int | None = 0) -> Bins:
    """Bins between ascending edges. `side` is "right" for (lo, hi]; `low=0` puts what lies below in the first bin."""
    cuts = np.searchsorted(column.probs, edges, side)
    hits = np.searchsorted(column.hits, edges, side)
    cuts[-1], hits[-1] = column.probs.size, column.hits.size
    if low == 0:
        cuts[0] = hits[0] = 0
    sums = [column.probs[a:b].sum() for a, b in itertools.pairwise(cuts)]
    return Bins(np.diff(cuts).astype(np.float64), np.array(sums), np.diff(hits).astype(np.float64))


def _sce(column: Column, bins: int) -> float:
    return float(_inside(column, np.arange(bins + 1) / bins, "right").ece)


def _stride(column: Column, bins: int) -> float:
    stride_bins = _inside(column, stride_edges(column.probs, bins), "right", low=None)
    # Weights are n_b / N with the N of all examples, also of those that fall in no bin.
    return float(abs(stride_bins.confidence - stride_bins.correct).sum() / column.probs.size)


def _rounded(column: Column, bins: int) -> float:
    first = np.searchsorted(column.probs, 0.0, "right")
    if first == column.probs.size:
        return 0.0
    kept = Column(column.probs[first:], column.hits[np.searchsorted(column.hits, 0.0, "right") :])
    return float(_inside(kept, rounded_edges(kept.probs, bins), "left").ece)


def _mean_over_classes(
    block: Callable[[int, int], np.ndarray], labels: np.ndarray, shape: tuple[int, int], bins: int, *schemes: Scheme
) -> np.ndarray:
    """Mean over the K classes of each scheme; `block(j, k)` gives classes j..k-1 as contiguous rows [k - j, N]."""
    count, num_classes = shape
    chunk = max(1, min(TASK // count, -(-num_classes // 8)))
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(num_classes + 1))

    def part(first: int) -> np.ndarray:
        sums = np.zeros(len(schemes))
        for j, column in enumerate(block(first, min(first + chunk, num_classes)), first):
            hits = np.sort(column[by_class[starts[j] : starts[j + 1]]])
            column.sort()
            sums += [scheme(Column(column, hits), bins) for scheme in schemes]
        return sums

    return np.sum(spread(part, range(0, num_classes, chunk), size=count * num_classes), axis=0) / num_classes


def _of_probs(probs: Any, labels: Any, bins: int, scheme: Scheme, drop: Any = np.less, threshold: float = 0.0) -> float:
    """Mean over the classes of `scheme`, with the entries for which `drop(p, threshold)` set to 0."""
    probs = _check.probabilities(probs)
    labels = _check.classes(labels, *probs.shape)
    bins = _check.bin_count(bins)
    within("threshold", threshold, 0.0, 1.0)

    def block(first: int, last: int) -> np.ndarray:
        part = probs[:, first:last].T.copy()
        part[drop(part, threshold)] = 0.0
        return part

    return float(_mean_over_classes(block, labels, probs.shape, bins, scheme)[0])


def sce(probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15) -> float:
    """Static (class-wise) calibration error: (1/K) Σ_j Σ_b w_jb |mean 1[y = j] - mean p_j|, equal-width bins of p_j.

    Every example is in a bin of every class. Bins are (lo, hi], the first also holds exactly 0; empty bins contribute
    0. Most p_j are near 0, so for many classes this is a small fraction of the ECE.

    Args:
      probs: [N, K], rows that sum to 1.
      labels: [N], integers in [0, K).
      bins: M.

    Returns:
      Fraction in [0, 2/K].

    Raises:
      Refused: N = 0, bins < 1, values outside [0, 1], rows that do not sum to 1, labels outside [0, K).

    Source: Nixon et al. 2019; KD(C)'s `SCELoss`, which leaves exact zeros out (a difference only if an example's own
    class has probability 0). GCE closes bins on the left. torrvision averages over the classes 0..max(label) only.
    Pearce's calibration_library counts (ŷ = j) = (y = j) as the hit: another quantity, near 0.8 for many classes.
    """
    return _of_probs(probs, labels, bins, _sce)


def ace_classwise_kdc(
    probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15, threshold: float = 0.0
) -> float:
    """Class-wise equal-mass error as coded by KD(C) (`ACELoss`); not what its tables print, see `ace`.

    For class j with sorted p_j and n = floor(N/M): bins (lo, hi] between p_(0), p_(n), ..., p_((M-1)n), 1; then
    (1/K) Σ_j Σ_b (n_b/N) |mean 1[y = j] - mean p_j|. Entries equal to the smallest lie in no bin and lose their
    weight, so a class whose column is constant contributes 0; the last bin takes the remainder of N/M. With N < M
    n is 0 and all entries but the smallest share one bin.

    Args, raises: as `sce`. With a `threshold`, probabilities below it are set to 0 before sorting: the code's
    `TACELoss`.

    Returns:
      Fraction in [0, 2/K].
    """
    return _of_probs(probs, labels, bins, _stride, np.less, threshold)


def ace_classwise(
    probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15, threshold: float = 0.0
) -> float:
    """Adaptive calibration error of Nixon et al.: (1/K) Σ_j Σ_b (n_jb/n_j) |mean 1[y = j] - mean p_j|, equal mass.

    Only entries p_j > threshold count (n_j of them; exact zeros never do). Bins are [lo, hi), cut at the sorted
    positions round(m n_j / M); ties stay together, so bins can differ in mass. A class with no entry contributes 0,
    and so does an empty bin; with n_j < M some bins are empty.

    Args, raises: as `sce`.

    Returns:
      Fraction in [0, 1].

    Source: Google's `GeneralCalibrationError` (default 30 bins there); the paper weighs every bin by 1/(KM) instead.
    """
    return _of_probs(probs, labels, bins, _rounded, np.less_equal, threshold)


def tace(
    probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15, threshold: float = 0.01
) -> float:
    """Thresholded adaptive calibration error: `ace_classwise` of the entries above `threshold`.

    Source: Nixon et al. 2019, GCE. KD(C)'s `TACELoss` keeps the small entries as zeros: `ace_classwise_kdc` with a
    threshold. robustness_metrics' TACE passes 0 and so equals ACE.
    """
    return ace_classwise(probs, labels, bins=bins, threshold=threshold)


def binned_errors(logits: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15) -> dict[str, float]:
    """Every binned calibration error of a logit matrix at once, in float64, columns sorted once.

    Extra memory stays below about 0.5 GB up to N = 10⁶ whatever K is; float32 logits are not copied.

    Returns:
      `ece`, `ece_over`, `ece_under`, `mce`, `oe`, `rms`, `average_ce`, `ace` (top label) and `sce`,
      `ace_classwise_kdc`, `ace_classwise` (class-wise), as the functions of these names give them. Fractions.

    Raises:
      Refused: as `evaluate`.
    """
    return errors_of(rows(logits, labels), logits, labels, bins)


def errors_of(examples: Rows, logits: Any, labels: Any, bins: int) -> dict[str, float]:
    """`binned_errors` when the pass over the rows has been made."""
    z, labels = np.asarray(logits), np.asarray(labels)
    bins = _check.bin_count(bins)
    correct = examples.rank == 0
    top = binned(examples.confidence, correct, bins=bins)
    mass = binned(examples.confidence, correct, bins=interpolated_edges(examples.confidence, bins))

    def block(first: int, last: int) -> np.ndarray:
        part = z[:, first:last].T.astype(np.float64, order="C")
        part -= examples.top
        np.exp(part, out=part)
        part /= examples.total
        return part

    classwise = _mean_over_classes(block, labels, z.shape, bins, _sce, _stride, _rounded)
    return {
        "ece": float(top.ece),
        "ece_over": float(top.over),
        "ece_under": float(top.under),
        "mce": float(top.mce),
        "oe": float(top.oe),
        "rms": float(top.rms),
        "average_ce": float(top.average),
        "ace": float(mass.ece),
        **dict(zip(("sce", "ace_classwise_kdc", "ace_classwise"), map(float, classwise), strict=True)),
    }

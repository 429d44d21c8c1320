"""Every headline metric of a split with a bootstrap interval over its examples, in one pass over the logits.

The metrics here are functions of sums over examples (hits and confidences by bin, losses, residuals by class and bin).
The examples are dealt once, at random, into at most 2000 bags, the sums of each bag are kept, and the bags are drawn
with replacement: a draw is a row of a matrix product. Up to 2000 examples this is the ordinary bootstrap.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.special import digamma

from kdjax.errors import Refused, within
from kdjax.metrics import _check, ranking, smooth
from kdjax.metrics._rows import TASK, spread
from kdjax.metrics.bins import Bins, binned
from kdjax.metrics.intervals import Interval

BAGS, CELLS = 2000, 2048
_LARGEST = 2**24  # numbers that the class-wise sums of all bags may hold


class ClassTable(NamedTuple):
    """One entry a class, [K] each.

    Attributes:
      examples: number of examples with this label.
      predicted: number of examples predicted as this class.
      confidence: mean confidence where it is predicted; 0 where it never is.
      accuracy: fraction of those predictions that are right; 0 where it never is predicted.
      low, high: 95 % bootstrap interval of confidence - accuracy.
      error: class-wise calibration error of p_j over all examples, Σ_b w_b |mean 1[y = j] - mean p_j|.
    """

    examples: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """confidence - accuracy: positive where predictions of the class are over-confident."""
        return self.confidence - self.accuracy


class Resampled(NamedTuple):
    """Metrics of one model on one split, and of its bootstrap samples.

    Attributes:
      values: `top1`, `confidence`, `nll`, `brier`, `ece`, `ece_over`, `ece_under`, `smece`, `sce`, `aurc`, each as
        `kdjax.metrics.evaluate` gives it (but for confidences on an edge, see `bins` of `resampled`), and `gap` =
        confidence - top1, which has a sign.
      draws: by the same names, [resamples].
      floor: ECE that a perfectly calibrated model with these confidences shows on average on this many examples.
      bins: top-label `Bins`, [M].
      classes: the table of the classes.
      dealt: what two models must share to be compared pair by pair: (N, K, resamples, seed).
    """

    values: dict[str, float]
    draws: dict[str, np.ndarray]
    floor: float
    bins: Bins
    classes: ClassTable
    dealt: tuple[int, int, int, int]


class _Sums(NamedTuple):
    """Of the bags, [G, ...]; and of the examples in the order of the bags, [N]."""

    means: np.ndarray  # correct, confidence, nll, brier
    predicted: np.ndarray  # predictions, confidence, hits by predicted class: [G, 3, K]
    residual: np.ndarray  # Σ (p_j - 1[y = j]) by class and bin: [G, K * M]
    confidence: np.ndarray
    correct: np.ndarray


def resampled(
    logits: Float[ArrayLike, "N K"],
    labels: Int[ArrayLike, "N"],
    *,
    bins: int = 15,
    resamples: int = 500,
    seed: int = 0,
) -> Resampled:
    """Metrics with bootstrap draws, on the host; memory beyond the input is bounded, whatever N and K are.

    Args:
      logits: [N, K], any float dtype; -inf excludes a class.
      labels: [N], integers in [0, K).
      bins: M, of equal width, (lo, hi]. A confidence within four roundings of the logits' dtype above an edge counts as
        on it: 0.6 in a float32 file is 0.60000002, and means 9/15.
      resamples: number of draws, >= 1.
      seed: of the bags and of the draws; equal seeds draw the same examples for every model.

    Raises:
      Refused: as `evaluate`; resamples < 1.
    """
    z, bins = _check.logits(logits), _check.bin_count(bins)
    labels = _check.classes(labels, *z.shape)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise Refused(f"resamples is {resamples!r}; expected an integer of at least 1 (500 is usual).")
    count, num_classes = z.shape
    bags = min(count, BAGS, max(200, _LARGEST // (bins * num_classes)))
    rng = np.random.default_rng(seed)
    order = rng.permutation(count) if bags < count else np.arange(count)
    starts = np.arange(bags + 1) * count // bags
    sums = _sums(z, labels, order, starts, bins)
    weights = rng.multinomial(bags, np.full(bags, 1 / bags), size=resamples).astype(np.float64)
    # The first row is the sample itself, so that values and draws come from the same arithmetic.
    weights = np.concatenate([np.ones((1, bags)), weights])
    sizes = np.diff(starts).astype(np.float64)
    drawn = weights @ sizes

    bag = np.repeat(np.arange(bags), np.diff(starts))
    with np.errstate(invalid="ignore"):  # an infinite NLL, drawn no times
        means = weights @ sums.means / drawn[:, None]
    each_draw = dict(zip(("top1", "confidence", "nll", "brier"), means.T, strict=True))
    cuts = np.arange(1, bins) / bins * (1 + _slack(z))
    top = Bins(*(np.asarray(part) for part in _top_bins(sums, bag, weights, cuts)))
    each_draw["gap"] = each_draw["confidence"] - each_draw["top1"]
    each_draw |= {"ece": top.ece, "ece_over": top.over, "ece_under": top.under}
    each_draw["smece"] = _smooth(sums, bag, weights, drawn)
    errors, each_draw["sce"] = _classwise(sums.residual, weights, drawn, num_classes, bins)
    each_draw["aurc"] = _aurc(sums, bag, weights, drawn)
    values = {name: float(draws[0]) for name, draws in each_draw.items()}
    # These two are exact on the sample; on the draws confidences are read to 1/2048.
    values["smece"] = smooth.smece(sums.confidence, sums.correct)
    values["aurc"] = ranking.aurc(sums.confidence, sums.correct)
    variance = sums.confidence * (1 - sums.confidence)
    noise = binned(sums.confidence, sums.correct, bins=bins, weight=variance).count
    return Resampled(
        values,
        {name: np.asarray(draws[1:]) for name, draws in each_draw.items()},
        float(np.sqrt(2 / np.pi * noise).sum() / count),
        Bins(*(part[0] for part in top)),
        _table(sums, labels, weights, errors),
        (count, num_classes, resamples, seed),
    )


def intervals(result: Resampled, level: float = 0.95) -> dict[str, Interval]:
    """Each metric with its interval: the quantiles of the draws about their own mean, moved to the value.

    A resample repeats examples and so shows a larger calibration error than the sample; moved to the value, the draws
    say how far it may be off and do not add that bias a second time. None but that of `gap` goes below 0.
    """
    within("level", level, 0.0, 1.0, open_low=True, open_high=True)
    return {
        name: _interval(value, result.draws[name], level, least=-np.inf if name == "gap" else 0.0)
        for name, value in result.values.items()
    }


def differences(first: Resampled, second: Resampled, level: float = 0.95) -> dict[str, Interval]:
    """first - second of each metric, with the interval of draws of the same examples for both.

    Raises:
      Refused: the two differ in the number of examples or classes, in the seed or in the number of draws.
    """
    within("level", level, 0.0, 1.0, open_low=True, open_high=True)
    if first.dealt != second.dealt:
        raise Refused(
            f"the two models were measured with (examples, classes, draws, seed) {first.dealt} and {second.dealt}; "
            "a paired comparison needs the same of both."
        )
    return {
        name: _interval(value - second.values[name], first.draws[name] - second.draws[name], level)
        for name, value in first.values.items()
    }


def _interval(value: float, draws: np.ndarray, level: float, least: float = -np.inf) -> Interval:
    if not np.isfinite(draws).all():  # a label of probability exactly 0
        return Interval(value, value, value)
    low, high = np.quantile(draws - draws.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, max(least, value + min(low, 0.0)), value + max(high, 0.0))


def _sums(z: np.ndarray, labels: np.ndarray, order: np.ndarray, starts: np.ndarray, bins: int) -> _Sums:
    num_classes, bags = z.shape[1], len(starts) - 1
    rows_at_once = max(1, TASK // 4 // num_classes)
    bags_at_once = max(1, rows_at_once * bags // len(z))
    sums = _Sums(
        np.zeros((bags, 4)),
        np.zeros((bags, 3, num_classes)),
        np.zeros((bags, num_classes * bins)),
        np.empty(len(z)),
        np.empty(len(z), bool),
    )

    def part(first: int) -> None:
        last = min(first + bags_at_once, bags)
        for start in range(starts[first], starts[last], rows_at_once):
            here = slice(start, min(start + rows_at_once, starts[last]))
            bag = np.searchsorted(starts, np.arange(here.start, here.stop), side="right") - 1 - first
            _add(sums, first, last, here, bag, z[order[here]], labels[order[here]], bins)

    spread(part, range(0, bags, bags_at_once))
    return sums


def _add(
    sums: _Sums, first: int, last: int, here: slice, bag: np.ndarray, z: np.ndarray, y: np.ndarray, bins: int
) -> None:
    """Adds some rows to the sums of the bags first..last - 1."""
    rows, (count, num_classes), bags = np.arange(len(y)), z.shape, last - first
    block = z.astype(np.float64)
    predicted = block.argmax(1)
    block -= block[rows, predicted][:, None]
    nll = -block[rows, y]
    np.exp(block, out=block)
    total = block.sum(1)
    block /= total[:, None]
    confidence, correct, of_label = block[rows, predicted], predicted == y, block[rows, y]
    brier = np.maximum(np.einsum("nk,nk->n", block, block) - of_label**2, 0.0) + (1 - of_label) ** 2
    sums.confidence[here], sums.correct[here] = confidence, correct
    for column, value in enumerate((correct, confidence, nll + np.log(total), brier)):
        sums.means[first:last, column] += np.bincount(bag, value, bags)
    by_class = bag * num_classes + predicted
    for column, value in enumerate((np.ones(count), confidence, correct)):
        sums.predicted[first:last, column] += np.bincount(by_class, value, bags * num_classes).reshape(bags, -1)
    # (lo, hi], and exactly 0 in the first bin
    base = (bag * num_classes * bins)[:, None] + np.arange(num_classes) * bins
    scaled = block * (bins * (1 - _slack(z)))
    np.ceil(scaled, out=scaled)
    cell = np.maximum(scaled.astype(np.int64) - 1, 0)
    cell += base
    residual = np.bincount(cell.ravel(), block.ravel(), bags * num_classes * bins)
    residual -= np.bincount(cell[rows, y], minlength=residual.size)
    sums.residual[first:last] += residual.reshape(bags, -1)


def _slack(z: np.ndarray) -> float:
    """How far above an edge, relatively, a confidence computed from such logits still counts as on it."""
    return 4 * float(np.finfo(z.dtype).eps)


def _top_bins(sums: _Sums, bag: np.ndarray, weights: np.ndarray, cuts: np.ndarray) -> Any:
    """Count, confidence and hits by bin of every draw, [1 + B, M] each, for the M - 1 edges between bins."""
    bins = len(cuts) + 1
    cell = bag * bins + np.searchsorted(cuts, sums.confidence, side="left")
    for value in (None, sums.confidence, sums.correct):
        yield weights @ np.bincount(cell, value, len(weights[0]) * bins).reshape(-1, bins)


def _smooth(sums: _Sums, bag: np.ndarray, weights: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    bags = weights.shape[1]
    residual = sums.correct - sums.confidence
    lower, share = smooth.shared(sums.confidence, CELLS)
    cell = bag * CELLS + lower
    density = np.bincount(cell, residual * (1 - share), bags * CELLS)
    density += np.bincount(cell + 1, residual * share, bags * CELLS)
    drawn_density = weights @ density.reshape(bags, CELLS) / drawn[:, None]
    return np.array(spread(lambda i: smooth.fixed_point(drawn_density[i]), range(len(weights))))


def _classwise(
    residual: np.ndarray, weights: np.ndarray, drawn: np.ndarray, num_classes: int, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """(error of each class on the sample [K], mean over the classes on every draw [1 + B])."""
    errors, means = np.empty(num_classes), np.zeros(len(weights))
    step = max(1, TASK // len(weights) // bins)
    for first in range(0, num_classes, step):
        columns = slice(first * bins, min(first + step, num_classes) * bins)
        each = np.abs(weights @ residual[:, columns]).reshape(len(weights), -1, bins).sum(-1) / drawn[:, None]
        errors[first : first + step] = each[0]
        means += each.sum(1) / num_classes
    return errors, means


def _aurc(sums: _Sums, bag: np.ndarray, weights: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Area under risk and coverage of every draw; examples of neighboring confidence share a cell as if tied."""
    bags, count = weights.shape[1], len(bag)
    _, cell = np.unique(-sums.confidence, return_inverse=True)
    if cell.max() >= CELLS:
        cell = np.empty(count, np.int64)
        cell[np.argsort(-sums.confidence, kind="stable")] = np.arange(count) * CELLS // count
    cells = int(cell.max()) + 1
    where = bag * cells + cell
    members = weights @ np.bincount(where, minlength=bags * cells).reshape(bags, cells)
    errors = weights @ np.bincount(where, ~sums.correct, bags * cells).reshape(bags, cells)
    rate = np.divide(errors, members, out=np.zeros_like(errors), where=members > 0)
    before, wrong_before = (np.cumsum(each, axis=1) - each for each in (members, errors))
    # Σ_{k=1..n} (E + r k)/(M + k) = r n + (E - r M)(H(M + n) - H(M))
    harmonic = digamma(before + members + 1) - digamma(before + 1)
    return (rate * members + (wrong_before - rate * before) * harmonic).sum(1) / drawn


def _table(sums: _Sums, labels: np.ndarray, weights: np.ndarray, errors: np.ndarray) -> ClassTable:
    predictions, confidence, hits = (weights @ sums.predicted[:, column] for column in range(3))
    gap = np.divide(confidence - hits, predictions, out=np.zeros_like(hits), where=predictions > 0)
    low, high = np.quantile(gap[1:] - gap[1:].mean(0), [0.025, 0.975], axis=0)
    some = np.maximum(predictions[0], 1)
    return ClassTable(
        np.bincount(labels, minlength=len(errors)),
        predictions[0].astype(np.int64),
        confidence[0] / some,
        hits[0] / some,
        gap[0] + np.minimum(low, 0),
        gap[0] + np.maximum(high, 0),
        errors,
    )

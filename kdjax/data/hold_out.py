"""Which examples are held out: functions of labels, a seed and a size."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from kdjax.data.order import permutation
from kdjax.errors import Refused, one_of, within

HOW = ("stratified", "random")


def hold_out(
    label: np.ndarray, seed: int, fraction: float, how: str = "stratified"
) -> tuple[Int64[np.ndarray, "c"], Int64[np.ndarray, "t"]]:
    """(positions held out, ascending; the other positions, shuffled). A function of the arguments.

    Args:
      label: [N], or [N, R] with -1 where a region does not exist.
      fraction: round(fraction * N) examples are held out.
      how: "random" draws them whatever their labels, as KD(C) does. "stratified" draws the same share of each class,
        by largest remainders, and holds out more where a class of two or more examples would else be missing on one
        side.

    Raises:
      Refused: fraction outside (0, 1), or a side that would be empty.
    """
    one_of("calibration_split", how, HOW)
    within("calibration_fraction", fraction, 0.0, 1.0, open_low=True, open_high=True)
    n = len(label)
    size = round(n * fraction)
    if not 0 < size < n:
        raise Refused(
            f"calibration_fraction {fraction} of {n} training examples holds out {size}, which leaves a split empty; "
            f"expected a fraction of at least {1 / n:.2g} that leaves one example to train on."
        )
    if how == "stratified":
        held_out, rest = stratified(label, size, seed, "calibration", every_class=True)
        if not held_out.size:
            raise Refused(
                f"calibration_fraction {fraction} of {n} training examples holds out none, since each is alone in its "
                "class; expected a class of two or more, calibration_split='random', or a calibration split of your "
                "own."
            )
        return held_out, rest
    order = permutation(n, "calibration", seed)
    return np.sort(order[:size]), order[size:]


def carve(
    where: str, label: np.ndarray, test_examples: int | None
) -> tuple[Int64[np.ndarray, "c"], Int64[np.ndarray, "t"]]:
    """(positions for testing, the others), ascending: a fixed fifth of every class, or `test_examples` in all.

    Raises:
      Refused: a size that is no integer, or leaves too few; every example alone in its class.
    """
    n = len(label)
    size = max(1, round(n / 5)) if test_examples is None else test_examples
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= n - 2:
        raise Refused(
            f"a test split of {size!r} of the {n} examples in {where} leaves too few; expected test_examples in "
            f"[1, {n - 2}]."
        )
    test, train = stratified(label, int(size), 0, "test")
    if not test.size:
        raise Refused(
            f"each of the {n} examples in {where} is alone in its class, so that none can be for testing; expected a "
            "class of two or more."
        )
    return test, np.sort(train)


def stratified(
    label: np.ndarray, size: int, seed: int, purpose: str, *, every_class: bool = False
) -> tuple[Int64[np.ndarray, "c"], Int64[np.ndarray, "t"]]:
    """(about `size` positions in proportion to the classes, ascending; the other positions, shuffled).

    Class c of n_c examples gives floor(size n_c / N), and the largest remainders give one more (ties by lot). A class
    of one example gives none.

    Args:
      every_class: each class of two or more gives at least one and keeps at least one, even if more than `size`
        examples are held out by that.
    """
    shuffled = permutation(len(label), purpose, seed)
    classes, strata, counts = np.unique(_strata(label), return_inverse=True, return_counts=True)
    share = counts * (size / counts.sum())
    quota = np.floor(share).astype(np.int64)
    if every_class:
        quota = np.maximum(quota, 1)
    quota = np.minimum(quota, counts - 1)
    lot = permutation(len(classes), "ties", seed)
    while (left := size - int(quota.sum())) > 0 and (room := np.flatnonzero(quota < counts - 1)).size:
        for c in sorted(room, key=lambda c: (quota[c] - share[c], lot[c]))[:left]:
            quota[c] += 1
    by_class = np.argsort(strata[shuffled], kind="stable")
    rank = np.empty(len(shuffled), np.int64)  # of each shuffled example within its class
    rank[by_class] = np.arange(len(shuffled)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = rank < quota[strata[shuffled]]
    return np.sort(shuffled[chosen]), shuffled[~chosen]


def _strata(label: np.ndarray) -> np.ndarray:
    """[N]: the label; for regions the rarest class of the example, so that rare ones are spread over both sides."""
    if label.ndim == 1:
        return label
    existing = label >= 0
    counts = np.bincount(label[existing])
    rarity = np.where(existing, counts[np.where(existing, label, 0)], np.iinfo(np.int64).max)
    rarest = np.take_along_axis(label, rarity.argmin(1)[:, None], 1)[:, 0]
    return np.where(existing.any(1), rarest, -1)

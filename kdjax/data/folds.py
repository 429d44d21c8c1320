"""Parts of a training split that are left out in turn, for teachers that did not see what they teach."""

from __future__ import annotations

import hashlib

import numpy as np

from kdjax.data.lazy import take
from kdjax.errors import Refused
from kdjax.types import Dataset


def held_out(num_examples: int, folds: int, seed: int) -> list[np.ndarray]:
    """Positions of each of the `folds` parts, a random partition by `seed`; sizes differ by at most one.

    Raises:
      Refused: folds outside [2, N].
    """
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= num_examples:
        raise Refused(f"folds is {folds!r}; expected an integer between 2 and the {num_examples} training examples.")
    return np.array_split(np.random.default_rng(seed).permutation(num_examples), folds)


def without(dataset: Dataset, fold: tuple[int, int, int]) -> Dataset:
    """The data set without one part of its training split, known under a fingerprint of its own.

    Args:
      fold: (which part, of how many, seed of the partition).
    """
    part, folds, seed = fold
    n = len(dataset.train.label)
    kept = np.setdiff1d(np.arange(n), held_out(n, folds, seed)[part])
    fingerprint = hashlib.sha256(f"{dataset.fingerprint} without {part} of {folds} by {seed}".encode()).hexdigest()
    return dataset._replace(train=take(dataset.train, kept), fingerprint=fingerprint)

"""A long tail: classes of geometrically falling size, cut out of a training split."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from kdjax.data.order import permutation
from kdjax.errors import Refused, within

AT_LEAST = 2
"""Examples that the rarest class keeps, if it has them."""


def long_tail(label: np.ndarray, num_classes: int, imbalance: float, seed: int = 0) -> Int64[np.ndarray, "m"]:
    """Positions, ascending, of a training split whose class of rank r has n_max imbalance^(-r / (K - 1)) examples.

    n_k = max(2, floor(n_max imbalance^(-r_k / (K - 1)))), at most what the class has; n_max is the size of the largest
    class and r_k the rank of class k in a permutation by `seed`, so that an average over seeds is not about which
    meanings happen to be rare. Within a class a prefix of one permutation is kept: the smaller imbalance holds all
    examples of the larger one.

    Args:
      label: [N], in [0, K).
      imbalance: size of the largest class over that of the smallest, >= 1.

    Raises:
      Refused: an imbalance below 1, labels of regions.

    Source: Cui et al., Class-Balanced Loss, CVPR 2019, arXiv 1901.05555.
    """
    within("imbalance", imbalance, 1)
    if label.ndim != 1:
        raise Refused("imbalance cuts classes of labels [N], and this set has labels of regions; remove imbalance.")
    counts = np.bincount(label, minlength=num_classes)
    rank = permutation(num_classes, "long tail", seed)
    falling = np.floor(counts.max() * float(imbalance) ** (-rank / max(num_classes - 1, 1)) + 1e-9).astype(np.int64)
    sizes = np.minimum(np.maximum(falling, AT_LEAST), counts)
    shuffled = permutation(len(label), "tail examples", seed)
    by_class = np.argsort(label[shuffled], kind="stable")
    place = np.empty(len(label), np.int64)  # of each shuffled example within its class
    place[by_class] = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(shuffled[place < sizes[label[shuffled]]])

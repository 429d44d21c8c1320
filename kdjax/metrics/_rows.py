"""One pass over the rows of a logit matrix, in float64 and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from kdjax.metrics import _check

# Elements (float64) that one task may hold at once: 32 MiB an array, a handful of arrays a task.
TASK = 2**22


class Rows(NamedTuple):
    """What the metrics need of each example, [N] each.

    Attributes:
      top: max_j z_j.
      total: Σ_j exp(z_j - top).
      confidence: max_j p_j, which is 1 / total.
      rank: number of classes ranked above the label (lower index first on ties): 0 if the prediction is right.
      nll: -log p_y in nats.
      brier: Σ_j (p_j - 1[j = y])².
      entropy: -Σ_j p_j log p_j in nats.
    """

    top: np.ndarray
    total: np.ndarray
    confidence: np.ndarray
    rank: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    entropy: np.ndarray


def workers() -> int:
    """CPUs this process may use, at most 8 (NumPy gives up the interpreter lock in sorts and exponentials)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, allowed)


def spread(task: Callable[[int], Any], starts: Iterable[int], *, size: int = TASK) -> list[Any]:
    """task(start) for every start, in order; on a few threads, unless the tasks have few numbers in all (`size`): then
    threads take longer to start than they save."""
    starts = list(starts)
    if len(starts) == 1 or size < TASK // 4:
        return [task(start) for start in starts]
    with ThreadPoolExecutor(workers()) as pool:
        return list(pool.map(task, starts))


def rows(logits: Any, labels: Any) -> Rows:
    """Checks logits and labels, then makes the pass.

    Raises:
      Refused: as `_check.logits` and `_check.classes`.
    """
    z = _check.logits(logits)
    labels = _check.classes(labels, *z.shape)
    count, num_classes = z.shape
    step = max(1, TASK // 4 // num_classes)

    def part(start: int) -> Rows:
        block = z[start : start + step].astype(np.float64)
        y = labels[start : start + step, None]
        of_label = np.take_along_axis(block, y, 1)
        ahead = (block == of_label) & (np.arange(num_classes) < y)
        rank = (block > of_label).sum(1) + ahead.sum(1)
        top = block.max(1)
        block -= top[:, None]
        nll = -np.take_along_axis(block, y, 1)[:, 0]
        probs = np.exp(block)
        total = probs.sum(1)
        # A class at -inf has probability 0 and contributes 0 to the entropy.
        np.maximum(block, -1e300, out=block)
        probs /= total[:, None]
        log_total = np.log(total)
        entropy = np.maximum(log_total - np.einsum("nk,nk->n", probs, block), 0.0)
        confidence = probs.max(1)
        np.put_along_axis(probs, y, np.take_along_axis(probs, y, 1) - 1.0, 1)
        brier = np.einsum("nk,nk->n", probs, probs)
        return Rows(top, total, confidence, rank, nll + log_total, brier, entropy)

    parts = spread(part, range(0, count, step))
    return Rows(*(np.concatenate(values) for values in zip(*parts, strict=True)))

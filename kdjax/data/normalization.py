"""What a data set does to its inputs: the constants of normalization, by name or from the training examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kdjax.data.checks import check_unit_range
from kdjax.data.lazy import Lazy
from kdjax.errors import Refused, one_of
from kdjax.prepare import Normalize, Unchanged
from kdjax.types import Prepare, Split

Normalization = str | tuple[Sequence[float], Sequence[float]] | None

PUBLISHED = {
    # One pair for CIFAR-10 and CIFAR-100 alike, as in the code of KD(C).
    "kdc": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    # CIFAR-100's own, with which mdistiller's teachers were trained.
    "mdistiller": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
NORMALIZATIONS = (*PUBLISHED, "own", "none")
_CHUNK = 1024


def normalization(train: Split, positions: np.ndarray, how: Normalization) -> Prepare:
    """What turns raw inputs into what the network sees: (inputs / scale - mean) / std per channel (last axis).

    Args:
      train: the source's training split.
      positions: what is left of it after the hold-out; "own" constants are computed from these, before
        `train_examples`, so that subsets share them. They are rounded to six digits: sums of floats differ in the last
        bits between processors, and these constants are part of the fingerprint.
      how: "own"; "kdc" or "mdistiller", the CIFAR constants of that code; "none" (uint8 pixels are still divided by
        255); or a pair (mean, std), units of inputs / scale. Token ids, and inputs of several arrays, stay as they are.

    Raises:
      Refused: an unknown name; floats far outside [0, 1] with published constants; constants
        that do not fit the channels; a std that is not positive.
    """
    leaves = jax.tree.leaves(train.inputs.shape_of_one if isinstance(train.inputs, Lazy) else train.inputs)
    structured = not hasattr(train.inputs.shape_of_one if isinstance(train.inputs, Lazy) else train.inputs, "shape")
    leaf, channels = leaves[0], leaves[0].shape[-1]
    pixels = leaf.dtype == np.uint8 and len(leaf.shape) == (3 if isinstance(train.inputs, Lazy) else 4)
    scale = 255.0 if pixels else 1.0
    if isinstance(how, str):
        one_of("normalization", how, NORMALIZATIONS)
        if structured or not (pixels or leaf.dtype == np.float32):
            return Unchanged()
        if how == "none":
            return Normalize((0.0,) * channels, (1.0,) * channels, scale) if pixels else Unchanged()
        if how in PUBLISHED:
            check_unit_range("train", train.inputs, f"normalization {how!r}", "set normalization='own'")
        pair: Sequence[Any] = PUBLISHED[how] if how in PUBLISHED else _statistics(train, positions, scale)
    else:
        pair = tuple(how) if isinstance(how, tuple | list | np.ndarray) else ()
        if structured:
            raise Refused(f"normalization is {how!r} for inputs of {len(leaves)} named arrays; expected 'none'.")
    if len(pair) != 2 or any(isinstance(side, str) or not np.iterable(side) for side in pair):
        raise Refused(
            f"normalization is {how!r}; expected 'kdc', 'mdistiller', 'own', 'none' or a pair (mean, std) of sequences."
        )
    try:
        mean, std = (tuple(float(value) for value in side) for side in pair)
    except (TypeError, ValueError) as error:
        raise Refused(f"normalization is {how!r}; expected numbers in a pair (mean, std).") from error
    if {len(mean), len(std)} - {1, channels} or not np.isfinite(mean + std).all() or min(std) <= 0:
        raise Refused(
            f"normalization {how!r} is mean {mean} and std {std} for inputs of {channels} channels; expected one "
            "finite mean and one positive std per channel (or one for all)."
        )
    mean, std = (side * channels if len(side) == 1 else side for side in (mean, std))
    return Normalize(mean, std, scale)


def _statistics(train: Split, positions: np.ndarray, scale: float) -> tuple[list[float], list[float]]:
    positions = np.sort(positions)
    if not isinstance(train.inputs, Lazy):
        return channel_statistics(jax.tree.leaves(train.inputs)[0], positions, scale)
    known = train.inputs.statistics(positions)
    if known is None:
        raise Refused(
            "normalization is 'own', and this data set stays on disk and knows no statistics of its pixels; expected "
            "'none' or a pair (mean, std)."
        )
    return known


def channel_statistics(array: np.ndarray, positions: np.ndarray, scale: float) -> tuple[list[float], list[float]]:
    """Mean and population deviation of each channel of array[positions] / scale; a constant channel has std 1."""
    channels = array.shape[-1]
    blocks = [positions[start : start + _CHUNK] for start in range(0, len(positions), _CHUNK)]
    if array.dtype == np.uint8:  # exact, and ten times as fast as sums of floats
        counts = np.zeros((channels, 256), np.int64)
        for block in blocks:
            for c, values in enumerate(array[block].reshape(-1, channels).T):
                counts[c] += np.bincount(values, minlength=256)
        values = np.arange(256) / scale
        mean = counts @ values / counts.sum(1)
        variance = ((values - mean[:, None]) ** 2 * counts).sum(1) / counts.sum(1)
    else:
        n = len(positions) * int(np.prod(array.shape[1:-1]))
        rows = lambda block: array[block].reshape(-1, channels).astype(np.float64) / scale  # noqa: E731
        mean = sum((rows(block).sum(0) for block in blocks), np.zeros(channels)) / n
        variance = sum((((rows(block) - mean) ** 2).sum(0) for block in blocks), np.zeros(channels)) / n
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return [float(f"{v:.6g}") for v in mean], [float(f"{v:.6g}") for v in std]

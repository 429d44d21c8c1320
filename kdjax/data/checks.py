"""What a split must be before anything compiles; each violation is refused in one sentence (host side, once)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from kdjax.errors import Refused
from kdjax.types import PyTree, Split

CHUNK = 1024  # rows looked at together: keeps the temporaries of a check far below the size of the data


def as_split(what: str, part: Split | Sequence, first_index: int = 0) -> Split:
    """Turns `(inputs, label)` or `(inputs, label, index)` into a checked `Split`.

    Floating inputs of any width become float32; uint8 stays uint8 (and memory-mapped arrays stay mapped).

    Args:
      what: the split's name, for the sentence.
      part: the arrays. Without an index the examples are numbered from `first_index`.

    Raises:
      Refused: not two or three parts; empty; lengths that differ; a rank or type no model takes; labels that are not
        integers; an index that is not unique.
    """
    if not isinstance(part, tuple | list) or len(part) not in (2, 3):
        raise Refused(
            f"{what} is {type(part).__name__}; expected a pair (inputs, label) or a triple (inputs, label, index)."
        )
    inputs = jax.tree.map(_leaf, part[0])
    label = np.asarray(part[1])
    n = check_inputs(what, inputs)
    check_label_type(what, label)
    if len(label) != n:
        raise Refused(f"{what} has {n} inputs and {len(label)} labels; expected one label for each input.")
    index = np.arange(first_index, first_index + n) if len(part) == 2 else np.asarray(part[2])
    check_index(what, index, n)
    # A uint64 label past int32 would wrap into range; the sentinel keeps it outside [0, K) for `check_labels`.
    label = np.clip(label, -(2**31), 2**31 - 1).astype(np.int32)
    return Split(inputs, label, index.astype(np.int64))


def check_split(what: str, split: Split, num_classes: int) -> None:
    """Refuses labels outside [0, K) and pixels that are not finite; everything else `as_split` has seen."""
    check_labels(what, split.label, num_classes)
    check_finite(what, split.inputs)


def check_inputs(what: str, inputs: PyTree) -> int:
    """Returns N, the common leading axis.

    A single array is images [N, H, W, C] (uint8, or floats), features [N, D] or token ids [N, L]; a pytree (token ids
    and a mask) may hold arrays of any rank with one leading axis.

    Raises:
      Refused: empty, a wrong rank or type, leading axes that differ.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves:
        raise Refused(f"{what} has no input arrays; expected images [N, H, W, C] or features [N, D].")
    shapes = [leaf.shape for leaf in leaves]
    if isinstance(inputs, np.ndarray) and inputs.ndim not in (2, 4):
        hint = " (gray images: add the channel axis, inputs[..., None])" if inputs.ndim == 3 else ""
        raise Refused(
            f"{what} inputs have shape {inputs.shape}; expected rank 4, images [N, H, W, C], or rank 2, "
            f"features [N, D]{hint}."
        )
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise Refused(f"{what} input arrays have shapes {shapes}; expected one leading axis N in all of them.")
    n = shapes[0][0]
    if n == 0:
        raise Refused(f"{what} is an empty split, inputs of shape {shapes[0]}; expected at least one example.")
    if 0 in (size for shape in shapes for size in shape):
        raise Refused(f"{what} inputs have shape {shapes}, an axis of length 0; expected examples with content.")
    for leaf in leaves:
        if not (leaf.dtype == np.uint8 or np.issubdtype(leaf.dtype, np.floating)) and (
            leaf.ndim == 4 or not (np.issubdtype(leaf.dtype, np.integer) or leaf.dtype == np.bool_)
        ):
            raise Refused(
                f"{what} inputs have type {leaf.dtype}; expected uint8 pixels (0 to 255) or floats; "
                "convert them: inputs.astype('uint8') or inputs.astype('float32')."
            )
    if leaves[0].ndim == 4 and leaves[0].dtype == np.uint8 and all(c.max() <= 1 for c in chunks(leaves[0])):
        raise Refused(
            f"{what} inputs are uint8 with no value above 1; expected 0 to 255: floats in [0, 1] were cast to "
            "integers; pass them as float32, or multiply by 255 before the cast."
        )
    return n


def check_label_type(what: str, label: np.ndarray) -> None:
    """Refuses labels that are not a vector of integers."""
    if label.ndim != 1:
        hint = " (one-hot rows: label.argmax(-1))" if label.ndim == 2 and label.shape[-1] > 1 else ""
        raise Refused(f"{what} labels have shape {label.shape}; expected one integer each, shape [N]{hint}.")
    if not np.issubdtype(label.dtype, np.integer):
        raise Refused(
            f"{what} labels have type {label.dtype}; expected integers in [0, K); convert them when they are whole "
            "numbers: label.astype('int32')."
        )


def check_labels(what: str, label: np.ndarray, num_classes: int) -> None:
    """Refuses labels outside [0, K): -1 would train silently as class K-1, and K would give NaN."""
    wrong = np.flatnonzero((label < 0) | (label >= num_classes))
    if wrong.size:
        first = int(wrong[0])
        raise Refused(
            f"{what} has {wrong.size} of {label.size} labels outside [0, {num_classes}), the first at position "
            f"{first} with value {int(label[first])}; expected classes 0 to {num_classes - 1}: drop those examples or "
            "correct num_classes."
        )


def check_finite(what: str, inputs: PyTree) -> None:
    """Refuses NaN and infinities in floating inputs."""
    for leaf in jax.tree.leaves(inputs):
        if not np.issubdtype(leaf.dtype, np.floating):
            continue
        values, rows, first = 0, 0, -1
        for k, chunk in enumerate(chunks(leaf)):
            bad = ~np.isfinite(chunk.reshape(len(chunk), -1))
            hit = np.flatnonzero(bad.any(1))
            values += int(bad.sum())
            rows += hit.size
            if hit.size and first < 0:
                first = k * CHUNK + int(hit[0])
        if rows:
            raise Refused(
                f"{what} has {values} NaN or infinite values in {rows} of {len(leaf)} inputs, the first in the example "
                f"at position {first}; expected finite numbers: drop or repair those examples."
            )


def check_index(what: str, index: np.ndarray, n: int) -> None:
    """Refuses an index that is not N unique integers."""
    if index.shape != (n,) or not np.issubdtype(index.dtype, np.integer):
        raise Refused(
            f"{what} index has type {index.dtype} and shape {index.shape}; expected {n} unique integers, one per input."
        )
    values, counts = np.unique(index, return_counts=True)
    if values.size < n:
        twice = int(values[counts > 1][0])
        raise Refused(
            f"{what} index has {n - values.size} duplicates, the first value to occur twice is {twice}; expected every "
            "example to have a number of its own."
        )


def check_same_form(train: Split, other: Split, what: str) -> None:
    """Refuses splits whose examples differ in structure, shape or type."""

    def form(split: Split) -> PyTree:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[1:])}", split.inputs)

    if form(train) != form(other):
        raise Refused(f"train examples are {form(train)} and {what} examples are {form(other)}; expected the same.")


def chunks(array: np.ndarray):
    """Consecutive blocks of rows."""
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK]


def _leaf(array) -> np.ndarray:
    # `asanyarray` keeps a memory map a memory map.
    array = np.asanyarray(array)
    if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return array.astype(np.float32, copy=False)
    return array

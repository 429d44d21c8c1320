"""What a split must be before anything compiles; each violation is refused in one sentence (host side, once)."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from kdjax.data import labels
from kdjax.data.contents import form
from kdjax.data.lazy import Lazy, check_lazy
from kdjax.errors import Refused
from kdjax.types import PyTree, Split

LOOKED_AT = 64  # examples on disk that are read to see how large their values are
FAR_OUTSIDE = 4.0  # root mean square of values that cannot be meant in [0, 1]
CHUNK = 1024  # rows looked at together: keeps the temporaries of a check far below the size of the data


def as_split(
    what: str, part: Split | Sequence, first_index: int = 0, *, weight: Any = None, num_classes: int | None = None
) -> Split:
    """Turns `(inputs, label)` or `(inputs, label, index)` into a checked `Split`.

    Floating inputs of any width become float32; uint8 stays uint8. Memory maps stay mapped until the split is cut.

    Args:
      what: the split's name, for the sentence.
      part: the arrays, or a `Split`. Without an index the examples are numbered from `first_index`.
      weight: [N] or the shape of the labels, >= 0; takes the place of the split's own.
      num_classes: K, where it is known already; makes sentences on one-hot labels more certain.

    Raises:
      Refused: not two or three parts; empty; lengths that differ; a rank or type no model takes; labels that are not
        integers; an index that is not unique; weights that are negative or not finite.
    """
    if isinstance(part, Split):
        weight = part.weight if weight is None else weight
        part = part[:3]
    if not isinstance(part, tuple | list) or len(part) not in (2, 3):
        raise Refused(
            f"{what} is {type(part).__name__}; expected a pair (inputs, label) or a triple (inputs, label, index)."
        )
    if isinstance(part[0], list):
        raise Refused(
            f"{what} has a list of {len(part[0])} as inputs; expected an array [N, ...], or a dict of them: type "
            "np.asarray(inputs), or np.stack(inputs)."
        )
    inputs = part[0] if isinstance(part[0], Lazy) else jax.tree.map(_leaf, part[0])
    label = np.asarray(part[1])
    n = check_lazy(what, inputs) if isinstance(inputs, Lazy) else check_inputs(what, inputs)
    labels.check_type(what, label, num_classes)
    if len(label) != n:
        raise Refused(f"{what} has {n} inputs and {len(label)} labels; expected one label for each input.")
    index = np.arange(first_index, first_index + n) if len(part) == 2 else np.asarray(part[2])
    check_index(what, index, n)
    # A uint64 label past int32 would wrap into range; the sentinel keeps it outside [0, K) for `labels.check_range`.
    label = np.clip(label, -(2**31), 2**31 - 1).astype(np.int32)
    return Split(inputs, label, index.astype(np.int64), None if weight is None else check_weight(what, weight, label))


def check_split(what: str, split: Split, num_classes: int) -> None:
    """Refuses labels outside [0, K) and pixels that are not finite; everything else `as_split` has seen."""
    labels.check_range(what, split.label, num_classes)
    if not isinstance(split.inputs, Lazy):
        check_finite(what, split.inputs)
        check_tokens(what, split.inputs)


def check_tokens(what: str, inputs: PyTree, vocab_size: int | None = None) -> None:
    """Refuses token ids that are negative or outside a vocabulary, and texts without any real token.

    Inputs that are no mapping with `input_ids` and `attention_mask` pass.
    """
    if not isinstance(inputs, Mapping) or not {"input_ids", "attention_mask"} <= inputs.keys():
        return
    ids, mask = np.asarray(inputs["input_ids"]), np.asarray(inputs["attention_mask"])
    high = np.iinfo(np.int32).max if vocab_size is None else vocab_size
    if len(wrong := np.argwhere((ids < 0) | (ids >= high))):
        first = tuple(int(i) for i in wrong[0])
        size = "no negative ones" if vocab_size is None else f"0 to {vocab_size - 1}, the rows of the word table"
        raise Refused(
            f"{what} has {len(wrong)} token ids outside the vocabulary, the first in example {first[0]} with value "
            f"{int(ids[first])}; expected {size}: use the tokenizer that belongs to the model, or set its vocab_size."
        )
    if len(empty := np.flatnonzero(~(mask != 0).any(axis=-1))):
        raise Refused(
            f"{what} has {len(empty)} texts whose attention_mask is 0 everywhere, the first in example "
            f"{int(empty[0])}; "
            "expected 1 on every real token: an empty text still has its two special tokens."
        )


def check_weight(what: str, weight: Any, label: np.ndarray) -> np.ndarray:
    """Weights as float32 [N], or in the shape of labels [N, R].

    Raises:
      Refused: another shape; text; a weight that is negative or not finite; all of them 0.
    """
    array = np.asarray(weight)
    if array.dtype.kind not in "biuf" or array.shape not in {label.shape, label.shape[:1]}:
        raise Refused(
            f"{what} weights have type {array.dtype} and shape {array.shape}; expected one number for each label, "
            f"shape {label.shape}."
        )
    array = array.astype(np.float32)
    if wrong := np.flatnonzero(~(np.isfinite(array) & (array >= 0)).reshape(len(array), -1).all(1)).tolist():
        raise Refused(
            f"{what} has {len(wrong)} weights that are negative or not finite, the first at position {wrong[0]}; "
            "expected numbers of at least 0."
        )
    if not array.any():
        raise Refused(f"{what} has only weights of 0, so no example counts; expected some above 0.")
    if array.ndim < label.ndim:
        array = np.repeat(array[:, None], label.shape[1], 1)
    return array


def check_inputs(what: str, inputs: PyTree) -> int:
    """Returns N, the common leading axis.

    A single array is images [N, H, W, C] (uint8, or floats), features [N, D] or token ids [N, L]; a pytree (token ids
    and a mask, integers or booleans) may hold arrays of any rank with one leading axis.

    Raises:
      Refused: empty, a wrong rank or type, leading axes that differ.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves:
        raise Refused(f"{what} has no input arrays; expected images [N, H, W, C] or features [N, D].")
    shapes = [leaf.shape for leaf in leaves]
    if isinstance(inputs, np.ndarray) and inputs.ndim not in (2, 4):
        refuse_rank(f"{what} inputs", inputs.shape)
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
    for leaf in leaves:
        check_layout(what, leaf)
    if leaves[0].ndim == 4 and leaves[0].dtype == np.uint8 and all(c.max() <= 1 for c in chunks(leaves[0])):
        raise Refused(
            f"{what} inputs are uint8 with no value above 1; expected 0 to 255: floats in [0, 1] were cast to "
            "integers; pass them as float32, or multiply by 255 before the cast."
        )
    return n


def refuse_rank(what: str, shape: tuple[int, ...]) -> NoReturn:
    """Refuses a single array that is neither images nor features nor token ids."""
    hint = " (gray images: add the channel axis, inputs[..., None])" if len(shape) == 3 else ""
    raise Refused(
        f"{what} have shape {shape}; expected rank 4, images [N, H, W, C], or rank 2, features [N, D] or token ids "
        f"[N, L]{hint}."
    )


def check_layout(what: str, images: np.ndarray) -> None:
    """Refuses square images whose channels come first, as PyTorch has them; warns of others that look so."""
    if images.ndim != 4:
        return
    _, channels, height, width = images.shape
    if channels not in (1, 3) or min(height, width) <= 4:
        return
    looks = f"{what} inputs have shape {images.shape}, which looks like [N, C, H, W]"
    if height == width:
        raise Refused(f"{looks}; expected [N, H, W, C]: type inputs.transpose(0, 2, 3, 1).")
    if channels == 3:
        warnings.warn(f"{looks}; if so, type inputs.transpose(0, 2, 3, 1).", stacklevel=6)


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


def check_unit_range(what: str, inputs: PyTree, taker: str, instead: str) -> None:
    """Refuses floats whose size says that they are no values in [0, 1], where something takes them for such.

    The size is the root of the mean square of the first examples: it sees a few white strokes on black, and noise on
    values in [0, 1] stays below.

    Args:
      taker: what takes 1 for white, for the sentence.
      instead: what to type where these values are meant.
    """
    lazy = isinstance(inputs, Lazy)
    first = jax.tree.leaves(inputs.shape_of_one if lazy else inputs)[0]
    if not hasattr(first, "dtype") or not np.issubdtype(first.dtype, np.floating):
        return
    some = inputs.gather(np.arange(min(len(inputs), LOOKED_AT))) if lazy else inputs
    values = np.asarray(jax.tree.leaves(some)[0][:CHUNK])
    if np.sqrt(np.square(values, dtype=np.float64).mean()) > FAR_OUTSIDE:
        raise Refused(
            f"{what} inputs are floats from {values.min():.4g} to {values.max():.4g}, and {taker} takes 1 for white; "
            "expected values in [0, 1]: divide them by the value of white, pass them as uint8 (0 to 255), or "
            f"{instead}."
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

    def shown(split: Split) -> str:
        return ", ".join(f"{place}{': ' if place else ''}{dtype}{shape}" for place, dtype, shape in form(split.inputs))

    if form(train.inputs) != form(other.inputs):
        raise Refused(f"train examples are {shown(train)} and {what} examples are {shown(other)}; expected the same.")
    if train.label.ndim != other.label.ndim:
        raise Refused(
            f"train labels have shape {train.label.shape} and {what} labels {other.label.shape}; expected [N] in both, "
            "or [N, R] in both."
        )


def chunks(array: np.ndarray):
    """Consecutive blocks of rows."""
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK]


def _leaf(array) -> np.ndarray:
    # `asanyarray` keeps a memory map a memory map.
    array = np.asanyarray(array)
    if isinstance(array, np.memmap):
        _check_map(array)
    if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return array.astype(np.float32, copy=False)
    return array


def _check_map(array: np.memmap) -> None:
    """Refuses a map of a file that has become shorter: to read it would end the process by a bus error."""
    mapped = getattr(array, "_mmap", None)
    if mapped is None or array.filename is None:
        return
    begin = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    try:
        size = Path(array.filename).stat().st_size
    except OSError:
        return  # removed: the map keeps its pages
    if size < begin + len(mapped):
        raise Refused(
            f"{array.filename} is {size} bytes long and the array that maps it needs {begin + len(mapped)}; expected a "
            "file that stays as it is: write it anew."
        )

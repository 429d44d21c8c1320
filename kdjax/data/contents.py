"""What each example holds, as a hash: how splits are recognized, compared, and kept apart."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from kdjax.data.lazy import Lazy
from kdjax.errors import Refused
from kdjax.types import PyTree, Split

Contents = UInt8[np.ndarray, "N 16"]

ALLOWED_OVERLAP = 0.01
"""The share of a held-out split that may occur in another split. Public sets have a few: ten images of CIFAR-100's
10,000 for testing are also in train. More is a mistake in how the splits were made."""

_CHUNK = 1024


def contents(inputs: PyTree) -> Contents:
    """BLAKE2b-128 of the inputs of every example, over the bytes of all leaves in their order.

    Sources on disk hash the encoded bytes instead and bring the result along (`Lazy.contents`, `Source.contents`).
    """
    if isinstance(inputs, Lazy):
        return inputs.contents
    leaves = jax.tree.leaves(inputs)
    n = len(leaves[0])
    hashes = np.empty((n, 16), np.uint8)
    for start in range(0, n, _CHUNK):
        rows = [_bytes(leaf[start : start + _CHUNK]) for leaf in leaves]
        for i, row in enumerate(zip(*rows, strict=True)):
            h = hashlib.blake2b(digest_size=16)
            for part in row:
                h.update(part)
            hashes[start + i] = np.frombuffer(h.digest(), np.uint8)
    return hashes


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over type, shape and bytes of arrays."""
    h = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        h.update(f"{array.dtype.str}{array.shape};".encode())
        h.update(array.reshape(-1).view(np.uint8).data)
    return h.hexdigest()


def split_digest(split: Split, hashes: Contents, about: Mapping[str, Any]) -> str:
    """SHA-256 over a split: the form and the `contents` of its inputs, its labels, indices and weights.

    Args:
      hashes: `contents(split.inputs)`.
      about: whatever else decides what the inputs are, in JSON: how files are decoded, a resolution.
    """
    h = hashlib.sha256(json.dumps([form(split.inputs), about], sort_keys=True).encode())
    h.update(digest(hashes, split.label, split.index).encode())
    if split.weight is not None:
        h.update(digest(split.weight).encode())
    return h.hexdigest()


def form(inputs: PyTree) -> list[list[Any]]:
    """[place in the pytree, type, shape of one example] of every leaf."""
    one = inputs.shape_of_one if isinstance(inputs, Lazy) else None
    if one is None:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    return [
        [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(one)
    ]


def keys(hashes: Contents) -> np.ndarray:
    """The first half of each hash as a number: unique enough to count with (collisions: n² / 2^64)."""
    return np.ascontiguousarray(hashes[:, :8]).view(np.uint64)[:, 0]


def check_overlap(name: str, hashes: Mapping[str, Contents], allow_overlap: bool) -> None:
    """Refuses splits that share examples, and warns of the few that public sets have and of repeated ones.

    An example counts as shared when its inputs are equal bit for bit, whatever its label. Refused is more than
    `ALLOWED_OVERLAP` of a held-out split: test against train and calibration, calibration against train.

    Args:
      hashes: the `contents` of train, calibration and test.
      allow_overlap: warn of any overlap instead.
    """
    numbers = {what: keys(rows) for what, rows in hashes.items()}
    notes: list[str] = []
    refusals: list[str] = []
    for held_out, other in (("test", "train"), ("calibration", "train"), ("test", "calibration")):
        shared = int(np.isin(numbers[held_out], numbers[other]).sum())
        if shared:
            many = shared > ALLOWED_OVERLAP * len(numbers[held_out])
            sentence = f"{shared} of {len(numbers[held_out])} {held_out} examples also occur in {other}"
            (refusals if many and not allow_overlap else notes).append(sentence)
    repeated = {what: len(rows) - len(np.unique(rows)) for what, rows in numbers.items()}
    notes += [f"{n} of {len(hashes[what])} {what} examples repeat another" for what, n in repeated.items() if n]
    if refusals:
        raise Refused(
            f"{name}: {'; '.join(refusals + notes)}; expected splits that share no example (at most "
            f"{ALLOWED_OVERLAP:.0%}): remove the shared ones, or pass allow_overlap=True to accept what this does to "
            "every number."
        )
    if notes:
        warnings.warn(f"{name}: {'; '.join(notes)}.", stacklevel=4)


def _bytes(rows: np.ndarray) -> list[Any]:
    rows = np.ascontiguousarray(rows)
    return list(rows.reshape(len(rows), -1).view(np.uint8)) if rows[0].size else [b""] * len(rows)

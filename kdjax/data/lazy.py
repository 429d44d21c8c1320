"""Inputs that stay on disk and are read when they are needed."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int64, UInt8

from kdjax.errors import Refused
from kdjax.types import PyTree, Split


class Lazy(abc.ABC):
    """What stands in `Split.inputs` when the examples are not in memory.

    A source of your own derives from it and writes `read`; everything else follows. Instances are immutable and `read`
    is called by several threads.

    Attributes:
      shape_of_one: pytree of `jax.ShapeDtypeStruct`, one example without the batch axis.
      all_contents: uint8 [M, 16], a hash of each stored example, by which splits are compared and fingerprinted.
      positions: int64 [N], which of the M stored examples these inputs are, in order.
    """

    shape_of_one: PyTree
    all_contents: UInt8[np.ndarray, "M 16"]
    positions: Int64[np.ndarray, "N"]

    @abc.abstractmethod
    def read(self, position: int) -> PyTree:
        """The stored example number `position`, in [0, M), as NumPy arrays that fit `shape_of_one`.

        Raises:
          Refused: it is not there any more, or not what it was when it was hashed.
        """

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> PyTree:
        """The i-th example of these inputs."""
        return self.read(int(self.positions[i]))

    def gather(self, indices: Sequence[int] | np.ndarray) -> PyTree:
        """The examples at `indices`, stacked along a new first axis."""
        rows = jax.tree.map(lambda one: np.empty((len(indices), *one.shape), one.dtype), self.shape_of_one)
        leaves = jax.tree.leaves(rows)
        for row, i in enumerate(indices):
            for leaf, value in zip(leaves, jax.tree.leaves(self[int(i)]), strict=True):
                leaf[row] = value
        return rows

    def take(self, positions: np.ndarray) -> Lazy:
        """The inputs at these positions, in this order; nothing is read."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__, positions=self.positions[positions])
        return view

    @property
    def contents(self) -> UInt8[np.ndarray, "N 16"]:
        """The hash of each of these examples."""
        return self.all_contents[self.positions]

    def statistics(self, positions: np.ndarray) -> tuple[list[float], list[float]] | None:
        """(mean, deviation) of each channel over these positions, in the inputs' own units; None when not known."""
        return None


def is_lazy(split: Split) -> bool:
    """Whether the inputs of a split stay on disk, so that a trainer must stream them."""
    return isinstance(split.inputs, Lazy)


def gather(inputs: PyTree, indices: np.ndarray) -> PyTree:
    """The examples at `indices` as arrays in memory, from arrays or from a `Lazy`."""
    if isinstance(inputs, Lazy):
        return inputs.gather(indices)
    return jax.tree.map(lambda leaf: np.asarray(leaf[indices]), inputs)


def take(split: Split, positions: np.ndarray) -> Split:
    """The examples at these positions; arrays are copied into memory, lazy inputs stay where they are."""
    if isinstance(split.inputs, Lazy):
        inputs: Any = split.inputs.take(positions)
    else:
        inputs = jax.tree.map(lambda leaf: np.asarray(leaf[positions]), split.inputs)
    weight = None if split.weight is None else split.weight[positions]
    return Split(inputs, split.label[positions], split.index[positions], weight)


def in_memory(split: Split) -> Split:
    """The split with all of its inputs as arrays in memory: lazy ones are read, mapped ones are copied."""
    if isinstance(split.inputs, Lazy):
        return split._replace(inputs=split.inputs.gather(np.arange(len(split.inputs))))
    return split._replace(
        inputs=jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.memmap) else leaf, split.inputs)
    )


def one_example(split: Split) -> PyTree:
    """A batch of one: zeros of the right shapes and types where the inputs stay on disk."""
    if isinstance(split.inputs, Lazy):
        return jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape), leaf.dtype), split.inputs.shape_of_one)
    return jax.tree.map(lambda leaf: np.asarray(leaf[:1]), split.inputs)


def check_lazy(what: str, inputs: Lazy) -> int:
    """N of lazy inputs.

    Raises:
      Refused: none at all, or hashes that do not belong to them.
    """
    n = len(inputs)
    if n == 0:
        raise Refused(f"{what} is an empty split; expected at least one example.")
    hashes = inputs.all_contents
    if hashes.ndim != 2 or hashes.shape[1] != 16 or hashes.dtype != np.uint8 or len(hashes) <= inputs.positions.max():
        raise Refused(
            f"{what} has hashes of type {hashes.dtype} and shape {hashes.shape}; expected uint8 [M, 16], one row for "
            "each stored example."
        )
    return n

"""What the steps of a run read: positions in a split that is on the device, or batches of a stream."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax import data, layout
from kdjax.data import order
from kdjax.types import Batch, PyTree, Split


class Elements:
    """The elements of the steps of a run, any of them, in the order of `epoch_order(N, B, seed, epoch)`.

    Args:
      streamed: whether they are batches that are read and decoded, and not positions.
      stop_step: a stream reads ahead up to this step.
      readers: threads that read and decode a stream.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, mesh: Mesh, *, streamed: bool, stop_step: int, readers: int = 8
    ):
        self.split, self.batch_size, self.seed, self.mesh = split, batch_size, seed, mesh
        self.streamed, self.stop_step, self.readers = streamed, stop_step, readers
        self._stream: tuple[int, Iterator[Batch]] | None = None

    def at(self, step: int, count: int) -> PyTree:
        """What the steps step + 1 ... step + count read, of one epoch: [count, B] positions, or batches with those
        leading axes."""
        if self.streamed:
            return layout.join_processes(self._from_stream(step, count), self.mesh)
        n = len(self.split.label)
        epoch, position = divmod(step, n // self.batch_size)
        rows = _order(n, self.batch_size, self.seed, epoch)
        return layout.place_elements(rows[position : position + count], self.mesh)

    def _from_stream(self, step: int, count: int) -> Batch:
        if self._stream is None or self._stream[0] != step:
            stream = data.streamed(
                self.split,
                self.batch_size,
                seed=self.seed,
                start_step=step,
                stop_step=self.stop_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                readers=self.readers,
            )
        else:
            stream = self._stream[1]
        batches = [next(stream) for _ in range(count)]
        self._stream = (step + count, stream)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


@functools.lru_cache(maxsize=2)
def _order(num_examples: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    return order.epoch_order(num_examples, batch_size, seed=seed, epoch=epoch)

"""Sets larger than memory: random access through grain, in the very order of the in-memory loop.

Needs the extra `kdjax[grain]`. A position in training is one integer, the step: there is no iterator state to save, and
a stream started at step s continues the one that was stopped there. The trainer keeps its data resident on the device;
this is the source for loops over sets that do not fit.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kdjax.data import prepared
from kdjax.data.order import epoch_order
from kdjax.errors import Refused
from kdjax.types import Batch, Split


class Records:
    """A split of a prepared tfds set, item by item: `records[i]` is (uint8 image [H, W, C], label), i in source order.

    Only the shards' indices are in memory. Images must have one shape, as in `imagenet_resized/64x64`.

    Raises:
      Refused: as `prepared.describe`; no such split.
    """

    def __init__(self, name: str, split: str = "train", *, data_dir: str | os.PathLike | None = None):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.found = prepared.describe(name, prepared.default_data_dir(data_dir))
        if split not in self.found.shards:
            raise Refused(f"{name} has no split {split!r}; expected one of {', '.join(self.found.shards)}.")
        self._source = ArrayRecordDataSource([str(path) for path in self.found.shards[split]])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return prepared.parse(self.found, self._source[i])


def stream(
    source: Sequence[tuple[Any, int]] | Records,
    batch_size: int,
    *,
    seed: int,
    stop: int,
    start: int = 0,
    positions: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 16,
    prefetch_batches: int = 4,
) -> Iterator[Batch]:
    """Training batches of the steps start, start + 1, ..., stop - 1, read ahead by threads.

    Step s takes row s mod (N // B) of `epoch_order(N, B, seed=seed, epoch=s // (N // B))`; process p of P takes the
    p-th of P equal slices of each batch, so the concatenation over processes is the batch of a single one.

    Args:
      source: anything with `len` and `source[i] -> (inputs, label)` that may be read by several threads.
      batch_size: B, the global batch.
      positions: int [N], the part of the source to train on (a `Split.index`); all by default.
      process_index, process_count: `jax.process_index()` and `jax.process_count()`.
      num_threads, prefetch_batches: how much is read ahead; they change no number.

    Yields:
      Batch(inputs, label int32, index int32) of NumPy arrays [B / P, ...]; index is the example's number in [0, N).

    Raises:
      Refused: grain is not installed; B is not a multiple of P; steps that are no range; B > N.
    """
    if importlib.util.find_spec("grain") is None:
        raise Refused("streaming needs grain, which is not installed; type pip install 'kdjax[grain]'.")
    import grain

    if not 0 <= process_index < process_count or batch_size % process_count:
        raise Refused(
            f"process {process_index} of {process_count} cannot take an equal share of a batch of {batch_size}; "
            "expected a batch size that is a multiple of the number of processes."
        )
    if not 0 <= start <= stop:
        raise Refused(f"steps from {start} to {stop} are no range; expected 0 <= start <= stop.")
    ordered = _Ordered(source, batch_size, seed, start, stop, positions, process_index, process_count)
    share = batch_size // process_count
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch_batches * share)
    batches = grain.MapDataset.source(ordered).to_iter_dataset(read).batch(share, drop_remainder=True)
    return (Batch(inputs, label, index=index) for inputs, label, index in batches)


class _Ordered:
    """The examples of one process in the order they are needed; grain asks for them by number, from many threads."""

    def __init__(self, source, batch_size, seed, start, stop, positions, process_index, process_count):
        self.source, self.start, self.stop = source, start, stop
        self.positions = np.arange(len(source)) if positions is None else np.asarray(positions)
        self.share, self.first = batch_size // process_count, process_index * (batch_size // process_count)
        self.per_epoch = len(self.positions) // batch_size
        order = functools.partial(epoch_order, len(self.positions), batch_size, seed=seed)
        self.order = functools.lru_cache(maxsize=2)(lambda epoch: order(epoch=epoch))
        self.order(0)  # refuses sizes that do not fit before any thread is started

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share

    def __getitem__(self, i: int) -> tuple[Any, np.int32, np.int32]:
        step, place = divmod(int(i), self.share)
        epoch, row = divmod(self.start + step, self.per_epoch)
        index = self.order(epoch)[row, self.first + place]
        inputs, label = self.source[int(self.positions[index])]
        return inputs, np.int32(label), index


def streamed(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 8,
) -> Iterator[Batch]:
    """Training batches of a split from step `start_step` on, in the very order of the resident loop."""
    raise NotImplementedError


def prediction_batches(split: Split, positions: np.ndarray) -> Iterator[Batch]:
    """Batches of a split at [steps, B] positions, for prediction."""
    for row in positions:
        yield Batch(inputs=split.inputs.gather(row))

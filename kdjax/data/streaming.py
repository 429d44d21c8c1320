"""Batches from the host, read ahead by threads, in the very order of the loop that keeps its data on the device.

Needs the extra `kdjax[grain]`. A position in training is one integer, the step: there is no iterator state to save, and
a stream started at step s continues the one that was stopped there, on any number of processes.

    for batch in streamed(dataset.train, 8, seed=0, start_step=2, stop_step=4):
        print(batch.index, batch.inputs.shape)

What is in memory at a time is the labels, hashes and weights of the split, and a few batches (`readers` + 1 of this
process's share). The inputs may be arrays or a `Lazy`; the numbers are the same.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from kdjax.data.lazy import gather
from kdjax.data.order import epoch_order
from kdjax.errors import Refused
from kdjax.types import Batch, Split


def streamed(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    readers: int = 2,
) -> Iterator[Batch]:
    """Training batches of the steps start_step, start_step + 1, ..., stop_step - 1.

    Step s takes row s mod (N // B) of `epoch_order(N, B, seed=seed, epoch=s // (N // B))`; process p of P takes the
    p-th of P equal slices of each batch, so the concatenation over processes is the batch of a single one.

    Args:
      split: of N examples.
      batch_size: B, the global batch.
      process_index, process_count: `jax.process_index()` and `jax.process_count()`.
      readers: threads that read and decode; 0 does it in the caller. They change no number.

    Yields:
      Batch(inputs, label, index, weight) of NumPy arrays with leading axis B / P; index is int32, the position in the
      split; label and weight are as in the split (weight None where it has none).

    Raises:
      Refused: grain is not installed; B is not a multiple of P; steps that are no range; B > N; while reading, whatever
        the source refuses (a file that is gone, damaged or changed), by name.
    """
    if not 0 <= process_index < process_count or batch_size % process_count:
        raise Refused(
            f"process {process_index} of {process_count} cannot take an equal share of a batch of {batch_size}; "
            "expected a batch size that is a multiple of the number of processes."
        )
    if not 0 <= start_step <= stop_step:
        raise Refused(f"steps from {start_step} to {stop_step} are no range; expected 0 <= start_step <= stop_step.")
    n, share = len(split.label), batch_size // process_count
    order = functools.lru_cache(maxsize=2)(
        lambda epoch: epoch_order(n, batch_size, seed=seed, epoch=epoch)[
            :, process_index * share : (process_index + 1) * share
        ]
    )
    order(0)  # refuses sizes that do not fit before any thread is started

    def batch(position: int) -> Batch:
        epoch, row = divmod(start_step + position, n // batch_size)
        return _batch(split, order(epoch)[row])

    return _ahead(batch, stop_step - start_step, readers)


def prediction_batches(
    split: Split, positions: Sequence[Int[np.ndarray, "B"]] | Int[np.ndarray, "steps B"], readers: int = 2
) -> Iterator[Batch]:
    """The batches at these rows of positions (`eval_batches(N, B)[0]`), in order, read ahead as `streamed` does.

    Yields:
      Batch(inputs, label, index, weight); padding repeats an example, which the caller leaves out.
    """
    return _ahead(lambda step: _batch(split, positions[step]), len(positions), readers)


def _batch(split: Split, indices: np.ndarray) -> Batch:
    return Batch(
        inputs=gather(split.inputs, indices),
        label=split.label[indices],
        index=np.asarray(indices, np.int32),  # type: ignore[arg-type]  # NumPy until the step takes it
        weight=None if split.weight is None else split.weight[indices],
    )


def _ahead(make: Callable[[int], Batch], count: int, readers: int) -> Iterator[Batch]:
    """make(0), ..., make(count - 1), made by grain's threads a few at a time."""
    if isinstance(readers, bool) or not isinstance(readers, int | np.integer) or readers < 0:
        raise Refused(f"readers is {readers!r}; expected an integer of at least 0.")
    if importlib.util.find_spec("grain") is None:
        raise Refused("streaming needs grain, which is not installed; type pip install 'kdjax[grain]'.")
    import grain

    if count == 0:
        return iter(())
    read = grain.ReadOptions(num_threads=int(readers), prefetch_buffer_size=int(readers) + 1 if readers else 0)
    iterator = iter(grain.MapDataset.source(_Made(make, count)).to_iter_dataset(read))

    def batches() -> Iterator[Batch]:
        try:
            yield from iterator
        finally:
            close = getattr(iterator, "close", None)  # threads would go on reading for nobody
            if close is not None:
                close()

    return batches()


class _Made(Sequence[Any]):
    """What grain asks for elements by number, from many threads."""

    def __init__(self, make: Callable[[int], Batch], count: int):
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Batch:
        return self._make(int(position))

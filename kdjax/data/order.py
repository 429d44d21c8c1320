"""In which order examples are visited: pure functions, so that a position in training is one integer."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32, Int64

from kdjax.errors import Refused


def epoch_order(num_examples: int, batch_size: int, *, seed: int, epoch: int) -> Int32[np.ndarray, "steps batch"]:
    """The positions of one training epoch: a permutation that depends on (N, seed, epoch) and on nothing else.

    The last N mod B entries of the permutation are dropped, others in every epoch, so that all steps have one shape.
    The permutation sorts raw Philox words, whose stream NumPy promises not to change, so a run resumed under another
    NumPy visits the same examples; `Generator.permutation` makes no such promise.

    Args:
      num_examples: N.
      batch_size: B, the global batch.
      seed: of the data order; any non-negative integer.
      epoch: from 0.

    Returns:
      int32 [N // B, B], each position in [0, N) at most once.

    Raises:
      Refused: N < B (an epoch without a step), or a number that is not positive.
    """
    _sizes(num_examples, batch_size)
    if num_examples < batch_size:
        raise Refused(
            f"a batch of {batch_size} is larger than the {num_examples} training examples, so an epoch has no step; "
            f"expected a batch size in [1, {num_examples}]."
        )
    steps = num_examples // batch_size
    order = permutation(num_examples, "order", seed, epoch)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def eval_batches(
    num_examples: int, batch_size: int
) -> tuple[Int32[np.ndarray, "steps batch"], Float32[np.ndarray, "steps batch"]]:
    """Batches of one shape that use every example exactly once.

    The tail is filled up with position 0 at weight 0, which every loss and metric treats as absence.

    Returns:
      (positions int32 [steps, B], weight float32 [steps, B]) with steps = ceil(N / B); `weight.sum() == N`.

    Raises:
      Refused: a number that is not positive.
    """
    _sizes(num_examples, batch_size)
    steps = -(-num_examples // batch_size)
    positions = np.zeros(steps * batch_size, np.int32)
    positions[:num_examples] = np.arange(num_examples)
    weight = (np.arange(steps * batch_size) < num_examples).astype(np.float32)
    return positions.reshape(steps, batch_size), weight.reshape(steps, batch_size)


def permutation(n: int, purpose: str, seed: int, epoch: int = 0) -> Int64[np.ndarray, "n"]:
    """A permutation of 0 ... n-1 as a function of its arguments; different purposes of one seed are independent."""
    words = _philox(purpose, seed, epoch).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def normal(shape: tuple[int, ...], purpose: str, seed: int) -> Float32[np.ndarray, "..."]:
    """Standard normal numbers as a function of the arguments."""
    return np.random.Generator(_philox(purpose, seed, 0)).standard_normal(shape, np.float32)


_PURPOSES = (
    "order",
    "calibration",
    "test",
    "train",
    "noise",
    "ties",
    "sample",
    "long tail",
    "tail examples",
)  # positions are part of every stream: append only


def _philox(purpose: str, seed: int, epoch: int) -> np.random.Philox:
    for name, value in (("seed", seed), ("epoch", epoch)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise Refused(f"the {purpose} {name} is {value!r}; expected an integer of at least 0.")
    return np.random.Philox(np.random.SeedSequence(int(seed), spawn_key=(_PURPOSES.index(purpose), int(epoch))))


def _sizes(num_examples: int, batch_size: int) -> None:
    for name, value in (("num_examples", num_examples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise Refused(f"{name} is {value!r}; expected an integer of at least 1.")

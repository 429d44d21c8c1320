"""Order and padding are functions of integers: nothing to save, nothing to lose."""

import numpy as np
import pytest

from kdjax.data import epoch_order, eval_batches
from kdjax.errors import Refused


@pytest.mark.parametrize(("n", "b"), [(12, 4), (13, 4), (7, 7), (1, 1)])
def test_epoch_order_visits_every_position_at_most_once(n, b):
    order = epoch_order(n, b, seed=3, epoch=0)
    assert order.shape == (n // b, b) and order.dtype == np.int32
    assert len(np.unique(order)) == order.size and order.min() >= 0 and order.max() < n
    if n % b == 0:
        np.testing.assert_array_equal(np.sort(order.ravel()), np.arange(n))


def test_epoch_order_is_a_function_of_seed_and_epoch():
    base = epoch_order(1000, 10, seed=0, epoch=0)
    np.testing.assert_array_equal(base, epoch_order(1000, 10, seed=0, epoch=0))
    for other in (epoch_order(1000, 10, seed=0, epoch=1), epoch_order(1000, 10, seed=1, epoch=0)):
        assert (base != other).mean() > 0.98  # independent permutations agree in one position on average
    assert not np.array_equal(epoch_order(1000, 10, seed=1, epoch=0), epoch_order(1000, 10, seed=0, epoch=1))
    # The batch size cuts the same permutation.
    np.testing.assert_array_equal(base.ravel(), epoch_order(1000, 100, seed=0, epoch=0).ravel())


def test_epoch_order_is_pinned():
    # Resuming a run under another NumPy must visit the same examples: these numbers may never change.
    assert epoch_order(8, 8, seed=0, epoch=0).tolist() == PINNED[0]
    assert epoch_order(8, 8, seed=42, epoch=7).tolist() == PINNED[1]


def test_dropped_remainder_changes_from_epoch_to_epoch():
    dropped = [set(range(10)) - set(epoch_order(10, 4, seed=0, epoch=e).ravel().tolist()) for e in range(6)]
    assert all(len(rest) == 2 for rest in dropped) and len({frozenset(rest) for rest in dropped}) > 1


@pytest.mark.parametrize(("n", "b"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_eval_batches_use_every_example_once(n, b):
    positions, weight = eval_batches(n, b)
    assert positions.shape == weight.shape == (-(-n // b), b)
    assert positions.dtype == np.int32 and weight.dtype == np.float32
    np.testing.assert_array_equal(np.sort(positions[weight > 0]), np.arange(n))
    assert weight.sum() == n and set(np.unique(weight)) <= {0.0, 1.0}
    assert positions.max() < n  # padding points at a real example, so that a gather is always in bounds


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: epoch_order(3, 4, seed=0, epoch=0), "batch of 4 is larger than the 3 training examples"),
        (lambda: epoch_order(3, 0, seed=0, epoch=0), "batch_size is 0"),
        (lambda: epoch_order(3, 1, seed=-1, epoch=0), "seed is -1"),
        (lambda: epoch_order(3, 1, seed=0, epoch=1.5), "epoch is 1.5"),
        (lambda: eval_batches(0, 4), "num_examples is 0"),
        (lambda: eval_batches(4, 2.0), "batch_size is 2.0"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(Refused, match=sentence):
        call()


PINNED = (
    [[7, 6, 3, 2, 4, 1, 5, 0]],
    [[7, 2, 1, 3, 0, 6, 4, 5]],
)

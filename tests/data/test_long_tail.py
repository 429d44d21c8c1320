"""A training split cut to a long tail: sizes by the formula, nested, and nothing else touched."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdjax import data
from kdjax.data.long_tail import long_tail
from kdjax.errors import Refused

LABEL = np.repeat(np.arange(5), 100)


def test_sizes_fall_geometrically_in_an_order_by_the_seed():
    kept = long_tail(LABEL, 5, 16.0, seed=3)
    sizes = np.bincount(LABEL[kept], minlength=5)
    assert sorted(sizes.tolist(), reverse=True) == [100, 50, 25, 12, 6]
    assert np.array_equal(kept, np.unique(kept)) and np.array_equal(kept, long_tail(LABEL, 5, 16.0, seed=3))
    orders = {tuple(np.argsort(np.bincount(LABEL[long_tail(LABEL, 5, 16.0, seed)]))) for seed in range(8)}
    assert len(orders) > 4


def test_a_smaller_imbalance_holds_all_examples_of_a_larger_one():
    parts = [set(long_tail(LABEL, 5, ratio).tolist()) for ratio in (1.0, 10.0, 50.0, 1e6)]
    assert len(parts[0]) == 500 and all(more >= less for more, less in itertools.pairwise(parts))
    # Two examples at least, and never more than there are.
    assert np.bincount(LABEL[sorted(parts[3])]).min() == 2
    rare = np.array([0] * 50 + [1] * 3 + [2])
    assert np.bincount(rare[long_tail(rare, 3, 2.0)]).tolist()[1:] == [3, 1]


@pytest.mark.parametrize(
    ("label", "imbalance", "sentence"), [(LABEL, 0.5, "imbalance"), (LABEL[:, None], 2.0, "labels of regions")]
)
def test_what_cannot_be_cut_is_refused(label, imbalance, sentence):
    with pytest.raises(Refused, match=sentence):
        long_tail(label, 5, imbalance)


def test_only_the_training_split_is_cut():
    whole, cut = data.load("digits"), data.load("digits", imbalance=10.0, imbalance_seed=1)
    assert whole.fingerprint != cut.fingerprint and whole.calibration_id == cut.calibration_id
    assert np.array_equal(whole.test.label, cut.test.label)
    sizes = np.bincount(cut.train.label)
    assert 8 < sizes.max() / sizes.min() < 11  # its classes are not quite of one size
    assert set(cut.train.index.tolist()) < set(whole.train.index.tolist())

"""Intervals: coverage, pairing, determinism."""

import numpy as np
import pytest

from kdjax import metrics
from kdjax.errors import Refused


def test_bootstrap_interval_of_a_mean_covers_as_it_says():
    covered = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).normal(1.0, 2.0, 60)
        found = metrics.bootstrap(np.mean, sample, resamples=200, level=0.9, seed=seed)
        assert found.low < found.value < found.high
        covered += found.low <= 1.0 <= found.high
    # 180 expected, sd 4.2; the percentile interval at n = 60 covers about 89 %.
    assert 160 <= covered <= 193


def test_bootstrap_of_a_mean_has_the_normal_width():
    sample = np.random.default_rng(0).normal(size=400)
    found = metrics.bootstrap(np.mean, sample, resamples=2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sample.std() / 20, rel=0.1)


def test_bootstrap_draws_the_same_examples_from_every_array():
    sample = np.random.default_rng(0).normal(size=50)
    found = metrics.bootstrap(lambda a, b: (a - b).mean(), sample + 0.25, sample)
    assert found.low == pytest.approx(0.25) and found.high == pytest.approx(0.25)
    again = [metrics.bootstrap(np.mean, sample, resamples=50, seed=seed) for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def test_bootstrap_of_a_calibration_metric():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 500)
    found = metrics.bootstrap(metrics.ece, confidence, rng.random(500) < confidence - 0.2, resamples=200)
    assert found.low < 0.2 < found.high and found.value == pytest.approx(0.2, abs=0.06)


def test_over_seeds():
    assert metrics.over_seeds([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1), 3))
    assert metrics.over_seeds([0.3]) == (0.3, 0.0, 1)


def test_paired_by_hand():
    found = metrics.paired([3.0, 5.0, 4.0], [1.0, 4.0, 1.0])
    assert found.mean == 2.0 and found.sd == pytest.approx(1.0) and found.n == 3
    # The mean of three draws is the extreme difference with probability 1/27, more than the 2.5 % of each end.
    assert (found.low, found.high) == (1.0, 3.0)
    single = metrics.paired([0.5], [0.2])
    assert (single.mean, single.sd, single.low, single.high) == pytest.approx((0.3, 0, 0.3, 0.3))


def test_paired_interval_is_narrower_than_the_seeds_apart():
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=20)
    a, b = seeds + 0.5 + 0.1 * rng.normal(size=20), seeds
    found = metrics.paired(a, b)
    assert 0.4 < found.low < found.mean < found.high < 0.6
    assert metrics.over_seeds(a).sd > 5 * found.sd


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.bootstrap(np.mean),
        lambda: metrics.bootstrap(np.mean, np.zeros(0)),
        lambda: metrics.bootstrap(np.mean, 3.0),
        lambda: metrics.bootstrap(lambda a, b: 0.0, np.zeros(3), np.zeros(4)),
        lambda: metrics.bootstrap(np.mean, np.zeros(3), level=1.0),
        lambda: metrics.bootstrap(np.mean, np.zeros(3), resamples=0),
        lambda: metrics.over_seeds([]),
        lambda: metrics.over_seeds([1.0, float("nan")]),
        lambda: metrics.paired([1.0, 2.0], [1.0]),
    ],
)
def test_refuses(call):
    with pytest.raises(Refused):
        call()

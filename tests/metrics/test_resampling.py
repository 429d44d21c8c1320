"""Metrics with intervals from one pass: their values are the metrics', their draws the bootstrap's."""

import numpy as np
import pytest
from scipy.special import softmax

from kdjax import metrics
from kdjax.errors import Refused
from kdjax.metrics import resampling


def model(n, k=4, sharpness=2.0, seed=0):
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    labels = (softmax(z, axis=1).cumsum(1) < rng.random((n, 1))).sum(1)
    return sharpness * z, np.minimum(labels, k - 1)


@pytest.mark.parametrize(("n", "k", "bins"), [(1, 2, 15), (7, 3, 4), (300, 4, 15), (2500, 20, 10)])
def test_values_are_the_metrics_of_their_names(n, k, bins):
    z, y = model(n, k)
    result = metrics.resampled(z.astype(np.float32), y, bins=bins, resamples=3)
    expected = metrics.evaluate(z.astype(np.float32), y, bins=bins)
    expected["gap"] = expected["confidence"] - expected["top1"]
    for name, value in result.values.items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
    np.testing.assert_allclose(result.bins.count, metrics.reliability(z.astype(np.float32), y, bins=bins).count)
    assert result.classes.error.mean() == pytest.approx(expected["sce"], rel=1e-9)
    table = result.classes
    assert table.predicted.sum() == table.examples.sum() == n
    assert (table.accuracy * table.predicted).sum() / n == pytest.approx(expected["top1"])
    assert (table.confidence * table.predicted).sum() / n == pytest.approx(expected["confidence"])


@pytest.mark.parametrize("bins", [5, 10, 15, 20])
def test_class_probabilities_on_an_edge_lie_in_the_bin_that_they_close(bins):
    """Written j/M, as rounded tables hold them; through a logarithm they stay within a rounding of the edge."""
    p = np.arange(bins + 1) / bins
    result = metrics.resampled(np.log(np.maximum(np.stack([p, 1 - p], 1), 1e-300)), np.zeros(bins + 1, int), bins=bins)
    assert np.isfinite(result.values["sce"]) and 0 <= result.values["sce"] <= 1


@pytest.mark.parametrize("bins", [10, 15, 100])
def test_confidences_on_an_edge_lie_in_its_bin_whatever_the_dtype_of_the_file(bins):
    """0.6 of a float32 file is 0.60000002: as `metrics.ece` has it, it closes its bin."""
    top = np.repeat(np.arange(bins // 2 + 1, bins) / bins, 8)
    correct = np.arange(len(top)) % 8 < 5
    for dtype in (np.float64, np.float32):
        confidence = top.astype(dtype)
        logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
        result = metrics.resampled(logits, np.where(correct, 0, 1), bins=bins, resamples=2)
        assert result.values["ece"] == pytest.approx(float(metrics.ece(confidence, correct, bins=bins)), abs=1e-6)
        np.testing.assert_array_equal(result.bins.count[bins // 2 : bins - 1], 8)


def test_draws_are_those_of_the_ordinary_bootstrap():
    z, y = model(250)
    result = metrics.resampled(z, y, resamples=400)
    confidence, correct = metrics.top_label(z, y)
    for name in ("ece", "aurc", "smece"):
        one = metrics.bootstrap(getattr(metrics, name), confidence, correct, resamples=200, level=0.6827)
        assert result.draws[name].std() == pytest.approx((one.high - one.low) / 2, rel=0.2), name
    wrong = metrics.resampled(z, y, resamples=400, seed=1)
    assert (wrong.draws["ece"] != result.draws["ece"]).any()
    same = metrics.resampled(z, y, resamples=400)
    assert all((same.draws[name] == result.draws[name]).all() for name in same.draws)


def test_bags_spread_as_single_examples_do_whatever_the_order(monkeypatch):
    z, y = model(3000)
    z, y = z[np.argsort(y)], np.sort(y)
    single = metrics.resampled(z, y, resamples=300)
    monkeypatch.setattr(resampling, "BAGS", 500)
    bagged = metrics.resampled(z, y, resamples=300)
    losses = -np.log(softmax(z, axis=1)[np.arange(3000), y])
    assert bagged.draws["nll"].std() == pytest.approx(losses.std() / 3000**0.5, rel=0.2)
    for name in single.draws:
        assert bagged.values[name] == pytest.approx(single.values[name], rel=1e-9)
        if name != "ece_under":  # next to nothing here
            assert bagged.draws[name].std() == pytest.approx(single.draws[name].std(), rel=0.25), name


def test_intervals_hold_the_value_and_do_not_count_the_bias_twice():
    z, y = model(400, sharpness=1.0)
    result = metrics.resampled(z, y, resamples=200)
    assert result.draws["ece"].mean() > result.values["ece"] * 1.1, "a resample shows a larger error"
    for name, (value, low, high) in metrics.intervals(result).items():
        assert (low >= 0 or name == "gap") and low <= value <= high, name
    tight, loose = (metrics.intervals(result, level)["nll"] for level in (0.5, 0.99))
    assert tight.high - tight.low < 0.5 * (loose.high - loose.low)


def test_the_floor_is_what_a_calibrated_model_shows():
    z, _ = model(600, sharpness=1.0)
    p = softmax(z, axis=1)
    rng = np.random.default_rng(3)
    labels = [np.minimum((p.cumsum(1) < rng.random((600, 1))).sum(1), 3) for _ in range(40)]
    shown = np.mean([metrics.ece(*metrics.top_label(z, y)) for y in labels])
    assert metrics.resampled(z, labels[0], resamples=1).floor == pytest.approx(shown, rel=0.1)


def test_paired_differences():
    z, y = model(1500)
    one, half, same = (metrics.resampled(scale * z, y, resamples=200) for scale in (1.0, 0.5, 1.0))
    assert all(value == (0, 0, 0) for value in metrics.differences(one, same).values())
    ece = metrics.differences(one, half)["ece"]
    assert ece.value == one.values["ece"] - half.values["ece"] and ece.low > 0
    assert metrics.differences(one, half)["top1"] == (0, 0, 0), "a scale moves no prediction"
    nearly = metrics.differences(one, metrics.resampled(1.01 * z, y, resamples=200))["nll"]
    alone = metrics.intervals(one)["nll"]
    assert nearly.high - nearly.low < 0.1 * (alone.high - alone.low), "the same examples are drawn for both"
    with pytest.raises(Refused, match="paired comparison needs the same"):
        metrics.differences(one, metrics.resampled(z, y, resamples=100))


def test_refusals_and_excluded_classes():
    z, y = model(50)
    for resamples in (0, 2.5, True):
        with pytest.raises(Refused, match="resamples is"):
            metrics.resampled(z, y, resamples=resamples)
    for bad, labels, sentence in (
        (z[:0], y[:0], "at least one example"),
        (z * np.nan, y, "NaN"),
        (z, y + 4, "outside"),
    ):
        with pytest.raises(Refused, match=sentence):
            metrics.resampled(bad, labels)
    z[np.arange(50), y] = -np.inf
    result = metrics.resampled(z, y, resamples=5)
    assert result.values["nll"] == np.inf and metrics.intervals(result)["nll"].high == np.inf
    assert all(np.isfinite(value) for name, value in result.values.items() if name != "nll")

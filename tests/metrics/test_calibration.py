"""Calibration errors against direct loops, by hand at the edges, and by their laws."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from kdjax import metrics
from kdjax.errors import Refused

TOP = ("ece", "ece_over", "ece_under", "mce", "oe", "rms", "average_ce", "ace", "debiased_l2", "smece", "kde_ece")
CLASSWISE = ("sce", "ace_classwise_kdc", "ace_classwise", "tace")


def sample(seed=0, n=300, k=5):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    return logits, rng.integers(0, k, n)


def gaps(confidence, correct, bins):
    """(n_b, conf_b, acc_b) of the bins (lo, hi] that are not empty."""
    for m in range(bins):
        here = [i for i, c in enumerate(confidence) if m / bins < c <= (m + 1) / bins or (m == 0 and c == 0)]
        if here:
            yield len(here), sum(confidence[i] for i in here) / len(here), sum(correct[i] for i in here) / len(here)


def test_equal_width_errors_equal_a_direct_loop():
    logits, labels = sample()
    confidence, correct = metrics.top_label(logits, labels)
    n = len(confidence)
    found = list(gaps(confidence, correct, 15))
    expected = {
        "ece": sum(w / n * abs(c - a) for w, c, a in found),
        "ece_over": sum(w / n * max(c - a, 0) for w, c, a in found),
        "ece_under": sum(w / n * max(a - c, 0) for w, c, a in found),
        "mce": max(abs(c - a) for _, c, a in found),
        "oe": sum(w / n * c * max(c - a, 0) for w, c, a in found),
        "rms": math.sqrt(sum(w / n * (c - a) ** 2 for w, c, a in found)),
        "average_ce": sum(abs(c - a) for _, c, a in found) / len(found),
    }
    for name, value in expected.items():
        assert getattr(metrics, name)(confidence, correct) == pytest.approx(value, rel=1e-12), name
        single = getattr(metrics, name)(jnp.asarray(confidence), jnp.asarray(correct))
        assert float(single) == pytest.approx(value, rel=1e-4), name


def test_sce_equals_a_direct_loop():
    logits, labels = sample()
    probs = softmax(logits, axis=1)
    expected = np.mean([sum(w / 300 * abs(c - a) for w, c, a in gaps(probs[:, j], labels == j, 15)) for j in range(5)])
    assert metrics.sce(probs, labels) == pytest.approx(expected, rel=1e-12)


def test_adaptive_errors_equal_a_direct_loop():
    logits, labels = sample(n=100)
    probs = softmax(logits, axis=1)
    confidence, correct = metrics.top_label(logits, labels)
    order = np.argsort(confidence)
    # 100 examples in 10 bins: interpolated edges sit on every tenth value, which closes its bin on the right.
    parts = np.split(order[1:], np.arange(10, 100, 10))
    parts[0] = np.append(order[0], parts[0])
    expected = sum(abs(confidence[i].sum() - correct[i].sum()) for i in parts) / 100
    assert metrics.ace(confidence, correct, bins=10) == pytest.approx(expected, rel=1e-12)
    nixon = kdc = 0.0
    for j in range(5):
        order = np.argsort(probs[:, j])
        hit = labels == j
        nixon += sum(abs(probs[i, j].sum() - hit[i].sum()) for i in np.split(order, 10)) / 500
        shifted = np.split(order[1:], np.arange(10, 100, 10))
        kdc += sum(abs(probs[i, j].sum() - hit[i].sum()) for i in shifted) / 500
    assert metrics.ace_classwise(probs, labels, bins=10) == pytest.approx(nixon, rel=1e-12)
    assert metrics.ace_classwise_kdc(probs, labels, bins=10) == pytest.approx(kdc, rel=1e-12)
    kept = [np.sort(probs[:, j][probs[:, j] > 0.01]) for j in range(5)]
    single = metrics.tace(probs, labels, bins=1)
    hits = [((labels == j) & (probs[:, j] > 0.01)).sum() for j in range(5)]
    expected = np.mean([abs(k.sum() - h) / k.size for k, h in zip(kept, hits, strict=True)])
    assert single == pytest.approx(expected, rel=1e-12)


def test_one_call_equals_the_single_functions():
    logits, labels = sample(n=123, k=7)
    probs = softmax(logits, axis=1)
    top = metrics.top_label(logits, labels)
    for name, value in metrics.binned_errors(logits, labels, bins=11).items():
        inputs = (probs, labels) if name in CLASSWISE else top
        assert value == pytest.approx(float(getattr(metrics, name)(*inputs, bins=11)), rel=1e-12), name


def test_chunks_and_threads_change_nothing(monkeypatch):
    from kdjax.metrics import _rows, classwise

    logits, labels = sample(n=257, k=13)
    whole = metrics.evaluate(logits, labels)
    monkeypatch.setattr(_rows, "TASK", 600)
    monkeypatch.setattr(classwise, "TASK", 600)
    parts = metrics.evaluate(logits, labels)
    assert parts == pytest.approx(whole, rel=1e-12)


def test_split_is_exact_and_ece_below_mce():
    for seed in range(20):
        confidence, correct = metrics.top_label(*sample(seed, n=40))
        assert metrics.ece(confidence, correct) == metrics.ece_over(confidence, correct) + metrics.ece_under(
            confidence, correct
        )
        assert metrics.ece(confidence, correct) <= metrics.rms(confidence, correct) + 1e-15
        assert metrics.rms(confidence, correct) <= metrics.mce(confidence, correct) + 1e-15


@pytest.mark.parametrize("n", [1, 7, 16])
@pytest.mark.parametrize("wrong", [0, 1])
def test_confidence_exactly_one(n, wrong):
    """Over-confident by exactly the error rate; the equal-mass measures see one bin; never NaN."""
    confidence, correct = np.ones(n), np.arange(n) >= wrong
    rate = wrong / n
    for name in ("ece", "ece_over", "mce", "oe", "rms", "average_ce", "ace"):
        assert float(getattr(metrics, name)(confidence, correct)) == pytest.approx(rate), name
    assert metrics.ece_under(confidence, correct) == 0
    assert metrics.smece(confidence, correct) == pytest.approx(rate, abs=1e-6)
    # Var of the bin's accuracy is taken off the square: with one member nothing is known.
    square = rate**2 - rate * (1 - rate) / (n - 1) if n > 1 else 0.0
    assert metrics.debiased_l2(confidence, correct, root=False) == pytest.approx(square)


def test_by_hand():
    """Two bins of 15: 0.6 twice (one right), 0.95 twice (both right)."""
    confidence, correct = np.array([0.59, 0.59, 0.95, 0.95]), np.array([1, 0, 1, 1])
    assert metrics.ece(confidence, correct) == pytest.approx(0.5 * 0.09 + 0.5 * 0.05)
    assert metrics.ece_over(confidence, correct) == pytest.approx(0.5 * 0.09)
    assert metrics.mce(confidence, correct) == pytest.approx(0.09)
    assert metrics.oe(confidence, correct) == pytest.approx(0.5 * 0.59 * 0.09)
    assert metrics.average_ce(confidence, correct) == pytest.approx(0.07)


@pytest.mark.parametrize("name", TOP)
@pytest.mark.parametrize("n", [1, 3])
def test_fewer_examples_than_bins(name, n):
    value = float(getattr(metrics, name)(np.array([0.3, 0.55, 0.9])[:n], np.array([1, 0, 1])[:n]))
    assert 0 <= value <= 1
    if name in ("ece", "ace"):
        assert value == pytest.approx(np.abs([0.7, 0.55, 0.1])[:n].mean())


@pytest.mark.parametrize("name", CLASSWISE)
@pytest.mark.parametrize("probs", [np.eye(3), np.full((3, 3), 1 / 3), np.array([[1.0, 0.0, 0.0]] * 3)])
def test_classwise_edges_are_finite(name, probs):
    for labels in (np.array([0, 1, 2]), np.array([0, 0, 0]), np.array([2, 2, 2])):
        assert 0 <= getattr(metrics, name)(probs, labels) <= 1
    if name == "sce":
        assert metrics.sce(np.eye(3), np.array([0, 1, 2])) == 0
        # A label of probability exactly 0 counts: both columns are wrong by one.
        assert metrics.sce(np.array([[1.0, 0.0]] * 2), np.array([1, 1])) == 1.0


def test_the_kdc_code_drops_the_smallest_and_degenerates_below_one_example_a_bin():
    probs = np.array([[0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    labels = np.array([1, 0, 0])
    # n = 0: all edges are the smallest entry, the other two share the one bin above it.
    by_hand = (abs((0.4 + 0.7) - 2) / 3 + abs((0.6 + 0.8) - 1) / 3) / 2
    assert metrics.ace_classwise_kdc(probs, labels, bins=15) == pytest.approx(by_hand)
    assert metrics.ace_classwise_kdc(np.full((30, 2), 0.5), np.zeros(30, int)) == 0
    assert metrics.ace_classwise(np.full((30, 2), 0.5), np.zeros(30, int)) == 0.5


def test_a_probability_on_the_threshold_is_kept_by_kdc_and_dropped_by_nixon():
    probs, labels = np.array([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]), np.array([0, 0, 1, 0])
    below = {"threshold": 0.25, "bins": 1}
    # Above the smallest entry of each column: 0.5, 0.75, 1 with hits 1, 0, 1; and 0.25, 0.5, 0.75 with hits 1, 0, 0.
    assert metrics.ace_classwise_kdc(probs, labels, **below) == pytest.approx((0.25 + 0.5) / 4 / 2)
    # Strictly above 0.25: 0.5, 0.75, 1 with hits 1, 0, 1; 0.5, 0.75 with hits 0, 0.
    assert metrics.tace(probs, labels, **below) == pytest.approx((0.25 / 3 + 1.25 / 2) / 2)


def test_perfectly_calibrated_sample_has_no_error():
    confidence = np.repeat([0.2, 0.5, 0.8, 1.0], 10)
    correct = np.concatenate([np.arange(10) < c for c in (2, 5, 8, 10)])
    for name in ("ece", "mce", "rms", "ace", "average_ce"):
        assert float(getattr(metrics, name)(confidence, correct)) == pytest.approx(0, abs=1e-12)
    assert metrics.debiased_l2(confidence, correct, root=False) < 0
    assert metrics.smece(confidence, correct) < 2e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 10]), st.sampled_from([1, 8, 40]))
def test_order_shift_and_class_names_do_not_matter(seed, k, n):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(n, k)), rng.integers(0, k, n)
    value = metrics.evaluate(logits, labels)
    assert all(math.isfinite(v) for v in value.values())
    assert all(-1e-12 <= v <= 1 for name, v in value.items() if name not in ("nll", "brier", "entropy", "eaurc"))
    assert value["ece"] == value["ece_over"] + value["ece_under"] and value["ece"] <= value["mce"] + 1e-12
    rows, classes = rng.permutation(n), rng.permutation(k)
    place = np.argsort(classes)
    assert metrics.evaluate(logits[rows], labels[rows]) == pytest.approx(value, abs=1e-9)
    assert metrics.evaluate(logits[:, classes], place[labels]) == pytest.approx(value, abs=1e-9)
    shifted = logits + rng.normal(size=(n, 1)) * 10
    assert metrics.evaluate(shifted, labels) == pytest.approx(value, abs=1e-7)


def test_extreme_logits_are_finite():
    logits = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-np.inf, 5.0, 5.0], [50.0, -50.0, 0.0]])
    value = metrics.evaluate(logits, np.array([0, 2, 1, 0]))
    assert all(math.isfinite(v) for v in value.values())
    assert value["top1"] == 0.75 and "top5" not in value
    assert metrics.evaluate(np.eye(6) * 9, np.arange(6))["top5"] == 1.0


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_any_float_dtype_is_computed_in_float64(dtype):
    logits, labels = sample(n=50)
    cast = jnp.asarray(logits, dtype)
    expected = metrics.evaluate(np.asarray(cast.astype(jnp.float32), np.float64), labels)
    assert metrics.evaluate(cast, jnp.asarray(labels)) == pytest.approx(expected, rel=1e-12)


def test_reliability_is_the_statistic_behind_the_ece():
    logits, labels = sample()
    found = metrics.reliability(logits, labels, bins=10)
    assert found.count.sum() == 300 and found.count.dtype == np.float64
    assert float(found.ece) == metrics.evaluate(logits, labels, bins=10)["ece"]


GOOD = np.log(np.array([[0.7, 0.3], [0.4, 0.6]])) + 1


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "at least one example"),
        (np.zeros(3), np.zeros(3, int), r"expected \[N, K\]"),
        (np.array([[0.0, np.nan], [0, 1]]), [0, 1], "row 0 holds NaN"),
        (np.array([[0.0, 1.0], [0, np.inf]]), [0, 1], "row 1 holds NaN, \\+inf"),
        (GOOD, [0, 2], r"1 labels lie outside \[0, 2\), the first is 2 at index 1"),
        (GOOD, [-1, 0], "first is -1 at index 0"),
        (GOOD, [0.0, 1.0], "float64; expected integers"),
        (GOOD, [0, 1, 1], r"expected \[2\]"),
    ],
)
def test_evaluate_refuses(logits, labels, sentence):
    with pytest.raises(Refused, match=sentence):
        metrics.evaluate(logits, np.array(labels))


def test_logits_that_look_like_probabilities_warn():
    probs = np.exp(log_softmax(GOOD, axis=1))
    for call in (metrics.evaluate, metrics.nll, metrics.top_k):
        with pytest.warns(UserWarning, match="look like probabilities"):
            call(probs, np.array([0, 1]))


@pytest.mark.parametrize("name", [*CLASSWISE, "brier", "brier_decomposition", "kde_ce"])
def test_probability_metrics_refuse_logits(name):
    with pytest.raises(Refused, match="softmax"):
        getattr(metrics, name)(GOOD * 3, np.array([0, 1]))
    with pytest.raises(Refused, match="sums to"):
        getattr(metrics, name)(np.array([[0.5, 0.4], [0.5, 0.5]]), np.array([0, 1]))
    with pytest.raises(Refused, match="NaN"):
        getattr(metrics, name)(np.array([[0.5, np.nan], [0.5, 0.5]]), np.array([0, 1]))


@pytest.mark.parametrize("name", ("ace", "debiased_l2", "smece", "kde_ece"))
def test_top_label_metrics_refuse(name):
    for confidence, sentence in ((np.zeros(0), "empty"), (np.array([1.5]), "softmax"), (np.array([np.nan]), "NaN")):
        with pytest.raises(Refused, match=sentence):
            getattr(metrics, name)(confidence, np.zeros(len(confidence)))


@pytest.mark.parametrize("name", (*TOP, "aurc", "auroc"))
def test_labels_in_the_place_of_hits_are_refused(name):
    with pytest.raises(Refused, match="correct holds 2.*; expected hits"):
        getattr(metrics, name)(np.linspace(0.2, 0.9, 4), np.arange(4))

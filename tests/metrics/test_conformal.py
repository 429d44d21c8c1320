"""Conformal sets: thresholds by hand, coverage on exchangeable data."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from kdjax.errors import Refused
from kdjax.metrics import conformal

SCORES = {"lac": conformal.lac, "aps": conformal.aps, "raps": conformal.raps(lam=0.05, k_reg=2)}


def split(seed, n=200, m=2000, k=8):
    """A model with doubled logits on labels that follow softmax(logits): validity needs no calibration."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n + m, k))
    truth = softmax(logits, axis=1)
    labels = (rng.random((n + m, 1)) > np.cumsum(truth, 1)).sum(1).clip(0, k - 1)
    probs = softmax(2 * logits, axis=1)
    return (probs[:n], labels[:n]), (probs[n:], labels[n:])


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_coverage(name, random):
    """The mean over draws of calibration and test set lies in [1 - a, 1 - a + 1/(n + 1)] up to its own noise."""
    found = []
    for seed in range(30):
        (probs, labels), (test_probs, test_labels) = split(seed)
        keys = jax.random.split(jax.random.key(seed)) if random else (None, None)
        q = conformal.fit(SCORES[name], probs, labels, alpha=0.2, key=keys[0])
        chosen = conformal.sets(SCORES[name], test_probs, q, key=keys[1])
        found.append(conformal.coverage(chosen, test_labels))
        assert 0 < conformal.size(chosen) < 8
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 0.8) < 4 * error + 1 / 201


def test_classwise_thresholds_cover_each_class():
    rng = np.random.default_rng(0)
    coverage = np.zeros(3)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, 4000, p=[0.6, 0.3, 0.1])
        # Class 2 is much harder: one threshold for all would starve it.
        logits = np.eye(3)[labels] * np.array([4.0, 2.0, 0.2]) + rng.normal(size=(4000, 3))
        probs = softmax(logits, axis=1)
        q = conformal.fit_classwise(conformal.lac, probs[:2000], labels[:2000], alpha=0.1)
        chosen = conformal.sets(conformal.lac, probs[2000:], q)
        test = labels[2000:]
        coverage += [conformal.coverage(chosen[test == j], test[test == j]) / 10 for j in range(3)]
    np.testing.assert_allclose(coverage, 0.9, atol=0.02)
    absent = conformal.fit_classwise(conformal.lac, probs[:, :3], np.zeros(4000, int))
    assert np.isfinite(absent[0]) and np.isinf(absent[1:]).all()


def test_threshold_by_hand():
    scores = np.array([0.5, 0.1, 0.9, 0.3])
    assert conformal.threshold(scores, 0.4) == 0.5  # rank ceil(5 * 0.6) = 3
    assert conformal.threshold(scores, 0.2) == 0.9
    assert conformal.threshold(scores, 0.1) == np.inf
    assert conformal.threshold(np.arange(1.0, 10.0), 0.1) == 9.0  # 10 * 0.9 is not 9 in floating point everywhere
    assert conformal.threshold(np.arange(1.0, 100.0), 0.07) == 93.0
    assert conformal.threshold(np.arange(1.0, 100.0), 1 - 1e-12) == 1.0  # no rank below the first


def test_scores_by_hand():
    probs = np.array([[0.1, 0.6, 0.3]])
    np.testing.assert_allclose(conformal.lac(probs), [[0.9, 0.4, 0.7]])
    np.testing.assert_allclose(conformal.aps(probs), [[1.0, 0.6, 0.9]])
    np.testing.assert_allclose(conformal.aps(probs, np.array([0.5])), [[0.95, 0.3, 0.75]])
    np.testing.assert_allclose(conformal.raps(lam=0.2, k_reg=1)(probs), [[1.4, 0.6, 1.1]])
    np.testing.assert_allclose(conformal.raps(lam=0.0)(probs), conformal.aps(probs))


def test_sets_are_nested_and_may_be_kept_from_being_empty():
    (probs, labels), (test, _) = split(0)
    fits = (conformal.fit(conformal.aps, probs, labels, alpha=alpha) for alpha in (0.5, 0.1))
    small, large = (conformal.sets(conformal.aps, test, q) for q in fits)
    assert (small <= large).all() and conformal.size(small) < conformal.size(large)
    kept = conformal.sets(conformal.aps, test, 0.2, allow_empty=False)
    empty = conformal.sets(conformal.aps, test, 0.2)
    assert conformal.size(empty) < 1 <= kept.sum(1).min()
    assert kept[np.arange(len(test)), test.argmax(1)].all()
    assert conformal.sets(conformal.lac, test, np.inf).all()


def test_the_key_decides():
    (probs, labels), _ = split(0)
    fits = [conformal.fit(conformal.aps, probs, labels, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert fits[0] == fits[1] != fits[2]


@pytest.mark.parametrize(
    "call",
    [
        lambda p, y: conformal.fit(conformal.lac, p, y, alpha=0.0),
        lambda p, y: conformal.fit(conformal.lac, p, y, alpha=1.0),
        lambda p, y: conformal.fit(conformal.lac, p * 3, y),
        lambda p, y: conformal.fit(conformal.lac, p, y + 8),
        lambda p, y: conformal.fit(conformal.lac, p[:0], y[:0]),
        lambda p, y: conformal.threshold(np.array([np.nan]), 0.1),
        lambda p, y: conformal.raps(lam=-1.0),
        lambda p, y: conformal.raps(k_reg=-1),
        lambda p, y: conformal.coverage(p > 0.5, y[:3]),
    ],
)
def test_refuses(call):
    (probs, labels), _ = split(0)
    with pytest.raises(Refused):
        call(probs, labels)

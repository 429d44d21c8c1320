"""Accuracy, proper scores, ranking and fidelity against scikit-learn, SciPy, loops and by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score

from kdjax import metrics
from kdjax.errors import Refused


def sample(n=200, k=6, seed=0):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(n, k)), rng.integers(0, k, n)


def test_scores_equal_scikit_learn_and_scipy():
    logits, labels = sample()
    probs = softmax(logits, axis=1)
    assert metrics.nll(logits, labels) == pytest.approx(log_loss(labels, probs), rel=1e-12)
    assert metrics.entropy(logits) == pytest.approx(scipy_entropy(probs, axis=1).mean(), rel=1e-12)
    assert metrics.brier(probs, labels) == pytest.approx(((probs - np.eye(6)[labels]) ** 2).sum(1).mean(), rel=1e-12)
    for k in (1, 3, 5):
        assert metrics.top_k(logits, labels, k=k) == pytest.approx(top_k_accuracy_score(labels, logits, k=k))
    binary = labels % 2
    two = softmax(logits[:, :2], axis=1)
    assert metrics.brier(two, binary) == pytest.approx(2 * brier_score_loss(binary, two[:, 1]))
    values = metrics.evaluate(logits, labels)
    assert values["brier"] == pytest.approx(metrics.brier(probs, labels), rel=1e-12)
    assert values["nll"] == metrics.nll(logits, labels) and values["entropy"] == metrics.entropy(logits)
    assert values["top5"] == metrics.top_k(logits, labels, k=5)


def test_ties_rank_the_lower_index_first():
    logits = np.array([[1.0, 1.0, 1.0, 0.0]])
    ranks = [next(k for k in range(1, 5) if metrics.top_k(logits, np.array([j]), k=k)) for j in range(4)]
    assert ranks == [1, 2, 3, 4]


@pytest.mark.parametrize("k", [0, 7, 1.5])
def test_top_k_refuses(k):
    with pytest.raises(Refused, match="6 classes"):
        metrics.top_k(*sample(), k=k)


def test_infinite_logits():
    logits = np.array([[0.0, -np.inf], [0.0, 0.0]])
    assert metrics.nll(logits, np.array([0, 1])) == pytest.approx(math.log(2) / 2)
    assert metrics.nll(logits, np.array([1, 1])) == math.inf
    assert metrics.entropy(logits) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_brier_decomposition_is_exact(bins):
    logits, labels = sample()
    probs = softmax(logits, axis=1)
    parts = metrics.brier_decomposition(probs, labels, bins=bins)
    whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert whole == pytest.approx(metrics.brier(probs, labels), rel=1e-12)
    rate = np.bincount(labels, minlength=6) / 200
    assert parts.uncertainty == pytest.approx((rate * (1 - rate)).sum())
    if bins == 1:
        assert parts.resolution == pytest.approx(0, abs=1e-15)


def test_brier_decomposition_of_constant_forecasts_has_no_within_term():
    probs = np.array([[0.9, 0.1]] * 10 + [[0.2, 0.8]] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [1] * 8 + [0] * 2)
    parts = metrics.brier_decomposition(probs, labels)
    assert parts.within == pytest.approx(0, abs=1e-12)
    assert parts.reliability == pytest.approx(2 * 0.5 * 0.2**2)
    assert parts.resolution == pytest.approx(2 * 0.25**2)


def test_aurc_by_hand_and_by_every_order_of_ties():
    assert metrics.aurc(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    score, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 1, 0])
    orders = [(0, *middle, 4) for middle in itertools.permutations((1, 2, 3))]
    risks = [np.mean(np.cumsum(1 - correct[list(order)]) / np.arange(1, 6)) for order in orders]
    assert metrics.aurc(score, correct) == pytest.approx(np.mean(risks))
    assert metrics.risk_coverage(score, correct)[-1] == pytest.approx(0.4)


def test_perfect_ranking_has_little_excess():
    correct = np.arange(1000) >= 300
    score = correct + np.linspace(0, 0.5, 1000)
    assert metrics.eaurc(score, correct) == pytest.approx(0, abs=1e-3)
    assert metrics.auroc(score, correct) == metrics.aupr(score, correct) == 1.0
    assert metrics.fpr_at_tpr(score, correct) == 0.0
    assert metrics.auroc(-score, correct) == 0.0


def test_auroc_is_the_fraction_of_pairs():
    rng = np.random.default_rng(0)
    score, correct = rng.integers(0, 5, 40) / 5, rng.random(40) < 0.6
    pairs = [(a > b) + 0.5 * (a == b) for a in score[correct] for b in score[~correct]]
    assert metrics.auroc(score, correct) == pytest.approx(np.mean(pairs))


def test_an_infinite_score_ranks_first_or_last():
    infinite, finite = np.array([np.inf, 2.0, -np.inf, 2.0, np.inf, 0.0]), np.array([9.0, 2.0, -9.0, 2.0, 9.0, 0.0])
    correct = np.array([1, 1, 0, 0, 0, 1])
    for measure in (metrics.auroc, metrics.aupr, metrics.fpr_at_tpr, metrics.aurc, metrics.eaurc):
        assert measure(infinite, correct) == measure(finite, correct)
    assert metrics.ood(infinite, infinite[:3]) == metrics.ood(finite, finite[:3])


@pytest.mark.parametrize("correct", [np.ones(5, int), np.zeros(5, int)])
def test_one_group_only_is_a_documented_value(correct):
    score = np.linspace(0, 1, 5)
    assert metrics.auroc(score, correct) == 0.5
    assert metrics.fpr_at_tpr(score, correct) == 0.0
    assert metrics.aurc(score, correct) == 1 - correct[0]
    assert metrics.eaurc(score, correct) == pytest.approx(0)
    assert (
        metrics.aupr(score, correct) == correct[0]
        and metrics.aupr(score, correct, positives="errors") == 1 - correct[0]
    )


def test_fpr_at_tpr_by_hand():
    """20 known at 1..20: 95 % pass from 2 on; of the unknown at 0.5, 1.5, 2.5, 30 two pass."""
    found = metrics.ood(np.arange(1.0, 21.0), np.array([0.5, 1.5, 2.5, 30.0]))
    assert found["fpr95"] == 0.5
    assert found["auroc"] == pytest.approx((20 + 19 + 18 + 0) / 80)
    assert set(found) == {"auroc", "aupr_in", "aupr_out", "fpr95"}
    swapped = metrics.ood(-np.array([0.5, 1.5, 2.5, 30.0]), -np.arange(1.0, 21.0))
    assert swapped["aupr_in"] == pytest.approx(found["aupr_out"])


def test_ood_scores():
    logits, _ = sample()
    np.testing.assert_allclose(metrics.msp(logits), softmax(logits, axis=1).max(1))
    np.testing.assert_allclose(metrics.max_logit(logits), logits.max(1))
    np.testing.assert_allclose(metrics.energy(logits, T=2.0), 2 * np.log(np.exp(logits / 2).sum(1)))
    np.testing.assert_allclose(metrics.energy(logits, T=1e-3), logits.max(1), atol=1e-3)
    with pytest.raises(Refused):
        metrics.energy(logits, T=0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.auroc(np.array([np.nan, 1.0]), np.array([0, 1])),
        lambda: metrics.aurc(np.zeros(0), np.zeros(0)),
        lambda: metrics.aupr(np.zeros(2), np.array([0.5, 1])),
        lambda: metrics.aupr(np.zeros(2), np.array([0, 1]), positives="wrong"),
        lambda: metrics.fpr_at_tpr(np.zeros(2), np.array([0, 1]), tpr=0.0),
        lambda: metrics.ood(np.zeros(0), np.zeros(3)),
        lambda: metrics.agreement(np.zeros((3, 2)), np.zeros((3, 4))),
        lambda: metrics.kl_to_teacher(np.zeros((3, 2)), np.zeros((3, 2)), T=-1.0),
    ],
)
def test_refuses(call):
    with pytest.raises(Refused):
        call()


def test_fidelity():
    student, _ = sample()
    teacher, _ = sample(seed=1)
    p, q = softmax(student, axis=1), softmax(teacher, axis=1)
    assert metrics.kl_to_teacher(student, teacher) == pytest.approx(scipy_entropy(q, p, axis=1).mean(), rel=1e-12)
    assert metrics.agreement(student, teacher) == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    middle = (p + q) / 2
    js = (scipy_entropy(p, middle, axis=1) + scipy_entropy(q, middle, axis=1)).mean() / 2
    assert metrics.js_to_teacher(student, teacher) == pytest.approx(js, rel=1e-12)
    assert metrics.js_to_teacher(teacher, student) == pytest.approx(js, rel=1e-12)
    assert metrics.teacher_fidelity(student, student) == {"agreement": 1.0, "kl_to_teacher": 0.0, "js_to_teacher": 0.0}
    cold = metrics.kl_to_teacher(student, teacher, T=4.0)
    assert cold == pytest.approx(metrics.kl_to_teacher(student / 4, teacher / 4))


def test_kl_at_the_limits():
    teacher = np.array([[0.0, -np.inf]])
    assert metrics.kl_to_teacher(np.array([[0.0, 0.0]]), teacher) == pytest.approx(math.log(2))
    assert metrics.kl_to_teacher(teacher, np.array([[0.0, 0.0]])) == math.inf
    # The student's probability underflows; its price in nats does not.
    assert metrics.kl_to_teacher(np.array([[0.0, 2000.0]]), np.array([[0.0, -np.inf]])) == pytest.approx(2000)
    assert metrics.js_to_teacher(np.array([[0.0, 2000.0]]), np.array([[2000.0, 0.0]])) == pytest.approx(math.log(2))

"""Bin-free and debiased estimators on distributions whose calibration error is known."""

import numpy as np
import pytest
from scipy.stats import norm

from kdjax import metrics
from kdjax.errors import Refused


def drawn(gap, n, seed=0):
    """f ~ U(0.2, 0.8) and P(correct | f) = f - gap(f)."""
    rng = np.random.default_rng(seed)
    f = rng.uniform(0.2, 0.8, n)
    return f, rng.random(n) < f - gap(f)


def constant(f):
    return 0.1


def crossing(f):
    """Over-confident above a half, under-confident below: E|gap| = 0.1 and E gap = 0."""
    return np.where(f > 0.5, 0.1, -0.1)


def nothing(f):
    return 0.0 * f


def test_smece_kernel_equals_direct_sum_with_reflections():
    rng = np.random.default_rng(0)
    f, y = rng.random(30), rng.random(30) < 0.5
    grid = (np.arange(4000) + 0.5) / 4000
    for sigma in (0.02, 0.1, 0.4):
        kernel = sum(norm.pdf(grid[:, None], sign * f + 2 * shift, sigma) for sign in (1, -1) for shift in range(-3, 4))
        direct = np.abs(kernel @ (y - f) / 30).mean()
        assert metrics.smece(f, y, sigma=sigma) == pytest.approx(direct, rel=1e-3)


def test_smece_is_the_fixed_point():
    f, y = drawn(constant, 2000)
    value = metrics.smece(f, y)
    assert metrics.smece(f, y, sigma=value) == pytest.approx(value, abs=1e-7)
    assert metrics.smece(f, y, sigma=0.01) >= value >= metrics.smece(f, y, sigma=0.5)


@pytest.mark.parametrize(("gap", "low", "high"), [(constant, 0.095, 0.105), (crossing, 0.06, 0.1), (nothing, 0, 0.015)])
def test_smece_of_known_distributions(gap, low, high):
    """A constant gap survives smoothing whole; where it changes sign the two sides cancel within a width."""
    f, y = drawn(gap, 50_000)
    assert low <= metrics.smece(f, y) <= high


def test_smece_is_continuous_where_ece_jumps():
    """Half the examples at 0.5 - e, all right, half at 0.5 + e, all wrong: ECE is about 1/2 for e > 0, and 0 at 0."""
    y = np.arange(1000) % 2 == 0
    jump = lambda e: np.where(y, 0.5 - e, 0.5 + e)  # noqa: E731
    assert metrics.ece(jump(1e-6), y, bins=2) > 0.49 and metrics.ece(jump(0.0), y, bins=2) == 0
    assert metrics.smece(jump(1e-6), y) < 1e-3 and metrics.smece(jump(0.2), y) > 0.1


def test_debiased_l2_is_unbiased_and_the_plugin_is_not():
    edges = np.linspace(0.2, 0.8, 16)
    squares = {"plain": [], "debiased": []}
    for seed in range(400):
        f, y = drawn(constant, 200, seed)
        squares["debiased"].append(metrics.debiased_l2(f, y, edges=edges, root=False))
        squares["plain"].append(float(metrics.binned(f, y, bins=edges).rms) ** 2)
    error = np.std(squares["debiased"]) / 20
    assert abs(np.mean(squares["debiased"]) - 0.01) < 4 * error
    assert np.mean(squares["plain"]) > 0.01 + 10 * error


def test_debiased_l2_by_hand():
    """One bin of four at 0.9, two right: 0.4² - 0.25 / 3."""
    f, y = np.full(4, 0.9), np.array([1, 1, 0, 0])
    assert metrics.debiased_l2(f, y, bins=1, root=False) == pytest.approx(0.16 - 0.25 / 3)
    assert metrics.debiased_l2(f, y, bins=1) == pytest.approx((0.16 - 0.25 / 3) ** 0.5)
    assert metrics.debiased_l2(np.full(4, 0.5), y, bins=1) == 0.0


def dirichlet_sample(n, gap, seed=0):
    """Three classes; the label follows (1 - gap) f + gap/3, so that E‖E[y|f] - f‖₁ = gap E‖f - 1/3‖₁."""
    rng = np.random.default_rng(seed)
    f = rng.dirichlet([2.0, 2.0, 2.0], n)
    truth = (1 - gap) * f + gap / 3
    labels = (rng.random((n, 1)) > np.cumsum(truth, 1)).sum(1).clip(0, 2)
    return f, labels, gap * np.abs(f - 1 / 3).sum(1).mean()


def test_kernel_estimate_equals_a_direct_loop():
    from scipy.stats import dirichlet

    f, labels, _ = dirichlet_sample(20, 0.5)
    onehot = np.eye(3)[labels]
    for p in (1.0, 2.0, 3.0):
        total = 0.0
        for i in range(20):
            others = [j for j in range(20) if j != i]
            k = np.array([dirichlet.pdf(f[i], f[j] / 0.1 + 1) for j in others])
            total += (np.abs(k @ onehot[others] / k.sum() - f[i]) ** p).sum()
        assert metrics.kde_ce(f, labels, p=p, bandwidth=0.1) == pytest.approx((total / 20) ** (1 / p), rel=1e-9)


def test_the_norm_of_a_high_order_tends_to_the_largest_error():
    f, labels, _ = dirichlet_sample(20, 0.5)
    orders = [metrics.kde_ce(f, labels, p=p, bandwidth=0.1) for p in (4.0, 64.0, 1e6, np.inf)]
    assert 0 < orders[0] < orders[1] < orders[2] < orders[3] < 1
    assert orders[2] == pytest.approx(orders[3], rel=1e-5)


def test_kernel_estimate_finds_a_known_error():
    f, labels, truth = dirichlet_sample(4000, 0.8)
    assert metrics.kde_ce(f, labels) == pytest.approx(truth, rel=0.15)
    # Without error what remains is the estimator's own noise, which more examples reduce.
    noise = [metrics.kde_ce(*dirichlet_sample(n, 0.0)[:2]) for n in (250, 1000, 4000)]
    assert noise[0] > 1.3 * noise[1] > 1.3**2 * noise[2] and noise[2] < 0.3 * truth


def test_kernel_top_label_estimate_finds_a_known_error():
    assert metrics.kde_ece(*drawn(constant, 3000)) == pytest.approx(0.1, abs=0.02)
    assert metrics.kde_ece(*drawn(crossing, 3000)) == pytest.approx(0.1, abs=0.03)
    assert metrics.kde_ece(*drawn(nothing, 3000)) < 0.04


def test_kernel_estimate_at_the_corners_is_finite():
    probs = np.vstack([np.eye(3), np.eye(3), np.full((1, 3), 1 / 3)])
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    for p in (1, 2):
        assert 0 <= metrics.kde_ce(probs, labels, p=p) <= 2
    assert metrics.kde_ce(probs[:1], labels[:1]) == 0.0


def test_refuses():
    f, y = drawn(constant, 10)
    probs, labels, _ = dirichlet_sample(10, 0.5)
    for call in (
        lambda: metrics.smece(f, y, sigma=0.0),
        lambda: metrics.kde_ce(probs, labels, p=0.5),
        lambda: metrics.kde_ce(probs, labels, bandwidth=-1.0),
        lambda: metrics.kde_ece(f, np.full(10, 0.5)),
    ):
        with pytest.raises(Refused):
            call()

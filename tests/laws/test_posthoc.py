"""Law 9, over every registered post-hoc calibrator; parts of laws 1 to 5 that a fit on the host must keep."""

from __future__ import annotations

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from kdjax.metrics import nll
from kdjax.posthoc import POSTHOC
from tests.laws.door import same
from tests.processes import slow

LAWS = settings(settings.get_profile("laws"), max_examples=3)
everyone = pytest.mark.parametrize("name", POSTHOC)

# Options with which the fit minimizes the NLL, which is what law 9 speaks of.
BY_NLL = {"temperature_grid_torrvision": {"criterion": "nll"}}
# Who may move the argmax, and why; all others may not.
MOVES = {
    "vector": "each class has its own weight and bias",
    "dirichlet": "a full linear map",
    "isotonic": "each class has its own step function",
}
# Who may end worse than T = 1 on the fit split, by how much, and why.
SLACK = {
    "isotonic": (0.02, "one-vs-rest fits are normalized afterwards"),
}
# Who sees a constant added to a row, and why.
SHIFTS = {"vector": "the constant is multiplied by each class's weight"}


def sample(seed: int, sharpness: float, n: int = 200, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits / sharpness): over-confident above 1, by exactly that temperature."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    labels = (softmax(z, axis=1).cumsum(1) < rng.random((n, 1))).sum(1)
    return sharpness * z, np.minimum(labels, k - 1)


def fitted(name: str, z: np.ndarray, y: np.ndarray, **more) -> tuple:
    params = POSTHOC[name].fit(z, y, **BY_NLL.get(name, {}), **more)
    with jax.enable_x64(True):
        return params, np.asarray(POSTHOC[name].apply(params, z))


seeds = st.integers(0, 999)
sharp = st.sampled_from([0.4, 1.0, 2.5])


@everyone
@LAWS
@given(seed=seeds, sharpness=sharp, k=st.sampled_from([2, 4]))
def test_law_9_not_worse_positive_and_the_argmax_stays(name, seed, sharpness, k):
    z, y = sample(seed, sharpness, k=k)
    params, out = fitted(name, z, y)
    assert nll(out, y) <= nll(z, y) + SLACK.get(name, (1e-9, ""))[0]
    if "T" in params:
        assert (np.asarray(params["T"]) > 0).all()
    if name not in MOVES:
        np.testing.assert_array_equal(out.argmax(1), z.argmax(1))


@pytest.mark.parametrize("name", MOVES)
def test_who_may_move_the_argmax_does(name):
    z, y = sample(1, 1.0)
    z[:, 0] += 3.0
    assert (fitted(name, z, y)[1].argmax(1) != z.argmax(1)).any()


@everyone
@pytest.mark.parametrize("sharpness", [0.6, 2.4])
def test_law_9_the_fit_moves_and_finds_the_temperature(name, sharpness):
    z, y = sample(2, sharpness, n=3000)
    params, out = fitted(name, z, y)
    assert nll(out, y) < nll(z, y) - 0.01, "it does nothing"
    if "T" in params:
        np.testing.assert_allclose(params["T"], sharpness, rtol=0.2)
    assert np.abs(softmax(out, axis=1) - softmax(z / sharpness, axis=1)).mean() < 0.02


@everyone
def test_law_9_calibrated_stays(name):
    z, y = sample(3, 1.0, n=12000)
    params, out = fitted(name, z, y)
    if "T" in params:
        np.testing.assert_allclose(params["T"], 1.0, atol=0.1)
    assert np.abs(softmax(out, axis=1) - softmax(z, axis=1)).mean() < 0.012


@everyone
def test_law_9_probabilities_are_no_logits(name):
    z, y = sample(4, 1.0, n=100)
    with pytest.warns(UserWarning, match="probability distributions"):
        POSTHOC[name].fit(softmax(z, axis=1), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        POSTHOC[name].fit(z, y)


@everyone
@LAWS
@given(seed=seeds, sharpness=sharp)
def test_law_2_permuted_examples_and_classes(name, seed, sharpness):
    z, y = sample(seed, sharpness, n=150)
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(len(y)), rng.permutation(z.shape[1])
    # One batch, since the published grids average over batches in the order of the data.
    whole = {"batch_size": len(y)} if name in ("temperature_grid_kdc", "temperature_grid_mdca") else {}
    _, out = fitted(name, z, y, **whole)
    _, moved = fitted(name, z[order], y[order], **whole)
    np.testing.assert_allclose(softmax(moved, axis=1), softmax(out, axis=1)[order], atol=1e-4)
    _, renamed = fitted(name, z[:, classes], np.argsort(classes)[y], **whole)
    np.testing.assert_allclose(softmax(renamed, axis=1), softmax(out, axis=1)[:, classes], atol=1e-4)


@everyone
@LAWS
@given(seed=seeds)
def test_law_3_shifted_logits(name, seed):
    z, y = sample(seed, 2.0, n=150)
    up = np.random.default_rng(seed).uniform(-5, 5, (len(y), 1))
    plain, shifted = fitted(name, z, y)[1], fitted(name, z + up, y)[1]
    gap = np.abs(softmax(plain, axis=1) - softmax(shifted, axis=1)).max()
    assert (gap > 1e-3) if name in SHIFTS else (gap < 1e-4)


@everyone
@LAWS
@given(seed=seeds)
def test_law_4_absent_examples(name, seed):
    z, y = sample(seed, 2.0, n=150)
    gone = np.random.default_rng(seed).random(len(y)) < 0.3
    whole = {"batch_size": len(y)} if name in ("temperature_grid_kdc", "temperature_grid_mdca") else {}
    weighted, _ = fitted(name, z, y, weight=np.where(gone, 0.0, 1.0), **whole)
    removed, _ = fitted(name, z[~gone], y[~gone], **whole)
    chex.assert_trees_all_close(weighted, removed, rtol=1e-6, atol=1e-6)


@everyone
@pytest.mark.parametrize("k", [2, *slow(30)])
def test_law_5_finite_at_extremes(name, k):
    labels = np.arange(60) % k
    mine = np.arange(k) == labels[:, None]
    other = np.arange(k) == ((labels + 1) % k)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a clamped temperature says so
        for z in (np.zeros((60, k)), np.where(mine, 1e4, 0.0), np.where(other, 1e4, -1e4), np.full((60, k), -7.5)):
            for y in (labels, np.zeros(60, int)):
                params, out = fitted(name, z, y)
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)) and np.isfinite(out).all()
        params, _ = fitted(name, *sample(0, 2.0, n=200, k=k))
        for z in (np.where(other, 1e4, -1e4), np.zeros((60, k)), np.zeros((1, k))):
            assert np.isfinite(POSTHOC[name].apply(params, z.astype(np.float32))).all()


class Law1(chex.TestCase):
    """`apply` under jit, without, on host arrays, on device arrays, and mapped over two devices."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True, with_pmap=True)
    @parameterized.named_parameters((name, name) for name in POSTHOC)
    def test_variants_agree(self, name):
        assert jax.device_count() > 1, "chex skips the pmap variant on one device; tests/conftest.py forces two"
        z, y = sample(5, 2.0, n=100)
        params = POSTHOC[name].fit(z, y)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
        single = jax.tree.map(lambda x: np.asarray(x, np.float32), dict(params))
        found = self.variant(POSTHOC[name].apply)(single, z.astype(np.float32))
        assert found.dtype == np.float32
        with jax.enable_x64(True):
            exact = POSTHOC[name].apply(params, jnp.asarray(z))
        assert exact.dtype == np.float64
        same(found, np.asarray(exact), rtol=1e-4, atol=1e-4)
        half = POSTHOC[name].apply(params, jnp.asarray(z, jnp.bfloat16))
        assert half.dtype == np.float32 and np.isfinite(half).all()

"""Post-hoc calibrators: the laws that all of them keep, and what each promises on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from kdjax import metrics, posthoc
from kdjax.errors import Refused
from kdjax.metrics import nll
from kdjax.posthoc import POSTHOC

K = 4
PARITY = {"temperature_grid_kdc", "temperature_grid_mdca", "temperature_grid_torrvision"}
# The ECE is no proper score: a fit by ECE promises nothing about the NLL.
BY_NLL = {name: {"criterion": "nll"} if "torrvision" in name else {} for name in POSTHOC}
KEEPS_ARGMAX = {name for name in POSTHOC if "temperature" in name}


def sample(sharpness: float, n: int = 4000, seed: int = 0, spread: float = 1.5):
    """Logits whose temperature is exactly `sharpness`: the labels are drawn from softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    z = spread * rng.normal(size=(n, K)) + np.linspace(0.3, -0.3, K)
    u = rng.random((n, 1))
    labels = np.minimum((softmax(z, axis=1).cumsum(axis=1) < u).sum(axis=1), K - 1)
    return sharpness * z, labels


@pytest.mark.parametrize("name", sorted(POSTHOC))
class TestLaws:
    @pytest.mark.parametrize("sharpness", [0.5, 2.4])
    def test_nll_falls_and_the_fit_moves(self, name, sharpness):
        z, y = sample(sharpness)
        method = POSTHOC[name]
        params = method.fit(z, y, **BY_NLL[name])
        out = np.asarray(method.apply(params, z))
        assert out.shape == z.shape and np.isfinite(out).all()
        assert nll(out, y) < nll(z, y) - 0.01
        if name in KEEPS_ARGMAX:
            assert (np.asarray(params["T"]) > 0).all()
            np.testing.assert_array_equal(out.argmax(axis=1), z.argmax(axis=1))

    def test_calibrated_stays(self, name):
        z, y = sample(1.0, n=20000)
        method = POSTHOC[name]
        out = np.asarray(method.apply(method.fit(z, y, **BY_NLL[name]), z))
        assert abs(softmax(out, axis=1) - softmax(z, axis=1)).mean() < 0.01

    def test_jit_dtypes_and_params(self, name):
        z, y = sample(2.0, n=300)
        method = POSTHOC[name]
        params = method.fit(z, y)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
        half = jnp.asarray(z, jnp.bfloat16)
        plain, jitted = method.apply(params, half), jax.jit(method.apply)(params, half)
        assert plain.dtype == jitted.dtype == jnp.float32
        np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-5)
        with jax.enable_x64(True):
            assert method.apply(params, jnp.asarray(z, jnp.float64)).dtype == jnp.float64

    def test_weights_are_repetition_and_zero_is_absence(self, name):
        z, y = sample(2.0, n=240)
        # Whole batches keep their order, so that the grids, which average over batches, see the same ones.
        w = np.repeat([2.0, 0.0, 1.0], 80)
        repeated = np.concatenate([np.arange(80), np.arange(80), np.arange(160, 240)])
        options = dict(BY_NLL[name])
        method = POSTHOC[name]
        if name in PARITY - {"temperature_grid_torrvision"}:
            options["batch_size"] = 240
        if name == "dirichlet":
            options |= {"lam": 1.0, "mu": 1.0}  # the defaults count rows
        weighted = method.fit(z, y, weight=w, **options)
        if "classwise" in name:
            options["min_examples"] = 20  # counts rows, and repetition makes more of them
            assert (np.bincount(z[w > 0].argmax(axis=1), minlength=K) >= 20).all()
        expected = method.fit(z[repeated], y[repeated], **options)
        for key, value in expected.items():
            tolerance = 2e-4 if name in ("vector", "dirichlet") else 1e-8
            np.testing.assert_allclose(weighted[key], value, rtol=tolerance, atol=tolerance, err_msg=key)

    def test_extremes_stay_finite(self, name):
        rng = np.random.default_rng(0)
        method = POSTHOC[name]
        for z in (np.zeros((40, K)), 1e4 * rng.normal(size=(40, K)), 60 * np.eye(K)[np.arange(40) % K]):
            for y in (np.arange(40) % K, np.zeros(40, int), (np.arange(40) + 1) % K):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("warnings.warn", lambda *a, **k: None)
                    params = method.fit(z, y)
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
                assert np.isfinite(method.apply(params, z)).all()

    def test_probabilities_warn(self, name):
        z, y = sample(1.0, n=100)
        with pytest.warns(UserWarning, match="100 of 100 rows .* are probability distributions"):
            POSTHOC[name].fit(softmax(z, axis=1), y)

    @pytest.mark.parametrize(
        ("spoil", "sentence"),
        [
            (lambda z, y: (z[:0], y[:0]), "expected N >= 1"),
            (lambda z, y: (z[:, :1], 0 * y), "K >= 2"),
            (lambda z, y: (z, y[:-1]), r"expected \[N, K\] and \[N\]"),
            (lambda z, y: (z[None], y), r"expected \[N, K\] and \[N\]"),
            (lambda z, y: (z, y.astype(float)), "labels of type float64"),
            (lambda z, y: (z, np.where(y == 1, -1, y)), "first is -1"),
            (lambda z, y: (z, y + K), "outside"),
            (lambda z, y: (np.where(z > 3, np.nan, z), y), "not finite"),
        ],
    )
    def test_refusals(self, name, spoil, sentence):
        with pytest.raises(Refused, match=sentence):
            POSTHOC[name].fit(*spoil(*sample(2.0, n=50)))

    def test_bad_weights(self, name):
        z, y = sample(2.0, n=50)
        for weight in (np.zeros(50), -np.ones(50), np.ones(49)):
            with pytest.raises(Refused, match="weights of shape"):
                POSTHOC[name].fit(z, y, weight=weight)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(Refused, match="temperature"):
        posthoc.get("temprature")


class TestTemperature:
    @pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
    def test_recovers_the_truth_and_is_the_minimum(self, sharpness):
        z, y = sample(sharpness, n=20000)
        T = float(posthoc.get("temperature").fit(z, y)["T"])
        assert pytest.approx(sharpness, rel=0.03) == T
        # At the optimum the mean logit under the model equals the mean logit of the labels.
        slope = (softmax(z / T, axis=1) * z).sum(axis=1) - z[np.arange(len(y)), y]
        assert abs(slope.mean()) < 1e-7
        assert nll(z / T, y) <= min(nll(z / (T * f), y) for f in (0.999, 1.001))

    def test_scale_and_shift(self):
        z, y = sample(2.0, n=500)
        fit = posthoc.get("temperature").fit
        assert fit(3 * z, y)["T"] == pytest.approx(3 * fit(z, y)["T"], rel=1e-7)
        assert fit(z + np.arange(500)[:, None], y)["T"] == pytest.approx(fit(z, y)["T"], rel=1e-7)

    def test_chunks_do_not_matter(self, monkeypatch):
        z, y = sample(2.0, n=500)
        whole = posthoc.get("temperature").fit(z, y)["T"]
        monkeypatch.setattr("kdjax.posthoc.temperature.ROWS", 7)
        assert posthoc.get("temperature").fit(z, y)["T"] == pytest.approx(whole, rel=1e-9)

    @pytest.mark.parametrize(("shift", "clamp", "why"), [(0, 0.01, "no mistake"), (1, 100.0, "chance")])
    def test_clamps_warn(self, shift, clamp, why):
        y = np.arange(40) % K
        with pytest.warns(UserWarning, match=why):
            assert posthoc.get("temperature").fit(0.5 * np.eye(K)[y], (y + shift) % K)["T"] == clamp

    def test_constant_logits_keep_one(self):
        assert posthoc.get("temperature").fit(np.ones((8, K)) * 3, np.arange(8) % K)["T"] == 1.0

    def test_beats_the_grid_that_stops_short(self):
        z, y = sample(4.0)
        free, grid = (posthoc.get(name).fit(z, y)["T"] for name in ("temperature", "temperature_grid_kdc"))
        assert grid == pytest.approx(2.8) and free == pytest.approx(4.0, rel=0.05)

    def test_grid_options_are_checked(self):
        z, y = sample(2.0, n=50)
        with pytest.raises(Refused, match="criterion"):
            posthoc.get("temperature_grid_torrvision").fit(z, y, criterion="eec")
        with pytest.raises(Refused, match="batch_size"):
            posthoc.get("temperature_grid_kdc").fit(z, y, batch_size=0)

    def test_classwise(self):
        """Class 0 is sharpened three times, the others not: only its temperature moves."""
        z, y = sample(1.0, n=20000)
        sharp = z.argmax(axis=1) == 0
        params = posthoc.get("classwise_temperature").fit(np.where(sharp[:, None], 3 * z, z), y)
        np.testing.assert_allclose(params["T"], [3, 1, 1, 1], rtol=0.08)

    def test_classwise_falls_back_where_a_class_is_rare(self):
        z, y = sample(2.0, n=400)
        params = posthoc.get("classwise_temperature").fit(z, y, min_examples=401)
        np.testing.assert_allclose(params["T"], np.full(K, posthoc.get("temperature").fit(z, y)["T"]))


class TestAffine:
    def test_vector_recovers_a_diagonal_map(self):
        z, y = sample(1.0, n=40000)
        w, b = np.array([2.0, 1.0, 0.5, 1.0]), np.array([1.0, 0.0, 0.0, -1.0])
        params = posthoc.get("vector").fit((z - b) / w, y)
        np.testing.assert_allclose(params["w"], w, rtol=0.06)
        np.testing.assert_allclose(params["b"] - params["b"].mean(), b, atol=0.1)

    def test_vector_gradient_vanishes_and_l2_pulls_to_the_identity(self):
        z, y = sample(2.0, n=500)
        params = posthoc.get("vector").fit(z, y)

        def loss(theta):
            return nll(z * theta[:K] + theta[K:], y)

        assert abs(approx_fprime(np.concatenate([params["w"], params["b"]]), loss, 1e-6)).max() < 1e-5
        pulled = posthoc.get("vector").fit(z, y, l2=1e4)
        np.testing.assert_allclose(pulled["w"], 1, atol=1e-3)

    def test_dirichlet_gradient_is_the_finite_difference(self):
        z, y = sample(2.0, n=60)
        rng = np.random.default_rng(1)
        params = {"W": rng.normal(size=(K, K)), "b": rng.normal(size=K)}
        weight = rng.random(60)
        options = {"lam": 0.3, "mu": 0.7, "weight": weight}
        _, grad = posthoc.dirichlet_loss(params, z, y, **options)
        for key in ("W", "b"):

            def loss(flat, key=key):
                changed = {**params, key: flat.reshape(params[key].shape)}
                return posthoc.dirichlet_loss(changed, z, y, **options)[0]

            numeric = approx_fprime(params[key].ravel(), loss, 1e-6)
            np.testing.assert_allclose(grad[key].ravel(), numeric, atol=1e-5)

    def test_dirichlet_reaches_the_minimum(self):
        z, y = sample(2.0, n=500)
        params = posthoc.get("dirichlet").fit(z, y, lam=0.1, mu=0.1)
        _, grad = posthoc.dirichlet_loss(params, z, y, lam=0.1, mu=0.1)
        assert max(abs(grad["W"]).max(), abs(grad["b"]).max()) < 1e-6
        assert nll(np.asarray(posthoc.get("dirichlet").apply(params, z)), y) <= nll(z, y)

    def test_odir_acts_on_the_off_diagonal_and_the_bias_alone(self):
        z, y = sample(2.0, n=500)
        params = posthoc.get("dirichlet").fit(z, y, lam=1e6, mu=1e6)
        off = params["W"] - np.diag(np.diag(params["W"]))
        assert abs(off).max() < 1e-4 and abs(params["b"]).max() < 1e-4
        assert abs(np.diag(params["W"]) - 1).min() > 0.2

    def test_dirichlet_undoes_a_mixing_of_the_classes(self):
        z, y = sample(1.0, n=20000)
        mix = np.eye(K) + 0.3 * np.roll(np.eye(K), 1, axis=1)
        mixed = log_softmax(log_softmax(z, axis=1) @ mix.T, axis=1)
        out = posthoc.get("dirichlet").apply(posthoc.get("dirichlet").fit(mixed, y, lam=0, mu=0), mixed)
        assert abs(softmax(np.asarray(out), axis=1) - softmax(z, axis=1)).mean() < 0.01

    def test_the_default_penalty_generalises_where_a_weak_one_does_not(self):
        rng = np.random.default_rng(0)
        z = 3 * rng.normal(size=(2, 800, 20))
        fitted_on, held_out = (z / 2.5 + rng.gumbel(size=z.shape)).argmax(axis=2)
        method = posthoc.get("dirichlet")

        def out(**options):
            return nll(np.asarray(method.apply(method.fit(z[0], fitted_on, **options), z[1])), held_out)

        assert out() < nll(z[1] / 2.5, held_out) + 0.05
        assert out() < out(lam=1.0, mu=1.0) - 0.1

    def test_select_odir_prefers_a_penalty_when_data_are_few(self):
        z, y = sample(1.0, n=60)
        lam, mu = posthoc.select_odir(z, y, grid=(1e-3, 1.0), folds=3)
        assert lam == 1.0 and mu in (1e-3, 1.0)
        with pytest.raises(Refused, match="folds"):
            posthoc.select_odir(z, y, folds=1)

    @pytest.mark.parametrize(("name", "options"), [("vector", {"l2": -1}), ("dirichlet", {"lam": -1})])
    def test_negative_penalties_are_refused(self, name, options):
        with pytest.raises(Refused, match="expected a number"):
            posthoc.get(name).fit(*sample(2.0, n=50), **options)


class TestIsotonic:
    def test_is_scikit_learn_normalized(self):
        """Also between the knots and outside them, on rows that were not fitted on."""
        z, y = sample(2.0, n=300)
        params = posthoc.get("isotonic").fit(z, y)
        fresh, _ = sample(3.0, n=200, seed=1)
        p, q = softmax(z, axis=1), softmax(fresh, axis=1)
        columns = [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p[:, k], y == k).predict(q[:, k])
            for k in range(K)
        ]
        expected = np.maximum(np.stack(columns, axis=1), 1e-6)
        with jax.enable_x64(True):
            out = posthoc.get("isotonic").apply(params, jnp.asarray(fresh))
        np.testing.assert_allclose(np.exp(out), expected / expected.sum(axis=1, keepdims=True), rtol=1e-7)
        np.testing.assert_allclose(
            np.exp(posthoc.get("isotonic").apply(params, jnp.asarray(fresh, jnp.float32))), np.exp(out), atol=1e-3
        )

    def test_every_one_versus_rest_log_loss_falls(self):
        z, y = sample(2.4, n=500)
        params = posthoc.get("isotonic").fit(z, y)
        p = softmax(z, axis=1)
        for k in range(K):
            hit = y == k
            f = np.clip(np.interp(p[:, k], params["x"][k], params["y"][k]), 1e-12, 1 - 1e-12)
            before, after = (-np.mean(hit * np.log(v) + (1 - hit) * np.log1p(-v)) for v in (p[:, k], f))
            assert after < before

    def test_ties_share_their_mean_label(self):
        z = np.log(np.repeat([[0.7, 0.3], [0.2, 0.8]], 4, axis=0))
        y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
        out = np.exp(posthoc.get("isotonic").apply(posthoc.get("isotonic").fit(z, y), z))
        np.testing.assert_allclose(out[:, 0], np.repeat([0.75, 0.25], 4), atol=1e-6)

    def test_a_row_of_zeros_becomes_uniform(self):
        z = np.log(np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
        params = posthoc.get("isotonic").fit(np.tile(z[1:], (5, 1)), np.tile([0, 1, 2], 5))
        low = np.log(np.array([[0.05, 0.05, 0.05]]))  # every class at the bottom of its own curve
        params["x"] = params["x"] + 0.5
        np.testing.assert_allclose(np.exp(posthoc.get("isotonic").apply(params, low)), 1 / 3, rtol=1e-6)

    def test_floor_is_checked(self):
        with pytest.raises(Refused, match="floor"):
            posthoc.get("isotonic").fit(*sample(2.0, n=50), floor=0.0)


def test_refitted_is_a_fit_and_a_measurement_on_different_splits():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5))
    labels = np.array([rng.choice(5, p=p) for p in np.exp(true) / np.exp(true).sum(1, keepdims=True)])
    half = slice(0, 2000), slice(2000, 4000)
    sharp = 3.0 * true
    found = posthoc.refitted(sharp[half[0]], labels[half[0]], sharp[half[1]], labels[half[1]])
    fitted = posthoc.POSTHOC["temperature"].fit(sharp[half[0]], labels[half[0]])
    assert found["temperature"] == float(fitted["T"]) and abs(found["temperature"] - 3) < 0.3
    confidence, correct = metrics.top_label(sharp[half[1]], labels[half[1]])
    before = float(metrics.ece(confidence, correct))
    assert found["ece_refit"] < 0.05 < 0.2 < before
    assert found["nll_refit"] < metrics.nll(sharp[half[1]], labels[half[1]])

"""Post-hoc calibrators: the laws that all of them keep, and what each promises on its own."""

import hashlib
import importlib
import json
import subprocess
import sys

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
from kdjax.posthoc import POSTHOC, registry

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

    def test_regions_and_a_single_row_are_calibrated_along_the_last_axis(self, name):
        z, y = sample(2.0, n=60)
        method = POSTHOC[name]
        params = method.fit(z, y)
        rows = np.asarray(method.apply(params, z))
        regions = method.apply(params, z.reshape(6, 10, K))
        np.testing.assert_allclose(regions, rows.reshape(6, 10, K), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(method.apply(params, z[0]), rows[0], rtol=1e-5, atol=1e-5)

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

    @pytest.mark.parametrize(
        ("grid", "sentence"),
        [
            ((-1.0, 1.0), r"select_odir.grid is -1.0; expected a number in \[0, inf\)"),
            (jnp.array([1.0, -1.0]), "select_odir.grid is -1.0"),
            ((), "select_odir.grid is empty; expected at least one penalty"),
            (1.0, "select_odir.grid is 1.0; expected a list"),
            (("a",), "select_odir.grid is 'a'; expected a number"),
        ],
    )
    def test_a_grid_of_anything_but_penalties_is_refused(self, grid, sentence):
        with pytest.raises(Refused, match=sentence):
            posthoc.select_odir(*sample(1.0, n=60), grid=grid, folds=3)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"lam": -1.0}, "dirichlet_loss.lam is -1.0; expected a number"),
            ({"mu": -1.0}, "dirichlet_loss.mu is -1.0; expected a number"),
            ({"params": {"T": np.ones(())}}, "the parameters of dirichlet are the names T"),
            ({"params": {"W": np.eye(3), "b": np.zeros(3)}}, r"W of dirichlet has shape \[3, 3\]"),
        ],
    )
    def test_the_dirichlet_loss_refuses_what_the_fit_refuses(self, changes, sentence):
        z, y = sample(2.0, n=50)
        given = {"params": {"W": np.eye(K, dtype=int), "b": [0] * K}, "lam": 0.0, "mu": 0.0}
        assert posthoc.dirichlet_loss(logits=z, labels=y, **given)[0] == pytest.approx(nll(z, y))
        with pytest.raises(Refused, match=sentence):
            posthoc.dirichlet_loss(logits=z, labels=y, **{**given, **changes})


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


class TestParameters:
    """Wrong parameters and options get one sentence, from the JAX form as from the NumPy form."""

    @pytest.mark.parametrize(
        ("name", "params", "sentence"),
        [
            ("temperature", {"t": np.float64(2.0)}, r"are the names t; expected what its fit returned: T \[\]"),
            ("temperature", 2.0, "are float; expected what its fit returned"),
            ("temperature", {"T": np.float64(-1.0)}, "T of temperature is -1; expected numbers > 0"),
            ("temperature", {"T": np.float64("nan")}, "something else than finite numbers"),
            ("classwise_temperature", {"T": np.ones(3)}, r"T of classwise_temperature has shape \[3\] .* K = 4"),
            ("vector", {"w": np.ones(4), "b": np.ones(5)}, r"b of vector has shape \[5\]"),
            ("dirichlet", {"W": np.ones(4), "b": np.ones(4)}, r"W of dirichlet has shape \[4\]"),
            ("isotonic", {"x": np.ones((4, 2)), "y": np.ones((4, 3)), "floor": np.float64(0.1)}, "y of isotonic"),
        ],
    )
    def test_parameters_of_another_method_or_size(self, name, params, sentence):
        with pytest.raises(Refused, match=sentence):
            POSTHOC[name].apply(params, np.zeros((2, K)))

    def test_shapes_are_checked_while_tracing(self):
        with pytest.raises(Refused, match="shape"):
            jax.jit(POSTHOC["vector"].apply)({"w": np.ones(3), "b": np.ones(3)}, np.zeros((2, K)))

    def test_an_unknown_option_is_answered_with_the_known_ones(self):
        with pytest.raises(Refused, match="fit_dirichlet has no option 'lambda_'; .*lam"):
            POSTHOC["dirichlet"].fit(*sample(2.0, n=50), lambda_=1.0)


@pytest.mark.parametrize("name", sorted(POSTHOC))
def test_the_json_form_keeps_every_bit_and_numpy_agrees_with_jax(name, tmp_path):
    z, y = sample(2.0, n=300)
    params = POSTHOC[name].fit(z, y)
    made = posthoc.fitted(name, params, num_classes=K, classes=("a", "b", "c", "<d>"), about={"examples": 300})
    made.save(tmp_path / "x.json")
    loaded = posthoc.load(tmp_path / "x.json")
    for key, value in params.items():
        np.testing.assert_array_equal(loaded.params[key], value)
    assert (loaded.method, loaded.classes, loaded.about) == (name, made.classes, {"examples": 300})
    fresh, _ = sample(3.0, n=50, seed=1)
    with jax.enable_x64(True):
        expected = softmax(np.asarray(POSTHOC[name].apply(params, jnp.asarray(fresh))), axis=1)
    np.testing.assert_allclose(loaded(fresh), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(loaded(fresh[0]), expected[0], rtol=1e-9, atol=1e-12)
    shifted = fresh - np.log(np.exp(fresh).sum(1, keepdims=True))
    np.testing.assert_allclose(loaded.of_probabilities(softmax(fresh, axis=1)), loaded(shifted), rtol=1e-6)


def test_load_needs_no_jax(tmp_path):
    posthoc.fitted("temperature", {"T": np.float64(2.0)}, num_classes=2).save(tmp_path / "x.json")
    code = (
        "import sys, kdjax; calibrator = kdjax.posthoc.load(sys.argv[1]); print(calibrator([[2.0, 0.0]])[0, 0]);"
        "assert not {'jax', 'scipy', 'flax', 'optax'} & set(sys.modules), 'imported'"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.json")], capture_output=True, text=True)
    assert float(out.stdout) == pytest.approx(1 / (1 + np.exp(-1))), out.stderr


GOOD = {
    "kind": "kdjax calibrator",
    "format": 1,
    "method": "temperature",
    "form": "temperature",
    "scores": "logits",
    "version": "",
    "num_classes": 2,
    "classes": [],
    "about": {},
    "params": {"T": 2.0},
}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a calibrator"),
        ("[" * 100_000, "is not a calibrator"),
        ("{}", "JSON but not a calibrator"),
        (json.dumps(GOOD | {"format": 2}), "of format 2, .* upgrade kdjax"),
        (json.dumps(GOOD | {"form": "__import__('os')"}), "damaged calibrator"),
        (json.dumps(GOOD | {"classes": ["a"]}), "damaged calibrator"),
        (json.dumps(GOOD | {"num_classes": True}), "damaged calibrator"),
        (json.dumps(GOOD | {"params": {"T": "rm -rf"}}), "parameters of temperature are not numbers"),
        (json.dumps(GOOD | {"params": {"T": [2.0, 1.0]}}), r"x.json is a damaged calibrator: the parameter T .* \[2\]"),
        (json.dumps(GOOD | {"params": {"T": 0.0}}), "expected numbers > 0"),
        (json.dumps(GOOD | {"params": {"T": 1.0}}).replace("1.0", "NaN"), "is not a calibrator"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, sentence):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(Refused, match=sentence):
        posthoc.load(tmp_path / "x.json")
    with pytest.raises(Refused, match="does not exist"):
        posthoc.load(tmp_path / "absent.json")
    with pytest.raises(Refused, match="not a calibrator"):
        posthoc.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"classes": (0, 1, 2)}, r"classes is \(0, 1, 2\); expected the names of all 3 classes as text, or \(\)"),
        ({"classes": ("a", "b")}, r"classes is \('a', 'b'\); expected the names of all 3"),
        ({"classes": "abc"}, "classes is 'abc'; expected the names"),
        ({"scores": "probs"}, "scores is 'probs', which does not exist; did you mean probabilities"),
        ({"num_classes": 1}, "num_classes is 1; expected an integer of at least 2"),
        ({"num_classes": True}, "num_classes is True; expected an integer"),
        ({"about": 3}, "about is 3; expected a mapping"),
        ({"params": {"T": "hot"}}, "parameters of temperature are not numbers"),
        ({"params": 2.0}, "the parameters of temperature are float; expected what its fit returned"),
    ],
)
def test_what_load_would_not_read_is_refused_when_made(fields, sentence):
    with pytest.raises(Refused, match=sentence):
        posthoc.fitted("temperature", **{"params": {"T": 2.0}, "num_classes": 3, **fields})


def test_numpy_fields_are_saved_as_what_they_hold(tmp_path):
    made = posthoc.fitted("temperature", {"T": jnp.float32(2)}, num_classes=np.int64(2), classes=np.array(["a", "b"]))
    made.save(tmp_path / "x.json")
    assert posthoc.load(tmp_path / "x.json").classes == made.classes == ("a", "b")


class TestFromOutside:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch):
        monkeypatch.setattr("kdjax.posthoc.registry.POSTHOC", dict(POSTHOC))

    @staticmethod
    def module(tmp_path, monkeypatch, name, factor):
        (tmp_path / f"{name}.py").write_text(
            "import numpy as np\n"
            f"def fit(logits, labels, *, weight=None): return {{'f': np.float64({factor})}}\n"
            "def apply(params, logits): return logits * params['f']\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name)

    def test_is_fitted_saved_and_loaded_by_name(self, tmp_path, monkeypatch):
        mine = self.module(tmp_path, monkeypatch, "my_scaling", 0.5)
        made = posthoc.register("my_scaling", mine.fit, mine.apply)
        assert made.version == hashlib.sha256((tmp_path / "my_scaling.py").read_bytes()).hexdigest()
        assert posthoc.register("my_scaling", mine.fit, mine.apply) == posthoc.get("my_scaling")
        z, y = sample(2.0, n=50)
        posthoc.fitted("my_scaling", made.fit(z, y), num_classes=K).save(tmp_path / "x.json")
        np.testing.assert_allclose(posthoc.load(tmp_path / "x.json")(z), softmax(z / 2, axis=1), rtol=1e-5)
        other = self.module(tmp_path, monkeypatch, "other_scaling", 0.25)
        with pytest.raises(Refused, match="'my_scaling' exists already, with other code"):
            posthoc.register("my_scaling", other.fit, other.apply)
        registry.POSTHOC["my_scaling"] = made._replace(stated_version="2")
        with pytest.raises(Refused, match=r"fitted by version \w{12} of its code, and 2 is registered"):
            posthoc.load(tmp_path / "x.json")(z)
        del registry.POSTHOC["my_scaling"]
        with pytest.raises(Refused, match="import the module that registers it"):
            posthoc.load(tmp_path / "x.json")(z)

    def test_refusals(self):
        namespace: dict = {"__name__": "nowhere"}
        exec("def fit(logits, labels): return {}", namespace)
        for name, fit, sentence in (
            ("temperature", lambda z, y: {}, "exists already"),
            ("my scaling", lambda z, y: {}, "expected a name"),
            ("mine", 3, "fit of the post-hoc method 'mine' is 3"),
            ("mine", namespace["fit"], "pass version="),
        ):
            with pytest.raises(Refused, match=sentence):
                posthoc.register(name, fit, lambda params, z: z)
        assert posthoc.register("mine", namespace["fit"], lambda params, z: z, version="1").version == "1"

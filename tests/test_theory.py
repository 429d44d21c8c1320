"""Theorems 1 and 2 of KD(C): the seven checks, the closed forms, and that the checks can fail."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit, logit

from experiments import theory as command
from kdjax import theory
from kdjax.errors import Refused
from kdjax.theory import CHECKS, linear


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_holds(check):
    result = check()
    failed = [m for m in result.measurements if not m.holds]
    assert result.holds and not failed, failed
    assert all(type(m.value) is float for m in result.measurements)


def test_a_measurement_outside_its_interval_does_not_hold():
    good, bad = theory.Measurement("a", 1.0, 0.0, 2.0), theory.Measurement("b", 3.0, 0.0, 2.0)
    assert good.holds and not bad.holds and not theory.Measurement("c", float("nan"), 0.0, 2.0).holds
    assert not theory.Check("x", "y", (good, bad)).holds


@pytest.mark.parametrize(
    ("name", "wrong", "check"),
    [
        ("theorem1", lambda X, y, w_t, alpha: alpha * w_t, 0),
        ("theorem1", lambda X, y, w_t, alpha: linear.theorem1_printed(X, y, w_t, alpha=alpha), 2),
        ("theorem2_gap", lambda z_t, y, alpha: linear.mean_gap(z_t, y), 3),
        ("third_order_gap", lambda z_s, z_t, alpha, T: float(-alpha * np.mean(z_s**3 - z_t**3) / 48), 4),
        ("population_student", lambda eta, p_t, alpha: np.asarray(p_t), 6),
    ],
)
def test_the_checks_notice_a_wrong_formula(monkeypatch, name, wrong, check):
    monkeypatch.setattr(linear, name, wrong)
    assert not CHECKS[check]().holds


def _data(d=3, N=200, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(d, N))
    return X, (rng.random(N) < 0.5).astype(float), rng.normal(size=d) @ X


def test_stationarity_is_the_gradient_of_the_loss():
    _, y, z_t = _data(N=5)
    alpha, T = 0.3, 3.0

    def bce(q, p):
        return -(q * np.log(p) + (1 - q) * np.log1p(-p)).sum()

    def loss(z):
        return (1 - alpha) * bce(y, expit(z)) + alpha * T**2 * bce(expit(z_t / T), expit(z / T))

    z = np.linspace(-2, 2, 5)
    numeric = approx_fprime(z, loss, 1e-6)
    np.testing.assert_allclose(linear.stationarity(z, y, z_t, alpha=alpha, T=T), numeric, atol=1e-5)


@pytest.mark.parametrize("intercept", [False, True])
def test_student_is_stationary(intercept):
    X, y, z_t = _data()
    w = theory.student(X, y, z_t, alpha=0.4, T=3.0, intercept=intercept)
    rows = np.vstack([X, np.ones(200)]) if intercept else X
    assert w.shape == (len(rows),)
    residual = rows @ linear.stationarity(w @ rows, y, z_t, alpha=0.4, T=3.0)
    assert np.abs(residual).max() < 1e-11


def test_student_at_alpha_zero_is_logistic_regression():
    X, _, z_t = _data()
    truth = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(theory.student(X, expit(truth @ X), z_t, alpha=0.0), truth, atol=1e-10)


def test_two_classes_by_softmax_are_the_binary_student():
    X, y, z_t = _data()
    binary = theory.student(X, y, z_t, alpha=0.4, T=2.0, intercept=True)
    both = theory.student_multiclass(X, np.stack([1 - y, y]), np.stack([np.zeros_like(z_t), z_t]), alpha=0.4, T=2.0)
    np.testing.assert_allclose(both[1] - both[0], binary, atol=1e-9)


def test_interpolating_logits_solve_their_equation():
    _, y, z_t = _data()
    z = theory.interpolating_logits(y, 3 * z_t, alpha=0.2, T=4.0)
    assert np.abs(linear.stationarity(z, y, 3 * z_t, alpha=0.2, T=4.0)).max() < 1e-13
    np.testing.assert_allclose(theory.interpolating_logits(y, z_t, alpha=1.0, T=4.0), z_t, atol=1e-10)
    np.testing.assert_allclose(theory.interpolating_logits(expit(z_t), 0, alpha=0.0), z_t, atol=1e-10)


def test_descent_limit_interpolates_and_keeps_what_data_do_not_see():
    rng = np.random.default_rng(0)
    X, z, w_0 = rng.normal(size=(6, 3)), rng.normal(size=3), rng.normal(size=6)
    w = theory.descent_limit(X, z, w_0)
    np.testing.assert_allclose(w @ X, z, atol=1e-12)
    hidden = np.linalg.svd(X)[0][:, 3:]
    np.testing.assert_allclose(hidden.T @ w, hidden.T @ w_0, atol=1e-12)


def test_theorem1_for_few_examples_is_its_definition():
    rng = np.random.default_rng(0)
    X, w_t, w_0, y = rng.normal(size=(6, 3)), rng.normal(size=6), rng.normal(size=6), np.array([0.0, 1.0, 1.0])
    P = X @ np.linalg.inv(X.T @ X) @ X.T
    expected = 0.3 * P @ w_t + 2.8 * X @ np.linalg.inv(X.T @ X) @ (y - 0.5) + (np.eye(6) - P) @ w_0
    np.testing.assert_allclose(theory.theorem1(X, y, w_t, alpha=0.3, w_0=w_0), expected, atol=1e-12)


def test_matched_offset():
    _, y, z_t = _data()
    assert theory.mean_gap(z_t + theory.matched_offset(z_t, y, gap=-0.05), y) == pytest.approx(-0.05, abs=1e-13)


def test_population_ece_groups_equal_predictions():
    eta, mass = np.array([0.2, 0.6, 0.9]), np.array([0.25, 0.25, 0.5])
    assert theory.population_ece(eta, np.array([0.4, 0.4, 0.9]), mass) == pytest.approx(0.0, abs=1e-15)
    assert theory.population_ece(eta, np.array([0.3, 0.4, 0.9]), mass) == pytest.approx(0.075)
    np.testing.assert_allclose(
        theory.population_student(eta, 0.5, alpha=0.25),
        expit(theory.interpolating_logits(eta, logit(0.5), alpha=0.25)),
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda X, y, z: theory.student(X, y, z, alpha=1.5), "alpha is 1.5"),
        (lambda X, y, z: theory.student(X, y, z, alpha=0.5, T=0.0), "T is 0.0"),
        (lambda X, y, z: theory.student(X, y[:-1], z, alpha=0.5), "expected"),
        (lambda X, y, z: theory.student(X[:, :2], y[:2], z[:2], alpha=0.5), "N >= d"),
        (lambda X, y, z: theory.student(X, (X[0] > 0) * 1.0, z, alpha=0.0), "separates the labels"),
        (lambda X, y, z: theory.interpolating_logits(y, z, alpha=0.0), "alpha > 0"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(Refused, match=sentence):
        call(*_data())


def test_command_prints_the_table_and_writes_both_files(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.theory", f"--workdir={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("theory: 7 of 7 checks hold")
    written = json.loads((tmp_path / "theory.json").read_text())
    assert [check["check"][0] for check in written] == list("1234567")
    for check in written:
        for m in check["measurements"]:
            assert f"{m['value']:.4g}" in done.stdout
    assert (tmp_path / "theory.png").read_bytes()[1:4] == b"PNG"


def test_command_says_so_when_a_check_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(linear, "third_order_gap", lambda z_s, z_t, alpha, T: 1.0)
    assert not command.run(tmp_path)
    assert "theory: 6 of 7 checks hold" in capsys.readouterr().out


def test_command_names_a_folder_it_cannot_write(tmp_path):
    (tmp_path / "taken").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.theory", f"--workdir={tmp_path / 'taken'}"], capture_output=True, text=True
    )
    assert done.returncode == 74 and "taken" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.5, np.inf), "≥ 0.5"),
        ((0.0, 1e-9), "≤ 1e-09"),
        ((1.95, 2.05), "[1.95, 2.05]"),
        ((0.2 - 1e-12, 0.2 + 1e-12), "0.2 ± 1e-12"),
    ],
)
def test_expected_in_words(interval, words):
    assert command.expected(theory.Measurement("x", 0.0, *interval)) == words

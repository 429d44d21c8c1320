"""The seven checks of Theorems 1 and 2. Each computes what it claims from seeded Gaussian data, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from kdjax.theory import linear


class Measurement(NamedTuple):
    """One number and the interval in which the theory puts it."""

    what: str
    value: float
    low: float = -np.inf
    high: float = np.inf

    @property
    def holds(self) -> bool:
        return bool(self.low <= self.value <= self.high)


class Check(NamedTuple):
    """A statement, the numbers that decide it, and the curves that show it."""

    name: str
    statement: str
    measurements: tuple[Measurement, ...]
    curves: Mapping[str, Any] = {}

    @property
    def holds(self) -> bool:
        return all(m.holds for m in self.measurements)


class Problem(NamedTuple):
    """Gaussian inputs, noise-free soft labels σ(s(aᵀx + 1)), a linear teacher s·bᵀx: logits of scale s."""

    X: np.ndarray
    y: np.ndarray
    w_t: np.ndarray
    z_t: np.ndarray


def problem(scale: float, *, d: int = 5, N: int = 20000, offset: float = 1.0, seed: int = 0) -> Problem:
    """a and b are unit vectors, the same for every scale."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(d, N))
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, d)))
    return Problem(X, expit(scale * (a @ X + offset)), scale * b, scale * b @ X)


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def slope() -> Check:
    """Theorem 1, N >= d: the order of its error."""
    scales = [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
    errors = []
    for scale in scales:
        X, y, w_t, z_t = problem(scale, offset=0.0)
        exact = linear.student(X, y, z_t, alpha=0.5)
        errors.append(_relative(linear.theorem1(X, y, w_t, alpha=0.5), exact))
    slopes = np.diff(np.log(errors)) / np.diff(np.log(scales))
    return Check(
        "1 slope",
        "N >= d: the closed form of Theorem 1 is wrong by a fraction that quarters when the logits halve",
        (
            Measurement("log-log slope at the smallest scale", float(slopes[-1]), 1.95, 2.05),
            Measurement(f"relative error at scale {scales[0]:g}", errors[0], 0.1),
            Measurement(f"relative error at scale {scales[-1]:g}", errors[-1], 0.0, 0.01),
        ),
        {"scale": scales, "error": errors},
    )


def pure_distillation() -> Check:
    """Theorem 1, α = 1."""
    X, y, w_t, z_t = problem(4.0)
    return Check(
        "2 α = 1",
        "N >= d and α = 1: the student is the teacher, exactly and at any temperature",
        tuple(
            Measurement(
                f"‖w_s − w_t‖/‖w_t‖ at T = {T:g}",
                _relative(linear.student(X, y, z_t, alpha=1.0, T=T), w_t),
                0.0,
                1e-9,
            )
            for T in (1.0, 4.0, 20.0)
        ),
    )


def projector() -> Check:
    """Theorem 1, N < d: gradient descent, the exact scalar equations, the printed formula and the corrected one."""
    rng = np.random.default_rng(0)
    d, N = 40, 12
    X, w_t, w_0 = rng.normal(size=(d, N)) / np.sqrt(d), rng.normal(size=d), rng.normal(size=d)
    y, z_t = (rng.random(N) < 0.5).astype(float), w_t @ X

    w = w_0.copy()
    step = 4 / np.linalg.eigvalsh(X.T @ X)[-1]
    for _ in range(20000):
        w = w - step * X @ linear.stationarity(w @ X, y, z_t, alpha=0.5, T=2.0)
    exact = linear.descent_limit(X, linear.interpolating_logits(y, z_t, alpha=0.5, T=2.0), w_0)

    alphas = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    printed, corrected = [], []
    for alpha in alphas:
        truth = linear.descent_limit(X, linear.interpolating_logits(y, z_t, alpha=alpha, T=4.0))
        printed.append(_relative(linear.theorem1_printed(X, y, w_t, alpha=alpha), truth))
        corrected.append(_relative(linear.theorem1(X, y, w_t, alpha=alpha), truth))
    free = linear.interpolating_logits(y, z_t, alpha=alphas[0], T=4.0)
    claimed = linear.theorem1(X, y, w_t, alpha=alphas[0]) @ X
    half = alphas.index(0.5)
    return Check(
        "3 projector",
        "N < d: gradient descent ends where each example's scalar equation says; Theorem 1 as printed, without the "
        "projector P on span(X), misses it",
        (
            Measurement("gradient descent to the scalar equations, relative", _relative(w, exact), 0.0, 1e-8),
            Measurement("error of the formula as printed, α = 1", printed[-1], 0.5),
            Measurement("error of the formula with P, α = 1", corrected[-1], 0.0, 1e-10),
            Measurement("error as printed over error with P, α = 0.5", printed[half] / corrected[half], 2.0),
            Measurement(
                f"largest logit, exact over closed form, α = {alphas[0]:g} (labels are separable)",
                float(np.abs(free).max() / np.abs(claimed).max()),
                1.5,
            ),
        ),
        {"alpha": alphas, "printed": printed, "corrected": corrected},
    )


def intercept() -> Check:
    """Theorem 2 at T = 1 with an intercept, for two classes and for three."""
    X, y, _, z_t = problem(2.0, N=4000)
    z_t = z_t + linear.matched_offset(z_t, y, gap=0.1)
    ones = np.vstack([X, np.ones(X.shape[1])])
    rows = []
    for alpha in (0.5, 0.9):
        found = linear.mean_gap(linear.student(X, y, z_t, alpha=alpha, intercept=True) @ ones, y)
        error = abs(found - linear.theorem2_gap(z_t, y, alpha=alpha))
        rows += [
            Measurement(f"student's mean gap, teacher's gap 0.1, α = {alpha:g}", found, 0.01),
            Measurement(f"|student's gap − α·teacher's gap|, α = {alpha:g}", error, 0.0, 1e-8),
        ]
    rng = np.random.default_rng(1)
    X3, K = rng.normal(size=(3, 500)), 3
    y3 = np.eye(K)[:, rng.integers(K, size=500)]
    z3 = rng.normal(size=(K, 3)) @ X3 + rng.normal(size=(K, 1))
    w3 = linear.student_multiclass(X3, y3, z3, alpha=0.7)

    def class_gaps(z: np.ndarray) -> np.ndarray:
        p = np.exp(z - z.max(axis=0))
        return (p / p.sum(axis=0) - y3).mean(axis=1)

    error3 = np.abs(class_gaps(w3 @ np.vstack([X3, np.ones(500)])) - 0.7 * class_gaps(z3)).max()
    rows.append(Measurement("the same for each of 3 classes, α = 0.7, worst", float(error3), 0.0, 1e-8))
    return Check(
        "4 T = 1",
        "with an intercept, at T = 1, in sample: the student's mean gap is exactly α times the teacher's",
        tuple(rows),
    )


def temperature() -> Check:
    """Theorem 2 at T = 4: a gap of third order, even if the teacher's is zero."""
    scales = [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
    gaps: dict[float, list[float]] = {1.0: [], 4.0: []}
    for scale in scales:
        X, y, _, z_t = problem(scale)
        z_t = z_t + linear.matched_offset(z_t, y)
        ones = np.vstack([X, np.ones(X.shape[1])])
        for T, found in gaps.items():
            z_s = linear.student(X, y, z_t, alpha=0.5, T=T, intercept=True) @ ones
            found.append(abs(linear.mean_gap(z_s, y)))
        predicted = abs(linear.third_order_gap(z_s, z_t, alpha=0.5, T=4.0))
    ratios = [a / b for a, b in zip(gaps[4.0], gaps[4.0][1:], strict=False)]
    return Check(
        "5 T = 4",
        "at T ≠ 1 a teacher without a mean gap leaves the student one, of third order in the logits: −α(1 − 1/T²)·"
        "mean(z_s³ − z_t³)/48",
        (
            Measurement(f"|mean gap| at T = 4, scale {scales[0]:g}", gaps[4.0][0], 5e-3),
            Measurement("ratio under halving, first", ratios[0], 1.0, 8.0),
            Measurement("ratio under halving, last (8 in the limit)", ratios[-1], 7.6, 8.0),
            Measurement("gap over its leading term, smallest scale", gaps[4.0][-1] / predicted, 0.98, 1.02),
            Measurement("largest |mean gap| at T = 1", max(gaps[1.0]), 0.0, 1e-12),
        ),
        {"scale": scales, "T=4": gaps[4.0], "T=1": gaps[1.0]},
    )


def no_intercept() -> Check:
    """Theorem 2 without an intercept."""
    X, y, _, z_t = problem(1.0, offset=0.3, N=4000)
    z_t = z_t + linear.matched_offset(z_t, y)
    z_s = linear.student(X, y, z_t, alpha=0.5) @ X
    moments = X @ ((expit(z_s) - y) - 0.5 * (expit(z_t) - y)) / X.shape[1]
    ones = np.vstack([X, np.ones(X.shape[1])])
    z_ones = linear.student(ones, y, z_t, alpha=0.5) @ ones
    return Check(
        "6 intercept",
        "without an intercept only Σx(p_s − y) = αΣx(p_t − y) holds; the plain sums differ, unless 1 lies in the row "
        "space of X",
        (
            Measurement("|teacher's mean gap|", abs(linear.mean_gap(z_t, y)), 0.0, 1e-12),
            Measurement("|student's mean gap|, no intercept", abs(linear.mean_gap(z_s, y)), 1e-3),
            Measurement("its moments along x, worst", float(np.abs(moments).max()), 0.0, 1e-10),
            Measurement("|student's mean gap|, 1 among the rows of X", abs(linear.mean_gap(z_ones, y)), 0.0, 1e-12),
        ),
    )


def mixture() -> Check:
    """Calibration-in-the-large is not calibration: a calibrated teacher, and students that are not."""
    eta, p_t, mass = np.array([0.1, 0.9]), np.array([0.5, 0.5]), np.array([0.5, 0.5])
    alphas = np.linspace(0, 1, 21)
    students = [linear.population_student(eta, p_t, alpha=alpha) for alpha in alphas]
    ece = [linear.population_ece(eta, p, mass) for p in students]
    # The same students from the loss itself, by its stationarity.
    solved = [expit(linear.interpolating_logits(eta, logit(p_t), alpha=alpha)) for alpha in alphas]
    # At α = 1 the student is the constant teacher and calibrated again; the limit α → 1 is not, for however little its
    # two predictions differ, they still tell the halves apart.
    spread = float(mass @ np.abs(eta - p_t))
    gap = max(abs(float(mass @ (p - eta))) for p in students)

    def student_ece(alpha: float) -> Measurement:
        found = ece[int(np.argmin(np.abs(alphas - alpha)))]
        return Measurement(f"ECE of the student, α = {alpha:g}", found, alpha * spread - 1e-12, alpha * spread + 1e-12)

    return Check(
        "7 mixture",
        "η(x) is 0.1 or 0.9, the teacher says 0.5: calibrated, and so is every mean; the student is (1 − α)η + α/2",
        (
            Measurement("ECE of the teacher", linear.population_ece(eta, p_t, mass), 0.0, 1e-12),
            Measurement("largest |mean gap| of a student", gap, 0.0, 1e-12),
            student_ece(0.0),
            student_ece(0.5),
            student_ece(0.9),
            Measurement("ECE of the student, α = 1", ece[-1], 0.0, 1e-12),
            Measurement(
                "loss minimizer − formula, worst", float(np.abs(np.subtract(solved, students)).max()), 0, 1e-12
            ),
        ),
        {"alpha": alphas.tolist(), "ece": ece, "eta": eta.tolist(), "p": np.stack(students).tolist()},
    )


CHECKS: tuple[Callable[[], Check], ...] = (
    slope,
    pure_distillation,
    projector,
    intercept,
    temperature,
    no_intercept,
    mixture,
)


def run_checks() -> list[Check]:
    """All seven, in order; deterministic."""
    return [check() for check in CHECKS]

"""Distillation between linear networks, in float64 on the host.

The setting of KD(C), section 3.1: X is [d, N] (a column is an example), logits are z = wᵀX (+ b), labels y
lie in [0, 1] (soft ones allowed), and the student minimizes, summed over examples,

    (1 − α)·BCE(y, σ(z)) + α·T²·BCE(σ(z_t/T), σ(z/T)).

Its gradient is X[(1 − α)(σ(z) − y) + αT(σ(z/T) − σ(z_t/T))]; everything below follows from it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax

from kdjax.errors import Refused, positive, within

Array = np.ndarray


def stationarity(
    z: Float[Array, "N"], y: Float[Array, "N"], z_t: Float[Array, "N"], *, alpha: float, T: float
) -> Float[Array, "N"]:
    """(1 − α)(σ(z) − y) + αT(σ(z/T) − σ(z_t/T)): the loss's derivative in each logit."""
    return (1 - alpha) * (expit(z) - y) + alpha * T * (expit(z / T) - expit(z_t / T))


def student(
    X: Float[Array, "d N"],
    y: Float[Array, "N"],
    z_t: Float[Array, "N"],
    *,
    alpha: float,
    T: float = 1.0,
    intercept: bool = False,
) -> Float[Array, "D"]:
    """The exact minimizer, by Newton's method with halved steps, to rounding.

    Args:
      X: [d, N] with N >= d, of full row rank.
      y: [N] in [0, 1].
      z_t: [N], the teacher's logits; they need not be linear in X.
      alpha: in [0, 1]. T: > 0.
      intercept: append a row of ones to X; the bias is the last entry of what is returned.

    Returns:
      [d], or [d + 1] with an intercept.

    Raises:
      Refused: T <= 0, alpha outside [0, 1], N < D (use `interpolating_logits`), or no finite minimum (labels
        that X separates, at alpha = 0).
    """
    within("alpha", alpha, 0.0, 1.0)
    positive("T", T)
    _same_examples(X, y, z_t)
    X = np.vstack([X, np.ones(X.shape[1])]) if intercept else np.asarray(X, np.float64)
    if X.shape[1] < len(X):
        raise Refused(f"X has {len(X)} rows and {X.shape[1]} examples; expected N >= d for a unique student.")
    soft = expit(z_t / T)

    def loss(w: Array) -> float:
        z = w @ X
        hard_term = np.logaddexp(0, z) - y * z
        return float(((1 - alpha) * hard_term + alpha * T * T * (np.logaddexp(0, z / T) - soft * z / T)).sum())

    def newton(w: Array) -> tuple[Array, Array]:
        z = w @ X
        curvature = (1 - alpha) * expit(z) * expit(-z) + alpha * expit(z / T) * expit(-z / T)
        gradient = X @ stationarity(z, y, z_t, alpha=alpha, T=T)
        return gradient, np.linalg.lstsq((X * curvature) @ X.T, gradient, rcond=None)[0]

    w = _descend(loss, newton, np.zeros(len(X)))
    if alpha == 0 and loss(w) < 1e-9 * len(y):
        raise Refused("X separates the labels and alpha is 0, so the weights grow for ever; expected alpha > 0.")
    return w


def student_multiclass(
    X: Float[Array, "d N"], y: Float[Array, "K N"], z_t: Float[Array, "K N"], *, alpha: float, T: float = 1.0
) -> Float[Array, "K D"]:
    """The exact K-class student with an intercept: (1 − α)·CE(y, softmax(z)) + αT²·CE(softmax(z_t/T), softmax(z/T)).

    Args and Raises as in `student`; y and z_t are [K, N], columns of y sum to 1. Returns [K, d + 1], the bias
    last, the solution of least norm in the direction that softmax ignores.
    """
    within("alpha", alpha, 0.0, 1.0)
    positive("T", T)
    _same_examples(X, y, z_t)
    X = np.vstack([X, np.ones(X.shape[1])])
    K, D = len(y), len(X)
    soft = softmax(z_t / T, axis=0)

    def loss(w: Array) -> float:
        z = w.reshape(K, D) @ X
        hard_term = -(y * log_softmax(z, axis=0)).sum()
        return float((1 - alpha) * hard_term - alpha * T * T * (soft * log_softmax(z / T, axis=0)).sum())

    def newton(w: Array) -> tuple[Array, Array]:
        z = w.reshape(K, D) @ X
        p, q = softmax(z, axis=0), softmax(z / T, axis=0)
        gradient = (((1 - alpha) * (p - y) + alpha * T * (q - soft)) @ X.T).ravel()
        curvature = sum(
            c * (np.einsum("jn,jk->jkn", v, np.eye(K)) - np.einsum("jn,kn->jkn", v, v))
            for c, v in ((1 - alpha, p), (alpha, q))
        )
        hessian = np.einsum("jkn,an,bn->jakb", curvature, X, X, optimize=True).reshape(K * D, K * D)
        return gradient, np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]

    return _descend(loss, newton, np.zeros(K * D)).reshape(K, D)


def _same_examples(X: Array, y: Array, z_t: Array) -> None:
    """Refuses what would broadcast into a wrong answer."""
    if X.ndim != 2 or y.shape != z_t.shape or y.shape[-1:] != X.shape[1:]:
        raise Refused(
            f"X has shape {X.shape}, y {y.shape}, the teacher's logits {z_t.shape}; expected [d, N] and twice [..., N]."
        )


def _descend(loss: Callable[[Array], float], newton: Callable[[Array], tuple[Array, Array]], w: Array) -> Array:
    """Newton steps, halved until the loss does not rise, until the decrement is at rounding level."""
    value = loss(w)
    for _ in range(100):
        gradient, step = newton(w)
        decrement = gradient @ step
        if not decrement > 1e-26 * max(1.0, abs(value)):
            return w
        size = 1.0
        # Near the minimum the loss is flat to rounding: there the full step is right and cannot be judged by it.
        while loss(w - size * step) > value + 1e-12 * abs(value) and size > 1e-10:
            size /= 2
        w = w - size * step
        value = loss(w)
        if np.abs(size * step).max() <= 4e-16 * np.abs(w).max():
            return w
    raise Refused(
        f"the student did not converge in 100 Newton steps (decrement {decrement:.1e}); "
        "expected labels that are not nearly separable, or a larger alpha."
    )


def theorem1(
    X: Float[Array, "d N"],
    y: Float[Array, "N"],
    w_t: Float[Array, "d"],
    *,
    alpha: float,
    w_0: Float[Array, "d"] | None = None,
) -> Float[Array, "d"]:
    """Theorem 1 of KD(C), corrected: the student to first order in its logits, from σ(z) ≈ ½ + z/4.

        N >= d:  w ≈ α w_t + 4(1 − α)(XXᵀ)⁻¹X(y − ½)
        N <  d:  w ≈ α P w_t + 4(1 − α)X(XᵀX)⁻¹(y − ½) + (I − P)w_0,   P = X(XᵀX)⁻¹Xᵀ

    The linearized equation is free of T. The error is of third order: σ(z) − ½ − z/4 = −z³/48 + …, so the
    *relative* error of w quarters when all logits halve. It needs the student's, the teacher's and the
    labels' logits (4·OLS) to be small; T shrinks the teacher's only.

    Args:
      X: [d, N] of full rank.
      y: [N] in [0, 1].
      w_t: [d].
      alpha: in [0, 1].
      w_0: [d], where gradient descent starts; zero if None. Matters for N < d alone.

    Where the paper errs: for N < d it prints α w_t without P and has no w_0, see `theorem1_printed`. Gradient
    descent cannot leave w_0 + span(X), so the teacher's part outside span(X) never reaches the student.
    """
    within("alpha", alpha, 0.0, 1.0)
    _same_examples(X, y, w_t @ X)
    d, N = X.shape
    if d <= N:
        return alpha * w_t + 4 * (1 - alpha) * np.linalg.solve(X @ X.T, X @ (y - 0.5))
    return descent_limit(X, alpha * (w_t @ X) + 4 * (1 - alpha) * (y - 0.5), w_0)


def theorem1_printed(
    X: Float[Array, "d N"], y: Float[Array, "N"], w_t: Float[Array, "d"], *, alpha: float
) -> Float[Array, "d"]:
    """Theorem 1 for N < d as the paper prints it: α w_t + 4(1 − α)X(XᵀX)⁻¹(y − ½). Kept to show where it fails."""
    return alpha * w_t + 4 * (1 - alpha) * descent_limit(X, y - 0.5)


def descent_limit(
    X: Float[Array, "d N"], z: Float[Array, "N"], w_0: Float[Array, "d"] | None = None
) -> Float[Array, "d"]:
    """For N < d: where gradient descent from w_0 ends if the logits z minimize the loss: X(XᵀX)⁻¹z + (I − P)w_0."""
    gram = X.T @ X
    if w_0 is None:
        return X @ np.linalg.solve(gram, z)
    return w_0 + X @ np.linalg.solve(gram, z - w_0 @ X)


def interpolating_logits(
    y: Float[Array, "N"], z_t: Float[Array, "N"], *, alpha: float, T: float = 1.0
) -> Float[Array, "N"]:
    """The exact logits of a student that is free at each example: the root of `stationarity`, which is monotone in z.

    This is the student for N < d, and the population student of unlimited capacity with y = η(x) = P(Y = 1 |
    x). By bisection, to rounding.

    Raises:
      Refused: T <= 0, alpha outside [0, 1], or alpha = 0 with labels 0 or 1 (the root is infinite).
    """
    within("alpha", alpha, 0.0, 1.0)
    positive("T", T)
    y, z_t = np.broadcast_arrays(np.asarray(y, np.float64), np.asarray(z_t, np.float64))
    if alpha == 0 and np.any((y <= 0) | (y >= 1)):
        raise Refused("alpha is 0 and some labels are 0 or 1, so their logits are infinite; expected alpha > 0.")
    low, high = np.full(y.shape, -1.0), np.full(y.shape, 1.0)
    for _ in range(60):
        low = np.where(stationarity(low, y, z_t, alpha=alpha, T=T) > 0, 2 * low, low)
        high = np.where(stationarity(high, y, z_t, alpha=alpha, T=T) < 0, 2 * high, high)
    for _ in range(120):
        middle = (low + high) / 2
        above = stationarity(middle, y, z_t, alpha=alpha, T=T) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def mean_gap(z: Float[Array, "N"], y: Float[Array, "N"]) -> float:
    """(1/N)Σ(σ(z) − y): calibration-in-the-large, which is all that Theorem 2 speaks of. In [−1, 1]."""
    return float(np.mean(expit(z) - y))


def matched_offset(z: Float[Array, "N"], y: Float[Array, "N"], gap: float = 0.0) -> float:
    """The constant c for which mean_gap(z + c, y) = gap."""
    reach = 60 + np.abs(z).max()
    return brentq(lambda c: mean_gap(z + c, y) - gap, -reach, reach, xtol=1e-15, rtol=1e-15)


def theorem2_gap(z_t: Float[Array, "N"], y: Float[Array, "N"], *, alpha: float) -> float:
    """Theorem 2 of KD(C), where it is exact: mean_gap(student) = α·mean_gap(teacher).

    Holds at T = 1, for a student with an intercept, on the data it was trained on, at the minimum, without
    regularization; the intercept's stationarity says so. The paper states it for every T and without an
    intercept: at T ≠ 1 it holds to third order (`third_order_gap`), and without an intercept it fails. It
    concerns the mean prediction, not calibration (`population_student`).
    """
    return alpha * mean_gap(z_t, y)


def third_order_gap(z_s: Float[Array, "N"], z_t: Float[Array, "N"], *, alpha: float, T: float) -> float:
    """What T ≠ 1 adds to the student's mean gap, to leading order: −α(1 − 1/T²)·mean(z_s³ − z_t³)/48."""
    return float(-alpha * (1 - 1 / T**2) * np.mean(z_s**3 - z_t**3) / 48)


def population_student(eta: Float[Array, "M"], p_t: Float[Array, "M"], *, alpha: float) -> Float[Array, "M"]:
    """(1 − α)η(x) + α p_t(x): the student of unlimited capacity and data, at T = 1."""
    return (1 - alpha) * np.asarray(eta) + alpha * np.asarray(p_t)


def population_ece(eta: Float[Array, "M"], p: Float[Array, "M"], mass: Float[Array, "M"]) -> float:
    """E|P(Y = 1 | p) − p| for a distribution on M points with P(Y = 1) = eta, prediction p, probability mass.

    Exact: points are grouped by equal p, there are no bins. In [0, 1].
    """
    values, group = np.unique(p, return_inverse=True)
    total = np.bincount(group, mass)
    return float(np.abs(np.bincount(group, mass * eta) - total * values).sum() / total.sum())

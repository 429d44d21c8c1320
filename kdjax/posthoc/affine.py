"""Affine maps of logits: vector scaling, and Dirichlet calibration with its ODIR penalty. Both are convex."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize

from kdjax.errors import Refused
from kdjax.options import at_least, concrete, each, hyper, integer
from kdjax.posthoc.core import Params, Sample, inspect, log_softmax, mean_nll, prepared, unless_none
from kdjax.posthoc.portable import Calibrator


def apply_vector(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """w ⊙ z + b, of finite logits where a weight is 0 or negative."""
    z, fitted = prepared("vector", params, logits)
    return z * fitted["w"] + fitted["b"]


@hyper(l2=at_least(0))
def fit_vector(logits: Any, labels: Any, *, weight: Any = None, l2: float = 0.0) -> Params:
    """argmin over w, b in R^K of Σ ω_i·(−log softmax(w ⊙ z_i + b)[y_i]) + l2·(Σ (w_k − 1)² + Σ b_k²)/K.

    Convex; started from the identity, so the NLL on the split is never worse than before. A split that a
    diagonal map separates has no finite minimum: the search stops at its gradient tolerance, and `l2` > 0
    makes it well posed. The argmax may move. A constant added to the logits of a row is *not* harmless here,
    unless all w are equal; the fit and `apply` see the same logits, as in the published method.

    Args:
      logits: [N, K].
      labels: [N], integers in [0, K).
      weight: [N] or None.
      l2: >= 0, pull towards the identity.

    Returns:
      {"w": [K], "b": [K]}.

    Raises:
      Refused: see `core.inspect`; l2 < 0.

    Source: Guo et al. 2017, who fit by plain gradient descent without a penalty.
    """
    sample = inspect(logits, labels, weight)
    z, y, omega = sample
    K = z.shape[1]

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = theta[:K], theta[K:]
        nll, error = _nll(z * w + b, y, omega)
        value = nll + l2 * (((w - 1) ** 2).sum() + (b**2).sum()) / K
        grad_w = (error * z).sum(axis=0) + 2 * l2 * (w - 1) / K
        return value, np.concatenate([grad_w, error.sum(axis=0) + 2 * l2 * b / K])

    v = _variance(z) * omega[:, None]
    curvature = np.concatenate([(v * z**2).sum(axis=0), v.sum(axis=0)]) + 2 * l2 / K
    theta = _minimize(loss, np.concatenate([np.ones(K), np.zeros(K)]), curvature)
    return {"w": theta[:K], "b": theta[K:]}


def apply_dirichlet(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """W·log softmax(z) + b, of finite logits: a weight times -inf is no number."""
    z, fitted = prepared("dirichlet", params, logits)
    return jax.nn.log_softmax(z, axis=-1) @ fitted["W"].T + fitted["b"]


@hyper(lam=at_least(0), mu=at_least(0))
def dirichlet_loss(
    params: Params, logits: Any, labels: Any, *, lam: float, mu: float, weight: Any = None
) -> tuple[float, dict[str, np.ndarray]]:
    """mean CE(softmax(W ℓ + b), y) + λ/(K(K−1))·Σ_{j≠k} W_jk² + μ/K·Σ_j b_j², with ℓ = log softmax(z).

    Args:
      params: {"W": [K, K], "b": [K]}.
      logits: [N, K].
      labels: [N].
      lam, mu: >= 0.
      weight: [N] or None.

    Returns:
      (value, {"W": gradient [K, K], "b": gradient [K]}), float64.

    Raises:
      Refused: see `core.inspect`; λ or μ < 0; parameters of another method or size.

    Source: Kull et al. 2019 (ODIR), in the normalization of the KD(C) and MDCA codes.
    """
    sample = inspect(logits, labels, weight)
    K = sample.logits.shape[1]
    checked = Calibrator("dirichlet", params, K, form="dirichlet").params
    theta = np.concatenate([checked["W"].ravel(), checked["b"]])
    value, grad = _odir(sample, lam, mu)(theta)
    return value, _unpack(grad, K)


@hyper(lam=unless_none(at_least(0)), mu=unless_none(at_least(0)))
def fit_dirichlet(
    logits: Any, labels: Any, *, weight: Any = None, lam: float | None = None, mu: float | None = None
) -> Params:
    """argmin over W, b of `dirichlet_loss`, from the identity by L-BFGS.

    The problem is convex, the penalties vanish at the identity, so the NLL on the split is never worse than before. The
    map has K² + K parameters: on N examples it overfits badly unless λ grows with K²/N, so the defaults are

        λ = 5000·K(K − 1)/N    and    μ = K/(2N),

    a normal prior of sd 0.01 on each off-diagonal weight and of sd 1 on each bias. `select_odir` chooses both on
    held-out folds; a choice by the NLL of the data that is fitted on, as in KD(C)'s code, always ends at λ = μ = 0.

    Args:
      logits: [N, K].
      labels: [N], integers in [0, K).
      weight: [N] or None.
      lam: λ >= 0, on the off-diagonal of W; None for the default.
      mu: μ >= 0, on b; None for the default.

    Returns:
      {"W": [K, K], "b": [K]}.

    Raises:
      Refused: see `core.inspect`; λ or μ < 0.

    Source: Kull et al. 2019. The KD(C) and MDCA codes start W at a random linear-layer initialization and run 25 epochs
    of Adam, which does not reach the minimum; the original starts from the identity, as here.
    """
    sample = inspect(logits, labels, weight)
    N, K = sample.logits.shape
    lam = 5000 * K * (K - 1) / N if lam is None else lam
    mu = K / (2 * N) if mu is None else mu
    return _fit_dirichlet(sample, lam, mu)


@hyper(folds=integer(2))
def select_odir(
    logits: Any,
    labels: Any,
    *,
    weight: Any = None,
    grid: Sequence[float] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4),
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, float]:
    """(λ, μ) of grid × grid with the smallest held-out NLL over `folds` folds; feed them to `fit_dirichlet`.

    It fits |grid|²·folds times: seconds at K = 10, many minutes at K = 100.

    Raises:
      Refused: see `core.inspect`; a grid that is no list of numbers >= 0; fewer than 2 folds, or fewer examples than
        folds.
    """
    grid = each(at_least(0))("select_odir.grid", concrete("select_odir.grid", grid))
    if not grid:
        raise Refused("select_odir.grid is empty; expected at least one penalty, such as grid=(0.1, 1.0, 10.0).")
    sample = inspect(logits, labels, weight)
    if not 2 <= folds <= len(sample.labels):
        raise Refused(f"folds is {folds}; expected 2 to {len(sample.labels)}, the number of examples.")
    fold = np.random.default_rng(seed).permutation(len(sample.labels)) % folds

    def held_out(pair: tuple[float, float]) -> float:
        total = 0.0
        for f in range(folds):
            inside, outside = (Sample(*(part[rows] for part in sample)) for rows in (fold != f, fold == f))
            fitted = _fit_dirichlet(inside, *pair)
            log_p = log_softmax(outside.logits) @ fitted["W"].T + fitted["b"]
            total += outside.weight.sum() * mean_nll(log_p, outside.labels, outside.weight)
        return total

    return min(itertools.product(grid, grid), key=held_out)


def _fit_dirichlet(sample: Sample, lam: float, mu: float) -> Params:
    K = sample.logits.shape[1]
    sample = sample._replace(weight=sample.weight / sample.weight.sum())
    v = _variance(sample.logits) * sample.weight[:, None]
    of_w = v.T @ log_softmax(sample.logits) ** 2 + 2 * lam / (K * (K - 1)) * (1 - np.eye(K))
    curvature = np.concatenate([of_w.ravel(), v.sum(axis=0) + 2 * mu / K])
    start = np.concatenate([np.eye(K).ravel(), np.zeros(K)])
    return _unpack(_minimize(_odir(sample, lam, mu), start, curvature), K)


def _odir(sample: Sample, lam: float, mu: float) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The flat parameter vector -> (value, gradient)."""
    _, y, omega = sample
    l = log_softmax(sample.logits)
    K = l.shape[1]
    off = 1.0 - np.eye(K)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        W, b = theta[: K * K].reshape(K, K), theta[K * K :]
        nll, error = _nll(l @ W.T + b, y, omega)
        a, c = lam / (K * (K - 1)), mu / K
        value = nll + a * ((off * W) ** 2).sum() + c * (b**2).sum()
        grad_w = error.T @ l + 2 * a * off * W
        return value, np.concatenate([grad_w.ravel(), error.sum(axis=0) + 2 * c * b])

    return loss


def _nll(z: np.ndarray, y: np.ndarray, omega: np.ndarray) -> tuple[float, np.ndarray]:
    """(Σ ω_i·nll_i, its gradient [N, K] in z), with one exponential: the fits spend their time here."""
    rows = np.arange(len(y))
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z)
    total = p.sum(axis=1)
    value = float(omega @ (np.log(total) - z[rows, y]))
    p *= (omega / total)[:, None]
    p[rows, y] -= omega
    return value, p


def _variance(z: np.ndarray) -> np.ndarray:
    """p(1 − p), [N, K]: the curvature of the NLL in each logit."""
    p = np.exp(log_softmax(z))
    return p * (1 - p)


def _unpack(theta: np.ndarray, K: int) -> dict[str, np.ndarray]:
    return {"W": theta[: K * K].reshape(K, K), "b": theta[K * K :]}


def _minimize(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, curvature: np.ndarray
) -> np.ndarray:
    """L-BFGS. Every accepted step lowers the loss, so that what is returned is never worse than the start.

    The variables are scaled by the Hessian's diagonal at the start: penalized and free ones differ in curvature by
    orders of magnitude, and without the scaling K = 100 takes several times as many passes.
    """
    scale = 1 / np.sqrt(curvature + 1e-6 * curvature.max() + np.finfo(float).tiny)

    def scaled(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = loss(u * scale)
        return value, grad * scale

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 30}
    return minimize(scaled, start / scale, jac=True, method="L-BFGS-B", options=options).x * scale

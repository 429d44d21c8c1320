"""Affine maps of logits: vector scaling, and Dirichlet calibration with its ODIR penalty. Both are convex."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize

from kdjax.errors import Refused, within
from kdjax.posthoc.core import Params, Sample, inspect, log_softmax, mean_nll, onehot


def apply_vector(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """w ⊙ z + b."""
    z = jnp.asarray(logits)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return z * jnp.asarray(params["w"], z.dtype) + jnp.asarray(params["b"], z.dtype)


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
    within("l2", l2, 0.0)
    z, y, omega = sample
    K = z.shape[1]
    target = onehot(y, K)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = theta[:K], theta[K:]
        log_p = log_softmax(z * w + b)
        error = omega[:, None] * (np.exp(log_p) - target)
        value = -omega @ log_p[np.arange(len(y)), y] + l2 * (((w - 1) ** 2).sum() + (b**2).sum()) / K
        grad_w = (error * z).sum(axis=0) + 2 * l2 * (w - 1) / K
        return value, np.concatenate([grad_w, error.sum(axis=0) + 2 * l2 * b / K])

    theta = _minimise(loss, np.concatenate([np.ones(K), np.zeros(K)]))
    return {"w": theta[:K], "b": theta[K:]}


def apply_dirichlet(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """W·log softmax(z) + b."""
    z = jnp.asarray(logits)
    l = jax.nn.log_softmax(z.astype(jnp.promote_types(z.dtype, jnp.float32)), axis=-1)
    return l @ jnp.asarray(params["W"], l.dtype).T + jnp.asarray(params["b"], l.dtype)


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

    Source: Kull et al. 2019 (ODIR), in the normalisation of the KD(C) and MDCA codes.
    """
    sample = inspect(logits, labels, weight)
    K = sample.logits.shape[1]
    theta = np.concatenate([np.asarray(params["W"], np.float64).ravel(), np.asarray(params["b"], np.float64)])
    value, grad = _odir(sample, lam, mu)(theta)
    return value, _unpack(grad, K)


def fit_dirichlet(
    logits: Any, labels: Any, *, weight: Any = None, lam: float = 1e-2, mu: float = 1e-2
) -> Params:
    """argmin over W, b of `dirichlet_loss`, from the identity by L-BFGS.

    The problem is convex, the penalties vanish at the identity, so the NLL on the split is never worse than
    before. Choose λ and μ on held-out folds with `select_odir`: a choice by the NLL of the data it is fitted
    on, as in KD(C)'s code, always ends at λ = μ = 0.

    Args:
      logits: [N, K].
      labels: [N], integers in [0, K).
      weight: [N] or None.
      lam: λ >= 0, on the off-diagonal of W. mu: μ >= 0, on b.

    Returns:
      {"W": [K, K], "b": [K]}.

    Raises:
      Refused: see `core.inspect`; λ or μ < 0.

    Source: Kull et al. 2019. The KD(C) and MDCA codes start W at a random linear-layer initialisation and run
    25 epochs of Adam, which does not reach the minimum; the original starts from the identity, as here.
    """
    sample = inspect(logits, labels, weight)
    within("lam", lam, 0.0)
    within("mu", mu, 0.0)
    return _fit_dirichlet(sample, lam, mu)


def select_odir(
    logits: Any,
    labels: Any,
    *,
    weight: Any = None,
    grid: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, float]:
    """(λ, μ) of grid × grid with the smallest held-out NLL over `folds` folds; feed them to `fit_dirichlet`.

    Raises:
      Refused: see `core.inspect`; fewer than 2 folds, or fewer examples than folds.
    """
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
    return _unpack(_minimise(_odir(sample, lam, mu), np.concatenate([np.eye(K).ravel(), np.zeros(K)])), K)


def _odir(sample: Sample, lam: float, mu: float) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The flat parameter vector -> (value, gradient)."""
    _, y, omega = sample
    l = log_softmax(sample.logits)
    K = l.shape[1]
    target, off = onehot(y, K), 1.0 - np.eye(K)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        W, b = theta[: K * K].reshape(K, K), theta[K * K :]
        log_p = log_softmax(l @ W.T + b)
        error = omega[:, None] * (np.exp(log_p) - target)
        a, c = lam / (K * (K - 1)), mu / K
        value = -omega @ log_p[np.arange(len(y)), y] + a * ((off * W) ** 2).sum() + c * (b**2).sum()
        grad_w = error.T @ l + 2 * a * off * W
        return value, np.concatenate([grad_w.ravel(), error.sum(axis=0) + 2 * c * b])

    return loss


def _unpack(theta: np.ndarray, K: int) -> dict[str, np.ndarray]:
    return {"W": theta[: K * K].reshape(K, K), "b": theta[K * K :]}


def _minimise(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """L-BFGS. Every accepted step lowers the loss, so that what is returned is never worse than the start."""
    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x

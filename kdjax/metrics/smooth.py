"""Calibration errors without bins: smooth ECE and the Dirichlet-kernel estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int
from scipy.fft import dct, idct
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp

from kdjax.errors import positive, within
from kdjax.metrics import _check

# Cells of the confidence axis. Residuals are shared between the two nearest cell centers, which widens a kernel of
# width sigma by less than (cell / sigma)² / 8: 2e-5 relative at sigma = 0.01.
CELLS = 8192


def smece(confidence: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"], *, sigma: float | None = None) -> float:
    """Smooth ECE: the L1 norm of the residuals after smoothing by a Gaussian reflected at 0 and 1. On the host.

    smECE_σ = ∫₀¹ |(1/N) Σ_i (y_i - f_i) K_σ(t, f_i)| dt, with K_σ the Gaussian folded back into [0, 1] (every image);
    the value reported is the σ at which smECE_σ = σ, which is unique because smECE_σ does not grow with σ. No bins,
    continuous in the confidences, and polynomially close to the distance to calibration.

    Args:
      confidence: [N] in [0, 1], both ends included.
      correct: [N], 0 or 1.
      sigma: fixed width > 0 instead of the fixed point.

    Returns:
      Fraction in [0, 1]; 0 if every residual vanishes. Smoothing cancels, so that without sampling noise it is at most
      the ECE, and a gap that is constant in f is returned as it is.

    Raises:
      Refused: N = 0, NaN, confidences outside [0, 1], hits that are not 0 or 1, sigma <= 0.

    Source: Błasiok & Nakkiran, ICLR 2024. The reflected kernel is the heat kernel with reflecting ends, diagonal in the
    cosine basis; the authors' relplot convolves on a grid instead and agrees to its resolution.
    """
    confidence, correct = _check.confidences(confidence, correct)
    if sigma is not None:
        positive("sigma", sigma)
    cell, share = shared(confidence, CELLS)
    residual = (correct - confidence) / confidence.size
    density = np.bincount(cell, residual * (1 - share), CELLS) + np.bincount(cell + 1, residual * share, CELLS)
    return fixed_point(density, sigma)


def shared(confidence: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """(lower of the two nearest cells, share of the upper one), [N] each."""
    where = np.clip(confidence * cells - 0.5, 0, cells - 1)
    cell = np.minimum(where.astype(np.int64), cells - 2)
    return cell, where - cell


def fixed_point(density: np.ndarray, sigma: float | None = None) -> float:
    """Smooth ECE of residuals shared out over equal cells of [0, 1]; see `smece`."""
    waves = dct(density, type=2, norm="ortho")
    squared = (np.pi * np.arange(density.size)) ** 2

    def smoothed(width: float) -> float:
        return float(np.abs(idct(waves * np.exp(-0.5 * width**2 * squared), type=2, norm="ortho")).sum())

    if sigma is not None:
        return smoothed(float(sigma))
    narrow = 1.0 / density.size
    if smoothed(narrow) <= narrow:
        # Below the width of a cell smoothing changes nothing any more.
        return smoothed(narrow)
    # smECE never exceeds 1, so that at width 2 the difference is surely negative.
    return min(float(brentq(lambda width: smoothed(width) - width, narrow, 2.0, xtol=1e-9)), 1.0)


def _log_kernel(log_probs: np.ndarray, centers: np.ndarray, bandwidth: float) -> np.ndarray:
    """log of the Dirichlet density with parameters center/h + 1 at each point: [points, centers]."""
    alpha = centers / bandwidth + 1.0
    norm = gammaln(alpha.sum(1)) - gammaln(alpha).sum(1)
    return log_probs @ (alpha - 1.0).T + norm


def _blocks(probs: np.ndarray, bandwidth: float, budget: int = 2**22):
    """Yields (slice, leave-one-out log kernel [b, N]) over blocks of points."""
    log_probs = np.log(np.maximum(probs, 1e-12))
    step = max(1, budget // len(probs))
    for start in range(0, len(probs), step):
        here = slice(start, min(start + step, len(probs)))
        log_kernel = _log_kernel(log_probs[here], probs, bandwidth)
        log_kernel[np.arange(here.stop - start), np.arange(start, here.stop)] = -np.inf
        yield here, log_kernel


def likeliest_bandwidth(probs: Float[ArrayLike, "N K"], grid: Any = None) -> float:
    """The bandwidth with the largest leave-one-out likelihood of the predictions, over a grid (default 10^-3 … 1).

    The labels play no part, so that the choice does not favor any calibration error. Above 1,000 examples the search
    takes 1,000 spread evenly over the sample, and the result shrinks by (N/1000)^{-2/(K+3)}, the optimal rate of a
    kernel of variance h in K - 1 dimensions, so that the estimate stays consistent. The authors' code also divides
    the density by h, which a normalized density does not need and which favors narrow kernels.
    """
    probs = _check.probabilities(probs)
    some = probs[np.linspace(0, len(probs) - 1, min(len(probs), 1000)).astype(int)]
    grid = np.logspace(-3, 0, 13) if grid is None else np.asarray(grid, np.float64)
    if len(some) < 2:
        return float(grid[-1])

    def likelihood(bandwidth: float) -> float:
        return sum(float(logsumexp(log_kernel, axis=1).sum()) for _, log_kernel in _blocks(some, bandwidth))

    shrink = (len(probs) / len(some)) ** (-2 / (probs.shape[1] + 3))
    return float(max(grid, key=likelihood)) * shrink


def kde_ce(
    probs: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, p: float = 1.0, bandwidth: float | None = None
) -> float:
    """Canonical (whole-vector) L_p calibration error by a Dirichlet-kernel estimate of E[y | f]. On the host, O(N² K).

    CE_p = (1/N Σ_i ‖Ê[y | f_i] - f_i‖_p^p)^{1/p}, Ê[y | f_i] = Σ_{j≠i} k(f_i; f_j) y_j / Σ_{j≠i} k(f_i; f_j), with
    k(·; c) the Dirichlet density with parameters c/h + 1 and y one-hot. Measures all of E[y | f] = f, not only the top
    label: with many classes it needs many examples. Probabilities below 1e-12 are read as 1e-12 in the logarithm.

    Args:
      probs: [N, K], rows that sum to 1.
      labels: [N], integers in [0, K).
      p: order of the norm, >= 1; inf is the maximum norm, the largest error of any class of any example.
      bandwidth: h > 0; by default `likeliest_bandwidth`.

    Returns:
      For p = 1 in [0, 2]. With N = 1 there is nothing to compare with: 0.

    Raises:
      Refused: as `sce`, and p < 1 or bandwidth <= 0.

    Source: Popordanoska, Sayer & Blaschko, NeurIPS 2022. The authors' code returns the mean of the p-th powers, without
    the root; for p = 1 they agree.
    """
    probs = _check.probabilities(probs)
    labels = _check.classes(labels, *probs.shape)
    within("p", p, 1.0)
    if len(probs) == 1:
        return 0.0
    bandwidth = likeliest_bandwidth(probs) if bandwidth is None else positive("bandwidth", bandwidth)
    onehot = np.zeros_like(probs)
    onehot[np.arange(len(labels)), labels] = 1.0
    errors = []
    for here, log_kernel in _blocks(probs, float(bandwidth)):
        kernel = np.exp(log_kernel - log_kernel.max(1, keepdims=True))
        expected = kernel @ onehot / kernel.sum(1, keepdims=True)
        errors.append(np.abs(expected - probs[here]))
    worst = max(float(block.max()) for block in errors)
    if p == np.inf or worst == 0:
        return worst
    scale = worst if p > 2 else 1.0  # a high power of a small error would be 0
    total = sum(float(((block / scale) ** p).sum()) for block in errors)
    return scale * (total / len(probs)) ** (1.0 / p)


def kde_ece(
    confidence: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"], *, bandwidth: float | None = None
) -> float:
    """Top-label L1 error |E[correct | confidence] - confidence| by the same estimate with a Beta kernel, in [0, 1].

    Half of `kde_ce` of the two-class problem (right, wrong), whose two components err alike.
    """
    confidence, correct = _check.confidences(confidence, correct)
    two = np.stack([1 - confidence, confidence], 1)
    return 0.5 * kde_ce(two, correct.astype(np.int64), bandwidth=bandwidth)

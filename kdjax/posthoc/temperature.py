"""Temperature scaling, p = softmax(z / T): by convex search, on three published grids, one T a class."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq
from scipy.special import softmax

from kdjax import metrics
from kdjax.options import choice, hyper, integer
from kdjax.posthoc.core import Params, Sample, inspect, mean_nll, prepared

LOW, HIGH = 1e-2, 1e2
ROWS = 1 << 16  # rows per pass of the search: bounds its scratch memory, changes no number beyond summation order


def apply_temperature(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """z / T. Leaves the argmax as it is, since T > 0."""
    z, fitted = prepared("temperature", params, logits)
    return z / fitted["T"]


@hyper()
def fit_temperature(logits: Any, labels: Any, *, weight: Any = None) -> Params:
    """argmin_T Σ w_i·(−log softmax(z_i/T)[y_i]), T in [0.01, 100].

    The mean NLL is convex in 1/T, so its derivative there, mean(E_p[z] − z_y), is monotone; its root is
    bracketed and found (Brent) to 1e-10 in log T. A split with no error in it has its optimum at T = 0 and
    one that is worse than chance at infinity: both end at the clamp and warn. Logits that say nothing
    (constant rows) keep T = 1.

    Args:
      logits: [N, K], unnormalized.
      labels: [N], integers in [0, K).
      weight: [N] or None.

    Returns:
      {"T": []}.

    Raises:
      Refused: see `core.inspect`.

    Source: Guo et al. 2017. Their code takes fixed steps of 1 % of the quasi-Newton direction and stops well
    short of the minimum; KD(C)'s code tries 14 values (`fit_temperature_grid_kdc`).
    """
    sample = inspect(logits, labels, weight)
    T = _optimum(sample)
    if T in (LOW, HIGH):
        warnings.warn(
            f"the temperature ended at its clamp {T:g}: the split holds "
            + ("no mistake that would bound the confidence." if T == LOW else "no more hits than chance."),
            UserWarning,
            stacklevel=2,
        )
    return {"T": np.float64(T)}


@hyper(batch_size=integer(1))
def fit_temperature_grid_kdc(logits: Any, labels: Any, *, weight: Any = None, batch_size: int = 100) -> Params:
    """First minimum of Σ_batches mean-NLL over T = 0.2, 0.4, … while T <= 3, added up in floating point.

    Rounding makes the last sum 3.0000000000000004, so 3.0 is never tried: 14 values, and a teacher that needs
    more than 2.8 stays over-confident. A short last batch weighs as much as a full one. For parity with the
    KD(C) code; prefer `fit_temperature`.

    Returns:
      {"T": []}.
    """
    return _grid(logits, labels, weight, itertools.takewhile(lambda T: T <= 3, _repeated(0.2, 0.2)), batch_size)


@hyper(batch_size=integer(1))
def fit_temperature_grid_mdca(logits: Any, labels: Any, *, weight: Any = None, batch_size: int = 100) -> Params:
    """As `fit_temperature_grid_kdc`, over T = 0.1, 0.2, … while T <= 10 (100 values). Source: the MDCA code.

    Returns:
      {"T": []}.
    """
    return _grid(logits, labels, weight, itertools.takewhile(lambda T: T <= 10, _repeated(0.1, 0.1)), batch_size)


@hyper(criterion=choice("ece", "nll"), bins=integer(1))
def fit_temperature_grid_torrvision(
    logits: Any, labels: Any, *, weight: Any = None, criterion: str = "ece", bins: int = 15
) -> Params:
    """First minimum over 100 values from 0.1 by 0.1 of the ECE (the code's default) or of the mean NLL.

    The ECE is a step function of T and its minimum on a finite split is partly noise; it is not a proper
    score, so the NLL may get worse than at T = 1. Source: the focal-calibration code of torrvision.

    Args:
      criterion: "ece" (equal-width bins, (lo, hi]) or "nll".
      bins: number of bins of the ECE.

    Returns:
      {"T": []}.
    """
    sample = inspect(logits, labels, weight)

    def score(T: float) -> float:
        z = sample.logits / T
        if criterion == "nll":
            return mean_nll(z, sample.labels, sample.weight)
        return float(metrics.binned(*metrics.top_label(z, sample.labels), bins=bins, weight=sample.weight).ece)

    return {"T": np.float64(min(itertools.islice(_repeated(0.1, 0.1), 100), key=score))}


def apply_classwise_temperature(params: Params, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """z / T[argmax z]. Leaves the argmax as it is; a tie takes the temperature of the lowest index."""
    z, fitted = prepared("classwise_temperature", params, logits)
    return z / fitted["T"][jnp.argmax(z, axis=-1)][..., None]


@hyper(min_examples=integer(1))
def fit_classwise_temperature(logits: Any, labels: Any, *, weight: Any = None, min_examples: int = 20) -> Params:
    """One temperature per *predicted* class, T[ŷ], each fitted on the rows predicted so.

    A class that fewer than `min_examples` rows are predicted as, or whose own optimum lies at the clamp, gets
    the temperature of the whole split.

    Returns:
      {"T": [K]}.

    Source: class-based temperature scaling, Frenkel and Goldberger 2021, with the NLL in place of their ECE
    grid. A temperature for each *output* class, z_k / T_k, would move the argmax; that is vector scaling
    without its bias.
    """
    sample = inspect(logits, labels, weight)
    everywhere = _optimum(sample)
    predicted = sample.logits.argmax(axis=1)
    T = np.full(sample.logits.shape[1], everywhere)
    for k in range(len(T)):
        rows = predicted == k
        if rows.sum() >= min_examples:
            of_class = _optimum(Sample(*(part[rows] for part in sample)))
            T[k] = of_class if LOW < of_class < HIGH else everywhere
    return {"T": T}


def _optimum(sample: Sample) -> float:
    """The minimizer of the NLL over T in [LOW, HIGH]."""

    def slope(log_t: float) -> float:
        """Derivative of the weighted NLL with respect to 1/T, up to a positive factor."""
        total, beta = 0.0, np.exp(-log_t)
        for start in range(0, len(sample.labels), ROWS):
            z, y, w = (part[start : start + ROWS] for part in sample)
            z = z - z[np.arange(len(y)), y][:, None]
            total += float(w @ (softmax(beta * z, axis=1) * z).sum(axis=1))
        return total

    cold, hot = slope(np.log(LOW)), slope(np.log(HIGH))
    if cold == 0 == hot and (np.ptp(sample.logits, axis=1) == 0).all():
        return 1.0
    if cold <= 0:
        return LOW
    if hot >= 0:
        return HIGH
    return float(np.exp(brentq(slope, np.log(LOW), np.log(HIGH), xtol=1e-10, rtol=1e-14)))


def _repeated(start: float, step: float) -> Iterator[float]:
    """start, start + step, … by repeated addition: the published grids carry its rounding."""
    return itertools.accumulate(itertools.repeat(step), initial=start)


def _grid(logits: Any, labels: Any, weight: Any, grid: Iterable[float], batch_size: int) -> Params:
    """First minimum of the sum over batches of the batch-mean NLL."""
    z, y, w = inspect(logits, labels, weight)
    batches = [slice(i, i + batch_size) for i in range(0, len(y), batch_size)]

    def score(T: float) -> float:
        return sum(mean_nll(z[b] / T, y[b], w[b]) for b in batches)

    return {"T": np.float64(min(grid, key=score))}

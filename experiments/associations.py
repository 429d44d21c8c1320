"""How strongly two columns go together, and what is left of it once a third is held fixed; with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from kdjax import metrics
from kdjax.errors import Refused

RESAMPLES = 2000


def pearson(x: Any, y: Any) -> float:
    """Pearson's r, in [-1, 1]; 0 where one of the two does not vary."""
    x, y = _columns(x, y)
    x, y = x - x.mean(), y - y.mean()
    # A column that is constant but for rounding does not vary.
    flat = [np.abs(side).max() <= 1e-12 * (1 + scale) for side, scale in ((x, np.abs(x).max()), (y, np.abs(y).max()))]
    if any(flat):
        return 0.0
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(x: Any, y: Any) -> float:
    """Spearman's ρ, Pearson's r of the ranks, ties at their mean; 0 where one of the two does not vary."""
    x, y = _columns(x, y)
    return pearson(stats.rankdata(x), stats.rankdata(y))


def partial(x: Any, y: Any, given: Any) -> float:
    """Pearson's r of what a straight line in `given` leaves of x and of y, in [-1, 1].

    (r_xy - r_xz r_yz) / √((1 - r_xz²)(1 - r_yz²)); 0 where a straight line leaves nothing.
    """
    x, y = _columns(x, y)
    x, z = _columns(x, given)
    xy, xz, yz = pearson(x, y), pearson(x, z), pearson(y, z)
    left = (1 - xz**2) * (1 - yz**2)
    return float(np.clip((xy - xz * yz) / np.sqrt(left), -1, 1)) if left > 1e-18 else 0.0


def with_interval(measure: Any, *columns: Sequence[float], seed: int = 0) -> metrics.Interval:
    """A measure of the columns with the percentile interval over resampled rows.

    A resample in which a column does not vary counts as no association.
    """
    return metrics.bootstrap(measure, *(np.asarray(c, np.float64) for c in columns), resamples=RESAMPLES, seed=seed)


def _columns(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise Refused(
            f"columns have shapes {x.shape} and {y.shape}; expected two equal ones of at least 3 finite numbers."
        )
    return x, y

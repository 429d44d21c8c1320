"""How certain is a number? Bootstrap over examples, and spread over seeds. On the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from kdjax.errors import Refused, within


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


class Spread(NamedTuple):
    """Values of several seeds.

    Attributes:
      mean: their mean.
      sd: standard deviation with n - 1; 0 for one seed, of which nothing is known.
      n: number of seeds.
    """

    mean: float
    sd: float
    n: int


class Paired(NamedTuple):
    """Differences a - b of runs that share their seed.

    Attributes:
      mean, sd, n: as in `Spread`, of the differences.
      low, high: bootstrap interval of the mean.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def _ends(draws: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(resamples: int, level: float) -> None:
    within("level", level, 0.0, 1.0, open_low=True, open_high=True)
    if isinstance(resamples, bool) or not isinstance(resamples, int | np.integer) or resamples < 1:
        raise Refused(f"resamples is {resamples!r}; expected an integer of at least 1 (1000 is usual).")


def bootstrap(
    metric: Callable[..., Any],
    *arrays: ArrayLike,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of any metric over the examples.

        bootstrap(ece, confidence, correct)
        bootstrap(lambda z, y, t: ece(*top_label(z, y)) - ece(*top_label(t, y)), logits, labels, other_logits)

    Examples are drawn with replacement, the same ones from all arrays, so that a difference of two models is paired.
    It measures the test sample's noise at fixed weights, not that of training: see `over_seeds`. Calibration errors
    are biased upwards, and more so on a resample, which repeats examples: the interval of a small ECE can lie above
    its value (debias, or report the difference of two models, in which the bias largely cancels).

    Args:
      metric: arrays -> number.
      arrays: leading axis N each.
      resamples: number of draws, >= 1.
      level: probability of the interval, in (0, 1).
      seed: of the draws; the same seed gives the same interval.

    Returns:
      `Interval(value on the sample, low, high)`.

    Raises:
      Refused: no array, leading sizes that differ, N = 0, a level outside (0, 1), resamples < 1.
    """
    _checked(resamples, level)
    data = [np.asarray(array) for array in arrays]
    sizes = {array.shape[:1] for array in data}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise Refused(
            f"arrays have shapes {[array.shape for array in data]}; expected one leading size N >= 1 for all of them."
        )
    count = data[0].shape[0]
    rng = np.random.default_rng(seed)
    # One resample at a time: all index sets at once would take N x resamples numbers.
    samples = (rng.integers(count, size=count) for _ in range(resamples))
    draws = np.array([float(metric(*(array[i] for array in data))) for i in samples])
    return Interval(float(metric(*data)), *_ends(draws, level))


def _seeds(values: Any, what: str) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or np.isnan(numbers).any():
        raise Refused(f"{what} have shape {numbers.shape}; expected one number for each seed, at least one, no NaN.")
    return numbers


def over_seeds(values: Float[ArrayLike, "n"] | Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1) over seeds. One seed: sd 0.

    Raises:
      Refused: no value, or NaN.
    """
    numbers = _seeds(values, "values")
    return Spread(float(numbers.mean()), float(numbers.std(ddof=1)) if numbers.size > 1 else 0.0, numbers.size)


def paired(
    a: Float[ArrayLike, "n"] | Sequence[float],
    b: Float[ArrayLike, "n"] | Sequence[float],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Paired:
    """Mean difference a - b over runs paired by seed, with a percentile bootstrap interval over the seeds.

    With few seeds (n < 5 or so) the interval is too narrow: it cannot leave the range of the n differences, and with
    n = 3 covers the truth about 3 times in 4 where 95 % are promised. One seed: low = high = mean.

    Raises:
      Refused: lengths that differ, no value, NaN, a level outside (0, 1), resamples < 1.
    """
    _checked(resamples, level)
    first, second = _seeds(a, "a"), _seeds(b, "b")
    if first.size != second.size:
        raise Refused(f"a has {first.size} seeds, b has {second.size}; pairs need the same seeds in order.")
    difference = first - second
    draws = np.random.default_rng(seed).choice(difference, (resamples, difference.size)).mean(1)
    spread = over_seeds(difference)
    return Paired(spread.mean, spread.sd, *_ends(draws, level), spread.n)

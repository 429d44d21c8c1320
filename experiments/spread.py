"""How repeated measurements are told: never a best of n alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """n measurements: median, smallest, largest."""

    n: int
    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(len(values), statistics.median(values), min(values), max(values))

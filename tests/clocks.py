"""Clocks for tests that call an objective without a step."""

from __future__ import annotations

import jax
import numpy as np

from kdjax.types import Clock

KEY = jax.random.key(0)


def at(progress: float, epochs: int = 8) -> Clock:
    """The clock of a run of `epochs` epochs at that fraction."""
    return Clock(np.int32(0), np.int32(progress * epochs + 1e-6), np.float32(progress), epochs)

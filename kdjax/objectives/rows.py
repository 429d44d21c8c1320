"""What every hard-label objective does first: take logits and labels, and empty the rows of weight 0 (floor 2)."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses.numerics import at_least_float32, mask_absent
from kdjax.objectives.core import Objective, need, stateless
from kdjax.types import Batch, Output


def rows(batch: Batch, output: Output, method: str) -> tuple[Float[Array, "B K"], Int[Array, "B"]]:
    """Logits and labels, both 0 where the weight is 0: not even a NaN there can reach a gradient.

    Raises:
      Refused: while tracing, if the batch has no labels; the sentence names `method`.
    """
    labels = need(batch, "label", method)
    logits, _, kept = mask_absent(at_least_float32(output.logits), batch.weight)
    return logits, jnp.where(kept, labels, 0)


def per_example(term: str, method: str, loss: Callable) -> Objective:
    """A per-example loss (logits, labels) -> [B] as an objective whose term is called `term`."""
    return stateless(term, lambda batch, output, progress: loss(*rows(batch, output, method)))


def per_batch(term: str, method: str, loss: Callable) -> Objective:
    """A batch-coupled loss (logits, labels, weight=) -> scalar as an objective whose term is called `term`."""

    def value(batch, output, progress):
        return loss(*rows(batch, output, method), weight=batch.weight)

    return stateless(term, value)

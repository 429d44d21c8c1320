"""Feeds: where the batch of a step comes from, inside the compiled program."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from kdjax.types import Batch, PyTree

FEEDS = ("auto", "resident", "streamed")
"""What a user may ask for: the split on the device, batches read when they are needed, or what fits."""


class Resident(NamedTuple):
    """A split that lives on the device; a batch is gathered from it inside the step.

    Attributes:
      inputs: pytree of [N, ...], in the source's dtype (uint8 pixels stay uint8 until after the crop).
      label: [N] or [N, R].
      weight: [N], [N, R] or None.
    """

    inputs: PyTree
    label: Int[Array, "N *R"]
    weight: Float[Array, "N *R"] | None = None


Feed = Resident | None
"""A resident split, or None when the host sends whole batches (a stream)."""


def take(feed: Feed, element: PyTree) -> Batch:
    """The batch of one step: the examples at positions `element` [B] of a resident split, or `element` itself, a batch
    that the host has read."""
    if feed is None:
        return element
    picked = jax.tree.map(lambda x: x[element], feed)
    return Batch(inputs=picked.inputs, label=picked.label, index=element, weight=picked.weight)

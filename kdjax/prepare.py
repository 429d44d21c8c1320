"""What a data set does to raw inputs before a network sees them, in training and for ever after.

Each is a frozen dataclass that is called inside the compiled step, is hashable (equal ones share a compiled program),
and can be written into a run folder and read back, so that a trained network is used without its training data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from kdjax.errors import Refused, one_of, positive
from kdjax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Normalize:
    """(inputs / scale - mean) / std over the last axis, in float32.

    Attributes:
      mean, std: one number per channel, or one for all; std > 0. In units of inputs / scale.
      scale: > 0; 255 for uint8 pixels, 1 for floats.

    Raises:
      Refused: when made, numbers out of range; while tracing, inputs of another number of channels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        object.__setattr__(self, "scale", float(self.scale))
        positive("scale", self.scale)
        for value in self.std:
            positive("std", value)

    def __call__(self, inputs: PyTree) -> PyTree:
        if not hasattr(inputs, "dtype"):
            raise Refused(f"normalize got inputs that are a {type(inputs).__name__}; expected one array of numbers.")
        channels = inputs.shape[-1]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise Refused(
                f"normalize has {len(self.mean)} means and {len(self.std)} standard deviations for {channels} "
                "channels; expected one of each per channel, or one for all."
            )
        return (inputs.astype(jnp.float32) / self.scale - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def describe(self) -> dict[str, Any]:
        return {"kind": "normalize", "mean": list(self.mean), "std": list(self.std), "scale": self.scale}


@dataclasses.dataclass(frozen=True)
class Unchanged:
    """Inputs as they are: token ids, or features that need no scaling."""

    def __call__(self, inputs: PyTree) -> PyTree:
        return inputs

    def describe(self) -> dict[str, Any]:
        return {"kind": "unchanged"}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids as they are; says what turned the texts into them, so that others are turned alike.

    Attributes:
      vocabulary: SHA-256 over the vocabulary and its normalization (`kdjax.huggingface.Vocabulary.digest`).
      size: number of entries; ids are below it.
      max_length: S, tokens of each text, padding included.
      entries: the `kdjax.huggingface.Vocabulary` itself, where it is at hand: a run keeps it beside its network.
    """

    vocabulary: str
    size: int
    max_length: int
    entries: Any = dataclasses.field(default=None, compare=False, repr=False)

    def __call__(self, inputs: PyTree) -> PyTree:
        return inputs

    def describe(self) -> dict[str, Any]:
        return {"kind": "tokens", "vocabulary": self.vocabulary, "size": self.size, "max_length": self.max_length}


Prepare = Normalize | Unchanged | Callable[[PyTree], PyTree]

PREPARES: dict[str, Callable[..., Any]] = {"normalize": Normalize, "unchanged": Unchanged, "tokens": Tokens}


def from_description(description: Mapping[str, Any]) -> Any:
    """What `describe` described.

    Raises:
      Refused: a kind that does not exist here.
    """
    fields = dict(description)
    kind = one_of("prepare", fields.pop("kind", None), PREPARES)
    return PREPARES[kind](**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})

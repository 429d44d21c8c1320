"""The nouns every room speaks (floor 0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

Key = jax.Array
PyTree = Any
Variables = Mapping[str, Any]


class Output(NamedTuple):
    """What a model, and so a teacher, returns.

    Attributes:
      logits: [B, K], float32, unnormalized log-probabilities.
      features: named intermediate arrays, for feature losses; empty unless the model offers some.
    """

    logits: Float[Array, "B K"]
    features: Mapping[str, Array] = {}


class Batch(NamedTuple):
    """What an objective may look at. A field that does not exist is `None`; a method that needs it refuses by name.

    Attributes:
      inputs: any pytree with leading axis B (pixels [B, H, W, C]; or token ids and mask).
      label: [B], integers in [0, K). `None` once mixup has made it meaningless.
      target: [B, K], a probability distribution that replaces the label.
      index: [B], a stable number in [0, N) of each training example, for objectives with per-example memory.
      teacher: the frozen teacher's output on the very same transformed inputs, no gradient.
      weight: [B], non-negative example weights; `None` means all one. Weight 0 is the same as absence.
    """

    inputs: PyTree
    label: Int[Array, "B"] | None = None
    target: Float[Array, "B K"] | None = None
    index: Int[Array, "B"] | None = None  # type: ignore[assignment]  # shadows tuple.index
    teacher: Output | None = None
    weight: Float[Array, "B"] | None = None


class Spec(NamedTuple):
    """What an objective must know to make its state.

    Attributes:
      num_examples: N, size of the training split.
      num_classes: K.
      epochs: E, length of the run; an epoch is floor(progress * E).
    """

    num_examples: int
    num_classes: int
    epochs: int = 1


class Split(NamedTuple):
    """One split on the host.

    Attributes:
      inputs: pytree of arrays with leading axis N (images: uint8 or float32 [N, H, W, C]).
      label: int32 [N].
      index: int64 [N], position in the *source* split, unique; this is what split fingerprints hash.
    """

    inputs: PyTree
    label: np.ndarray
    index: np.ndarray  # type: ignore[assignment]


class Dataset(NamedTuple):
    """A named source, split for good.

    Attributes:
      train, calibration, test: disjoint; calibration is held out of the source's training data.
      mean, std: per-channel constants in the units of the inputs after division by `scale`.
      scale: inputs are divided by it before `mean` and `std` apply (255 for uint8 pixels, 1 for floats).
      fingerprint: SHA-256 over the arrays of all splits, the label count and the split; part of every stage's id.
      calibration_id: SHA-256 over the calibration examples alone: teacher and student must agree on it.
    """

    name: str
    num_classes: int
    train: Split
    calibration: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    fingerprint: str
    calibration_id: str
    label_names: tuple[str, ...] = ()


Transform = Callable[[Key, Batch], Batch]


class Model(NamedTuple):
    """A network as two pure functions, so that nothing outside `models/` knows Flax.

    Attributes:
      init: (key, inputs) -> {"params": nested dict, "batch_stats": nested dict (possibly empty)}; `inputs` is one
        example batch, only shapes and dtypes matter.
      apply: (variables, inputs, train, key) -> (Output, batch_stats). `train` is a Python bool; `key` drives dropout
        and may be None when `train` is False. Logits leave as float32 whatever the compute dtype.
      name: the registry name.
    """

    init: Callable[[Key, PyTree], Variables]
    apply: Callable[[Variables, PyTree, bool, Key | None], tuple[Output, PyTree]]
    name: str

"""The nouns that every module uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Int

Key = jax.Array
PyTree = Any
Variables = Mapping[str, Any]
Scalar = float | Array


class Clock(NamedTuple):
    """Where in a run a step is.

    Attributes:
      step: [], int32, optimizer steps completed.
      epoch: [], int32, epochs completed; exact, step // steps_per_epoch.
      progress: [], float32, fraction of the run completed, in [0, 1).
      epochs: E, length of the run; a Python integer.
    """

    step: Int[Array, ""]
    epoch: Int[Array, ""]
    progress: Float[Array, ""]
    epochs: int = 1


class Output(NamedTuple):
    """What a model, and so a teacher, returns.

    Attributes:
      logits: [B, K], or [B, R, K] for R regions or tokens of each example; float32, unnormalized log-probabilities.
      features: named intermediate arrays, for feature losses; empty unless the model offers some.
      terms: named scalars that the step adds to the objective's loss, such as a box regression.
    """

    logits: Float[Array, "*B K"]
    features: Mapping[str, Array] = {}
    terms: Mapping[str, Float[Array, ""]] = {}


class Batch(NamedTuple):
    """What a transform, a teacher and an objective may look at. A field that does not exist is `None`; a method that
    needs it refuses by name.

    Attributes:
      inputs: any pytree with leading axis B (pixels [B, H, W, C]; or token ids and mask).
      label: [B] or [B, R], integers in [0, K). -1 marks a region that does not exist. `None` once mixup has made the
        labels meaningless.
      target: [B, K] or [B, R, K], a probability distribution that replaces the label.
      index: [B], a stable number in [0, N) of each training example, for objectives with per-example memory.
      teacher: the frozen teacher's output on the very same transformed inputs, no gradient.
      weight: [B] or [B, R], non-negative weights; `None` means all one. Weight 0 is the same as absence.

    An objective sees rows: the step has flattened [B, R, K] to [B·R, K] and emptied the rows of weight 0
    (`kdjax.objectives.rows.as_rows`).
    """

    inputs: PyTree
    label: Int[Array, "*B"] | None = None
    target: Float[Array, "*B K"] | None = None
    index: Int[Array, "B"] | None = None  # type: ignore[assignment]  # shadows tuple.index
    teacher: Output | None = None
    weight: Float[Array, "*B"] | None = None


class Spec(NamedTuple):
    """What an objective must know to make its parameters and its state.

    Attributes:
      num_examples: N, size of the training split.
      num_classes: K.
      epochs: E, length of the run.
      student_features, teacher_features: name -> shape and dtype of one batch's features.
    """

    num_examples: int
    num_classes: int
    epochs: int = 1
    student_features: Mapping[str, jax.ShapeDtypeStruct] = {}
    teacher_features: Mapping[str, jax.ShapeDtypeStruct] = {}


class Split(NamedTuple):
    """One split on the host.

    Attributes:
      inputs: pytree of arrays with leading axis N (images: uint8 or float32 [N, H, W, C]); or a source that reads
        examples when they are needed (`kdjax.data.streaming`).
      label: int32 [N], or [N, R] with -1 where a region does not exist.
      index: int64 [N], position in the *source* split, unique; this is what split fingerprints hash.
      weight: float32 [N] or [N, R], or None when every example counts the same.
    """

    inputs: PyTree
    label: np.ndarray
    index: np.ndarray  # type: ignore[assignment]
    weight: np.ndarray | None = None


class Prepare(Protocol):
    """What a data set does to raw inputs before a network sees them: pure, traced with the step, hashable, and
    describable in JSON (`kdjax.prepare`)."""

    def __call__(self, inputs: PyTree) -> PyTree: ...

    def __hash__(self) -> int: ...

    def describe(self) -> dict[str, Any]: ...


class Dataset(NamedTuple):
    """A named source, split for good.

    Attributes:
      train, calibration, test: disjoint; calibration is held out of the source's training data.
      prepare: raw inputs -> what the network sees.
      kind: "image", "text" or "features": what the inputs are, which transforms ask.
      fingerprint: SHA-256 over the content of all splits, the label count and the split; part of every stage's id.
      calibration_id: SHA-256 over the calibration examples alone: teacher and student must agree on it.
      numbered: the source's examples that `train.index` counts, before anything was held out or left away; None where
        these are numbers of the user's own.
    """

    name: str
    num_classes: int
    train: Split
    calibration: Split
    test: Split
    prepare: Prepare
    kind: str
    fingerprint: str
    calibration_id: str
    label_names: tuple[str, ...] = ()
    numbered: int | None = None


Transform = Callable[[Key, Batch], Batch]


class ApplyModel(Protocol):
    """(variables, inputs, *, train, key) -> (Output, batch_stats)."""

    def __call__(
        self, variables: Variables, inputs: PyTree, *, train: bool, key: Key | None = None
    ) -> tuple[Output, PyTree]: ...


class Model(NamedTuple):
    """A network as two pure functions, so that nothing outside `models/` knows Flax.

    Attributes:
      init: (key, inputs) -> {"params": nested dict, "batch_stats": nested dict (possibly empty)}; `inputs` is one
        example batch, only shapes and dtypes matter.
      apply: (variables, inputs, *, train, key) -> (Output, batch_stats). `train` is a Python bool; `key` drives dropout
        and may be None when `train` is False. Logits leave as float32 whatever the compute dtype.
      name: the registry name.
      version: "" for the package's own networks; what stands for the code of all others in a stage's id.
    """

    init: Callable[[Key, PyTree], Variables]
    apply: ApplyModel
    name: str
    version: str = ""

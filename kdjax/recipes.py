"""A recipe says what is computed, all of it and nothing else: what it holds goes into the stage's id.

A recipe is a frozen dataclass. Everything in it is checked and completed once, when it is made: names exist, numbers
are in range, options are an immutable mapping with every default filled in. `from_dict` makes one from a ConfigDict's
or a recipe.json's plain mappings, and `kdjax.parts` turns one into pure functions. How a stage is run (directories,
cadence, devices) is in `kdjax.settings` and never changes a number.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import optax

from kdjax import models, objectives, optim, outputs, posthoc, recipe_text, starts, transforms
from kdjax.errors import Refused, nearest, one_of, positive, within
from kdjax.options import Options, as_kind, each, integer

NONE = Options()


_REMEDIES = {
    "model": " A network of your own goes to task(recipe, dataset, model=kdjax.models.linen(net)), or is registered by "
    "kdjax.models.register.",
    "distill": " Type Distill(method='kd').",
}


def _typed(recipe: Any, where: str) -> None:
    """Gives every field of a frozen dataclass the kind of its default, or refuses it."""
    for field in dataclasses.fields(recipe):
        value = as_kind(f"{where}{field.name}", getattr(recipe, field.name), field.default, _REMEDIES)
        object.__setattr__(recipe, field.name, value)


def _checked(method: str, options: Mapping[str, Any], role: str) -> Options:
    """The options of a method with every default filled in; names, kinds and ranges are checked."""
    resolved = objectives.checked(method, options, role)
    objectives.build(method, **resolved)
    return resolved


@dataclasses.dataclass(frozen=True)
class Data:
    """Which examples, split how: the arguments of `kdjax.data.load`, where each is described.

    A field at its default here leaves the choice to the data set. `options` are those that only some data sets have.
    `fold` is () or (which part of the training split is left out, of how many, seed of the partition), see
    `kdjax.data.folds`; cross-fitted teachers set it.
    """

    name: str = "digits"
    path: str = ""
    num_classes: int = 0
    normalization: str = ""
    split_seed: int = 0
    calibration_fraction: float = 0.1
    calibration_split: str = ""
    class_weight: str = ""
    train_examples: int = 0
    test_examples: int = 0
    noise: float = 0.0
    noise_seed: int = 0
    classes: int = 0
    resolution: int = 0
    options: Mapping[str, Any] = NONE
    fold: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _typed(self, "data.")
        if self.fold:
            each(integer(0), 3)("data.fold", self.fold)
            integer(0, self.fold[1] - 1)("data.fold[0]", self.fold[0])
        within("data.calibration_fraction", self.calibration_fraction, 0, 1, open_low=True, open_high=True)
        within("data.noise", self.noise, 0)

    def given(self) -> dict[str, Any]:
        """The fields that differ from their default, as `kdjax.data.load` takes them."""
        names = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return {
            **{name: getattr(self, name) for name in names if name not in ("name", "options", "fold")},
            **self.options,
        }


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Optimizer and schedule. Milestones and warm-up are in epochs; see `kdjax.optim.build`."""

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_mask: str = "all"
    schedule: str = "multistep"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _typed(self, "optimizer.")
        positive("optimizer.lr", self.lr)

    def build(self, epochs: int, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """(the optax transformation, step -> learning rate); a run without steps has a constant rate."""
        shape: dict[str, Any] = {"schedule": "constant", "lr": self.lr, "total_steps": 1}
        if epochs:
            shape = self._shape(epochs, steps_per_epoch)
        transformation = optim.build(
            name=self.name,
            momentum=self.momentum,
            # True is the default and means "where there is a momentum", so that AdamW need not be told False.
            nesterov=None if self.nesterov else False,
            weight_decay=self.weight_decay,
            decay_mask=self.decay_mask,
            clip_norm=self.clip_norm,
            **shape,
        )
        return transformation, optim.schedule(**shape)

    def _shape(self, epochs: int, steps_per_epoch: int) -> dict[str, Any]:
        return {
            "schedule": self.schedule,
            "lr": self.lr,
            "milestones": tuple(round(m * steps_per_epoch) for m in self.milestones),
            "gamma": self.gamma,
            "warmup_steps": round(self.warmup_epochs * steps_per_epoch),
            "total_steps": epochs * steps_per_epoch,
        }


@dataclasses.dataclass(frozen=True)
class Distill:
    """The distillation term: (1 - alpha) * hard + alpha * soft, or free weights (hard, soft).

    Attributes:
      method, options: a distiller of the registry and its hyper-parameters.
      alpha: the teacher's share, in [0, 1].
      weights: () or (hard, soft); with weights there is no alpha.
      posthoc: a post-hoc calibrator fitted to the teacher on the calibration split before it teaches, or "".
    """

    method: str = "kd"
    options: Mapping[str, Any] = NONE
    alpha: float = 0.9
    weights: tuple[float, ...] = ()
    posthoc: str = ""

    def __post_init__(self) -> None:
        _typed(self, "distill.")
        object.__setattr__(self, "options", _checked(self.method, self.options, "distiller"))
        within("distill.alpha", self.alpha, 0, 1)
        if len(self.weights) not in (0, 2):
            raise Refused(f"distill.weights is {self.weights}; expected () or two numbers (hard, soft).")
        for w in self.weights:
            within("distill.weights", w, 0)
        if self.weights and not any(self.weights):
            raise Refused(f"distill.weights is {self.weights}, a loss of zero; expected one above 0.")
        if self.weights and self.alpha != Distill.alpha:
            raise Refused(
                f"distill has alpha={self.alpha} and weights={self.weights}, and only the weights would count; set "
                "weights=() to use alpha."
            )
        if self.posthoc:
            one_of("distill.posthoc", self.posthoc, posthoc.POSTHOC, registered=True)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
      model, model_options: a network of the registry, and what its name leaves open.
      method, options: the hard-label objective, a calibrator of the registry and its hyper-parameters.
      distill: the soft term, or None for a run without a teacher.
      transform: augmentations by name, applied to raw inputs before the data set's own `prepare`.
      norm_group: BatchNorm statistics are taken over groups of so many examples; 0 is the whole batch.
      precision: compute dtype of the network; parameters, statistics and losses are float32 always.
      select: "best" keeps the epoch of the best calibration-split top-1 (the first of ties), "last" the last.
      epochs: 0 takes a pretrained classifier as it is.
      init: a Hugging Face folder whose weights training begins with, and whose network is the recipe's where `model` is
        left out; "teacher" for those of the stage's teacher; "" from scratch (`kdjax.starts`).
      init_layers: of these layers alone, counted from 0, in the student's order, with a new head; () takes all.
      init_head: "auto" keeps the folder's head where its classes have the data's names and draws a new one else, "keep"
        insists on it, "new" draws one.
      teacher_outputs: "live", "stored", "crossfit:5" or "auto" (`kdjax.outputs`); without `distill` it is "auto".

    Raises:
      Refused: in one sentence, when made, whatever is wrong with it.
    """

    data: Data = Data()
    model: str = "conv_small"
    model_options: Mapping[str, Any] = NONE
    method: str = "nll"
    options: Mapping[str, Any] = NONE
    distill: Distill | None = None
    transform: tuple[Any, ...] = ()
    optimizer: Optimizer = Optimizer()
    epochs: int = 1
    batch_size: int = 128
    norm_group: int = 0
    precision: str = "float32"
    seed: int = 0
    select: str = "best"
    init: str = ""
    init_layers: tuple[int, ...] = ()
    init_head: str = "auto"
    teacher_outputs: str = "auto"

    def __post_init__(self) -> None:
        _typed(self, "")
        if self.distill is not None and not isinstance(self.distill, Distill):
            raise Refused(f"distill is {self.distill!r}; expected None or Distill(method=...), such as Distill('kd').")
        outputs.folds(self.teacher_outputs)
        if self.distill is None:
            object.__setattr__(self, "teacher_outputs", outputs.AUTO)
        integer(0 if starts.begins_trained(self) else 1)("epochs", self.epochs)
        integer(1)("batch_size", self.batch_size)
        integer(0)("norm_group", self.norm_group)
        integer(0, 2**32 - 1)("seed", self.seed)
        model, options = starts.completed(self, default=Recipe.model)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "model_options", options)
        models.build(self.model, num_classes=2, norm_group=self.norm_group, **self.model_options)
        if self.norm_group and self.batch_size % self.norm_group:
            raise Refused(
                f"norm_group is {self.norm_group} and batch_size {self.batch_size}; expected a divisor of the "
                "batch size, or 0 for the whole batch."
            )
        object.__setattr__(self, "options", _checked(self.method, self.options, "calibrator"))
        one_of("precision", self.precision, ("float32", "bfloat16"))
        one_of("select", self.select, ("best", "last"))
        transforms.build(self.transform)
        if self.epochs:
            self._check_times()
        self.optimizer.build(self.epochs, 1000)
        for name, value in recipe_text.numbers(dataclasses.asdict(self)):
            if not math.isfinite(value):
                raise Refused(f"{name} is {value}; expected a finite number.")

    def _check_times(self) -> None:
        within("optimizer.warmup_epochs", self.optimizer.warmup_epochs, 0, self.epochs, open_high=True)
        whose = "the student's" if self.distill is not None else f"the {self.model!r} recipe's"
        optim.check_milestones(whose, self.optimizer.milestones, self.epochs)
        times = self.optimizer.milestones, self.optimizer.warmup_epochs, self.epochs
        optim.check_times(self.optimizer.schedule, *times, unit="epochs")

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed, which alone is checked: tables make thousands of them."""
        other = copy.copy(self)
        object.__setattr__(other, "seed", integer(0, 2**32 - 1)("seed", as_kind("seed", seed, 0, _REMEDIES)))
        return other

    def kind(self) -> Recipe:
        """The same for recipes that differ in the seed alone, or in which part of the training split is left out."""
        if not self.data.fold:
            return self.with_seed(0)
        alike = dataclasses.replace(self.data, fold=(0, self.data.fold[1], 0))
        return dataclasses.replace(self, seed=0, data=alike)

    def resolved(self) -> dict[str, Any]:
        """Every field and every option as plain JSON values: what a stage's recipe.json holds.

        The paths of data and of a tokenizer are left out: what they hold is in the data set's fingerprint. Of a folder
        in `init` the hash stays.
        """
        return recipe_text.forget_places(recipe_text.plain(self))

    def canonical(self) -> str:
        """The text that goes into the id: JSON, keys sorted, of what differs from its default.

        So a field or an option that is added later, or named at its default, changes no id. Code from outside the
        package counts by its version (`kdjax.register`).
        """
        fields = recipe_text.forget_places(recipe_text.given(self))
        if code := {name: version for name, version in recipe_text.versions(self) if version}:
            fields["code"] = code
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


_NESTED: dict[str, type] = {"data": Data, "optimizer": Optimizer, "distill": Distill}


def from_dict(kind: type, given: Mapping[str, Any], where: str = "recipe") -> Any:
    """A dataclass of that kind from plain nested mappings (a ConfigDict's, or a stored recipe.json's).

    Raises:
      Refused: unknown key, with the nearest; or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in given:
        if key not in fields:
            raise Refused(f"{where} has no field {key!r}; {nearest(key, fields)}")
    values: dict[str, Any] = {}
    for key, value in given.items():
        path = f"{where}.{key}"
        if key == "distill":
            values[key] = None if value is None or value.get("method") == "" else from_dict(Distill, value, path)
        elif key in _NESTED:
            values[key] = from_dict(_NESTED[key], value, path)
        else:
            values[key] = as_kind(path, value, fields[key].default, _REMEDIES)
    return kind(**values)

"""A recipe says what is computed, all of it and nothing else: what it holds is hashed into the stage's id (floor 4).

A recipe is a frozen dataclass; `from_config` is the only door from a ConfigDict, and `parts` the only door to the pure
functions. How a stage is run (directories, cadence, devices) is in `train.Run` and never changes a number.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import optax

from kdjax import models, objectives, optim, posthoc, transforms
from kdjax.errors import Refused, nearest, one_of, positive, within
from kdjax.types import Dataset, Model, Transform

Options = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Data:
    """Which examples, split how. See `kdjax.data.load`; 0 examples or classes and empty texts mean its default."""

    name: str = "digits"
    path: str = ""
    num_classes: int = 0
    normalization: str = ""
    split_seed: int = 0
    calibration_fraction: float = 0.1
    train_examples: int = 0
    test_examples: int = 0
    noise: float = 0.0
    noise_seed: int = 0


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


@dataclasses.dataclass(frozen=True)
class Distill:
    """The distillation term: (1 - alpha) * hard + alpha * soft, or free weights (hard, soft).

    Attributes:
      weights: () or (hard, soft); with weights there is no alpha.
      posthoc: a post-hoc calibrator fitted to the teacher on the calibration split before it teaches, or "".
    """

    method: str = "kd"
    options: Options = ()
    alpha: float = 0.9
    weights: tuple[float, ...] = ()
    posthoc: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
      method, options: the hard-label objective, a calibrator of the registry and its hyper-parameters.
      distill: the soft term, or None for a run without a teacher.
      transform: augmentations by name, applied to raw pixels before normalization.
      precision: compute dtype of the network; parameters, statistics and losses are float32 always.
      select: "best" keeps the epoch of the best calibration-split top-1 (the first of ties), "last" the last.
    """

    data: Data = Data()
    model: str = "conv_small"
    method: str = "nll"
    options: Options = ()
    distill: Distill | None = None
    transform: tuple[str, ...] = ()
    optimizer: Optimizer = Optimizer()
    epochs: int = 1
    batch_size: int = 128
    precision: str = "float32"
    seed: int = 0
    select: str = "best"

    def check(self) -> Recipe:
        """Returns itself if every name exists and every number is in range.

        Raises:
          Refused: in one sentence, before any data is read.
        """
        models.build(self.model, num_classes=2)
        hard = objectives.checked(self.method, dict(self.options), "calibrator")
        objectives.METHODS[self.method].build(**hard)
        if self.distill is not None:
            soft = objectives.checked(self.distill.method, dict(self.distill.options), "distiller")
            objectives.METHODS[self.distill.method].build(**soft)
            within("distill.alpha", self.distill.alpha, 0, 1)
            if len(self.distill.weights) not in (0, 2):
                raise Refused(f"distill.weights is {self.distill.weights}; expected () or two numbers (hard, soft).")
            for w in self.distill.weights:
                within("distill.weights", w, 0)
            if self.distill.weights and not any(self.distill.weights):
                raise Refused(f"distill.weights is {self.distill.weights}, a loss of zero; expected one above 0.")
            if self.distill.weights and self.distill.alpha != Distill.alpha:
                raise Refused(
                    f"distill has alpha={self.distill.alpha} and weights={self.distill.weights}, and only the weights "
                    "would count; set weights=() to use alpha."
                )
            if self.distill.posthoc:
                one_of("distill.posthoc", self.distill.posthoc, posthoc.POSTHOC)
        within("epochs", self.epochs, 1)
        within("batch_size", self.batch_size, 1)
        within("data.calibration_fraction", self.data.calibration_fraction, 0, 1, open_low=True, open_high=True)
        within("data.noise", self.data.noise, 0)
        within("seed", self.seed, 0, 2**32 - 1)
        positive("optimizer.lr", self.optimizer.lr)
        one_of("precision", self.precision, ("float32", "bfloat16"))
        one_of("select", self.select, ("best", "last"))
        transforms.build(self.transform)
        within("optimizer.warmup_epochs", self.optimizer.warmup_epochs, 0, self.epochs, open_high=True)
        for milestone in self.optimizer.milestones:
            within("optimizer.milestones", milestone, 0, self.epochs, open_low=True, open_high=True)
        times = self.optimizer.milestones, self.optimizer.warmup_epochs, self.epochs
        optim.check_times(self.optimizer.schedule, *times, unit="epochs")
        _optimizer(self.optimizer, self.epochs, 1000)
        self.canonical()
        return self

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces: the text that is hashed and stored.

        The path of a data file is left out: its content is in the data set's fingerprint, wherever the file lies. So
        are options at their default, so that naming a default, or giving a method a new option, changes no id.
        """
        changes: dict[str, Any] = {"data": dataclasses.replace(self.data, path="")}
        changes["options"] = _given(self.method, self.options)
        if self.distill is not None:
            given = _given(self.distill.method, self.distill.options)
            changes["distill"] = dataclasses.replace(self.distill, options=given)
        fields = dataclasses.asdict(dataclasses.replace(self, **changes))
        try:
            return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except ValueError as error:
            name = next(name for name, value in _numbers(fields) if not math.isfinite(value))
            raise Refused(f"{name} is {dict(_numbers(fields))[name]}; expected a finite number.") from error


def _numbers(value: Any, name: str = "recipe") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every float in nested dicts and tuples; an option, a pair, goes by its own name."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        if len(value) == 2 and isinstance(value[0], str):
            yield from _numbers(value[1], f"{name}.{value[0]}")
        else:
            for inner in value:
                yield from _numbers(inner, name)


def _given(method: str, options: Options) -> Options:
    """The options that are not at the method's default, in order, whole numbers as floats where the default is one."""
    defaults = objectives.options(method)
    floats = {k: float(v) if isinstance(defaults.get(k), float) and isinstance(v, int) else v for k, v in options}
    return tuple(sorted((k, v) for k, v in floats.items() if k not in defaults or v != defaults[k]))


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
        if key == "options":
            items = value.items() if isinstance(value, Mapping) else [tuple(v) for v in value]
            values[key] = tuple(sorted((k, _tupled(v)) for k, v in items))
        elif key == "distill":
            values[key] = from_dict(Distill, value, path) if value and value["method"] else None
        elif key == "data":
            values[key] = from_dict(Data, value, path)
        elif key == "optimizer":
            values[key] = from_dict(Optimizer, value, path)
        else:
            values[key] = _typed(path, value, fields[key].default)
    return kind(**values)


def _tupled(value: Any) -> Any:
    """Lists and mappings, as JSON has them, to tuples (of pairs) at every depth: a recipe is hashable."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _tupled(inner)) for key, inner in value.items()))
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


def _typed(path: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise Refused(f"{path} is {value!r}; expected a list such as {list(default) or ['...']}.")
        return tuple(_tupled(v) for v in value)
    if isinstance(default, bool) or isinstance(value, bool):
        ok = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        value, ok = (float(value), True) if isinstance(value, int | float) else (value, False)
    else:
        ok = isinstance(value, type(default))
    if not ok:
        raise Refused(f"{path} is {value!r}; expected {type(default).__name__}, like {default!r}.")
    return value


class Parts(NamedTuple):
    """A recipe turned into pure functions; hashable, so that equal recipes share compiled programs."""

    model: Model
    objective: objectives.Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    transform: Transform
    preprocess: Transform


def parts(recipe: Recipe, dataset: Dataset) -> Parts:
    """The pure functions of a recipe on that data set; the same objects for recipes that differ only in the seed."""
    steps = len(dataset.train.label) // recipe.batch_size
    if steps < 1:
        raise Refused(
            f"batch_size {recipe.batch_size} is larger than the {len(dataset.train.label)} training examples of "
            f"{dataset.name!r}; set it to at most {len(dataset.train.label)}."
        )
    key = dataclasses.replace(recipe, seed=0)
    return _parts(key, dataset.num_classes, dataset.mean, dataset.std, dataset.scale, steps)


@functools.lru_cache(maxsize=256)
def _parts(recipe: Recipe, num_classes: int, mean: tuple, std: tuple, scale: float, steps: int) -> Parts:
    hard_options = objectives.checked(recipe.method, dict(recipe.options), "calibrator")
    objective = objectives.build(recipe.method, **hard_options)
    brought = [_brought(recipe.method, hard_options, num_classes)]
    if recipe.distill is not None:
        soft_options = objectives.checked(recipe.distill.method, dict(recipe.distill.options), "distiller")
        soft = objectives.build(recipe.distill.method, **soft_options)
        objective = objectives.distilled(objective, soft, alpha=recipe.distill.alpha, weights=recipe.distill.weights)
        brought.append(_brought(recipe.distill.method, soft_options, num_classes))
    normalize = transforms.normalize(mean, std, scale)
    train = transforms.chain(
        transforms.build(recipe.transform, num_classes=num_classes), *[t for t in brought if t is not None], normalize
    )
    optimizer, schedule = _optimizer(recipe.optimizer, recipe.epochs, steps)
    return Parts(
        models.build(recipe.model, num_classes=num_classes, dtype=recipe.precision),
        objective,
        optimizer,
        schedule,
        train,
        normalize,
    )


def _brought(name: str, options: Mapping[str, Any], num_classes: int) -> Transform | None:
    make = objectives.METHODS[name].transform
    return None if make is None else make(num_classes=num_classes, **options)


def _optimizer(o: Optimizer, epochs: int, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    shape: dict[str, Any] = {
        "schedule": o.schedule,
        "lr": o.lr,
        "milestones": tuple(round(m * steps) for m in o.milestones),
        "gamma": o.gamma,
        "warmup_steps": round(o.warmup_epochs * steps),
        "total_steps": epochs * steps,
    }
    transformation = optim.build(
        name=o.name,
        momentum=o.momentum,
        # True is the default and means "where there is a momentum", so that AdamW need not be told False.
        nesterov=None if o.nesterov else False,
        weight_decay=o.weight_decay,
        decay_mask=o.decay_mask,
        clip_norm=o.clip_norm,
        **shape,
    )
    return transformation, optim.schedule(**shape)

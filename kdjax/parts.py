"""From a recipe to pure functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from kdjax import limits, models, objectives, starts, transforms
from kdjax.data.checks import check_tokens, check_unit_range
from kdjax.errors import Refused
from kdjax.options import Options
from kdjax.prepare import Tokens
from kdjax.recipes import Optimizer, Recipe
from kdjax.source_code import remembered
from kdjax.types import Dataset, Model, Prepare, Transform


class Parts(NamedTuple):
    """A recipe turned into pure functions; hashable, so that equal recipes share compiled programs.

    Attributes:
      schedule: step -> learning rate, for the logs; None with an optimizer of the user's own.
      prepare: the data set's own.
    """

    model: Model
    objective: objectives.Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule | None
    transform: Transform
    prepare: Prepare


def parts(recipe: Recipe, dataset: Dataset) -> Parts:
    """The pure functions of a recipe on that data set; the same objects for recipes of one `kind`.

    Raises:
      Refused: a batch larger than the training split; more steps than are counted; a transform, or a method that brings
        one, for another kind of input; token ids outside the network's vocabulary; floats far outside [0, 1] where a
        transform takes 1 for white; a folder to begin with that `starts.check` refuses.
    """
    steps = len(dataset.train.label) // recipe.batch_size
    if steps < 1:
        raise Refused(
            f"batch_size {recipe.batch_size} is larger than the {len(dataset.train.label)} training examples of "
            f"{dataset.name!r}; set it to at most {len(dataset.train.label)}."
        )
    limits.refuse_steps(recipe.epochs, steps)
    starts.check(recipe, dataset)
    _check_vocabulary(recipe, dataset)
    _check_white(recipe, dataset)
    return _parts(recipe.kind(), dataset.num_classes, dataset.kind, steps)._replace(prepare=dataset.prepare)


def _check_vocabulary(recipe: Recipe, dataset: Dataset) -> None:
    """Refuses token ids that the network has no word for: the gather would clamp them, or give NaN."""
    rows = models.vocab_size(recipe.model, **recipe.model_options)
    if rows is None or dataset.kind != "text":
        return
    if isinstance(dataset.prepare, Tokens):
        if dataset.prepare.size > rows:
            raise Refused(
                f"data set {dataset.name!r} has ids of a vocabulary of {dataset.prepare.size} entries and model "
                f"{recipe.model!r} rows for {rows}; expected no more ids than rows: set "
                f"model_options.vocab_size={dataset.prepare.size}."
            )
        return
    for what in ("train", "calibration", "test"):
        check_tokens(f"{dataset.name} {what}", getattr(dataset, what).inputs, rows)


def _check_white(recipe: Recipe, dataset: Dataset) -> None:
    """Refuses images whose white a transform would not know."""
    methods = [recipe.options, *([] if recipe.distill is None else [recipe.distill.options])]
    views = [options.get(view) for options in methods for view in ("weak", "strong")]
    brought = [entry for view in views if isinstance(view, tuple) for entry in view if isinstance(entry, str)]
    unknown = transforms.without_white([*recipe.transform, *brought]) if dataset.kind == "image" else None
    if unknown is not None:
        name, option = unknown
        instead = f"type the value of white: ({name!r}, {{{option!r}: 255}})"
        check_unit_range(f"{dataset.name} train", dataset.train.inputs, f"transform {name!r}", instead)


@remembered(4096)
def _parts(recipe: Recipe, num_classes: int, kind: str, steps: int) -> Parts:
    objective = objectives.build(recipe.method, **recipe.options)
    methods = [(recipe.method, recipe.options)]
    if recipe.distill is not None:
        soft = objectives.build(recipe.distill.method, **recipe.distill.options)
        objective = objectives.distilled(objective, soft, alpha=recipe.distill.alpha, weights=recipe.distill.weights)
        methods.append((recipe.distill.method, recipe.distill.options))
    brought = tuple(b for name, options in methods if (b := _brought(name, options, kind)) is not None)
    versions = tuple(map(transforms.version, transforms.names(recipe.transform)))
    transform = _transform(recipe.transform, versions, brought, num_classes, kind)
    optimizer, schedule = _optimizer(recipe.optimizer, recipe.epochs, steps)
    model = models.build(
        recipe.model,
        num_classes=num_classes,
        dtype=recipe.precision,
        norm_group=recipe.norm_group,
        **recipe.model_options,
    )
    return Parts(model, objective, optimizer, schedule, transform, None)  # type: ignore[arg-type]  # set by parts


# Equal optimizers are the same object, so that kinds of stages share what is traced of one.
@functools.lru_cache(maxsize=256)
def _optimizer(optimizer: Optimizer, epochs: int, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    return optimizer.build(epochs, steps)


Brought = tuple[Callable[..., Transform], Options]


# Equal transforms are one object, whatever T or alpha is, so that students can be asked whether theirs are the same.
@remembered(4096)
def _transform(
    entries: tuple[Any, ...], versions: tuple[str, ...], brought: tuple[Brought, ...], num_classes: int, kind: str
) -> Transform:
    """The transforms of a recipe, in those versions, then those that its methods bring along."""
    return transforms.chain(
        transforms.build(entries, num_classes=num_classes, kind=kind),
        *(make(num_classes=num_classes, **options) for make, options in brought),
    )


def _brought(name: str, options: Mapping[str, Any], kind: str) -> Brought | None:
    """What makes the transform that a method brings along, such as mixup's, and those of its options that it takes."""
    make, version = objectives.METHODS[name].transform, objectives.METHODS[name].version
    if make is None:
        return None
    if kind == "text" and not version:
        raise Refused(
            f"method {name!r} changes its inputs as pixels can be changed (mixup, or two views), and this data set "
            "holds text; choose another method."
        )
    taken = inspect.signature(make).parameters.values()
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)
    names = {*options} if every else {parameter.name for parameter in taken}
    return make, Options({key: value for key, value in options.items() if key in names})

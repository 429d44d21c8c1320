"""What --plan prints: the stages as a table, then what they compute."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdjax import models, objectives, stages, tasks
from kdjax.errors import literal
from kdjax.options import Options
from kdjax.recipes import Data, Recipe
from kdjax.stages import Stage


def label(recipe: Recipe) -> str:
    """How people call a recipe: "wrn_40_2 mdca", "wrn_40_1 kd(T=1)"."""
    if recipe.distill is None:
        return f"{recipe.model} {recipe.method}"
    options = dict(recipe.distill.options)
    temperature = f"(T={options['T']:g})" if "T" in options else ""
    return f"{recipe.model} {recipe.distill.method}{temperature}"


def show(planned: Sequence[stages.Planned]) -> None:
    """The DAG as a table, parents first; then what the stages compute and what an epoch leaves out."""
    table = Table(title="plan", title_justify="left")
    for column in ("stage", "id", "taught by", "status", "steps", "TFLOP", "objective state"):
        table.add_column(column, justify="right" if column in ("steps", "TFLOP", "objective state") else "left")
    for row in planned:
        teacher = row.stage.teacher.id if row.stage.teacher is not None else "-"
        size = f"{row.state_bytes / 1e6:.3f} MB" if row.state_bytes else "-"
        table.add_row(
            Text(literal(row.stage.name)),
            row.stage.id,
            teacher,
            row.status,
            str(row.steps),
            f"{row.flops / 1e12:.3f}",
            size,
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for line in dict.fromkeys(line for row in planned for line in computed(row.stage)):
        print(literal(line))
    todo = [row for row in planned if row.status != "done"]
    print(f"{len(planned)} stages, {len(todo)} to run, about {sum(r.flops for r in todo) / 1e12:.3f} TFLOP.")


def computed(stage: Stage) -> list[str]:
    """What a plan says of a stage beside its cost: network, methods with every option, what an epoch leaves out.

    Stages that differ in the seed alone say the same.
    """
    recipe, dataset = stage.recipe, stages.dataset(stage.recipe.data)
    size = network(recipe)
    lines = [f"  {recipe.model}: {size.parameters:,} parameters; {size.whose}"]
    lines.append(f"  {label(recipe)}: {described(recipe)}")
    if stage.teacher is not None and (teacher := network(stage.teacher.recipe)).parameters < size.parameters:
        lines.append(
            f"  The teacher {stage.teacher.recipe.model} ({teacher.parameters:,} parameters) is smaller than its "
            f"student {recipe.model} ({size.parameters:,}); if that is not meant, exchange the two networks."
        )
    steps, left_out = divmod(len(dataset.train.label), recipe.batch_size)
    if left_out:
        lines.append(
            f"  {len(dataset.train.label):,} training examples in batches of {recipe.batch_size}: {steps} steps an "
            f"epoch, and the {left_out} examples left over are other ones in each epoch."
        )
    return lines


def network(recipe: Recipe) -> models.Description:
    """Parameter count and origin of a recipe's network on its data set."""
    dataset = stages.dataset(recipe.data)
    return _network(recipe.model, recipe.model_options, recipe.data, dataset.num_classes)


@functools.lru_cache(maxsize=256)
def _network(name: str, options: Options, data: Data, num_classes: int) -> models.Description:
    dataset = stages.dataset(data)
    inputs = jax.eval_shape(dataset.prepare, tasks.example(dataset.train))
    return models.describe(name, num_classes, inputs, **options)


def described(recipe: Recipe) -> str:
    """The loss of a recipe with every option: "0.1 * nll + 0.9 * kd(T=4.0, T_c=1.0, ...)"."""
    hard = _method(recipe.method, dict(recipe.options))
    if recipe.distill is None:
        return hard
    term = recipe.distill
    weights = term.weights or (round(1 - term.alpha, 12), term.alpha)
    teacher = f", teacher calibrated by {term.posthoc}" if term.posthoc else ""
    return f"{weights[0]:g} * {hard} + {weights[1]:g} * {_method(term.method, dict(term.options))}{teacher}"


def _method(name: str, given: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in objectives.checked(name, given).items())
    return f"{name}({options})" if options else name

"""What --plan prints: the stages as a table, then what they compute."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdjax import grouping, models, objectives, outputs, planning, programs, stages, tasks, teachers
from kdjax.errors import literal
from kdjax.options import Options
from kdjax.parts import parts
from kdjax.recipes import Data, Recipe
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.trainer import Trainer
from kdjax.types import Dataset


def label(recipe: Recipe) -> str:
    """How people call a recipe: "wrn_40_2 mdca", "wrn_40_1 kd(T=1)"."""
    if recipe.distill is None:
        return f"{recipe.model} {recipe.method}"
    options = dict(recipe.distill.options)
    temperature = f"(T={options['T']:g})" if "T" in options else ""
    return f"{recipe.model} {recipe.distill.method}{temperature}"


def show(planned: Sequence[planning.Planned], probed: Probed | None = None) -> None:
    """The DAG as a table, parents first; then what the stages compute and what an epoch leaves out.

    Of more than `MOST_ROWS` stages, those that differ in the seed alone share a row.

    Args:
      probed: what a step of each stage takes, where that was timed.
    """
    table = Table(title="plan", title_justify="left")
    for column in ("stage", "id", "taught by", "status", "steps", "TFLOP", "objective state"):
        table.add_column(column, justify="right" if column in ("steps", "TFLOP", "objective state") else "left")
    kinds: dict[Hashable, list[planning.Planned]] = {}
    for row in planned:
        kinds.setdefault(stages.kind_of(row.stage), []).append(row)
    groups: Iterable[list[planning.Planned]] = [[row] for row in planned]
    if len(planned) > MOST_ROWS:
        groups = itertools.chain.from_iterable(_by_status(rows) for rows in kinds.values())
    for row, *others in groups:
        more = f" and {len(others):,} of other seeds" if others else ""
        teacher = _taught_by(row.stage)
        size = f"{row.state_bytes / 1e6:.3f} MB" if row.state_bytes else "-"
        table.add_row(
            Text(literal(row.stage.name) + more),
            row.stage.id,
            teacher,
            row.status,
            f"{row.steps:,}",
            _tera(row.flops),
            size,
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for line in dict.fromkeys(line for rows in kinds.values() for line in computed(rows[0].stage)):
        print(literal(line))
    todo = [row for row in planned if row.status != "done"]
    print(f"{len(planned)} stages, {len(todo)} to run, about {_tera(sum(r.flops for r in todo))} TFLOP.")
    if probed is not None:
        total = sum((row.steps - row.held) * probed.seconds[row.stage.id] for row in todo)
        print(
            f"About {total / 3600:.2f} hours of steps on this machine, one stage after the other, by {PROBED} steps of "
            f"each of {probed.kinds} kinds; compiling and evaluation are not counted."
        )


def _tera(flops: float) -> str:
    number = flops / 1e12
    return f"{number:,.3f}" if number < 10 else f"{number:,.0f}"


def _taught_by(stage: Stage) -> str:
    folds, other = stages.folds(stage), stage.as_soft_as
    apart = f", {len(folds)} without a part" if folds else ""
    soft = f", as soft as {other.id}" if other is not None else ""
    return f"{stage.teacher.id}{apart}{soft}" if stage.teacher is not None else "-"


MOST_ROWS = 200
PROBED = 5


def _by_status(rows: Iterable[planning.Planned]) -> Iterable[list[planning.Planned]]:
    groups: dict[str, list[planning.Planned]] = {}
    for row in rows:
        groups.setdefault(row.status, []).append(row)
    return groups.values()


class Probed(NamedTuple):
    """What steps take here.

    Attributes:
      seconds: stage id -> seconds of one step.
      kinds: how many kinds of steps were timed.
    """

    seconds: Mapping[str, float]
    kinds: int


def kind_of_step(stage: Stage, runs_teacher: bool) -> Hashable:
    """What a step's cost depends on, all but numbers and the label term: stages of one kind are probed once.

    Args:
      runs_teacher: whether the teacher's network runs in the step; if not, its logits are read.
    """
    recipe, teacher = stage.recipe, stages.taught_by(stage) if runs_teacher else None
    networks = [(r.model, r.model_options, r.precision) for r in (recipe, teacher) if r]
    method = "" if recipe.distill is None else recipe.distill.method
    views = objectives.METHODS[recipe.method].transform
    return *networks, method, views, recipe.transform, recipe.batch_size, recipe.norm_group, recipe.kind().data


def probe(planned: Sequence[planning.Planned], run: Settings) -> Probed:
    """Seconds of a step here, timed over a few steps of every kind after what compiles.

    Every network has random weights, pretrained or not; its cost is the same. A stage without steps costs none. Where
    the teacher's logits are stored, its network runs in a share of the steps alone; of the students of a cohort one
    pays for it, and that they share the augmentation is not counted.

    Args:
      planned: all stages, finished ones too, since the whole queue decides on the cohorts.
    """
    groups = grouping.groups([row.stage for row in planned], run.cohort)
    paid_by = {stage.id: _paid_by(stage, len(group)) for group in groups for stage in group}
    timed: dict[Hashable, float] = {}

    def seconds(stage: Stage, runs_teacher: bool) -> float:
        kind = kind_of_step(stage, runs_teacher)
        if kind not in timed:
            timed[kind] = _seconds(stage, run, runs_teacher)
        return timed[kind]

    of_stage: dict[str, float] = {}
    for row in planned:
        share = row.teacher_share / paid_by[row.stage.id] if row.steps > row.held else 0.0
        of_stage[row.stage.id] = share and share * seconds(row.stage, True)
        if row.steps > row.held and share < 1:
            of_stage[row.stage.id] += (1 - share) * seconds(row.stage, False)
    return Probed(of_stage, len(timed))


def _paid_by(student: Stage, members: int) -> int:
    """How many students of a cohort pay for its teacher's pass together: one that reads more of the teacher than a row
    of logits for each example is counted as if it paid alone."""
    distill = student.recipe.distill
    if distill is None:
        return 1
    method = objectives.METHODS[distill.method]
    return 1 if method.features or method.transform else members


def _seconds(stage: Stage, run: Settings, runs_teacher: bool) -> float:
    recipe, dataset = dataclasses.replace(stage.recipe, init="", init_layers=(), init_head="auto"), _data(stage)
    task = tasks.task(recipe, dataset, _teacher(stage, runs_teacher))
    trainer = Trainer(
        task._replace(epochs=task.epochs + 2 * PROBED),  # else a run of one step would have none to be timed
        devices=run.devices,
        steps_per_call=run.steps_per_call,
        feed=run.feed,
        readers=run.readers,
    )
    state, compiled, steps, seconds = trainer.init(), set[int](), 0, 0.0
    while steps < PROBED:
        began = time.perf_counter()
        for state, logs in trainer.steps(state):
            jax.block_until_ready(state)
            ended, count = time.perf_counter(), len(logs["loss"])
            if count in compiled:
                steps, seconds = steps + count, seconds + ended - began
            if steps >= PROBED:
                break
            compiled.add(count)  # a shorter call at the end of an epoch is a program of its own
            began = time.perf_counter()
    programs.forget_programs(task.parts.objective)
    return seconds / steps


def _data(stage: Stage) -> Dataset:
    return stages.dataset(stage.recipe.data)


def _teacher(stage: Stage, runs: bool) -> teachers.Teacher | None:
    """A teacher of random weights, or a table of logits in its place."""
    taught_by = stages.taught_by(stage)
    if taught_by is None:
        return None
    if not runs:
        shape = len(_data(stage).train.label), _data(stage).num_classes
        return teachers.table_of(np.zeros(shape, outputs.dtype(stage.recipe.teacher_outputs)))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), stages.abstract_variables(taught_by))
    return teachers.frozen(parts(taught_by, stages.dataset(taught_by.data)).model, variables)


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
    where = {"auto": "", "live": ""}.get(recipe.teacher_outputs, f", teacher outputs {recipe.teacher_outputs}")
    return f"{weights[0]:g} * {hard} + {weights[1]:g} * {_method(term.method, dict(term.options))}{teacher}{where}"


def _method(name: str, given: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in objectives.checked(name, given).items())
    return f"{name}({options})" if options else name

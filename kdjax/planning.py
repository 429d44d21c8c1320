"""What stages would cost before any of them is compiled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from kdjax import checkpoints, outputs, shapes, tasks, teacher_logits
from kdjax.parts import parts
from kdjax.stages import Kind, Stage, abstract_state, check_all, dataset, kind_of, order, status, steps_of, taught_by
from kdjax.types import Dataset


class Planned(NamedTuple):
    """One row of a plan.

    Attributes:
      status: "done" (its manifest verifies), "resumable" (it has checkpoints) or "missing".
      steps: optimizer steps of the whole run; 0 for a stage that is done.
      flops: estimated floating-point operations of those steps: forward once and backward twice for the student,
        forward once for the teacher, as XLA counts the unoptimized forward pass. Of a teacher whose logits are stored,
        those of one epoch; by epoch, those that are not there yet, for the first student of the plan that needs them.
      state_bytes: the objective's memory (gamma and edges, or per-example history), which a checkpoint also holds.
      held: how many of the steps the newest checkpoint holds.
      teacher_share: of the steps, how many would pay for all that the teacher's network computes.
    """

    stage: Stage
    status: str
    steps: int
    flops: float
    state_bytes: int
    held: int = 0
    teacher_share: float = 0.0


def plan(stages: Iterable[Stage], workdir: Path) -> list[Planned]:
    """What would run, parents first, with its estimated cost. Traces shapes; compiles and trains nothing.

    Whether a stage is done is told by the sizes of its files; a run reads every byte of them.

    Raises:
      Refused: whatever `check` refuses.
    """
    queue, workdir = order(stages), Path(workdir)
    states = {stage.id: status(stage, workdir, contents=False) for stage in queue}
    check_all(queue, begin=lambda stage: states[stage.id] != "done")
    rows, costs, counted = [], dict[Kind, _Cost](), set[str]()
    for stage in queue:
        kind = kind_of(stage)
        if kind not in costs:
            costs[kind] = _cost(stage)
        cost, status_now = costs[kind], states[stage.id]
        if status_now == "done":
            rows.append(Planned(stage, "done", 0, 0.0, cost.memory))
            continue
        share = cost.teacher_share
        if share and _by_epoch(stage):
            key = teacher_logits.key_of(stage)
            missing = stage.recipe.epochs - teacher_logits.epochs_kept(stage, workdir)
            share = 0.0 if key in counted else missing / max(stage.recipe.epochs, 1)
            counted.add(key)
        owner = {**stage.owner, "part": "checkpoints"}
        begun = status_now == "resumable"
        held = checkpoints.newest(stage.directory(workdir) / "checkpoints", owner) if begun else 0
        flops = cost.flops + share * cost.teacher_flops
        rows.append(Planned(stage, status_now, cost.steps, flops, cost.memory, held, share))
    return rows


def shared_logits(planned: Iterable[Planned], workdir: Path) -> list[str]:
    """What a plan says of teacher logits that are kept by epoch: who shares them, their room, and whether they pay."""
    groups: dict[str, list[Stage]] = {}
    for row in planned:
        if row.status != "done" and row.stage.teacher is not None and _by_epoch(row.stage):
            groups.setdefault(teacher_logits.key_of(row.stage), []).append(row.stage)
    lines = []
    for key, sharing in groups.items():
        stage = sharing[0]
        examples, recipe = dataset(stage.recipe.data), stage.recipe
        dtype, shape = outputs.dtype(recipe.teacher_outputs), (len(examples.train.label), examples.num_classes)
        room = recipe.epochs * shape[0] * shape[1] * dtype.itemsize
        kept = teacher_logits.epochs_kept(stage, workdir)
        there = f", {kept} of {recipe.epochs} epochs there" if kept else ""
        assert stage.teacher is not None
        pays = (
            f"computed once instead of {len(sharing)} times."
            if len(sharing) > 1 or kept
            else "one student alone gains nothing: type teacher_outputs=live, or plan the others with it."
        )
        lines.append(
            f"Teacher logits by epoch, {Path(workdir) / teacher_logits.FOLDER / key}: {len(sharing)} students of "
            f"{stage.teacher.name!r}, seed {recipe.seed}, {room / 1e6:.3f} MB "
            f"({recipe.epochs} epochs of {shape[0]:,} x {shape[1]} {dtype}){there}; {pays}"
        )
    return lines


def _by_epoch(stage: Stage) -> bool:
    recipe = stage.recipe
    return recipe.distill is not None and outputs.how(recipe, dataset(recipe.data)) == outputs.BY_EPOCH


class _Cost(NamedTuple):
    """Of a stage that is not done: steps, operations of the student and, if it ran in every step, of the teacher, in
    how many of the steps it does, and bytes of the objective's memory."""

    steps: int
    flops: float
    teacher_flops: float
    teacher_share: float
    memory: int


def _cost(stage: Stage) -> _Cost:
    recipe, examples = stage.recipe, dataset(stage.recipe.data)
    pieces, steps = parts(recipe, examples), steps_of(recipe)
    seen = steps * recipe.batch_size
    flops = 3 * shapes.forward_flops(pieces.model, pieces.prepare, _shapes(examples)) * seen
    teacher_flops = share = 0.0
    if seen and (teacher_recipe := taught_by(stage)) is not None:
        teacher = parts(teacher_recipe, dataset(teacher_recipe.data))
        teacher_flops = shapes.forward_flops(teacher.model, teacher.prepare, _shapes(examples)) * seen
        every_epoch = outputs.how(recipe, examples) in (outputs.LIVE, outputs.BY_EPOCH)
        share = 1.0 if every_epoch else min(1.0, len(examples.train.label) / seen)
    return _Cost(steps, flops, teacher_flops, share, _objective_bytes(stage))


def _objective_bytes(stage: Stage) -> int:
    """Bytes of the objective's memory and parameters."""
    made = abstract_state(stage.recipe.kind(), taught_by(stage))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((made.objective, made.objective_params)))


def _shapes(examples: Dataset) -> tuple:
    leaves, tree = jax.tree.flatten(tasks.example(examples.train))
    return tree, tuple((x.shape[1:], str(x.dtype)) for x in leaves)

"""What stages would cost before any of them is compiled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from kdjax import layout, outputs, step, tasks
from kdjax.parts import parts
from kdjax.stages import Kind, Stage, abstract_teacher, check_all, dataset, kind_of, order, status, steps_of, taught_by
from kdjax.types import Dataset


class Planned(NamedTuple):
    """One row of a plan.

    Attributes:
      status: "done" (its manifest verifies), "resumable" (it has checkpoints) or "missing".
      steps: optimizer steps of the whole run; 0 for a stage that is done.
      flops: estimated floating-point operations of those steps: forward once and backward twice for the student,
        forward once for the teacher (in one epoch alone where its logits are stored), as XLA counts the unoptimized
        forward pass.
      state_bytes: the objective's memory (gamma and edges, or per-example history), which a checkpoint also holds.
    """

    stage: Stage
    status: str
    steps: int
    flops: float
    state_bytes: int


def plan(stages: Iterable[Stage], workdir: Path) -> list[Planned]:
    """What would run, parents first, with its estimated cost. Traces shapes; compiles and trains nothing.

    Whether a stage is done is told by the sizes of its files; a run reads every byte of them.

    Raises:
      Refused: whatever `check` refuses.
    """
    queue, workdir = order(stages), Path(workdir)
    states = {stage.id: status(stage, workdir, contents=False) for stage in queue}
    check_all(queue, begin=lambda stage: states[stage.id] != "done")
    rows, costs = [], dict[Kind, tuple[int, float, int]]()
    for stage in queue:
        kind = kind_of(stage)
        if kind not in costs:
            costs[kind] = _cost(stage)
        steps, flops, memory = costs[kind]
        done = states[stage.id] == "done"
        rows.append(Planned(stage, states[stage.id], 0 if done else steps, 0.0 if done else flops, memory))
    return rows


def _cost(stage: Stage) -> tuple[int, float, int]:
    """Steps, operations and bytes of the objective's memory, as `Planned` has them for a stage that is not done."""
    recipe, examples = stage.recipe, dataset(stage.recipe.data)
    pieces, steps = parts(recipe, examples), steps_of(recipe)
    seen = steps * recipe.batch_size
    flops = 3 * step.forward_flops(pieces.model, pieces.prepare, _shapes(examples)) * seen
    if (teacher_recipe := taught_by(stage)) is not None:
        teacher = parts(teacher_recipe, dataset(teacher_recipe.data))
        forward = step.forward_flops(teacher.model, teacher.prepare, _shapes(examples))
        live = outputs.how(recipe, examples) == outputs.LIVE
        flops += forward * (seen if live else min(seen, len(examples.train.label)))
    return steps, flops, _objective_bytes(stage)


def _objective_bytes(stage: Stage) -> int:
    """Bytes of the objective's memory and parameters."""
    teacher_recipe = taught_by(stage)
    teacher = None if teacher_recipe is None else abstract_teacher(stage.recipe, teacher_recipe)
    made = tasks.abstract(tasks.task(stage.recipe, dataset(stage.recipe.data), teacher), layout.mesh(1))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((made.objective, made.objective_params)))


def _shapes(examples: Dataset) -> tuple:
    leaves, tree = jax.tree.flatten(tasks.example(examples.train))
    return tree, tuple((x.shape[1:], str(x.dtype)) for x in leaves)

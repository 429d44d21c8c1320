"""Stages: what to train, taught by whom, addressed by content (floor 5).

    teacher = Stage(recipe, name="teacher")
    student = Stage(distilled, teacher, name="student")
    chain = generations(student, 6)

Two table rows that need one teacher share it, because a stage's directory is a hash of what it computes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import checkpoints, data, files, step, teachers, trainer
from kdjax.errors import Refused
from kdjax.recipes import Data, Recipe, parts
from kdjax.types import Dataset, Spec

FORMAT = 1
"""Bumped by hand when numbers change on purpose; part of every id."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A recipe and the stage that teaches it; `name` is for people and is not hashed."""

    recipe: Recipe
    teacher: Stage | None = None
    name: str = dataclasses.field(default="stage", compare=False)

    @property
    def id(self) -> str:
        """sha256(canonical recipe + parents' ids + dataset fingerprint + FORMAT), 12 hex digits."""
        return _id(self)

    @property
    def owner(self) -> dict[str, Any]:
        """What the stage's manifests name, so that files under another stage's name are refused."""
        parents = [self.teacher.id] if self.teacher is not None else []
        return {
            "stage": self.id,
            "recipe": hashlib.sha256(self.recipe.canonical().encode()).hexdigest(),
            "parents": parents,
        }

    def directory(self, workdir: Path) -> Path:
        return Path(workdir) / self.id


@functools.lru_cache(maxsize=4096)
def _id(stage: Stage) -> str:
    parents = [stage.teacher.id] if stage.teacher is not None else []
    content = [stage.recipe.canonical(), parents, dataset(stage.recipe.data).fingerprint, FORMAT]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=4)
def dataset(which: Data) -> Dataset:
    """The data set of a recipe, loaded once per process."""
    options = dataclasses.asdict(which)
    name = options.pop("name")
    for key in ("path", "num_classes", "normalization", "train_examples", "test_examples"):
        options[key] = options[key] or None
    return data.load(name, **options)


def generations(student: Stage, count: int) -> list[Stage]:
    """Iterative self-distillation: [g0, g1, ..., g_count]; g0 is the student's teacher, g1 the student, and generation
    k+1 is the student's recipe taught by generation k.

    Raises:
      Refused: if the student has no teacher, or count < 1.
    """
    if student.teacher is None:
        raise Refused("generations need a generation 0; give the student stage a teacher.")
    if count < 1:
        raise Refused(f"the number of generations is {count}; expected at least 1.")
    chain = [student.teacher]
    for k in range(1, count + 1):
        chain.append(Stage(student.recipe, chain[-1], name=f"{student.name} generation {k}"))
    return chain


def check(stage: Stage) -> Stage:
    """Returns the stage if it can be trained at all.

    Raises:
      Refused: no teacher where one is needed or the reverse; teacher and student that differ in classes; a teacher that
        saw examples on which the student's calibration is fitted or judged.
    """
    recipe = stage.recipe.check()
    if (recipe.distill is None) != (stage.teacher is None):
        raise Refused(
            f"stage {stage.name!r} has a distillation term and no teacher; give it one."
            if stage.teacher is None
            else f"stage {stage.name!r} has a teacher and no distillation term; set recipe.distill.method, e.g. kd."
        )
    own = dataset(recipe.data)
    if stage.teacher is None:
        return stage
    check(stage.teacher)
    if stage.teacher.recipe.data == recipe.data:
        return stage
    data.verify_splits(dataset(stage.teacher.recipe.data), own)
    return stage


def rehearse(stage: Stage) -> None:
    """Traces a stage's step on shapes, with its teacher's network, before its teacher or itself is compiled.

    Raises:
      Refused: whatever network, methods and data refuse only in combination.
    """
    taught = None if stage.teacher is None else dataclasses.replace(stage.teacher.recipe, seed=0)
    _rehearse(dataclasses.replace(stage.recipe, seed=0), taught)


@functools.lru_cache(maxsize=256)
def _rehearse(recipe: Recipe, taught: Recipe | None) -> None:
    mesh, own = step.mesh(1), dataset(recipe.data)
    made, teacher = trainer.task(recipe, own), None
    if taught is not None:
        theirs = trainer.task(taught, dataset(taught.data))
        teacher = teachers.frozen(theirs.parts.model, trainer.abstract(theirs, mesh).variables)
    program = step.train_step(
        model=made.parts.model,
        objective=made.parts.objective,
        optimizer=made.parts.optimizer,
        transform=made.parts.transform,
        teacher=None if teacher is None else teacher.apply,
        total_steps=made.epochs * made.steps_per_epoch,
        mesh=mesh,
    )
    split = jax.eval_shape(step.Resident, own.train.inputs, np.asarray(own.train.label, np.int32))
    rows = jax.ShapeDtypeStruct((1, made.batch_size), np.int32)
    variables = () if teacher is None else teacher.variables
    jax.eval_shape(program.fn, trainer.abstract(made, mesh), split, rows, variables, np.uint32(0))


def order(stages: Iterable[Stage]) -> list[Stage]:
    """Every stage and its ancestors, once each, parents first."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.teacher is not None:
            visit(stage.teacher)
        found.setdefault(stage.id, stage)

    for stage in stages:
        visit(stage)
    return list(found.values())


def status(stage: Stage, workdir: Path) -> str:
    """ "done", "resumable" or "missing"; reads and hashes the stage's files and computes nothing else.

    Raises:
      Refused: if the directory holds a finished stage of a newer FORMAT, or another stage.
    """
    directory = stage.directory(workdir)
    if not checkpoints.verify_manifest(directory, stage.owner):
        return "done"
    files.refuse_foreign(directory, stage.owner)
    return "resumable" if (directory / "checkpoints").is_dir() else "missing"


class Planned(NamedTuple):
    """One row of a plan.

    Attributes:
      status: "done" (its manifest verifies), "resumable" (it has checkpoints) or "missing".
      steps: optimizer steps of the whole run; 0 for a stage that is done.
      flops: estimated floating-point operations of those steps: forward once and backward twice for the student,
        forward once for the teacher, as XLA counts the unoptimized forward pass.
      state_bytes: the objective's memory (gamma and edges, or per-example history), which a checkpoint also holds.
    """

    stage: Stage
    status: str
    steps: int
    flops: float
    state_bytes: int


def plan(stages: Iterable[Stage], workdir: Path) -> list[Planned]:
    """What would run, parents first, with its estimated cost. Traces shapes; compiles and trains nothing.

    Raises:
      Refused: whatever `check` refuses.
    """
    rows = []
    for stage in order(stages):
        check(stage)
        recipe, own = stage.recipe, dataset(stage.recipe.data)
        pieces = parts(recipe, own)
        spec = Spec(len(own.train.label), own.num_classes, recipe.epochs)
        memory = sum(
            x.size * x.dtype.itemsize
            for x in jax.tree.leaves(jax.eval_shape(functools.partial(pieces.objective.init, spec)))
        )
        found = status(stage, workdir)
        if found != "done":
            rehearse(stage)
        steps = 0 if found == "done" else recipe.epochs * (spec.num_examples // recipe.batch_size)
        forward = 3 * step.forward_flops(pieces.model, pieces.preprocess, _shapes(own))
        if stage.teacher is not None:
            taught = parts(stage.teacher.recipe, dataset(stage.teacher.recipe.data))
            forward += step.forward_flops(taught.model, taught.preprocess, _shapes(own))
        rows.append(Planned(stage, found, steps, forward * steps * recipe.batch_size, memory))
    return rows


def _shapes(own: Dataset) -> tuple:
    leaves, tree = jax.tree.flatten(own.train.inputs)
    return tree, tuple((x.shape[1:], str(x.dtype)) for x in leaves)

"""Stages: what to train, taught by whom, addressed by content.

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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax import checkpoints, data, files, layout, limits, starts, step, tasks, teachers
from kdjax.errors import Refused
from kdjax.parts import parts
from kdjax.recipes import Data, Recipe
from kdjax.types import Dataset, PyTree

FORMAT = 2
"""Bumped by hand when numbers change on purpose; part of every id."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A recipe and the stage that teaches it; `name` is for people and is not hashed.

    Attributes:
      as_soft_as: the control of a teacher that was trained to doubt, such as a DUS teacher: the teacher's logits are
        divided by the one temperature at which their mean entropy on the calibration split is that of this stage's.
      place: where a run that was finished elsewhere lies (`kdjax.elsewhere`); it is never written, and not hashed.
    """

    recipe: Recipe
    teacher: Stage | None = None
    name: str = dataclasses.field(default="stage", compare=False)
    as_soft_as: Stage | None = None
    place: Path | None = dataclasses.field(default=None, compare=False)

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stages that must be finished before this one."""
        return tuple(stage for stage in (self.teacher, self.as_soft_as) if stage is not None)

    @functools.cached_property
    def id(self) -> str:
        """sha256(canonical recipe + parents' ids + dataset fingerprint + FORMAT), 12 hex digits."""
        for ancestor in _lineage(self, known=lambda stage: "id" in vars(stage)):
            ancestor.id  # noqa: B018  # eldest first, so that none has to ask another
        content = [self._text, [parent.id for parent in self.parents], dataset(self.recipe.data).fingerprint, FORMAT]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:12]

    @property
    def owner(self) -> dict[str, Any]:
        """What the stage's manifests name, so that files under another stage's name are refused."""
        recipe = hashlib.sha256(self._text.encode()).hexdigest()
        return {"stage": self.id, "recipe": recipe, "parents": [parent.id for parent in self.parents]}

    @functools.cached_property
    def _text(self) -> str:
        return self.recipe.canonical()

    def directory(self, workdir: Path) -> Path:
        return self.place or Path(workdir) / self.id


def _lineage(stage: Stage, known: Callable[[Stage], bool] = lambda _: False) -> list[Stage]:
    """All that must be finished before a stage, parents first, from known ones on; a chain may be thousands long."""
    ancestors: dict[int, Stage] = {}
    pending = [(parent, False) for parent in reversed(stage.parents)]
    while pending:
        one, parents_are_in = pending.pop()
        if id(one) in ancestors:
            continue
        if parents_are_in or known(one):
            ancestors[id(one)] = one
        else:
            pending.append((one, True))
            pending += [(parent, False) for parent in reversed(one.parents)]
    return list(ancestors.values())


@functools.lru_cache(maxsize=4)
def dataset(which: Data) -> Dataset:
    """The data set of a recipe, loaded once per process."""
    return data.load(which.name, **which.given())


def steps_of(recipe: Recipe) -> int:
    """Optimizer steps of a run of that recipe."""
    return recipe.epochs * (len(dataset(recipe.data).train.label) // recipe.batch_size)


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
    limits.refuse_stages(count + 1, (count + 1) * steps_of(student.recipe))
    chain = [student.teacher]
    for k in range(1, count + 1):
        chain.append(Stage(student.recipe, chain[-1], name=f"{student.name} generation {k}"))
    return chain


def check(stage: Stage) -> Stage:
    """Returns the stage if it and all that teach it can be trained at all.

    Raises:
      Refused: no teacher where one is needed or the reverse; teacher and student that differ in classes; a teacher that
        saw examples on which the student's calibration is fitted or judged; a folder, or layers, that do not fit.
    """
    for each in [*_lineage(stage), stage]:
        _check(each)
    return stage


def _check(stage: Stage) -> None:
    recipe = stage.recipe
    if (recipe.distill is None) != (stage.teacher is None):
        raise Refused(
            f"stage {stage.name!r} has a distillation term and no teacher; give it one."
            if stage.teacher is None
            else f"stage {stage.name!r} has a teacher and no distillation term; set recipe.distill.method, e.g. kd."
        )
    if recipe.init == starts.TEACHER:
        if stage.teacher is None:
            raise Refused(f"stage {stage.name!r} begins with init='teacher' and has none; give it one, or a folder.")
        starts.check_teacher(recipe, stage.teacher.recipe)
    if stage.as_soft_as is not None and stage.teacher is None:
        raise Refused(f"stage {stage.name!r} has as_soft_as and no teacher that could be tempered; give it one.")
    parts(recipe, dataset(recipe.data))
    for parent in stage.parents:
        if parent.recipe.data != recipe.data:
            data.verify_splits(dataset(parent.recipe.data), dataset(recipe.data))


def check_all(queue: Iterable[Stage], begin: Callable[[Stage], bool]) -> None:
    """Refuses what can be refused of stages and all that teach them: each kind is looked at once.

    Args:
      queue: parents first, as of `order`.
      begin: whether a stage is still to be trained, and so to be rehearsed.
    """
    checked, rehearsed = set[Kind](), set[Kind]()
    for stage in queue:
        kind = kind_of(stage)
        if kind not in checked:
            _check(stage)
            checked.add(kind)
        if kind not in rehearsed and begin(stage):
            rehearse(stage)
            rehearsed.add(kind)


Kind = tuple[Recipe | None, ...]


def kind_of(stage: Stage) -> Kind:
    """What a stage costs, and whether it can be trained, depends on; seeds change neither."""
    family = (stage, stage.teacher, stage.as_soft_as)
    return tuple(None if member is None else member.recipe.with_seed(0) for member in family)


def rehearse(stage: Stage) -> None:
    """Traces a stage's step on shapes, with its teacher's network, before its teacher or itself is compiled.

    Raises:
      Refused: whatever network, methods and data refuse only in combination.
    """
    teacher = None if stage.teacher is None else stage.teacher.recipe.with_seed(0)
    _rehearse(stage.recipe.with_seed(0), teacher)


@functools.lru_cache(maxsize=256)
def _rehearse(recipe: Recipe, teacher_recipe: Recipe | None) -> None:
    mesh, teacher = layout.mesh(1), None
    if teacher_recipe is not None:
        pieces = parts(teacher_recipe, dataset(teacher_recipe.data))
        teacher = teachers.frozen(pieces.model, abstract_variables(teacher_recipe))
    made = tasks.task(recipe, dataset(recipe.data), teacher)
    state = tasks.abstract(made, mesh)
    weights = {
        "parameters": state.params,
        "optimizer": state.opt,
        "teacher": () if teacher is None else teacher.variables,
    }
    limits.refuse_bytes({**weights, "objective": (state.objective, state.objective_params)})
    program = step.train_step(
        model=made.parts.model,
        objective=made.parts.objective,
        optimizer=made.parts.optimizer,
        transform=made.parts.transform,
        prepare=made.parts.prepare,
        teacher=None if teacher is None else teacher.apply,
        epochs=max(made.epochs, 1),
        steps_per_epoch=made.steps_per_epoch,
        mesh=mesh,
    )
    variables = () if teacher is None else teacher.variables
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, made.batch_size, *x.shape[1:]), x.dtype),
        tasks.example_batch(made.dataset.train),
    )
    jax.eval_shape(program.function, state, None, batch, variables, np.uint32(0))


def abstract_variables(recipe: Recipe, mesh: Mesh | None = None) -> PyTree:
    """The variables of a recipe's network as shapes and dtypes, on every device of the mesh; nothing is compiled."""
    examples = dataset(recipe.data)
    pieces = parts(recipe, examples)
    raw = tasks.example(examples.train)
    shapes = jax.eval_shape(lambda x: pieces.model.init(step.random_key(0), pieces.prepare(x)), raw)
    everywhere = layout.replicated(mesh or layout.mesh(1))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})},
    )


def order(stages: Iterable[Stage]) -> list[Stage]:
    """Every stage and its ancestors, once each, parents first."""
    ordered: dict[str, Stage] = {}
    for stage in stages:
        for each in [*_lineage(stage, known=lambda ancestor: ancestor.id in ordered), stage]:
            ordered.setdefault(each.id, each)
    return list(ordered.values())


def status(stage: Stage, workdir: Path, *, contents: bool = True) -> str:
    """ "done", "resumable" or "missing"; reads and hashes the stage's files and computes nothing else.

    Args:
      contents: False goes by the sizes of the files that the manifest lists.

    Raises:
      Refused: if the directory holds a finished stage of a newer FORMAT, or another stage.
    """
    directory = stage.directory(workdir)
    if not checkpoints.verify_manifest(directory, stage.owner, contents=contents):
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
    forward = 3 * step.forward_flops(pieces.model, pieces.prepare, _shapes(examples))
    if stage.teacher is not None:
        teacher = parts(stage.teacher.recipe, dataset(stage.teacher.recipe.data))
        forward += step.forward_flops(teacher.model, teacher.prepare, _shapes(examples))
    return steps, forward * steps * recipe.batch_size, _objective_bytes(stage)


def _objective_bytes(stage: Stage) -> int:
    """Bytes of the objective's memory and parameters."""
    teacher = None
    if stage.teacher is not None:
        pieces = parts(stage.teacher.recipe, dataset(stage.teacher.recipe.data))
        teacher = teachers.frozen(pieces.model, abstract_variables(stage.teacher.recipe))
    made = tasks.abstract(tasks.task(stage.recipe, dataset(stage.recipe.data), teacher), layout.mesh(1))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((made.objective, made.objective_params)))


def _shapes(examples: Dataset) -> tuple:
    leaves, tree = jax.tree.flatten(tasks.example(examples.train))
    return tree, tuple((x.shape[1:], str(x.dtype)) for x in leaves)

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
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax import checkpoints, data, layout, limits, manifests, outputs, shapes, starts, tasks, teacher_pass, teachers
from kdjax.errors import Refused
from kdjax.parts import parts
from kdjax.recipes import Data, Recipe
from kdjax.source_code import remembered
from kdjax.step import State
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

    def __post_init__(self) -> None:
        for name, kind in (("recipe", Recipe), ("teacher", Stage | None), ("as_soft_as", Stage | None)):
            if not isinstance(given := getattr(self, name), kind):
                raise Refused(
                    f"Stage got a {type(given).__name__} as {name}; type Stage(Recipe(...), name='teacher'), and "
                    "Stage(Recipe(...), teacher) for a student."
                )

    @functools.cached_property
    def parents(self) -> tuple[Stage, ...]:
        """The stages that must be finished before this one; among them, where teacher outputs are cross-fitted, the
        teachers that each left out a part."""
        return (*(stage for stage in (self.teacher, self.as_soft_as) if stage is not None), *folds(self))

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


def folds(stage: Stage) -> tuple[Stage, ...]:
    """The teachers that a stage's cross-fitted teacher outputs come from, each trained without one part; () for none.

    The partition is by the teacher's seed, as in `kdjax.cross_fitted`.

    Raises:
      Refused: a teacher that is not trained on the student's examples, or not on them alone.
    """
    teacher, count = stage.teacher, outputs.folds(stage.recipe.teacher_outputs)
    if teacher is None or not count:
        return ()
    if teacher.recipe.data != stage.recipe.data:
        raise Refused(
            f"teacher_outputs is 'crossfit:{count}' and the teacher of {stage.name!r} has other data than its student; "
            "expected the same examples for both."
        )
    if teacher.teacher is not None or not teacher.recipe.epochs:
        raise Refused(
            f"teacher_outputs is 'crossfit:{count}' and the teacher of {stage.name!r} is not trained on these examples "
            "alone; expected epochs of training, and no teacher of its own."
        )
    recipe = teacher.recipe
    without = [dataclasses.replace(recipe.data, fold=(part, count, recipe.seed)) for part in range(count)]
    return tuple(
        Stage(dataclasses.replace(recipe, data=which), name=f"{teacher.name} without part {part} of {count}")
        for part, which in enumerate(without, start=1)
    )


def dataset(which: Data) -> Dataset:
    """The data set of a recipe, loaded once per process."""
    return _without_part(which) if which.fold else _loaded(which)


@remembered(8)
def _loaded(which: Data) -> Dataset:
    return data.load(which.name, **which.given())


# Apart from the sets that are loaded: a table leaves out many parts, and would crowd out what they are parts of.
@remembered(8)
def _without_part(which: Data) -> Dataset:
    part, count, seed = which.fold
    return data.without(_loaded(dataclasses.replace(which, fold=())), (part, count, seed))


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
    if recipe.distill is not None and stage.teacher is None:
        raise Refused(f"stage {stage.name!r} has a distillation term and no teacher; give it one.")
    if recipe.init == starts.TEACHER:
        if stage.teacher is None:
            raise Refused(f"stage {stage.name!r} begins with init='teacher' and has none; give it one, or a folder.")
        starts.check_teacher(recipe, stage.teacher.recipe)
    elif recipe.distill is None and stage.teacher is not None:
        raise Refused(f"stage {stage.name!r} has a teacher and no distillation term; set recipe.distill.method=kd.")
    if stage.as_soft_as is not None and stage.teacher is None:
        raise Refused(f"stage {stage.name!r} has as_soft_as and no teacher that could be tempered; give it one.")
    parts(recipe, examples := dataset(recipe.data))
    if recipe.distill is not None:
        outputs.how(recipe, examples)
    for parent in (stage.teacher, stage.as_soft_as):
        if parent is not None and parent.recipe.data != recipe.data:
            data.verify_splits(dataset(parent.recipe.data), examples)


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
    return tuple(None if member is None else member.recipe.kind() for member in family)


def rehearse(stage: Stage) -> None:
    """Traces a stage's step on shapes, with its teacher's network, before its teacher or itself is compiled.

    Raises:
      Refused: whatever network, methods and data refuse only in combination.
    """
    _rehearse(stage.recipe.kind(), taught_by(stage))


def taught_by(stage: Stage) -> Recipe | None:
    """The recipe, of its kind, of the teacher whose outputs a stage's objective reads."""
    return None if stage.teacher is None or stage.recipe.distill is None else stage.teacher.recipe.kind()


def abstract_teacher(recipe: Recipe, teacher_recipe: Recipe) -> teachers.Teacher:
    """A teacher as its student has it, of shapes alone."""
    examples = dataset(recipe.data)
    how = outputs.how(recipe, examples)
    shape, dtype = (len(examples.train.label), examples.num_classes), outputs.dtype(recipe.teacher_outputs)
    table = teachers.table_of(jax.ShapeDtypeStruct(shape, dtype))
    if how in (outputs.STORED, outputs.CROSSFIT):
        return table
    pieces = parts(teacher_recipe, dataset(teacher_recipe.data))
    live = teachers.frozen(pieces.model, abstract_variables(teacher_recipe))
    if how == outputs.LIVE:
        return live
    teacher_pass.check(tasks.task(recipe, examples, live), live)
    return table


@remembered(256)
def _rehearse(recipe: Recipe, teacher_recipe: Recipe | None) -> None:
    made, mesh = _abstract_task(recipe, teacher_recipe), layout.mesh(1)
    state, variables = abstract_state(recipe, teacher_recipe), tasks.teacher_variables(made)
    weights = {"parameters": state.params, "optimizer": state.opt, "teacher": variables}
    limits.refuse_bytes({**weights, "objective": (state.objective, state.objective_params)})
    program = tasks.train_program([made], mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, made.batch_size, *x.shape[1:]), x.dtype),
        tasks.example_batch(made.dataset.train),
    )
    jax.eval_shape(program.function, (state,), None, batch, variables, np.uint32(0))


def _abstract_task(recipe: Recipe, teacher_recipe: Recipe | None) -> tasks.Task:
    """The task of a kind, with its teacher's network; both networks and the optimizer are traced once for all kinds."""
    teacher = None if teacher_recipe is None else abstract_teacher(recipe, teacher_recipe)
    made = tasks.task(recipe, dataset(recipe.data), teacher)
    pieces, teacher = made.parts, made.teacher
    pieces = pieces._replace(model=shapes.model(pieces.model), optimizer=shapes.optimizer(pieces.optimizer))
    return made._replace(parts=pieces, teacher=teacher and teacher._replace(apply=shapes.teacher(teacher.apply)))


@remembered(256)
def abstract_state(recipe: Recipe, teacher_recipe: Recipe | None) -> State:
    """The state of a kind of stage, and of that of its teacher, as shapes and dtypes; nothing is compiled."""
    return tasks.abstract(_abstract_task(recipe, teacher_recipe), layout.mesh(1))


def abstract_variables(recipe: Recipe, mesh: Mesh | None = None) -> PyTree:
    """The variables of a recipe's network as shapes and dtypes, on every device of the mesh; nothing is compiled."""
    examples = dataset(recipe.data)
    pieces = parts(recipe, examples)
    everywhere = layout.replicated(mesh or layout.mesh(1))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        shapes.variables(pieces.model, pieces.prepare, tasks.example(examples.train)),
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
    manifests.refuse_foreign(directory, stage.owner)
    return "resumable" if (directory / "checkpoints").is_dir() else "missing"

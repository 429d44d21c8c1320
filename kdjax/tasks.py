"""A task: a recipe and a data set as pure functions and arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from kdjax import data, layout, models, precompute, programs, shapes, starts, step, teachers
from kdjax.errors import Refused
from kdjax.parts import Parts, parts
from kdjax.recipes import Recipe
from kdjax.step import State
from kdjax.types import Batch, Dataset, Model, PyTree, Split

Start = Callable[[], PyTree]
"""Reads the variables that a run begins with: {"params": ...} and, where it is known, "batch_stats"."""


class Task(NamedTuple):
    """A run as pure functions and arrays: everything that a training loop needs; `start` is None from scratch.

    Attributes:
      teacher: as the step takes it, what depends on its variables alone computed already.
      given: the teacher that it was made of, which tells whether two students have the same.
    """

    parts: Parts
    dataset: Dataset
    teacher: teachers.Teacher | None
    epochs: int
    batch_size: int
    seed: int
    start: Start | None = None
    given: teachers.Teacher | None = None

    @property
    def steps_per_epoch(self) -> int:
        """N // B: the last N mod B examples of an epoch's order are left out, others in every epoch."""
        return len(self.dataset.train.label) // self.batch_size

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def spec(self) -> tuple[int, int, int]:
        """(num_examples, num_classes, epochs); a network that is taken as it is counts as one epoch."""
        return len(self.dataset.train.label), self.dataset.num_classes, max(self.epochs, 1)


def task(
    recipe: Recipe,
    dataset: Dataset,
    teacher: teachers.Teacher | None = None,
    *,
    model: Model | None = None,
    optimizer: optax.GradientTransformation | None = None,
    start: Start | None = None,
) -> Task:
    """The task of a recipe on a data set, taught by `teacher` if the recipe distills.

    Args:
      model: a network of your own instead of the recipe's (`kdjax.models.linen`, `kdjax.models.nnx`).
      optimizer: an optax optimizer of your own, learning rate and schedule included, instead of the recipe's.
      start: reads the variables at step 0, where the recipe does not (`init` of a folder) and they are not drawn.

    Raises:
      Refused: a recipe that distills without a teacher, or the reverse; arguments of another kind; a network of your
        own that has another number of classes; whatever `kdjax.parts.parts` refuses.
    """
    if not isinstance(recipe, Recipe):
        raise Refused(
            f"task got a {type(recipe).__name__} where a Recipe is expected; type task(Recipe(...), dataset)."
        )
    if not isinstance(dataset, Dataset):
        raise Refused(
            f"task got a {type(dataset).__name__} where a Dataset is expected; type kdjax.data.from_arrays(...)."
        )
    if teacher is not None and not isinstance(teacher, teachers.Teacher):
        raise Refused(
            f"task got a {type(teacher).__name__} as teacher; expected a Teacher: kdjax.teachers.frozen(model, "
            "variables), or remembered(logits, of=dataset)."
        )
    if (recipe.distill is None) != (teacher is None):
        raise Refused(
            "the recipe distills and there is no teacher; type task(recipe, dataset, teacher), or distill=None."
            if teacher is None
            else "a teacher was given and the recipe does not distill; set Recipe(distill=Distill(...))."
        )
    for name in ("calibration", "test"):
        weight = getattr(dataset, name).weight
        if weight is not None and not np.isin(weight, (0, 1)).all():
            raise Refused(
                f"{name}_weight of {dataset.name!r} holds other numbers than 0 and 1, and an example is measured once "
                "or not at all; leave it out, or set it to 0 and 1."
            )
    n = len(dataset.train.label)
    if teacher is not None and teacher.num_examples not in (None, n):
        raise Refused(
            f"the remembered teacher has {teacher.num_examples} rows of logits and {dataset.name!r} has {n} training "
            "examples; type teachers.remembered(logits, of=dataset) if the rows are of your own arrays, in their order."
        )
    if model is not None and not isinstance(model, Model):
        raise Refused(
            f"model is a {type(model).__name__}; expected a kdjax Model: wrap yours by kdjax.models.linen(module) or "
            "kdjax.models.nnx(its class)."
        )
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise Refused(
            f"optimizer is a {type(optimizer).__name__}; expected an optax optimizer, such as optax.adamw(1e-3)."
        )
    pieces = parts(recipe, dataset)
    if model is not None:
        pieces = pieces._replace(model=model)
    if model is not None or models.version(recipe.model):
        _refuse_other_classes(pieces, dataset)
    if optimizer is not None:
        pieces = pieces._replace(optimizer=optimizer, schedule=None)
    if start is None and recipe.init:
        start = functools.partial(starts.variables, recipe, dataset)
    given = teacher
    if teacher is not None and teacher.by_epoch is None:
        teacher = prepared(teacher, pieces, dataset)
    return Task(pieces, dataset, teacher, recipe.epochs, recipe.batch_size, recipe.seed, start, given)


def _refuse_other_classes(pieces: Parts, dataset: Dataset) -> None:
    """Refuses a network from outside whose logits are not one for each class of the data set."""
    one = example(dataset.train)
    wanted = (1, *np.shape(dataset.train.label)[1:], dataset.num_classes)
    if (shape := shapes.logits(pieces.model, pieces.prepare, one)) != wanted:
        raise Refused(
            f"the network returns logits of shape {list(shape)} for one example, and {dataset.name!r} has "
            f"{dataset.num_classes} classes; expected {list(wanted)}: give its last layer num_classes outputs."
        )


def variables_program(task: Task, mesh: Mesh) -> programs.Program:
    """(seed, one raw example) -> the network's initial variables."""
    return step.init_variables(model=task.parts.model, prepare=task.parts.prepare, mesh=mesh)


def init_program(task: Task, mesh: Mesh) -> programs.Program:
    """(seed, one raw example, teacher variables, the network's initial variables) -> the state at step 0."""
    p = task.parts
    return step.init_step(
        model=p.model,
        objective=p.objective,
        optimizer=p.optimizer,
        spec=task.spec,
        prepare=p.prepare,
        teacher=None if task.teacher is None else task.teacher.apply,
        mesh=mesh,
    )


def teacher_variables(task: Task) -> PyTree:
    """The variables of the task's teacher as its step takes them, `()` without one: arrays, or shapes of them."""
    return () if task.teacher is None else task.teacher.variables


def prepared(teacher: teachers.Teacher, parts: Parts, dataset: Dataset) -> teachers.Teacher:
    """The teacher on that data set, with what depends on its variables alone computed once (`kdjax.precompute`).

    Students that are made one after the other of one teacher get one and the same.
    """
    batch = jax.eval_shape(lambda b: b._replace(inputs=parts.prepare(b.inputs)), example_batch(dataset.train))
    leaves, structure = jax.tree.flatten(teacher.variables)
    shapes, tree = jax.tree.flatten(batch)
    key = teacher.apply, structure, tuple(map(id, leaves)), tree, tuple((x.shape, x.dtype) for x in shapes)
    if key not in _PREPARED:
        _PREPARED.clear()
        # The leaves are kept with it, so that none of their ids is another's meanwhile.
        _PREPARED[key] = leaves, precompute.precomputed(teacher.apply, teacher.variables, batch)
    apply, variables = _PREPARED[key][1]
    return teacher._replace(apply=apply, variables=variables)


_PREPARED: dict[Hashable, tuple[list[Any], tuple[Any, PyTree]]] = {}
"""The last teacher."""


def train_program(tasks: Sequence[Task], mesh: Mesh, *, steps_per_call: int = 1) -> programs.Program:
    """The training step of a task on a mesh, or of several that share batches and teacher, see
    `kdjax.step.train_step`."""
    task = tasks[0]
    return step.train_step(
        students=tuple(step.Student(t.parts.model, t.parts.objective, t.parts.optimizer) for t in tasks),
        transform=task.parts.transform,
        prepare=task.parts.prepare,
        teacher=None if task.teacher is None else task.teacher.apply,
        epochs=max(task.epochs, 1),
        steps_per_epoch=task.steps_per_epoch,
        mesh=mesh,
        steps_per_call=steps_per_call,
    )


def example(split: Split) -> PyTree:
    """The first example of a split, with its batch axis."""
    if data.is_lazy(split):
        return split.inputs.gather(np.zeros(1, np.int64))
    return jax.tree.map(lambda x: np.asarray(x[:1]), split.inputs)


def example_batch(split: Split) -> Batch:
    """The first example of a split as a batch of one."""
    weight: Any = None if split.weight is None else np.asarray(split.weight[:1], np.float32)
    label: Any = np.asarray(split.label[:1], np.int32)
    index: Any = np.zeros(1, np.int32)
    return Batch(inputs=example(split), label=label, index=index, weight=weight)


def abstract(task: Task, mesh: Mesh) -> State:
    """The state of a task on a mesh as shapes, dtypes and shardings; nothing is compiled."""
    seed, raw = np.uint32(0), example(task.dataset.train)
    variables = jax.eval_shape(variables_program(task, mesh).jitted, seed, raw)
    shapes = jax.eval_shape(init_program(task, mesh).jitted, seed, raw, teacher_variables(task), variables)
    everywhere = layout.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)

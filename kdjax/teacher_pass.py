"""The teacher's variables in each epoch of a run; of one whose logits are kept by epoch, those logits, computed here
where they are not at hand."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax import layout, programs, step
from kdjax.elements import Elements
from kdjax.errors import Refused
from kdjax.feeds import Feed, take
from kdjax.processes import any_process, is_primary
from kdjax.tasks import Task, example_batch, prepared, teacher_variables
from kdjax.teachers import Apply, ByEpoch, Teacher
from kdjax.types import Prepare, PyTree, Transform


class TeacherVariables:
    """The variables of a task's teacher on every device of a mesh, `()` without one.

    Args:
      feed: the training split where it is on the device.
      elements: makes what a pass over the training split reads, up to a step.
    """

    def __init__(self, task: Task, mesh: Mesh, feed: Feed, elements: Callable[[int], Elements]):
        self.task, self.mesh, self.feed, self.elements = task, mesh, feed, elements
        self.by_epoch: ByEpoch | None = None if task.teacher is None else task.teacher.by_epoch
        if self.by_epoch is not None:
            check(task, self.by_epoch.live)
        self._placed: tuple[int, PyTree] | None = None

    def at(self, epoch: int) -> PyTree:
        """In an epoch, counted from 0."""
        epoch = epoch if self.by_epoch else 0
        if self._placed is None or self._placed[0] != epoch:
            self._placed = None  # so that two epochs are never on the device at once
            self._placed = (epoch, layout.place(self._variables(epoch), layout.replicated(self.mesh)))
        return self._placed[1]

    def _variables(self, epoch: int) -> PyTree:
        if self.by_epoch is None:
            return teacher_variables(self.task)
        logits = self.by_epoch.read(epoch)
        # All of several processes compute, or none: the program is theirs together.
        if any_process(logits is None):
            logits = narrowed(self._computed(epoch), self.by_epoch.dtype)
            if is_primary():
                self.by_epoch.write(epoch, logits)
        return self.by_epoch.variables(logits)

    def _computed(self, epoch: int) -> np.ndarray:
        """Logits [N, K] of an epoch's inputs; NaN for the examples that the epoch leaves out."""
        assert self.by_epoch is not None
        task, p = self.task, self.task.parts
        live = prepared(self.by_epoch.live, p, task.dataset)
        program = teacher_step(transform=p.transform, prepare=p.prepare, teacher=live.apply, mesh=self.mesh)
        variables = layout.place(live.variables, layout.replicated(self.mesh))
        seed, per_epoch = np.uint32(task.seed), task.steps_per_epoch
        elements = self.elements((epoch + 1) * per_epoch)
        table = np.full((len(task.dataset.train.label), task.dataset.num_classes), np.nan, np.float32)
        for at in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            index, logits = program(self.feed, elements.at(at, 1), variables, seed, np.int32(at))
            table[np.asarray(index)] = np.asarray(logits)
        return table


def check(task: Task, live: Teacher) -> None:
    """Refuses a task whose teacher has no one row of logits for each example of an epoch; nothing is compiled."""
    p, split = task.parts, task.dataset.train
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, task.batch_size, *x.shape[1:]), x.dtype), example_batch(split)
    )
    program = teacher_step(transform=p.transform, prepare=p.prepare, teacher=live.apply, mesh=layout.mesh(1))
    shapes = jax.eval_shape(program.function, None, rows, live.variables, np.uint32(0), np.int32(0))
    index, logits = (None if x is None else tuple(x.shape) for x in shapes)
    expected = (task.batch_size,), (task.batch_size, task.dataset.num_classes)
    if (index, logits) != expected:
        raise Refused(
            f"teacher_outputs is 'stored' and in a batch of {task.batch_size} the transform leaves indices {index} and "
            f"the teacher returns logits {logits}; expected {expected[0]} and {expected[1]}, one row for each example "
            "(not two views of it, nor regions): type teacher_outputs='live'."
        )


def narrowed(logits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The logits in the dtype in which they are kept.

    Raises:
      Refused: a logit beyond the range of float16.
    """
    largest = np.max(np.abs(logits), initial=0, where=np.isfinite(logits))
    if largest > np.finfo(dtype).max:
        raise Refused(
            f"a logit of the teacher is {largest:g} and float16 ends at {np.finfo(np.float16).max:g}; expected "
            "teacher_outputs='stored'."
        )
    return logits.astype(dtype)


@programs.shared
def teacher_step(*, transform: Transform, prepare: Prepare, teacher: Apply, mesh: Mesh) -> programs.Program:
    """(feed, elements, teacher variables, seed, step) -> (index [B], logits [B, K]) as the teacher has them in that
    step of training: of the same transformed and prepared batch."""

    def compute(feed, elements, variables, seed, at):
        batch = take(feed, jax.tree.map(lambda x: x[0], elements))
        batch = jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: layout.along_batch(mesh), batch))
        batch = step.transformed(transform, prepare, batch, programs.key_at(seed, at))
        output = teacher(variables, batch)
        return batch.index, output.logits.astype(jnp.float32)

    everywhere = layout.replicated(mesh)
    return programs.Program(
        compute,
        in_shardings=(everywhere, layout.along_steps(mesh), everywhere, everywhere, everywhere),
        out_shardings=everywhere,
    )

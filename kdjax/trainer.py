"""A task on a mesh: the training loop without files (floor 4). `train` adds checkpoints, logs and signals to it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax import step, teachers
from kdjax.data import order
from kdjax.errors import Refused
from kdjax.recipes import Parts, Recipe, parts
from kdjax.step import State
from kdjax.types import Dataset, PyTree, Spec, Split


class Diverged(RuntimeError):
    """A loss or gradient is not finite: exit code 70, the last good checkpoint is kept."""


class Task(NamedTuple):
    """A run as pure functions and arrays; all a training loop needs."""

    parts: Parts
    dataset: Dataset
    teacher: teachers.Teacher | None
    epochs: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset.train.label) // self.batch_size

    @property
    def spec(self) -> Spec:
        return Spec(len(self.dataset.train.label), self.dataset.num_classes, self.epochs)


def task(recipe: Recipe, dataset: Dataset, teacher: teachers.Teacher | None = None) -> Task:
    """The task of a recipe on a data set, taught by `teacher` if the recipe distills.

    Raises:
      Refused: whatever `Recipe.check` and `parts` refuse.
    """
    recipe.check()
    return Task(parts(recipe, dataset), dataset, teacher, recipe.epochs, recipe.batch_size, recipe.seed)


class Trainer:
    """A task on a mesh: compiled programs and resident data. Library users drive it directly; `run` adds the files.

    trainer = Trainer(task)
    state = trainer.init()
    for state, logs in trainer.steps(state):   # logs: {name: [k] device arrays}
        ...
    logits = trainer.predict(state.variables, task.dataset.test)
    """

    def __init__(self, task: Task, *, devices: int = 0, steps_per_call: int = 0, eval_batch_size: int = 500):
        self.task = task
        self.mesh = step.mesh(devices)
        step.check_batch(task.batch_size, self.mesh)
        n = self.mesh.devices.size
        self.eval_batch_size = -(-eval_batch_size // n) * n
        p, data = task.parts, task.dataset
        self.steps_per_call = steps_per_call or _steps_per_call(task.steps_per_epoch)
        shared = {"model": p.model, "objective": p.objective, "optimizer": p.optimizer, "mesh": self.mesh}
        self._step = functools.partial(
            step.train_step,
            **shared,
            transform=p.transform,
            teacher=None if task.teacher is None else task.teacher.apply,
            total_steps=task.epochs * task.steps_per_epoch,
        )
        self._init = _init(task, self.mesh)
        self._predict = step.predict_step(model=p.model, preprocess=p.preprocess, mesh=self.mesh)
        self.train_data = step.resident(data.train.inputs, data.train.label, self.mesh)
        self._calibration: step.Resident | None = None
        variables = () if task.teacher is None else task.teacher.variables
        self.teacher_variables = step.place(variables, step.replicated(self.mesh))

    def init(self) -> State:
        """The state at step 0."""
        return self._init(np.uint32(self.task.seed), _example(self.task))

    def abstract(self) -> State:
        """Shapes, dtypes and shardings of the state: what a checkpoint must fit."""
        return abstract(self.task, self.mesh)

    def steps(self, state: State, *, stop: int | None = None) -> Iterator[tuple[State, dict[str, Any]]]:
        """Trains from `state` to the end of its epoch, or to step `stop`; yields (state, logs) after each call.

        The state passed in is donated, and so is each one yielded, to the next call. `refresh` is the caller's, at the
        end of the epoch.
        """
        per_epoch, seed = self.task.steps_per_epoch, np.uint32(self.task.seed)
        at = int(state.step)
        epoch, position = divmod(at, per_epoch)
        indices = order.epoch_order(
            len(self.task.dataset.train.label), self.task.batch_size, seed=self.task.seed, epoch=epoch
        )
        while position < per_epoch and (stop is None or at < stop):
            # A call never crosses an epoch's end; a shorter last call is one more compile and the same numbers.
            k = min(self.steps_per_call, per_epoch - position, per_epoch if stop is None else stop - at)
            program = self._step(steps_per_call=k)
            rows = step.place_order(indices[position : position + k], self.mesh)
            state, logs = program(state, self.train_data, rows, self.teacher_variables, seed)
            position, at = position + k, at + k
            yield state, logs

    def predict(self, variables: PyTree, split: Split) -> np.ndarray:
        """Logits [N, K] of a split, every example once."""
        n = len(split.label)
        size = min(self.eval_batch_size, -(-n // self.mesh.devices.size) * self.mesh.devices.size)
        if split is self.task.dataset.calibration:
            self._calibration = self._calibration or step.resident(split.inputs, split.label, self.mesh)
            data = self._calibration
        else:
            data = step.resident(split.inputs, split.label, self.mesh)
        batches, _ = order.eval_batches(n, size)
        return step.predict(self._predict, variables, data, list(batches), n, self.mesh)

    def refresh(self, state: State, logits: np.ndarray, labels: np.ndarray) -> State:
        """The objective's once-an-epoch update from the calibration split; the same state if it has none."""
        objective = self.task.parts.objective
        if objective.refresh is None:
            return state
        program = step.refresh_step(objective, self.mesh)
        return state._replace(objective=program(state.objective, logits, np.asarray(labels, np.int32)))


def _steps_per_call(per_epoch: int) -> int:
    """1 on CPU, where gradient convolutions in a loop fall to a slow kernel; elsewhere up to 16, preferably a divisor
    of the epoch, because a shorter last call is a compile of its own."""
    if jax.default_backend() == "cpu":
        return 1
    divisor = max(k for k in range(1, 17) if per_epoch % k == 0)
    return divisor if divisor > 2 else min(8, per_epoch)


def _init(task: Task, mesh: Mesh) -> step.Program:
    p = task.parts
    return step.init_step(
        model=p.model, objective=p.objective, optimizer=p.optimizer, spec=task.spec, preprocess=p.preprocess, mesh=mesh
    )


def _example(task: Task) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x[:1]), task.dataset.train.inputs)


def abstract(task: Task, mesh: Mesh) -> State:
    """The state of a task on a mesh as shapes, dtypes and shardings; nothing is compiled."""
    shapes = jax.eval_shape(_init(task, mesh).jitted, np.uint32(0), _example(task))
    whole = step.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def fit(trainer: Trainer, state: State | None = None) -> State:
    """Trains to the end in memory, without files: the loop of `run` and nothing else."""
    state = trainer.init() if state is None else state
    total = trainer.task.epochs * trainer.task.steps_per_epoch
    while int(state.step) < total:
        before = int(state.step)
        collected = []
        for state, logs in trainer.steps(state):
            collected.append(logs)
        refuse_divergence(gather(collected), before, "this run")
        if trainer.task.parts.objective.refresh is not None:
            split = trainer.task.dataset.calibration
            state = trainer.refresh(state, trainer.predict(state.variables, split), split.label)
    return state


def cross_fitted(recipe: Recipe, dataset: Dataset, folds: int = 5, *, devices: int = 0) -> np.ndarray:
    """Logits [N, K] of the training split, each row from a network that was not trained on that example.

        teacher = teachers.remembered(cross_fitted(recipe, dataset, folds=5))

    A network is nearly always right on what it was trained on, so that W-Clip and every other correction of mistakes
    hardly fires on its own training set; on these rows the teacher errs as often as on new data. The folds are a random
    partition by `recipe.seed`; each of the `folds` networks trains on the others by the whole recipe and predicts its
    own without augmentation. Row n is `dataset.train`'s n-th example, as `batch.index` counts them.

    Raises:
      Refused: folds outside [2, N]; a recipe that distills; whatever `task` refuses (a batch larger than the others).
      Diverged: as `fit`.
    """
    n = len(dataset.train.label)
    if not isinstance(folds, int) or not 2 <= folds <= n:
        raise Refused(f"folds is {folds!r}; expected a whole number between 2 and the {n} training examples.")
    if recipe.distill is not None:
        raise Refused("a recipe that distills was given to cross_fitted, which trains teachers; set distill=None.")
    logits = np.empty((n, dataset.num_classes), np.float32)
    for held in np.array_split(np.random.default_rng(recipe.seed).permutation(n), folds):
        others = np.setdiff1d(np.arange(n), held)
        trainer = Trainer(task(recipe, dataset._replace(train=_rows(dataset.train, others))), devices=devices)
        logits[held] = trainer.predict(fit(trainer).variables, _rows(dataset.train, held))
    return logits


def _rows(split: Split, rows: np.ndarray) -> Split:
    return Split(jax.tree.map(lambda x: x[rows], split.inputs), split.label[rows], split.index[rows])


def gather(collected: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The logs of many calls as one [steps] array a name, fetched at once."""
    host = jax.device_get(collected)
    return {name: np.concatenate([np.atleast_1d(c[name]) for c in host]) for name in (host[0] if host else ())}


def refuse_divergence(logs: Mapping[str, np.ndarray], before: int, what: str, rate: Any = None) -> None:
    """Raises Diverged, naming the first bad step, the term and the learning rate, if any value is not finite."""
    bad = step.finite(logs)
    if bad is None:
        return
    position, name = bad
    lr = "" if rate is None else f" at learning rate {float(rate(before + position)):.3g}"
    raise Diverged(
        f"{what}: term {name!r} is {logs[name][position]} at step {before + position + 1}{lr}; the last checkpoint is "
        "kept. Lower recipe optimizer.lr, or set optimizer.clip_norm."
    )

"""A task on a mesh: the training loop without files. `kdjax.runs` adds checkpoints, logs and signals to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax import data, layout, programs, step
from kdjax.cohort import Cohort, Diverged, Progress, refuse_different, shared
from kdjax.data import order
from kdjax.elements import Elements
from kdjax.errors import Refused, one_of
from kdjax.feeds import FEEDS, Feed
from kdjax.recipes import Recipe
from kdjax.step import State
from kdjax.tasks import Task, abstract, example, init_program, task, variables_program
from kdjax.teacher_pass import TeacherVariables
from kdjax.types import Dataset, PyTree, Split


class Trainer:
    """A task on a mesh: compiled programs and resident data. Library users drive it directly; `kdjax.runs` adds files.

        trainer = Trainer(task(recipe, dataset))
        for progress in trainer.epochs(trainer.init()):
            print(progress.epoch, progress.logs["loss"].mean())
        logits = trainer.predict(progress.state.variables, dataset.test)

    Args:
      devices: how many; 0 means all.
      steps_per_call: optimizer steps scanned per compiled call; 0 chooses.
      eval_batch_size: examples per prediction call.
      feed: "resident" keeps the training split on the device, "streamed" sends batches from the host; "auto" streams
        what is not in memory. The numbers are the same.
      readers: threads that read and decode a stream.
      beside: another trainer of the same `kdjax.Cohort`, whose devices, data and teacher on them this one takes.
    """

    def __init__(
        self,
        task: Task,
        *,
        devices: int = 0,
        steps_per_call: int = 0,
        eval_batch_size: int = 500,
        feed: str = "auto",
        readers: int = 8,
        beside: Trainer | None = None,
    ):
        if not isinstance(task, Task):
            raise Refused(f"Trainer got a {type(task).__name__}; expected a Task: type Trainer(task(recipe, dataset)).")
        self.task = task
        if beside is not None:
            refuse_different([shared(beside.task), shared(task)])
        self._lead: Trainer = self if beside is None else beside._lead
        self.mesh: Mesh = layout.mesh(devices) if beside is None else beside.mesh
        layout.check_batch(task.batch_size, self.mesh)
        n = self.mesh.devices.size
        self.eval_batch_size = -(-eval_batch_size // n) * n
        self.readers = readers
        self.steps_per_call = steps_per_call or usual_steps_per_call(task.steps_per_epoch, jax.default_backend())
        p = task.parts
        self._predict = step.predict_step(model=p.model, prepare=p.prepare, mesh=self.mesh)
        one_of("feed", feed, FEEDS)
        self._calibration: Feed = None
        if beside is None:
            self.streamed = feed == "streamed" or (feed == "auto" and data.is_lazy(task.dataset.train))
            self.feed: Feed = None if self.streamed else self._resident(task.dataset.train)
            self.elements = self._new_elements(task.total_steps)
            self.teacher_variables = TeacherVariables(task, self.mesh, self.feed, self._new_elements)
        else:
            self.steps_per_call, self.streamed, self.feed = beside.steps_per_call, beside.streamed, beside.feed
            self.elements, self.teacher_variables = beside.elements, beside.teacher_variables

    def init(self) -> State:
        """The state at step 0."""
        seed, raw = np.uint32(self.task.seed), example(self.task.dataset.train)
        variables = self._initial_variables(seed, raw)
        return init_program(self.task, self.mesh)(seed, raw, self.teacher_variables.at(0), variables)

    def _initial_variables(self, seed: np.uint32, raw: PyTree) -> PyTree:
        """Those that the task starts from; the collections that they lack are the network's own."""
        initialize = variables_program(self.task, self.mesh)
        if self.task.start is None:
            return initialize(seed, raw)
        given = layout.place(self.task.start(), layout.replicated(self.mesh))
        shapes = jax.eval_shape(initialize.function, seed, raw)
        # A network without BatchNorm has an empty collection of statistics, for which nothing need be computed.
        lacking = jax.tree.leaves({name: shape for name, shape in shapes.items() if name not in given})
        return {**(initialize(seed, raw) if lacking else shapes), **given}

    def abstract(self) -> State:
        """Shapes, dtypes and shardings of the state: what a checkpoint must fit."""
        return abstract(self.task, self.mesh)

    def epochs(
        self,
        state: State | None = None,
        *,
        every: int = 0,
        asked: Callable[[], bool] = lambda: False,
        evaluate: bool = False,
    ) -> Iterator[Progress]:
        """Trains from `state` to the end of the run; yields after every epoch, its refresh included.

        Args:
          state: from step 0 by default; any other step goes on from there, in mid-epoch too. It is used up: the first
            step takes over its memory.
          every: yield also after every so many steps; 0 only at the end of epochs.
          asked: asked after each call; once True, the steps so far are yielded and the caller decides.
          evaluate: compute `calibration_logits` every epoch, and not only for objectives that refresh on them.

        Raises:
          Diverged: a term, or a logit of the calibration split, is not finite.
          Refused: a state that was trained on before.
        """
        states = None if state is None else [state]
        for (outcome,) in Cohort([self]).epochs(states, every=every, asked=asked, evaluate=evaluate):
            if isinstance(outcome, Diverged):
                raise outcome
            yield outcome

    def steps(self, state: State, *, stop: int | None = None) -> Iterator[tuple[State, dict[str, Any]]]:
        """From `state` to the end of its epoch, or to step `stop`; yields (state, logs) after each call, without the
        refresh at the end of an epoch. The state passed in is donated, and so is each one yielded, to the next call."""
        for (state,), (logs,) in Cohort([self]).steps([state], stop=stop):
            yield state, logs

    def refreshed(self, state: State, *, evaluate: bool = False) -> tuple[State, np.ndarray | None]:
        """(the state after the objective's once-an-epoch update, the calibration logits that it was made from).

        Objectives without an update keep their state, and no logits are computed unless `evaluate` asks for them.
        """
        objective = self.task.parts.objective
        if objective.refresh is None and not evaluate:
            return state, None
        split = self.task.dataset.calibration
        logits = self.predict(state.variables, split)
        rows, labels = data.existing_rows(logits, split)
        # A logit of -inf leaves its class out; rows without an example may hold anything.
        if not np.isfinite(rows.max(axis=-1, initial=-np.inf)).all():
            # The last step's loss was taken before its update: what that update broke shows here first.
            raise Diverged(
                f"logits of the calibration split are not finite after step {int(state.step)}; the last checkpoint is "
                "kept. Lower recipe optimizer.lr, or set optimizer.clip_norm."
            )
        if objective.refresh is None:
            return state, logits
        program = step.refresh_step(objective=objective, mesh=self.mesh)
        return state._replace(objective=program(state.objective, rows, labels)), logits

    def predict(self, variables: PyTree, split: Split) -> np.ndarray:
        """Logits [N, K] or [N, R, K] of a split, every example once.

        Raises:
          Refused: something else than a network's variables and a split; variables of a state that was trained on.
        """
        if not isinstance(split, Split) or not isinstance(variables, Mapping):
            raise Refused(
                f"Trainer.predict got a {type(variables).__name__} and a {type(split).__name__}; expected variables "
                "and a split: type trainer.predict(state.variables, dataset.test)."
            )
        layout.refuse_used_up(variables)
        feed: Feed = None
        if split is self._lead.task.dataset.calibration and not data.is_lazy(split):
            feed = self._lead._calibration = self._lead._calibration or self._resident(split)
        return predict(self._predict, variables, split, self.mesh, self.eval_batch_size, feed)

    def _resident(self, split: Split) -> Feed:
        return resident(split, self.mesh)

    def _new_elements(self, stop_step: int) -> Elements:
        task = self.task
        return Elements(
            task.dataset.train,
            task.batch_size,
            task.seed,
            self.mesh,
            streamed=self.streamed,
            stop_step=stop_step,
            readers=self.readers,
        )


def resident(split: Split, mesh: Mesh) -> Feed:
    """A split on the device."""
    split = data.in_memory(split)
    return layout.resident(split.inputs, split.label, mesh, split.weight)


def predict(
    program: programs.Program, variables: PyTree, split: Split, mesh: Mesh, batch_size: int, feed: Feed = None
) -> np.ndarray:
    """Logits [N, K] or [N, R, K] of a split, every example once.

    Args:
      program: of `step.predict_step`, on the same mesh.
      batch_size: of each call; a multiple of the number of devices.
      feed: the split where it is on the device already.
    """
    n, shards = len(split.label), mesh.devices.size
    positions, _ = order.eval_batches(n, min(batch_size, -(-n // shards) * shards))
    if data.is_lazy(split):
        return step.predict(program, variables, None, data.prediction_batches(split, positions), n, mesh)
    feed = resident(split, mesh) if feed is None else feed
    return step.predict(program, variables, feed, list(positions), n, mesh)


def usual_steps_per_call(per_epoch: int, platform: str) -> int:
    """1 on CPU, where gradient convolutions in a loop fall to a slow kernel; elsewhere up to 16, preferably a divisor
    of the epoch, because a shorter last call is a compile of its own."""
    if platform == "cpu":
        return 1
    divisor = max(k for k in range(1, 17) if per_epoch % k == 0)
    return divisor if divisor > 2 else min(8, per_epoch)


def fit(trainer: Trainer, state: State | None = None) -> State:
    """Trains to the end in memory, without files; returns the last state. The state passed in is used up."""
    state = trainer.init() if state is None else state
    for progress in trainer.epochs(state):
        state = progress.state
    return state


def cross_fitted(recipe: Recipe, dataset: Dataset, folds: int = 5, *, devices: int = 0) -> np.ndarray:
    """Logits [N, K] of the training split, each row from a network that was not trained on that example.

        teacher = teachers.remembered(cross_fitted(recipe, dataset, folds=5))

    A network is nearly always right on what it was trained on, so that W-Clip and every other correction of mistakes
    hardly fires on its own training set; on these rows the teacher errs as often as on new data. The folds are a random
    partition by `recipe.seed`; each of the `folds` networks trains on the others by the whole recipe and predicts its
    own without augmentation. Row n is `dataset.train`'s n-th example, as `batch.index` counts them.

    Raises:
      Refused: folds outside [2, N]; labels of regions; a recipe that distills; whatever `task` refuses (a batch larger
        than the others).
      Diverged: as `Trainer.epochs`.
    """
    n = len(dataset.train.label)
    if np.ndim(dataset.train.label) != 1:
        raise Refused(
            f"cross_fitted was given labels of shape {list(np.shape(dataset.train.label))}, of regions; expected "
            "one label for each example: teach regions by a frozen teacher."
        )
    parts = data.held_out(n, folds, recipe.seed)
    if recipe.distill is not None:
        raise Refused("a recipe that distills was given to cross_fitted, which trains teachers; set distill=None.")
    logits = np.empty((n, dataset.num_classes), np.float32)
    for part, held_out in enumerate(parts):
        trainer = Trainer(task(recipe, data.without(dataset, (part, folds, recipe.seed))), devices=devices)
        logits[held_out] = trainer.predict(fit(trainer).variables, data.take(dataset.train, held_out))
    return logits

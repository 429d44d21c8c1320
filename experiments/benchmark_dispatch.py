"""What one call of the train step costs when there is nothing to compute, and how often a stage compiles.

Both are read off the real `kdjax.step` through the real Trainer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.spread import spread
from kdjax import data, objectives, step, teachers
from kdjax.parts import Parts, parts
from kdjax.recipes import Distill, Recipe
from kdjax.tasks import Task, train_program
from kdjax.trainer import Trainer
from kdjax.transforms import chain
from kdjax.types import Model, Output

LEAVES = (1, 240)  # one parameter; and as many as a WRN-40 has arrays of parameters and momenta


def empty(leaves: int) -> Model:
    """A model of `leaves` scalar parameters that does next to nothing: its logits are their sum."""

    def init(key, inputs):
        return {"params": {f"w{i:04d}": jnp.zeros(()) for i in range(leaves)}, "batch_stats": {}}

    def apply(variables, inputs, *, train, key=None):
        total = sum(jax.tree.leaves(variables["params"]), jnp.float32(0))
        return Output(jnp.full((inputs.shape[0], 2), total)), variables["batch_stats"]

    return Model(init, apply, f"empty_{leaves}")


def empty_trainer(leaves: int, calls: int) -> Trainer:
    """The real Trainer around it: NLL, SGD with momentum, no transform, one example a step, `calls` steps an epoch."""
    x, y = np.arange(calls + 2, dtype=np.float32)[:, None], np.zeros(calls + 2, np.int32)
    train, calibration, test = (x[2:], y[2:]), (x[:1], y[:1]), (x[1:2], y[1:2])
    dataset = data.from_arrays(train, test, calibration, num_classes=2, normalization="none")
    pieces = Parts(
        empty(leaves),
        objectives.build("nll"),
        optax.sgd(0.1, 0.9),
        optax.constant_schedule(0.1),
        chain(),
        dataset.prepare,
    )
    return Trainer(Task(pieces, dataset, None, 1, 1, 0), devices=1, steps_per_call=1)


def dispatch(leaves: int, calls: int, warmup: int = 20) -> list[dict[str, Any]]:
    """Microseconds a call of the step with an empty model, of the Trainer's loop around it, and of a bare `jax.jit`.

    `returns`: until the call gives back control; `done`: until its results are there too.
    """
    trainer = empty_trainer(leaves, calls + warmup)
    state = trainer.init()
    bare = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    program = train_program([trainer.task], trainer.mesh)
    row, seed = np.zeros((1, 1), np.int32), np.uint32(0)
    number = len(jax.tree.leaves(state))
    rows = []

    def measure(name: str, call: Callable[[Any], Any], carry: Any) -> None:
        returns, done = [], []
        for i in range(calls + warmup):
            began = time.perf_counter()
            carry = call(carry)
            returned = time.perf_counter()
            jax.block_until_ready(carry)
            if i >= warmup:
                returns.append(1e6 * (returned - began))
                done.append(1e6 * (time.perf_counter() - began))
        what = {"what": name, "ours": call is not bare, "model_leaves": leaves, "state_leaves": number}
        rows.append({**what, "returns_us": spread(returns), "done_us": spread(done)})

    measure("jax.jit of x + 1 on as many leaves", bare, jax.tree.map(jnp.array, state))
    measure(
        "kdjax.step.train_step",
        lambda s: program(s, trainer.feed, row, trainer.teacher_variables.at(0), seed)[0],
        (jax.tree.map(jnp.array, state),),
    )
    loop = trainer.steps(state)
    measure("Trainer.steps", lambda _: next(loop)[0], None)
    return rows


# A stage that uses every program there is: training, prediction and the objective's refresh, with a teacher.
EPOCHS = 2


def traces() -> list[dict[str, Any]]:
    """How often each program of a two-epoch stage is traced, which is how often it is compiled, by split.

    AdaFocal refreshes its state each epoch; the student of it learns from a frozen teacher.
    """
    rng = np.random.default_rng(0)

    def split(n):
        return rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 4, n).astype(np.int32)

    dataset = data.from_arrays(split(80), split(24), split(16), num_classes=4)
    teacher = Recipe(model="mlp", method="adafocal", epochs=EPOCHS, batch_size=16, transform=("pad_crop", "flip"))
    student = dataclasses.replace(teacher, distill=Distill("kd", {"T": 4.0}))
    pieces = parts(teacher, dataset)
    teacher_trainer = Trainer(Task(pieces, dataset, None, EPOCHS, 16, 0), devices=1)
    rows = _traces("teacher", teacher_trainer)
    frozen = teachers.frozen(pieces.model, teacher_trainer.init().variables)
    return rows + _traces("student", Trainer(Task(parts(student, dataset), dataset, frozen, EPOCHS, 16, 0), devices=1))


def _traces(stage: str, trainer: Trainer) -> list[dict[str, Any]]:
    dataset, objective = trainer.task.dataset, trainer.task.parts.objective
    calls = [train_program([trainer.task], trainer.mesh, steps_per_call=k + 1) for k in range(trainer.steps_per_call)]
    # Equal networks share a program, so a student's may have been traced for its teacher.
    before = trainer._predict.traces
    state = trainer.init()
    for _ in range(EPOCHS):
        for state, _ in trainer.steps(state):
            pass
        state, _ = trainer.refreshed(state, evaluate=True)
    calibration = trainer._predict.traces
    trainer.predict(state.variables, dataset.test)
    counts = {
        ("train", "train_step"): sum(program.traces for program in calls),
        ("calibration", "predict_step"): calibration - before,
        ("calibration", "refresh_step"): step.refresh_step(objective=objective, mesh=trainer.mesh).traces,
        ("test", "predict_step"): trainer._predict.traces - calibration,
    }
    return [{"stage": stage, "split": a, "program": b, "traces": n} for (a, b), n in counts.items()]

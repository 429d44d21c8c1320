"""State, the one train step, prediction, and the mesh: everything that is compiled for training.

Randomness is a function of (seed, step) and nothing else, and the data order is a function of (seed, epoch), so a run
that is stopped and resumed at any step computes the same numbers as one that was not. Batch-coupled losses see the
global batch, because the step is one `jit` over a `data` mesh: the number of devices changes the speed, not the method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from kdjax.errors import Refused
from kdjax.feeds import Feed, take
from kdjax.layout import along_batch, along_steps, place, replicated
from kdjax.objectives.core import Objective
from kdjax.objectives.rows import as_rows
from kdjax.programs import Program, key_at, random_key, shared
from kdjax.types import Batch, Clock, Model, Output, Prepare, PyTree, Spec, Transform, Variables


class State(NamedTuple):
    """All that training changes, and so all that a checkpoint holds. No key, no iterator, no teacher.

    Attributes:
      step: [], int32, optimizer steps completed.
      params, batch_stats: the model's.
      opt: the optimizer's, over (params, objective_params).
      objective: the objective's memory.
      objective_params: the objective's trained parameters, `()` for most.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt: PyTree
    objective: PyTree
    objective_params: PyTree = ()

    @property
    def variables(self) -> Variables:
        """What the model needs, and a student that is loaded later consists of."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Student(NamedTuple):
    """What is a student's own in a step; batch and teacher are common to all students of it."""

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation


def transformed(transform: Transform, prepare: Prepare, batch: Batch, key: jax.Array) -> Batch:
    """The batch of a step as teacher and students see it."""
    batch = transform(jax.random.fold_in(key, 0), batch)
    return batch._replace(inputs=prepare(batch.inputs))


class _Shapes(Mapping[str, jax.ShapeDtypeStruct]):
    """Features by name, traced when an objective first asks: most never do."""

    def __init__(self, trace: Callable[[], Mapping[str, Any]]):
        self._features = functools.cache(trace)

    def __getitem__(self, name: str) -> jax.ShapeDtypeStruct:
        return self._features()[name]

    def __iter__(self):
        return iter(self._features())

    def __len__(self) -> int:
        return len(self._features())


@shared
def init_variables(*, model: Model, prepare: Prepare, mesh: Mesh) -> Program:
    """(seed, raw inputs) -> the model's initial variables. Only the shapes of the inputs matter.

    It is separate from `init_step`, so that all recipes with the same network share one compiled program.
    """

    def variables(seed, inputs):
        return model.init(random_key(seed), prepare(inputs))

    # At LLVM's optimization level 1 a CPU compiles it in a third of the time, and computes the same numbers.
    light = mesh.devices.flat[0].platform == "cpu" and not jax.config.read("jax_disable_most_optimizations")
    options = {"xla_backend_optimization_level": 1} if light else None
    return Program(variables, out_shardings=replicated(mesh), compiler_options=options)


@shared
def init_step(
    *,
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    spec: tuple[int, int, int],
    prepare: Prepare,
    teacher: Callable[[Variables, Batch], Output] | None,
    mesh: Mesh,
) -> Program:
    """(seed, raw inputs, teacher variables, the model's initial variables) -> the state at step 0. Only the shapes of
    the inputs matter. `spec` is (num_examples, num_classes, epochs)."""

    def create(seed, inputs, teacher_variables, variables):
        key = random_key(seed)
        inputs = prepare(inputs)

        def student_features():
            return jax.eval_shape(lambda v, x: model.apply(v, x, train=False)[0].features, variables, inputs)

        def teacher_features():
            if teacher is None:
                return {}
            batch = Batch(inputs=inputs, label=jnp.zeros(1, jnp.int32), index=jnp.zeros(1, jnp.int32))
            return jax.eval_shape(lambda v, b: teacher(v, b).features, teacher_variables, batch)

        about = Spec(*spec, _Shapes(student_features), _Shapes(teacher_features))
        params, stats = variables["params"], variables.get("batch_stats", {})
        objective_params, memory = objective.init(about, jax.random.fold_in(key, 1))
        return State(jnp.int32(0), params, stats, optimizer.init((params, objective_params)), memory, objective_params)

    return Program(create, out_shardings=replicated(mesh))


@shared
def train_step(
    *,
    students: tuple[Student, ...],
    transform: Transform,
    prepare: Prepare,
    teacher: Callable[[Variables, Batch], Output] | None,
    epochs: int,
    steps_per_epoch: int,
    mesh: Mesh,
    steps_per_call: int = 1,
) -> Program:
    """The one training step, compiled, of one student or of several that learn from the same batches and teacher.

        key = fold_in(key(seed), step) -> batch -> transform -> prepare -> teacher
            -> of each student: value_and_grad(model, rows, objective) -> optimizer -> its next state

    Students are unrolled and never vmapped: under vmap the gradients of filters are 20 times slower on a CPU.

    Returns:
      (states, feed, elements, teacher variables, seed) -> (states, logs), tuples with an entry for each student. `feed`
      is a resident split, or None; `elements` are [steps_per_call, B] positions in it, or batches of arrays with the
      same leading axes. An entry of `logs` maps names to [steps_per_call] float32 arrays: `loss` (the sum that was
      differentiated), each term by name, `accuracy` where labels exist, and `grad_norm`. The states, which are at the
      same step, are donated; teacher variables and resident data never are.
    """

    def update(student: Student, state: State, batch: Batch, key):
        progress = state.step.astype(jnp.float32) / (epochs * steps_per_epoch)
        clock = Clock(state.step, state.step // steps_per_epoch, progress, epochs)

        def loss(trained):
            params, objective_params = trained
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, stats = student.model.apply(variables, batch.inputs, train=True, key=jax.random.fold_in(key, 1))
            rows, output = as_rows(batch, output)
            terms, memory = student.objective.apply(objective_params, state.objective, rows, output, clock)
            total = sum(output.terms.values(), terms.total)
            return total, ({**output.terms, **terms.losses, **terms.logs}, memory, stats, accuracy(rows, output))

        trained = (state.params, state.objective_params)
        (total, (logs, memory, stats, right)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, opt = student.optimizer.update(grads, state.opt, trained)
        params, objective_params = optax.apply_updates(trained, updates)
        # Of one vector: summed leaf by leaf, the norm would be a kernel for every parameter.
        norm = jnp.linalg.norm(ravel_pytree(grads)[0])
        logs = {"loss": total, "grad_norm": norm, **logs, **right}
        logs = {name: jnp.asarray(value, jnp.float32) for name, value in logs.items()}
        return State(state.step + 1, params, stats, opt, memory, objective_params), logs

    def one(states: tuple[State, ...], feed: Feed, element, teacher_variables, seed):
        key = key_at(seed, states[0].step)
        batch = take(feed, element)
        batch = jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: along_batch(mesh), batch))
        batch = transformed(transform, prepare, batch, key)
        if teacher is not None:
            batch = batch._replace(teacher=jax.lax.stop_gradient(teacher(teacher_variables, batch)))
        updated: list[tuple[State, dict[str, Any]]] = []
        for student, state in zip(students, states, strict=True):
            if updated and mesh.devices.flat[0].platform == "cpu":
                batch = batch._replace(inputs=_after(updated[-1][1]["grad_norm"], batch.inputs))
            updated.append(update(student, state, batch, key))
        return tuple(state for state, _ in updated), tuple(logs for _, logs in updated)

    def step(states, feed, elements, teacher_variables, seed):
        if steps_per_call == 1:
            states, logs = one(states, feed, jax.tree.map(lambda x: x[0], elements), teacher_variables, seed)
            return states, jax.tree.map(lambda x: x[None], logs)
        names: list[list[str]] = []

        def packed(states, element):
            states, logs = one(states, feed, element, teacher_variables, seed)
            names[:] = map(list, logs)
            # One array for a student to write in each step, not one a name.
            return states, tuple(jnp.stack([*of_one.values()]) for of_one in logs)

        states, rows = jax.lax.scan(packed, states, elements)
        return states, tuple(dict(zip(keys, values.T, strict=True)) for keys, values in zip(names, rows, strict=True))

    everywhere = replicated(mesh)
    return Program(
        step,
        in_shardings=(everywhere, everywhere, along_steps(mesh), everywhere, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def _after(norm: Float[Array, ""], inputs: PyTree) -> PyTree:
    """The inputs, which nothing can read before that norm, never negative, is known.

    So one student follows the other. XLA would compute them side by side, and the activations of all of them do not fit
    a CPU's caches; its optimization barriers are dropped there before the order is decided.
    """
    return jax.tree.map(lambda x: jnp.where(norm < -1, jnp.zeros_like(x), x), inputs)


def accuracy(rows: Batch, output: Output) -> dict[str, Float[Array, ""]]:
    """{"accuracy": share of rows whose first largest logit is the label}, by their weights; {} without labels."""
    if rows.label is None:
        return {}
    right = (jnp.argmax(output.logits, -1) == rows.label).astype(jnp.float32)
    if rows.weight is None:
        return {"accuracy": jnp.mean(right)}
    total = jnp.sum(rows.weight)
    return {"accuracy": jnp.sum(right * rows.weight) / jnp.where(total > 0, total, 1.0)}


@shared
def predict_step(*, model: Model, prepare: Prepare, mesh: Mesh) -> Program:
    """(variables, feed, element) -> logits [B, K] or [B, R, K], float32, in evaluation mode, the same on every
    process; feed and element as in `train_step`, without the axis of steps."""

    def predict(variables, feed: Feed, element):
        return model.apply(variables, prepare(take(feed, element).inputs), train=False)[0].logits

    everywhere = replicated(mesh)
    return Program(predict, in_shardings=(everywhere, everywhere, along_batch(mesh)), out_shardings=everywhere)


def predict(
    program: Program, variables: Variables, feed: Feed, elements: Iterable[PyTree], num_examples: int, mesh: Mesh
) -> Float[np.ndarray, "N *R K"]:
    """Logits of a split; `elements` are batches of one shape that cover it in order, the last one padded."""
    sharding = along_batch(mesh)
    single = jax.process_count() == 1
    outputs = [program(variables, feed, e if single else place(e, sharding)) for e in elements]
    return np.concatenate([np.asarray(logits) for logits in outputs])[:num_examples]


@shared
def refresh_step(*, objective: Objective, mesh: Mesh) -> Program:
    """(objective state, logits [N, K], labels [N]) -> objective state, once an epoch on the calibration split."""
    if objective.refresh is None:
        raise Refused("this objective has nothing to refresh; ask `objective.refresh is None` first.")
    return Program(objective.refresh, out_shardings=replicated(mesh))


def first_not_finite(logs: Mapping[str, np.ndarray]) -> tuple[int, str] | None:
    """The first (position, name) whose value is not finite, terms before totals; None when all are."""
    bad = [
        (int(np.argmax(~np.isfinite(values))), name in ("loss", "grad_norm"), name)
        for name, values in logs.items()
        if not np.all(np.isfinite(values))
    ]
    if not bad:
        return None
    position, _, name = min(bad)
    return position, name

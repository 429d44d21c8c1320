"""State, the one train step, prediction, and the mesh: all compilation of training is here (floor 3).

Randomness is a function of (seed, step) and nothing else, and the data order arrives as indices, so a run that is
stopped and resumed at any step computes the same numbers as one that was not. Batch-coupled losses see the global
batch, because the step is one `jit` over a `data` mesh: the number of devices is a matter of speed, not of meaning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from kdjax.errors import Refused
from kdjax.objectives.core import Objective
from kdjax.types import Batch, Model, Output, PyTree, Spec, Transform, Variables


class State(NamedTuple):
    """All that training changes, and so all that a checkpoint holds. No key, no iterator, no teacher."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt: PyTree
    objective: PyTree

    @property
    def variables(self) -> Variables:
        return {"params": self.params, "batch_stats": self.batch_stats}


class Resident(NamedTuple):
    """A split that lives on the device whole; a batch is gathered from it inside the step.

    Attributes:
      inputs: pytree of [N, ...], in the source's dtype (uint8 pixels stay uint8 until after the crop).
      label: [N].
    """

    inputs: PyTree
    label: Int[Array, "N"]


class Program:
    """A compiled function that counts its traces: one per set of shapes, and a test holds it to that.

    `fn` is the function itself, for a look at its shapes that counts as no trace.
    """

    def __init__(self, fn: Callable, **jit: Any):
        self.traces = 0
        self.fn = fn

        @functools.wraps(fn)
        def counted(*args):
            self.traces += 1
            return fn(*args)

        self.jitted = jax.jit(counted, **jit)

    def __call__(self, *args: Any) -> Any:
        return self.jitted(*args)


def mesh(devices: int = 0) -> Mesh:
    """A one-axis mesh called `data` over all devices of all processes, or over the first `devices`.

    Raises:
      Refused: if more devices are asked for than exist.
    """
    found = jax.devices()
    if devices > len(found):
        raise Refused(
            f"run.devices is {devices}, and {len(found)} exist; set run.devices to at most {len(found)}, or 0."
        )
    return Mesh(np.asarray(found[: devices or len(found)]), ("data",))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that the mesh cannot share out evenly."""
    n = mesh.devices.size
    if batch_size % n:
        low = batch_size // n * n
        options = " or ".join(str(b) for b in (low, low + n) if b)
        raise Refused(f"batch_size {batch_size} is not a multiple of {n} devices; set it to {options}.")


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, the same on every process, become global arrays with that sharding."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]),
        tree,
    )


def to_host(tree: PyTree) -> PyTree:
    """Replicated arrays come back as NumPy."""
    return jax.tree.map(np.asarray, tree)


def resident(inputs: PyTree, label: np.ndarray, mesh: Mesh) -> Resident:
    """A split copied to every device of the mesh."""
    return Resident(*place((inputs, np.asarray(label, np.int32)), replicated(mesh)))


@functools.lru_cache(maxsize=64)
def init_step(
    *,
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    spec: Spec,
    preprocess: Transform,
    mesh: Mesh,
) -> Program:
    """(seed, raw inputs) -> the state at step 0, a function of the seed; of the inputs only shapes matter."""

    def create(seed, inputs):
        key = jax.random.key(seed)
        prepared = preprocess(key, Batch(inputs=inputs)).inputs
        variables = model.init(key, prepared)
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        return State(jnp.int32(0), params, stats, optimizer.init(params), objective.init(spec))

    return Program(create, out_shardings=replicated(mesh))


@functools.lru_cache(maxsize=64)
def train_step(
    *,
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    transform: Transform,
    teacher: Callable[[Variables, Batch], Output] | None,
    total_steps: int,
    mesh: Mesh,
    steps_per_call: int = 1,
) -> Program:
    """The one training step, compiled.

    Returns:
      (state, resident, indices, teacher_variables, seed) -> (state, logs). `indices` is [steps_per_call, B], positions
      in the resident split, sharded over `data`; `logs` maps names to [steps_per_call] float32 arrays: `loss` (the sum
      that was differentiated), each term by name, `accuracy` where labels exist, and `grad_norm`. The state is donated;
      teacher variables and resident data never are.
    """
    along_batch = NamedSharding(mesh, PartitionSpec("data"))

    def one(state: State, data: Resident, indices, teacher_variables, seed):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = Batch(inputs=jax.tree.map(lambda x: x[indices], data.inputs), label=data.label[indices], index=indices)
        batch = jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: along_batch, batch))
        batch = transform(jax.random.fold_in(key, 0), batch)
        if teacher is not None:
            batch = batch._replace(teacher=jax.lax.stop_gradient(teacher(teacher_variables, batch)))
        progress = state.step.astype(jnp.float32) / total_steps

        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, stats = model.apply(variables, batch.inputs, True, jax.random.fold_in(key, 1))
            terms, memory = objective.apply(state.objective, batch, output, progress)
            return terms.total, (terms, memory, stats, output.logits)

        (total, (terms, memory, stats, logits)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        logs = {"loss": total, "grad_norm": optax.tree.norm(grads), **terms.losses, **terms.logs}
        if batch.label is not None:
            logs["accuracy"] = jnp.mean((jnp.argmax(logits, -1) == batch.label).astype(jnp.float32))
        logs = {name: jnp.asarray(value, jnp.float32) for name, value in logs.items()}
        return State(state.step + 1, params, stats, opt, memory), logs

    def step(state, data, indices, teacher_variables, seed):
        if steps_per_call == 1:
            state, logs = one(state, data, indices[0], teacher_variables, seed)
            return state, jax.tree.map(lambda x: x[None], logs)
        return jax.lax.scan(lambda s, i: one(s, data, i, teacher_variables, seed), state, indices)

    whole = replicated(mesh)
    orders = NamedSharding(mesh, PartitionSpec(None, "data"))
    return Program(
        step,
        in_shardings=(whole, whole, orders, whole, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def place_order(indices: np.ndarray, mesh: Mesh) -> Any:
    """[steps, B] positions, the same on every process, as the step wants them."""
    if jax.process_count() == 1:
        return indices
    return place(indices, NamedSharding(mesh, PartitionSpec(None, "data")))


@functools.lru_cache(maxsize=64)
def predict_step(*, model: Model, preprocess: Transform, mesh: Mesh) -> Program:
    """(variables, resident, indices [B]) -> logits [B, K] float32, in evaluation mode, the same on every process."""

    def predict(variables, data: Resident, indices):
        inputs = jax.tree.map(lambda x: x[indices], data.inputs)
        batch = preprocess(jax.random.key(0), Batch(inputs=inputs))
        return model.apply(variables, batch.inputs, False, None)[0].logits

    whole = replicated(mesh)
    along = NamedSharding(mesh, PartitionSpec("data"))
    return Program(predict, in_shardings=(whole, whole, along), out_shardings=whole)


def predict(
    program: Program,
    variables: Variables,
    data: Resident,
    batches: Sequence[np.ndarray],
    num_examples: int,
    mesh: Mesh,
) -> Float[np.ndarray, "N K"]:
    """Logits of a whole split; `batches` are index rows of one shape that cover it in order, the last one padded."""
    along = NamedSharding(mesh, PartitionSpec("data"))
    rows = [program(variables, data, b if jax.process_count() == 1 else place(b, along)) for b in batches]
    return np.concatenate([np.asarray(r) for r in rows])[:num_examples]


@functools.lru_cache(maxsize=64)
def refresh_step(objective: Objective, mesh: Mesh) -> Program:
    """(objective state, logits [N, K], labels [N]) -> objective state, once an epoch on the calibration split."""
    if objective.refresh is None:
        raise Refused("this objective has nothing to refresh; ask `objective.refresh is None` first.")
    return Program(objective.refresh, out_shardings=replicated(mesh))


def finite(logs: Mapping[str, np.ndarray]) -> tuple[int, str] | None:
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


@functools.lru_cache(maxsize=64)
def forward_flops(model: Model, preprocess: Transform, shapes: tuple) -> float:
    """Floating-point operations of one example's forward pass, from the lowered program; nothing is compiled.

    Args:
      shapes: (tree definition, ((shape without the batch axis, dtype), ...)) of the raw inputs.
    """
    tree, leaves = shapes
    one = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in leaves])

    def prepared(inputs):
        return preprocess(jax.random.key(0), Batch(inputs=inputs)).inputs

    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), prepared(x)), one)
    lowered = jax.jit(lambda v, x: model.apply(v, prepared(x), False, None)[0].logits).lower(variables, one)
    cost = lowered.cost_analysis()
    return float(cost.get("flops", 0.0)) if cost else 0.0

"""Layout: the mesh of devices, and how arrays are laid out on it."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.errors import Refused
from kdjax.feeds import Resident
from kdjax.types import PyTree


def mesh(devices: int = 0) -> Mesh:
    """A one-axis mesh called `data` over all devices of all processes, or over the first `devices`.

    Raises:
      Refused: if more devices are asked for than exist, or fewer than none.
    """
    available = jax.devices()
    if not 0 <= devices <= len(available):
        raise Refused(
            f"run.devices is {devices}, and {len(available)} exist; set run.devices to at most {len(available)}, or 0."
        )
    return Mesh(np.asarray(available[: devices or len(available)]), ("data",))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that the mesh cannot share out evenly."""
    n = mesh.devices.size
    if batch_size % n:
        low = batch_size // n * n
        options = " or ".join(str(b) for b in (low, low + n) if b)
        raise Refused(f"batch_size {batch_size} is not a multiple of {n} devices; set it to {options}.")


def refuse_used_up(tree: PyTree) -> None:
    """Refuses arrays whose memory a step has taken over, as it does with every state that it is given."""
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(tree)):
        raise Refused(
            "this state was given to a training step before, which took over its memory; call trainer.init() for "
            "another, or keep jax.tree.map(jnp.copy, state) before it is trained."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def along_steps(mesh: Mesh) -> NamedSharding:
    """Of [steps, B, ...] arrays: each step's batch is shared out over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


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


def resident(inputs: PyTree, label: np.ndarray, mesh: Mesh, weight: np.ndarray | None = None) -> Resident:
    """A split copied to every device of the mesh."""
    weights = None if weight is None else np.asarray(weight, np.float32)
    return Resident(*place((inputs, np.asarray(label, np.int32), weights), replicated(mesh)))


def place_elements(elements: PyTree, mesh: Mesh) -> PyTree:
    """[steps, B, ...] host arrays, the same on every process, as the step wants them."""
    if jax.process_count() == 1:
        return elements
    return place(elements, along_steps(mesh))


def join_processes(elements: PyTree, mesh: Mesh) -> PyTree:
    """Each process's [steps, B / processes, ...] arrays become global [steps, B, ...] arrays."""
    if jax.process_count() == 1:
        return elements
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(along_steps(mesh), x), elements)

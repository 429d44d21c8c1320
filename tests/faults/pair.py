"""One of two processes that save and restore together: `python -m tests.faults.pair PORT PROCESS DIRECTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.checkpoints import Checkpoints


def main(port: str, process: str, directory: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    history = np.arange(4, dtype=np.float32)
    tree = {
        "weights": jax.device_put(np.arange(6, dtype=np.float32), whole),
        "history": jax.make_array_from_callback((4,), split, lambda where: history[where]),
        "host": np.arange(3, dtype=np.int32),
    }
    store = Checkpoints(Path(directory))
    store.save(1, tree)
    store.save(2, tree, {"note": 1})
    store.save(2, tree, {"note": 1})
    if process == "0":
        (store.directory / "2" / "checkpoint.json").write_text("{}")
    multihost_utils.sync_global_devices("damaged")
    restored = store.restore(tree)
    assert restored is not None
    mine = {name: np.asarray(leaf.addressable_data(0)).tolist() for name, leaf in restored.tree.items()}
    print(json.dumps({"step": restored.step, "skipped": restored.skipped, "steps": store.steps(), **mine}))


if __name__ == "__main__":
    main(*sys.argv[1:])

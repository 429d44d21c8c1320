"""Saves steps 1, 2, 3 and dies, or runs out of room, in the third: `python -m tests.faults.saver DIRECTORY WHEN`.

WHEN is before, during:SECONDS, written, described, manifest, renamed, dropping (where the kill -9 strikes) or
room:BYTES (the largest file that the system lets it write).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp

from kdjax import checkpoints, storage


def tree(step: int) -> dict:
    """Large enough that a room limit of some KB is met inside the arrays."""
    return {"step": jnp.int32(step), "weights": jnp.arange(30_000, dtype=jnp.float32) * step}


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str) -> None:
    what, _, number = when.partition(":")
    owner, name, early = {
        "before": (storage.ocp, "save", True),
        "during": (storage.ocp, "save", True),
        "written": (storage.ocp, "save", False),
        "described": (checkpoints, "write_json", False),
        "manifest": (checkpoints, "write_manifest", False),
        "renamed": (checkpoints, "sync_directory", True),
        "dropping": (checkpoints.shutil, "rmtree", True),
    }[what]
    original = getattr(owner, name)

    def armed(*args, **kwargs):
        if what == "during":
            threading.Timer(float(number), die).start()
        elif early:
            die()
        original(*args, **kwargs)
        die() if what != "during" else time.sleep(10)

    setattr(owner, name, armed)


def main(directory: str, when: str) -> int:
    store = checkpoints.Checkpoints(Path(directory))
    store.save(1, tree(1))
    store.save(2, tree(2))
    if when.startswith("room:"):
        limit = int(when.partition(":")[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    else:
        arm(when)
    try:
        store.save(3, tree(3))
    except OSError as error:
        print(error)
        return 74
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

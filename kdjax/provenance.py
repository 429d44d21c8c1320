"""Where a number was made: recorded beside results, never hashed (floor 4)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import kdjax


def environment(seconds: float | None = None) -> dict[str, Any]:
    """Versions, commit, device and wall seconds of a run."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    commit = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        ).stdout.strip()
    return {
        # Not from metadata: a source tree that was never installed has none.
        "versions": {"kdjax": kdjax.__version__, **{n: importlib.metadata.version(n) for n in names}},
        "python": platform.python_version(),
        "commit": commit,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **({} if seconds is None else {"seconds": round(seconds, 3)}),
    }


def processor() -> str:
    """The processor's model name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

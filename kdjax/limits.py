"""What a run would take, and whether it can be had here: from counts and shapes, before anything is computed."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kdjax.errors import Refused

LARGEST_STEP = 2**31 - 1
"""What the step counter of a state holds."""
LARGEST_TABLE = 100_000
"""Stages; a plan takes a fifth of a millisecond for each."""


def refuse_steps(epochs: int, steps_per_epoch: int) -> None:
    """Refuses a run of more optimizer steps than are counted.

    Raises:
      Refused: with the number of steps, the hours they take at a millisecond each, and the most epochs.
    """
    total = epochs * steps_per_epoch
    if total > LARGEST_STEP:
        raise Refused(
            f"epochs is {epochs:,}, which takes {total:,} steps ({total / 3.6e6:,.0f} hours at one millisecond each), "
            f"and at most {LARGEST_STEP:,} are counted; set it to at most {LARGEST_STEP // steps_per_epoch:,}."
        )


def refuse_stages(stages: int, steps: int) -> None:
    """Refuses a table of more stages than are planned at once.

    Args:
      steps: of all of them together.

    Raises:
      Refused: with the number of stages and steps, and the hours they take at a millisecond a step.
    """
    if stages > LARGEST_TABLE:
        raise Refused(
            f"these are {stages:,} stages, which take {steps:,} steps ({steps / 3.6e6:,.0f} hours at one millisecond "
            f"each), and at most {LARGEST_TABLE:,} are planned at once; name fewer seeds, rows or generations."
        )


def refuse_bytes(parts: Mapping[str, Any], available: int | None = None) -> None:
    """Refuses a state that is larger than the memory of a device.

    Args:
      parts: name -> tree of arrays or shapes.
      available: bytes; None asks the device.

    Raises:
      Refused: with the bytes of each part and of the device.
    """
    sizes = {
        name: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)) for name, tree in parts.items()
    }
    available = memory() if available is None else available
    if available is not None and sum(sizes.values()) > available:
        listed = ", ".join(f"{name} {size / 1e9:,.2f} GB" for name, size in sizes.items())
        raise Refused(
            f"the training state takes {sum(sizes.values()) / 1e9:,.2f} GB ({listed}), and the device has "
            f"{available / 1e9:,.2f} GB; choose a smaller network, fewer classes or examples, or another method."
        )


def memory() -> int | None:
    """Bytes of the first device; on CPU of the machine, its group of processes or `ulimit`; None where nobody tells."""
    device = jax.local_devices()[0]
    with contextlib.suppress(Exception):  # what a backend that keeps no statistics raises is its own
        if (stats := device.memory_stats()) and stats.get("bytes_limit"):
            return int(stats["bytes_limit"])
    if device.platform != "cpu" or sys.platform != "linux":
        return None
    known = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
        known.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(ImportError, OSError):
        import resource

        limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        known += [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min(known, default=None)


def available() -> int | None:
    """Bytes of the machine, or of its group of processes, that nobody uses now; None where nobody tells."""
    if sys.platform != "linux":
        return None
    known = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
        known.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # Of files that were read and can be read again.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        known.append(max(0, most - used + int(stat.get("inactive_file", 0))))
    return min(known, default=None)

"""Where a number was made: recorded beside results, never hashed.

What a program can pin (generator, matmul precision) the compiled step pins. The rest is recorded for every session of a
stage, so that numbers made under different settings are told apart.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

import kdjax


def environment(seconds: float | None = None) -> dict[str, Any]:
    """Versions, commit, device and wall seconds of a run, and the settings that change numbers."""
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
        "cpus": cpus(),
        "numerics": numerics(),
        **({} if seconds is None else {"seconds": round(seconds, 3)}),
    }


# Where the program is compiled to, dumped or how many devices a host plays changes no meaning.
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump")
_OPTIONS = ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_disable_most_optimizations")
_VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "JAX_DEFAULT_DTYPE_BITS")


def numerics() -> dict[str, Any]:
    """The settings of this session that may change a number and cannot be pinned; equal ones promise equal bits.

    Returns:
      JSON: XLA's flags in order, the processor, how many of it (on CPU, where reductions are split by it), the options
      of JAX and the variables of its libraries that are not at their default, and the versions of jax and jaxlib.
    """
    device = jax.devices()[0]
    try:
        words = shlex.split(os.environ.get("XLA_FLAGS", ""))
    except ValueError:  # an open quotation mark: XLA would have refused it
        words = [os.environ["XLA_FLAGS"]]
    defaults: dict[str, Any] = {"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard"}
    options = {name: getattr(jax.config, name, None) for name in _OPTIONS}
    return {
        "xla_flags": sorted(word for word in words if not word.startswith(_HARMLESS)),
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "threads": cpus() if device.platform == "cpu" else None,
        "options": {name: value for name, value in options.items() if value not in (defaults.get(name), None, False)},
        "variables": {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
        "jax": importlib.metadata.version("jax"),
        "jaxlib": importlib.metadata.version("jaxlib"),
    }


def difference(then: Mapping[str, Any], now: Mapping[str, Any], words: tuple[str, str] = ("then", "now")) -> str:
    """The first setting that differs, `xla_flags ["--a"] then and [] now`, and how many more; "" if none does."""
    differing = [name for name in (*now, *(then.keys() - now.keys())) if then.get(name) != now.get(name)]
    if not differing:
        return ""
    name = differing[0]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    left, right = (f"{json.dumps(which.get(name))} {word}" for which, word in zip((then, now), words, strict=True))
    return f"{name} {left} and {right}{more}"


def mixed(sessions: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Which two of these (whose, settings) differ, and in what, in words; "" if all are alike."""
    known = list(sessions)
    for name, settings in known[1:]:
        if text := difference(known[0][1], settings, ("there", "here")):
            return f"{known[0][0]} and {name} were computed under different settings ({text})"
    return ""


def cpus() -> int | None:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The processor's model name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

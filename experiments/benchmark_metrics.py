"""How fast the calibration errors are, and in how much memory.

    python -m experiments.benchmark metrics --repeats 5 --threads 2

Every row runs in a child process of its own, on `--threads` processors, so that its peak memory is its own: the extra
memory is the growth of the resident set's maximum over the call, with the logits already in place. The logits are
random and look like those of a trained network: a few large, most small, right about half the time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmark_memory import peak_mb

CLASSES = 100
BINS = 15
# What one call must reach (seconds, MB beyond the input) by number of examples.
TARGETS = {100_000: (0.5, None), 1_000_000: (None, 1500)}


def _inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = np.empty((count, CLASSES), np.float32)
    # Filled in place: a float64 draft would be the peak that the measured call is compared with.
    rng.standard_normal(dtype=np.float32, out=logits)
    logits *= 1.5
    labels = rng.integers(0, CLASSES, count)
    logits[np.arange(count), labels] += 4
    return logits, labels


def _binned(logits: np.ndarray, labels: np.ndarray) -> Any:
    from kdjax import metrics

    return metrics.binned_errors(logits, labels, bins=BINS)


def _evaluate(logits: np.ndarray, labels: np.ndarray) -> Any:
    from kdjax import metrics

    return metrics.evaluate(logits, labels, bins=BINS)


def _torchmetrics(logits: np.ndarray, labels: np.ndarray) -> Any:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    return float(multiclass_calibration_error(z, y, num_classes=CLASSES, n_bins=BINS))


CALLS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Any]]] = {
    "binned_errors": ("one call: ECE, SCE, AdaECE, both class-wise adaptive errors and six more", _binned),
    "evaluate": ("one call: every metric of an evaluation", _evaluate),
    "torchmetrics": ("ECE alone, by torchmetrics", _torchmetrics),
}


def measure(call: str, count: int, repeats: int) -> dict[str, Any]:
    """Times one call in this process, after a small one that imports and warms up."""
    logits, labels = _inputs(count)
    run_once = CALLS[call][1]
    run_once(logits[:1000], labels[:1000])
    before = peak_mb()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run_once(logits, labels)
        seconds.append(time.perf_counter() - start)
    return {
        "call": call,
        "examples": count,
        "classes": CLASSES,
        "bins": BINS,
        "repeats": repeats,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "input_mb": logits.nbytes / 1e6,
        "extra_mb": peak_mb() - before,
    }


def _child(call: str, count: int, repeats: int, threads: int) -> dict[str, Any]:
    """`measure` in a fresh process that may use `threads` processors."""
    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "experiments.benchmark_metrics", call, str(count), str(repeats), str(threads)]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    if done.returncode:
        raise RuntimeError(f"{call} on {count} examples failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def hardware(threads: int) -> str:
    """Processor, the number of threads used, and the versions that decide the speed."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        )
        model = next(lines, model)
    return f"{model}, {threads} of {os.cpu_count()} threads, Python {platform.python_version()}, NumPy {np.__version__}"


def _verdict(row: dict[str, Any]) -> str:
    if row["call"] != "binned_errors":
        return ""
    seconds, memory = TARGETS[row["examples"]]
    held = (seconds is None or row["median_s"] <= seconds) and (memory is None or row["extra_mb"] <= memory)
    target = f"{seconds} s" if seconds is not None else f"{memory} MB"
    return f"[green]≤ {target}" if held else f"[red]> {target}"


def run(args: Sequence[str] = ()) -> dict[str, Any]:
    """Prints the table and returns it for a JSON file.

    Args:
      args: command line: `--repeats n` (default 5), `--threads n` (default 2), `--quick` (100,000 examples only).
    """
    parser = argparse.ArgumentParser(prog="benchmark metrics", description="Speed and memory of the metrics.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="100,000 examples only")
    options = parser.parse_args(list(args))
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads must be at least 1")

    calls = [name for name in CALLS if name != "torchmetrics" or importlib.util.find_spec("torchmetrics")]
    rows = [_child(call, 100_000, options.repeats, options.threads) for call in calls]
    if not options.quick:
        rows += [_child(call, 1_000_000, options.repeats, options.threads) for call in calls]

    where = hardware(options.threads)
    out = Table(
        title=f"float32 logits, {CLASSES} classes, {BINS} bins",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    out.add_column("call", no_wrap=True)
    for column in ("examples", "median s", "min … max", "n", "extra MB", "target"):
        out.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        out.add_row(
            row["call"],
            f"{row['examples']:,}",
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f} … {row['max_s']:.3f}",
            str(row["repeats"]),
            f"{row['extra_mb']:.0f}",
            _verdict(row),
        )
    console = Console()
    console.print(out)
    console.print(where, highlight=False)
    for name in calls:
        console.print(f"{name}: {CALLS[name][0]}", highlight=False)
    if "torchmetrics" not in calls:
        console.print("torchmetrics is not installed; install it to see its ECE beside ours.")
    return {"hardware": where, "threads": options.threads, "rows": rows}


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] in CALLS:
        if hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, allowed[: int(sys.argv[4])])
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    else:
        run(sys.argv[1:])

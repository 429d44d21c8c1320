"""Numbers to hold against their targets: printed and written as JSON, asserted by nothing.

    python -m experiments.benchmark                            # everything, a few minutes on two cores
    python -m experiments.benchmark step --threads 2 --json step.json
    python -m experiments.benchmark step --quick               # a smoke test of the benchmark itself
    python -m experiments.benchmark step --batch 512 --precision bfloat16 --steps_per_call 8        # on a GPU
    python -m experiments.benchmark metrics --repeats 5 --threads 2
    python -m experiments.benchmark text --threads 2 --json text.json
    python -m experiments.benchmark aot --target=h100,h100x8 --json aot.json                        # needs no GPU
    python -m experiments.benchmark aot --target=v5e --config=configs/cifar100.py:wrn_40_2,mdca,wrn_40_1,kd
    python -m experiments.benchmark workers --repeats 5 --json workers.json
    python -m experiments.benchmark workers --table table1 --repeats 1
    python -m experiments.benchmark sweep --threads 2 --json sweep.json
    python -m experiments.benchmark pairs --threads 1 --json pairs.json
    python -m experiments.benchmark --plan                     # only says what would be measured

`step`: dispatch with an empty model, the distillation step beside a hand-written JAX step and PyTorch eager, compiles
per (stage, split), and the import. `text`: tokens per second of the distillation step on texts and their share of the
machine's matrix-product rate, beside PyTorch eager. `memory`: peak host memory of a CIFAR-100 run. `metrics`: the
calibration errors. Only when they are named: `aot`, the steps compiled for an accelerator that is not here, `workers`,
a small table with one local process and with several, `sweep`, a T x alpha grid of students as one cohort, one after
another and in PyTorch, and `pairs`, the distillation step of several pairs of networks beside PyTorch.
Contestants alternate within one run, so their ratios mean something on a busy machine; absolute numbers may not.
The JSON goes to `--json`, or to `$OUT/benchmark.json` where the environment names a folder OUT.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments import benchmark_settings
from experiments.benchmark_sections import ON_REQUEST, SECTIONS
from experiments.benchmark_settings import check, planned
from kdjax import files
from kdjax.errors import Refused, one_of, within

_PLAN = flags.DEFINE_bool("plan", False, "Print what would be measured, and where it would be written; run nothing.")
_JSON = flags.DEFINE_string("json", None, "Where the numbers are written; default $OUT/benchmark.json if OUT is set.")
_THREADS = flags.DEFINE_integer("threads", 0, "Processors to use; 0 means all that this process may use.")
flags.adopt_module_key_flags(benchmark_settings)

EXIT_REFUSED = 2


def hardware() -> dict[str, Any]:
    """Processor, cores in use, device and versions. Starts JAX's backend."""
    import jax

    from kdjax import provenance

    environment, backend = provenance.environment(), jax.default_backend()
    device = "cpu" if backend == "cpu" else f"{backend} ({environment['device']})"
    name = provenance.processor()
    text = (
        f"{name}, {environment['cpus']} of {os.cpu_count()} cores, device {device}, "
        f"jax {environment['versions']['jax']}, Python {environment['python']}"
    )
    return {"text": text, "cpu": name, "backend": backend, **environment}


def plain(value: Any) -> Any:
    """The same for JSON: named tuples become objects."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def plan(what: dict[str, str], path: Path | None) -> dict[str, Any]:
    """Prints what the sections would measure; returns nothing measured."""
    for name, measured in what.items():
        print(f"{name}: {measured}")
    print(f"{len(what)} sections; written to {path or 'no file (name one by --json)'}")
    return {}


def run(argv: Sequence[str]) -> dict[str, Any]:
    """The sections named on the command line; returns what is written.

    Raises:
      Refused: an unknown section, a flag that the sections do not read, or one out of range.
    """
    if len(argv) > 2:
        known = ", ".join([*SECTIONS, *ON_REQUEST])
        raise Refused(f"{argv[2]!r} is one word too many; expected one of {known} or all.")
    chosen = one_of("section", argv[1] if len(argv) == 2 else "all", [*SECTIONS, *ON_REQUEST, "all"])
    sections = [chosen] if chosen != "all" else [*SECTIONS]
    check(sections)
    what = {name: planned(name) for name in sections}
    if within("--threads", _THREADS.value, 0) and hasattr(os, "sched_setaffinity"):
        # Before JAX starts its threads, and inherited by every child.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])
    folder = os.environ.get("OUT")
    path = Path(_JSON.value) if _JSON.value else Path(folder) / "benchmark.json" if folder else None
    if _PLAN.value:
        return plan(what, path)
    # What was typed, without where the numbers were to go.
    typed = " ".join(a for a in sys.argv[1:] if "json" not in a)
    out: dict[str, Any] = {"command": f"python -m experiments.benchmark {typed}".strip()}
    for name in sections:
        out[name] = plain({**SECTIONS, **ON_REQUEST}[name]())
    out["hardware"] = hardware()
    print(out["hardware"]["text"])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, out)
        print(f"benchmark: written to {path}")
    return out


def main(argv: Sequence[str]) -> None:
    """The command: exit code 2 and one sentence where something is refused."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compile times are to be real
    # PyTorch shares the GPU, in the same process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        run(argv)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    app.run(main)

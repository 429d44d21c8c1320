"""Peak host memory of a CIFAR-100 run, and what `import kdjax` costs: both in fresh processes.

The run is the configuration's own (`configs/cifar100.py:resnet8`), shortened in time and in nothing that takes memory:
the whole data set is resident while teacher and student train a few steps and predict both splits; then a short run of
one epoch goes through stages, checkpoints and files in the same process.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.spread import spread
from kdjax.errors import Refused

ROOT = Path(__file__).parent.parent
HEAVY = ("tensorflow", "tensorflow_datasets", "matplotlib", "grain", "sklearn", "torch")


def imports(n: int = 5) -> list[dict[str, Any]]:
    """Seconds of `import kdjax` and of `import kdjax.runs` (all a run needs), and the heavy packages they pull in.

    Each in n fresh processes; the interpreter's own start is not counted.
    """
    rows = []
    for module in ("kdjax", "kdjax.runs"):
        code = (
            "import sys, time, json; t = time.perf_counter(); "
            f"import {module}; t = time.perf_counter() - t; "
            f"print(json.dumps([t, [m for m in {HEAVY!r} if m in sys.modules]]))"
        )
        measured = [json.loads(_run(["-c", code])) for _ in range(n)]
        rows.append({"module": module, "seconds": spread([t for t, _ in measured]), "heavy": measured[0][1]})
    return rows


def peak(config: str, steps: int) -> list[dict[str, Any]] | str:
    """Peak resident memory of the run, decoding the data set first (an empty cache) and from the cache.

    Returns:
      a row per case, or the sentence that says why there is none.
    """
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for case in ("first run, data set decoded", "second run, from the cache"):
            try:
                out = _run(["-m", __spec__.name, config, str(steps)], KDJAX_CACHE=cache)
            except subprocess.CalledProcessError as error:
                if error.returncode == 2:
                    return error.stderr.strip().splitlines()[-1]
                raise RuntimeError(f"the child process failed: {error.stderr[-2000:]}") from error
            rows.append({"case": case, **json.loads(out)})
    return rows


def _run(arguments: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def peak_mb() -> float:
    """The largest resident set of this process so far, in MB (10^6 bytes).

    Linux's VmHWM: `ru_maxrss` also remembers what the *parent* held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def child(config: str, steps: int, workdir: str) -> dict[str, Any]:
    """The run itself, in this process: the peak after each of its parts."""
    began = time.perf_counter()
    marks: dict[str, float] = {}

    from kdjax import metrics, runs, settings, stages, teachers
    from kdjax.parts import parts
    from kdjax.recipes import Recipe, from_dict
    from kdjax.tasks import Task
    from kdjax.trainer import Trainer

    def mark(what: str) -> None:
        marks[what] = round(peak_mb(), 1)

    mark("import")
    tree = recipes(config)
    full = {who: from_dict(Recipe, {**tree[who], "data": {**tree["data"], "train_examples": 0}}) for who in _ROLES}
    full["teacher"] = dataclasses.replace(full["teacher"], distill=None)
    dataset = stages.dataset(full["teacher"].data)
    mark("data set loaded")
    teacher = None
    for who, recipe in full.items():
        pieces = parts(recipe, dataset)
        trainer = Trainer(Task(pieces, dataset, teacher, recipe.epochs, recipe.batch_size, recipe.seed))
        state = trainer.init()
        for state, _ in trainer.steps(state, stop=steps):
            pass
        for split in (dataset.calibration, dataset.test):
            metrics.evaluate(trainer.predict(state.variables, split), split.label)
        mark(f"{who}: {steps} steps, both splits predicted")
        teacher = teachers.frozen(pieces.model, state.variables)
    short = {who: _shortened(recipe) for who, recipe in full.items()}
    teacher_stage = stages.Stage(short["teacher"], name="teacher")
    runs.run_all([stages.Stage(short["student"], teacher_stage, name="student")], settings.Settings(workdir=workdir))
    mark("one epoch of both as stages, with files")
    return {
        "peak_mb": round(peak_mb(), 1),
        "marks": marks,
        "config": config,
        "train_examples": len(dataset.train.label),
        "models": [recipe.model for recipe in full.values()],
        "batch_size": full["student"].batch_size,
        "seconds": round(time.perf_counter() - began, 1),
    }


def recipes(config: str) -> dict[str, Any]:
    """The recipe subtree of `configs/FAMILY.py:names`.

    Raises:
      Refused: no such file, or an unknown name.
    """
    file, _, names = config.partition(":")
    if not (ROOT / file).is_file():
        raise Refused(f"there is no configuration {file}; expected one like configs/cifar100.py:resnet8.")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return module.get_config(names).recipe.to_dict()


_ROLES = ("teacher", "student")


def _shortened(recipe: Any) -> Any:
    small = dataclasses.replace(recipe.data, train_examples=4 * recipe.batch_size)
    optimizer = dataclasses.replace(recipe.optimizer, milestones=())
    return dataclasses.replace(recipe, data=small, optimizer=optimizer, epochs=1)


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(child(sys.argv[1], int(sys.argv[2]), folder)))
    except Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(2)

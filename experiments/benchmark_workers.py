"""Wall time of a table with one worker and with several, from the command's start to its end.

The table is the quickstart's, or one seed of another at `:cpu`. Each run is a fresh process with an empty work
directory; the numbers of workers alternate within a round, and every run must write the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark_tables import Rows, between, show, verdict
from experiments.spread import Spread, spread
from kdjax import provenance
from kdjax.errors import Refused

ROOT = Path(__file__).parent.parent
QUICKSTART = "quickstart"
TARGET = 1.5
"""Times faster, on two processors."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured: the quickstart, by default all of it, or one seed of another table; and how often."""

    table: str = QUICKSTART
    seeds: tuple[int, ...] = (0, 1, 2)
    temperatures: tuple[float, ...] = (1.0, 4.0)
    epochs: int = 40
    rounds: int = 3
    words: tuple[str, ...] = ()

    def quick(self) -> Settings:
        """Tiny networks, two epochs, one temperature and one round: does the benchmark run at all?"""
        words = ("--config=configs/digits.py:mlp,mlp",)
        return dataclasses.replace(self, seeds=(0, 1), temperatures=(4.0,), epochs=2, rounds=1, words=words)

    @property
    def command(self) -> list[str]:
        """The words after `python -m`, but for the work directory and the workers."""
        if self.table != QUICKSTART:
            config = f"--config=configs/{self.table}.py:cpu"
            return [f"experiments.{self.table}", config, "--config.seeds=(0,)", *self.words]
        roles = [f"--config.recipe.{role}.epochs={self.epochs}" for role in ("teacher", "student")]
        table = [f"--config.seeds={self.seeds}", f"--config.recipe.temperatures={self.temperatures}"]
        return ["experiments.quickstart", *self.words, *roles, *table]


def measure(settings: Settings, counts: Sequence[int] = ()) -> dict[str, Any] | str:
    """Seconds of the table for every number of workers, by default one and as many as there are processors.

    Returns:
      the measurements, or the sentence that says why there are none.

    Raises:
      RuntimeError: two runs did not write the same numbers.
    """
    counts = counts or (1, provenance.cpus() or 1)
    if len({*counts}) < 2:
        return "there is one processor, and nothing to share out"
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    busy: dict[int, list[float]] = {count: [] for count in counts}
    written: set[str] = set()
    for number in range(settings.rounds):
        for count in counts if number % 2 == 0 else counts[::-1]:
            took, computed, numbers = _timed(settings, count)
            seconds[count].append(took)
            busy[count].append(computed / took)
            written.add(numbers)
    if len(written) > 1:
        raise RuntimeError(f"{' '.join(settings.command)} wrote {len(written)} different results; expected one.")
    first = seconds[counts[0]]
    rows = [
        {
            "workers": count,
            "seconds": spread(values),
            "times_faster": spread([a / b for a, b in zip(first, values, strict=True)]),
            "busy": spread(busy[count]),
        }
        for count, values in seconds.items()
    ]
    command = shlex.join(["python", "-m", *settings.command])
    return {"command": command, "processors": provenance.cpus() or 1, "rows": rows}


def _timed(settings: Settings, count: int) -> tuple[float, float, str]:
    """(seconds of one run, CPU seconds of its processes, the numbers that it wrote)."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", *settings.command, f"--workdir={folder}", f"--workers={count}"]
        began, before = time.perf_counter(), _computed()
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        took, computed = time.perf_counter() - began, _computed() - before
        if done.returncode:
            raise Refused(f"{' '.join(words[1:])} ended with exit code {done.returncode}: {done.stderr[-500:].strip()}")
        written = "results" if settings.table == QUICKSTART else settings.table
        return took, computed, json.dumps(json.loads((Path(folder) / f"{written}.json").read_text())["rows"])


def _computed() -> float:
    """CPU seconds of all processes that this one started and waited for."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


COLUMNS = ("workers", "seconds", "times faster", "processors busy", "at most", "n")
NOTE = (
    "Median (min … max); rounds alternate, times faster is within a round, and every run wrote the same numbers. "
    "Processors busy: CPU seconds ÷ seconds. At most: all processors ÷ those that one worker keeps busy, the limit for "
    "workers that need no more CPU time than one."
)


def title(measured: Mapping[str, Any]) -> str:
    return f"wall time of {measured['command']}"


def table(measured: Mapping[str, Any]) -> Rows:
    """A row for every number of workers, in the order of COLUMNS; `measured` may come from JSON."""
    rows: Rows = []
    told = [{name: _spread(row[name]) for name in ("seconds", "times_faster", "busy")} for row in measured["rows"]]
    most = measured["processors"] / told[0]["busy"].median
    for row, of in zip(measured["rows"], told, strict=True):
        shown = between(of["seconds"], 1), between(of["times_faster"], 2), between(of["busy"], 2)
        rows.append((str(row["workers"]), *shown, f"{most:.2f}" if rows else "1.00", str(of["seconds"].n)))
    return rows


def _spread(told: Spread | Mapping[str, Any]) -> Spread:
    return Spread(**told) if isinstance(told, Mapping) else told


def show_section(measured: Mapping[str, Any]) -> None:
    """The table of `measure`, the last row beside its target."""
    *_, last = measured["rows"]
    rows = [(*row, "") for row in table(measured)]
    rows[-1] = (*rows[-1][:-1], verdict(last["times_faster"].median >= TARGET, f">= {TARGET}"))
    show(title(measured), (*COLUMNS, "target"), rows, NOTE)

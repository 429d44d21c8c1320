"""Many small stages in one process, and a plan of ten thousand: `python -m tests.faults.soak --stages 200 --write`.

Memory, open files and threads are read before every stage; a leak shows as growth from one tenth of the stages to the
next. With --write the tables take the place of the last ones in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from experiments import plans
from kdjax import console, files, manifests, planning, provenance, runs
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny
from tests.processes import ROOT

PAGE = ROOT / "docs" / "reliability.md"


class Sample(NamedTuple):
    """What the process holds at one moment.

    Attributes:
      memory: resident, MB.
      handles: open files, pipes and sockets.
    """

    memory: float
    handles: int
    threads: int


def sample() -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count())


class Meter(console.Silent):
    """Takes a sample before every stage."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        self.samples.append(sample())


def table_of(npz: str, count: int) -> list[Stage]:
    """Teachers with AdaFocal's state and their students, two seeds each; every four have programs of their own."""
    made: list[Stage] = []
    for n in range(-(-count // 4)):
        for seed in (0, 1):
            optimizer = tiny.Optimizer(lr=0.01 + 0.001 * n, schedule="constant")
            small = {"epochs": 2, "seed": seed, "optimizer": optimizer}
            teacher = Stage(tiny.recipe(npz, method="adafocal", **small), name=f"teacher {n} {seed}")
            options = {"T": 1.0 + 0.01 * n}
            made += [teacher, Stage(tiny.student(npz, options=options, **small), teacher, name=f"student {n} {seed}")]
    return made[:count]


def soak(count: int, folder: Path) -> list[Sample]:
    """One sample before each of `count` stages that are trained, and one after the last."""
    meter = Meter()
    settings = Settings(workdir=str(folder / "runs"), checkpoint_epochs=1, devices=1)
    outcome = runs.run_all(table_of(tiny.npz(folder), count), settings, meter)
    assert len(outcome.results) == count and not outcome.failures
    return [*meter.samples, sample()]


def tenths(samples: list[Sample]) -> list[tuple[str, Sample]]:
    """(which stages, the median over them) of each tenth."""
    count = len(samples) - 1
    edges = [round(i * count / 10) for i in range(11)]
    named = []
    for low, high in itertools.pairwise(edges):
        part = samples[low : high + 1]
        named.append(
            (f"{low + 1} to {high}", Sample(*(statistics.median(column) for column in zip(*part, strict=True))))
        )
    return named


def growth(samples: list[Sample]) -> float:
    """MB a stage, by which memory grew from the sixth tenth of the stages to the last: from median to median."""
    middle, last = (tenths(samples)[tenth][1].memory for tenth in (5, 9))
    return (last - middle) / (0.4 * (len(samples) - 1))


def soak_text(samples: list[Sample], command: str) -> str:
    rows = [f"| {which} | {s.memory:.0f} | {s.handles:.0f} | {s.threads:.0f} |" for which, s in tenths(samples)]
    head = ["| stages | memory, MB | open files | threads |", "| --- | --- | --- | --- |"]
    slope = f"Memory grew by {1000 * growth(samples):.0f} kB a stage from the sixth row to the last."
    about = f"Medians over the stages of a row; n = {len(samples) - 1} stages in one process, {where()}."
    return "\n".join([f"`{command}`", "", *head, *rows, "", f"{about} {slope}"])


def where() -> str:
    return f"{provenance.processor()}, {provenance.cpus()} cores"


class Plan(NamedTuple):
    """What a plan took."""

    what: str
    seconds: float
    processor: float
    grown: float


def plan(count: int, folder: Path) -> list[Plan]:
    """Plans `count` stages, none of which is there, and then `count` that are all finished."""
    npz = tiny.npz(folder)
    first = Stage(tiny.recipe(npz), name="seed 0")
    workdir = folder / "runs"
    made = [Stage(first.recipe.with_seed(n), name=f"seed {n}") for n in range(count)]
    planning.plan(made[:1], workdir)  # what is traced once
    measured = [planned("none there", made, workdir)]
    runs.run_all([first], Settings(workdir=str(workdir), checkpoint_epochs=1, devices=1))
    for stage in made[1:]:
        copy(first, stage, workdir)
    again = [Stage(stage.recipe, name=stage.name) for stage in made]
    return [*measured, planned("all finished", again, workdir)]


def planned(what: str, targets: list[Stage], workdir: Path) -> Plan:
    before, began, used = sample().memory, time.monotonic(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        plans.show(planning.plan(targets, workdir))
    return Plan(what, time.monotonic() - began, time.process_time() - used, sample().memory - before)


def copy(of: Stage, to: Stage, workdir: Path) -> None:
    """A finished stage's folder as another's: links to its files under a manifest of its own."""
    source, target = of.directory(workdir), to.directory(workdir)
    shutil.copytree(source, target, copy_function=os.link)
    body = {**files.read_json(source / manifests.MANIFEST), "owner": to.owner}
    del body["sha256"]
    (target / manifests.MANIFEST).unlink()
    (target / manifests.MANIFEST).write_text(files.canonical({**body, "sha256": manifests._seal(body)}))


def plan_text(measured: list[Plan], count: int, command: str) -> str:
    rows = [f"| {p.what} | {p.seconds:.1f} | {p.processor:.1f} | {p.grown:.0f} |" for p in measured]
    head = [
        f"| {count:,} stages planned and shown | seconds | seconds of processor | memory grown, MB |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([f"`{command}`", "", *head, *rows, "", f"n = 1 each, {where()}, {load()}."])


def load() -> str:
    return f"with {os.getloadavg()[0]:.1f} processes at work beside and within it"


def write(name: str, text: str) -> None:
    """Replaces a block of docs/reliability.md."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(page), f"{PAGE} has no block {name}"
    PAGE.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=200, help="stages to train (200)")
    parser.add_argument("--plan", type=int, default=0, metavar="N", help="plan N stages instead, such as 10000")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    given = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    words = f"--plan {given.plan}" if given.plan else f"--stages {given.stages}"
    command = f"python -m tests.faults.soak {words} --write"
    with tempfile.TemporaryDirectory(dir=memory if given.plan else None) as name:
        if given.plan:
            text = plan_text(plan(given.plan, Path(name)), given.plan, command)
        else:
            text = soak_text(soak(given.stages, Path(name)), command)
    print(text)
    if given.write:
        write("plan" if given.plan else "soak", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

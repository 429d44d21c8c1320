"""Wall time of a T x alpha grid of students under one teacher: as a cohort, one after another, and in PyTorch.

Every contestant takes the same number of steps with every student of the grid, on batches of the same pixels, in one
process and in turns: forwards in one round, backwards in the next. The cohort computes the teacher once a step; the
single runs and PyTorch compute it for every student, as every peer does. PyTorch gets its batches augmented beforehand
and pays nothing for that. Where there are several processors, a cohort on each shows what workers add.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import peers
from experiments.benchmark_step import Contestant, Ours, contest, p_slower, pixels
from experiments.benchmark_step import Settings as Step
from experiments.benchmark_tables import Rows, between, show, verdict
from experiments.spread import Spread, spread
from kdjax import data, provenance, teachers
from kdjax.cohort import Cohort
from kdjax.parts import parts
from kdjax.recipes import Distill, Optimizer, Recipe
from kdjax.tasks import task
from kdjax.trainer import Trainer
from kdjax.types import Batch

COHORT, ABREAST, ALONE = "kdjax, one cohort", "kdjax, a cohort a processor", "kdjax, one after another"
TORCH = "PyTorch eager"
TARGETS = {ALONE: 1.9, TORCH: 1.1}
"""How many times faster cohorts on all processors are to be than each."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured: by default the grid on 20 classes of CIFAR-100 at 16x16 that `experiments/README.md` trains.

    Attributes:
      temperatures, alphas: the grid, their product.
      examples, epochs: of one training run, whose wall time is worked out from the seconds of a step.
      rounds: turns that each contestant gets.
      seconds: aimed-at length of a turn.
      steps_per_call: 0 is the Trainer's own choice.
    """

    teacher: str = "resnet8"
    student: str = "resnet8"
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    alphas: tuple[float, ...] = (0.5, 0.9)
    batch: int = 64
    size: int = 16
    num_classes: int = 20
    examples: int = 1280
    epochs: int = 60
    precision: str = "float32"
    steps_per_call: int = 0
    rounds: int = 8
    seconds: float = 8.0
    torch: bool = True

    def quick(self) -> Settings:
        """A grid of two and two short rounds: does the benchmark run at all?"""
        return dataclasses.replace(
            self, temperatures=(1.0, 4.0), alphas=(0.9,), size=8, examples=256, rounds=2, seconds=0.1
        )

    @property
    def grid(self) -> list[peers.Hyper]:
        return [peers.Hyper(T=T, alpha=alpha) for T, alpha in itertools.product(self.temperatures, self.alphas)]

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole run."""
        return self.epochs * (self.examples // self.batch)


class Together:
    """A cohort as a contestant."""

    def __init__(self, members: Sequence[Trainer]):
        self.cohort = Cohort(members)
        self.states = tuple(member.init() for member in members)

    def advance(self, n: int) -> float:
        """Runs n steps of all students, over the ends of epochs, and waits; the sum of their last losses."""
        stop = int(self.states[0].step) + n
        logs: tuple[dict[str, Any], ...] = ()
        while int(self.states[0].step) < stop:
            for self.states, logs in self.cohort.steps(self.states, stop=stop):
                pass
        jax.block_until_ready(self.states)
        return float(sum(one["loss"][-1] for one in logs))


class Abreast:
    """One cohort for each processor, each in its own thread, which is close to what `--workers` does."""

    def __init__(self, cohorts: Sequence[Sequence[Trainer]]):
        self.cohorts = [Together(members) for members in cohorts]
        self.threads = ThreadPoolExecutor(len(cohorts))

    def advance(self, n: int) -> float:
        """Runs n steps of all students, and waits; the sum of their last losses."""
        return sum(self.threads.map(lambda cohort: cohort.advance(n), self.cohorts))


class Each:
    """Contestants of one student each, one after another."""

    def __init__(self, members: Sequence[Contestant]):
        self.members = members

    def advance(self, n: int) -> float:
        """Runs n steps of each; the sum of their last losses."""
        return sum(member.advance(n) for member in self.members)


def trainers(s: Settings) -> list[Trainer]:
    """A trainer of every cell of the grid, with one frozen, untrained teacher; data and teacher on the device once."""
    dataset = pixels(Step(size=s.size, num_classes=s.num_classes), s.examples)
    hyper = peers.Hyper()
    base = Recipe(
        model=s.student,
        transform=(("pad_crop", {"padding": s.size // 8}), "flip"),
        optimizer=Optimizer(lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay, schedule="constant"),
        epochs=100_000,
        batch_size=s.batch,
        precision=s.precision,
    )
    model = parts(dataclasses.replace(base, model=s.teacher), dataset).model
    example = jax.ShapeDtypeStruct((1, s.size, s.size, 3), jnp.float32)
    teacher = teachers.frozen(model, jax.device_get(model.init(jax.random.key(1), example)))
    made: list[Trainer] = []
    for cell in s.grid:
        one = task(dataclasses.replace(base, distill=Distill("kd", {"T": cell.T}, alpha=cell.alpha)), dataset, teacher)
        beside = made[0] if made else None
        made.append(Trainer(one, devices=1, steps_per_call=s.steps_per_call, beside=beside))
    return made


def batches(trainer: Trainer) -> tuple[np.ndarray, np.ndarray]:
    """([M, B, H, W, C] transformed and prepared images, [M, B] labels) of the Trainer's first epoch."""
    made, split = trainer.task, trainer.task.dataset.train
    order = data.epoch_order(len(split.label), made.batch_size, seed=made.seed, epoch=0)
    images = []
    for step, rows in enumerate(order):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(made.seed)), step), 0)
        changed = made.parts.transform(key, Batch(inputs=jnp.asarray(split.inputs[rows])))
        images.append(np.asarray(made.parts.prepare(changed.inputs)))
    return np.stack(images), split.label[order]


def torch_grid(s: Settings, trainer: Trainer) -> Each:
    """The grid in PyTorch.

    Raises:
      Absent: as `peers.Torch`.
    """
    images, labels = batches(trainer)
    threads = provenance.environment()["cpus"]
    common = {"num_classes": s.num_classes, "precision": s.precision, "threads": threads}
    return Each([peers.Torch(s.student, s.teacher, images, labels, hyper=cell, **common) for cell in s.grid])


def measure(s: Settings) -> dict[str, Any]:
    """Seconds of a step of the whole grid by contestant, how much faster the cohort is round by round, and the wall
    time of whole runs that these imply, compile time apart."""
    made = trainers(s)
    contestants: dict[str, Contestant] = {COHORT: Together(made), ALONE: Each([Ours(trainer) for trainer in made])}
    processors = min(provenance.cpus() or 1, len(made))
    if processors > 1 and jax.default_backend() == "cpu":
        contestants[ABREAST] = Abreast([made[n::processors] for n in range(processors)])
    absent = {}
    try:
        if s.torch:
            contestants[TORCH] = torch_grid(s, made[0])
    except peers.Absent as why:
        absent[TORCH] = str(why)
    measured = contest(contestants, s, made[0].steps_per_call, backwards=True)
    for one in measured.values():
        ratios = [a / b for a, b in zip(one["seconds"], measured[COHORT]["seconds"], strict=True)]
        one |= {"step_s": spread(one["seconds"]), "cohort_times_faster": spread(ratios), "p_slower": p_slower(ratios)}
        one["training_s"] = s.steps * one["step_s"].median
    return {
        **dataclasses.asdict(s),
        "students": len(s.grid),
        "steps_of_a_run": s.steps,
        "steps_per_call": made[0].steps_per_call,
        "contestants": measured,
        "absent": absent,
    }


COLUMNS = (
    "contestant",
    "ms a step of all",
    "one cohort faster",
    "a cohort a processor",
    "training s",
    "first call s",
    "n",
)


def title(section: Mapping[str, Any]) -> str:
    """What the section measured, in a line."""
    size, calls = section["size"], section["steps_per_call"]
    return (
        f"{section['students']} students {section['student']} of one {section['teacher']}, T in "
        f"{_listed(section['temperatures'])}, alpha in {_listed(section['alphas'])}, {size}x{size}, batch "
        f"{section['batch']}, {section['precision']}, {calls} step{'s' if calls > 1 else ''} a call"
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def table(section: Mapping[str, Any]) -> Rows:
    """A row for every contestant, in the order of COLUMNS."""
    rows: Rows = []
    for name, one in section["contestants"].items():
        rows.append(
            (
                name,
                between(spread([1e3 * seconds for seconds in one["seconds"]]), 1),
                *(_faster(section, ours, name) for ours in (COHORT, ABREAST)),
                f"{one['training_s']:.1f}",
                f"{one['first_call_s']:.1f}",
                str(len(one["seconds"])),
            )
        )
    return rows


def _faster(section: Mapping[str, Any], ours: str, name: str) -> str:
    """How many times faster than `name` that is, round by round; nothing of itself or where it was not measured."""
    if ours == name or ours not in section["contestants"]:
        return ""
    return between(faster(section, ours, name), 2)


def faster(section: Mapping[str, Any], ours: str, name: str) -> Spread:
    """How many times faster `ours` is than `name`, round by round."""
    seconds = [section["contestants"][who]["seconds"] for who in (name, ours)]
    return spread([a / b for a, b in zip(*seconds, strict=True)])


def note(section: Mapping[str, Any]) -> str:
    """How the table is to be read."""
    absent = "".join(f" {name}: skipped, {why}." for name, why in section["absent"].items())
    return (
        'Median (min … max); rounds go forwards and backwards, and "faster" is a ratio within a round. Training: '
        f"{section['steps_of_a_run']:,} steps of all students at the median, without evaluation and checkpoints. First "
        f"call: trace and compile of all. PyTorch trains one student after the other on all processors.{absent}"
    )


def show_section(section: Mapping[str, Any]) -> None:
    """The table of `measure`, beside the targets of the grid as `--workers` trains it: a cohort on each processor."""
    best = ABREAST if ABREAST in section["contestants"] else COHORT
    rows: Rows = []
    for row in table(section):
        target = TARGETS.get(row[0])
        held = target and faster(section, best, row[0]).median >= target
        rows.append((*row, verdict(bool(held), f">= {target}") if target else ""))
    show(title(section), (*COLUMNS, "target"), rows, note(section))

"""The speed of a distillation step through the real Trainer, beside its peers of `experiments/peers.py`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments import peers
from experiments.benchmark_tables import TRAINER
from experiments.spread import Spread, spread
from kdjax import data, provenance, teachers
from kdjax.parts import parts
from kdjax.recipes import Distill, Optimizer, Recipe
from kdjax.trainer import Task, Trainer
from kdjax.types import Batch, Dataset, Model


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      steps_per_call: 0 is the Trainer's own choice.
      rounds: turns each contestant gets, alternating.
      seconds: aimed-at length of a turn.
      examples: of the training set that lives on the device.
      calls: of the dispatch measurement.
      matmul: side of the square matrices whose product gives the machine's rate.
    """

    teacher: str = "wrn_40_2"
    student: str = "wrn_40_1"
    batch: int = 64
    precision: str = "float32"
    steps_per_call: int = 0
    rounds: int = 7
    seconds: float = 3.0
    examples: int = 50_000
    calls: int = 1000
    matmul: int = 4096
    size: int = 32
    num_classes: int = 100
    torch: bool = True

    def quick(self) -> Settings:
        """A smoke test of seconds: a pair of ResNet-8, two rounds; its numbers mean little."""
        return dataclasses.replace(
            self, teacher="resnet8", student="resnet8", rounds=2, seconds=0.2, examples=2048, calls=300, matmul=1024
        )


class Contestant(Protocol):
    def advance(self, n: int) -> float: ...


class Ours:
    """The Trainer as a contestant."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.state = trainer, trainer.init()

    def advance(self, n: int) -> float:
        """Runs n steps, over the ends of epochs, and waits; the last loss."""
        stop = int(self.state.step) + n
        logs: dict[str, Any] = {}
        while int(self.state.step) < stop:
            for self.state, logs in self.trainer.steps(self.state, stop=stop):
                pass
        jax.block_until_ready(self.state)
        return float(logs["loss"][-1])


class Work(NamedTuple):
    """One distillation step's ingredients, shared by all contestants."""

    settings: Settings
    hyper: peers.Hyper
    trainer: Trainer
    teacher: Model
    teacher_variables: Any

    def ours(self) -> Ours:
        return Ours(self.trainer)

    def batch(self) -> tuple[Any, Any]:
        """The Trainer's first batch, transformed as its first step does it, on the device."""
        task = self.trainer.task
        rows = self.order()[0]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(task.seed)), 0), 0)
        split = task.dataset.train
        inputs = task.parts.transform(key, Batch(inputs=jnp.asarray(split.inputs[rows]))).inputs
        return task.parts.prepare(inputs), split.label[rows]

    def order(self) -> np.ndarray:
        task = self.trainer.task
        return data.epoch_order(len(task.dataset.train.label), task.batch_size, seed=task.seed, epoch=0)

    def plain(self, *, transforms: bool) -> peers.Plain:
        """The hand-written step from the Trainer's own initial parameters."""
        task = self.trainer.task
        split = task.dataset.train
        images, labels = (split.inputs, split.label) if transforms else self.batch()
        return peers.Plain(
            task.parts.model,
            self.trainer.init().variables,
            self.teacher,
            self.teacher_variables,
            images,
            labels,
            hyper=self.hyper,
            transform=task.parts.transform if transforms else None,
            prepare=task.parts.prepare,
            order=self.order() if transforms else None,
            seed=task.seed,
        )

    def torch(self) -> peers.Torch:
        s = self.settings
        images, labels = self.batch()
        return peers.Torch(
            s.student,
            s.teacher,
            np.asarray(images),
            labels,
            num_classes=s.num_classes,
            hyper=self.hyper,
            precision=s.precision,
            threads=provenance.environment()["cpus"],
        )


def pixels(s: Settings, examples: int) -> Dataset:
    """Random uint8 images: the speed of a step does not depend on what is seen."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (examples + 2, s.size, s.size, 3), np.uint8)
    y = rng.integers(0, s.num_classes, examples + 2).astype(np.int32)
    train, calibration, test = (x[2:], y[2:]), (x[:1], y[:1]), (x[1:2], y[1:2])
    constants = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return data.from_arrays(train, test, calibration, num_classes=s.num_classes, normalization=constants)


def work(s: Settings) -> Work:
    """The Trainer of a student with a frozen, untrained teacher on random pixels; whole calls in every epoch."""
    hyper = peers.Hyper()
    per_call = s.steps_per_call or (1 if jax.default_backend() == "cpu" else 8)
    dataset = pixels(s, max(1, s.examples // (s.batch * per_call)) * s.batch * per_call)
    recipe = Recipe(
        model=s.student,
        distill=Distill("kd", {"T": hyper.T}, alpha=hyper.alpha),
        transform=("pad_crop", "flip"),
        optimizer=Optimizer(lr=hyper.lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay, schedule="constant"),
        epochs=1000,
        batch_size=s.batch,
        precision=s.precision,
    )
    teacher_model = parts(dataclasses.replace(recipe, model=s.teacher, distill=None), dataset).model
    example = jax.ShapeDtypeStruct((1, s.size, s.size, 3), jnp.float32)
    variables = jax.device_get(teacher_model.init(jax.random.key(1), example))
    task = Task(
        parts(recipe, dataset), dataset, teachers.frozen(teacher_model, variables), recipe.epochs, s.batch, recipe.seed
    )
    return Work(s, hyper, Trainer(task, devices=1, steps_per_call=per_call), teacher_model, variables)


class Turns(Protocol):
    """How many turns each contestant gets, and their aimed-at length."""

    @property
    def rounds(self) -> int: ...

    @property
    def seconds(self) -> float: ...


def contest(
    contestants: Mapping[str, Contestant], s: Turns, per_call: int = 1, *, backwards: bool = False
) -> dict[str, Any]:
    """Every contestant in turn, A B A B ...; seconds a step by round, and the first call apart (trace and compile).

    Args:
      backwards: every second round goes through them backwards, A B B A ...
    """
    first: dict[str, float] = {}
    steps: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for name, one in contestants.items():
        began = time.perf_counter()
        one.advance(per_call)
        first[name] = time.perf_counter() - began
        began = time.perf_counter()
        one.advance(per_call)
        steps[name] = per_call * max(1, round(s.seconds / (time.perf_counter() - began)))
    for number in range(s.rounds):
        order = [*contestants.items()]
        for name, one in reversed(order) if backwards and number % 2 else order:
            began = time.perf_counter()
            loss = one.advance(steps[name])
            seconds[name].append((time.perf_counter() - began) / steps[name])
            if not np.isfinite(loss):
                raise FloatingPointError(f"{name} has loss {loss}: the speed of a diverged run is no measurement.")
    return {name: {"first_call_s": first[name], "steps": steps[name], "seconds": seconds[name]} for name in contestants}


OURS, PLAIN, AUGMENTED, TORCH = TRAINER, "plain JAX", "plain JAX + transforms", "PyTorch eager"


PAIRS = (
    ("resnet8", "resnet8", 16),
    ("resnet8", "resnet8", 32),
    ("wrn_16_1", "wrn_16_1", 32),
    ("resnet20", "resnet20", 32),
    ("wrn_40_2", "wrn_40_1", 32),
)
"""(teacher, student, side of the images) of the table of pairs."""


def pairs(s: Settings) -> list[dict[str, Any]]:
    """`distillation_step` of every pair of PAIRS, beside PyTorch alone."""
    rate = matmul_rate(s)
    made = []
    for teacher, student, size in PAIRS:
        pair = dataclasses.replace(s, teacher=teacher, student=student, size=size)
        made.append(distillation_step(pair, plain=False, rate=rate))
    return made


def distillation_step(s: Settings, *, plain: bool = True, rate: Spread | None = None) -> dict[str, Any]:
    """Images/s of the step and of each peer, their ratio round by round, and the share of the matmul rate.

    Args:
      plain: whether the hand-written JAX steps are among the peers.
      rate: of matrix products, where it is measured already.
    """
    w = work(s)
    contestants: dict[str, Contestant] = {OURS: w.ours()}
    if plain:
        contestants |= {PLAIN: w.plain(transforms=False), AUGMENTED: w.plain(transforms=True)}
    absent = {}
    try:
        if s.torch:
            contestants[TORCH] = w.torch()
    except peers.Absent as why:
        absent[TORCH] = str(why)
    rate = matmul_rate(s) if rate is None else rate
    measured = contest(contestants, s, w.trainer.steps_per_call)
    gflop = step_gflop(w)
    for name, one in measured.items():
        one |= {"is_peer": name != OURS, "must_match": name in (PLAIN, AUGMENTED)}
        one["images_per_s"] = spread([s.batch / t for t in one["seconds"]])
        one["gflop_per_s"] = gflop * one["images_per_s"].median
        one["share_of_matmul"] = one["gflop_per_s"] / rate.median
        ratios = [seconds / ours for seconds, ours in zip(one["seconds"], measured[OURS]["seconds"], strict=True)]
        one["ours_over_this"], one["p_slower"] = spread(ratios), p_slower(ratios)
    return {
        **dataclasses.asdict(s),
        "steps_per_call": w.trainer.steps_per_call,
        "gflop_per_image": gflop,
        "matmul_gflop_per_s": rate,
        "contestants": measured,
        "absent": absent,
    }


def p_slower(ratios: Sequence[float]) -> float:
    """Sign test: how often at most this many rounds would be won (ratio >= 1) by one that is as fast as the other."""
    return float(stats.binomtest(sum(r >= 1 for r in ratios), len(ratios), alternative="less").pvalue)


def step_gflop(w: Work) -> float:
    """2 x (3 x student + teacher) MACs an image: backward costs two forwards, the teacher has none."""
    image = jax.ShapeDtypeStruct((1, w.settings.size, w.settings.size, 3), jnp.float32)
    student = jax.eval_shape(w.trainer.init).variables
    student_macs = peers.macs(w.trainer.task.parts.model, student, image)
    return 2e-9 * (3 * student_macs + peers.macs(w.teacher, w.teacher_variables, image))


def matmul_rate(s: Settings, repeats: int = 5) -> Spread:
    """GFLOP/s of large matrix products in the step's precision, one waited for on a CPU, a row of twenty elsewhere."""
    row = 1 if jax.default_backend() == "cpu" else 20
    x = jnp.full((s.matmul, s.matmul), 1 / s.matmul, s.precision)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(x, x))
    rates = []
    for _ in range(repeats):
        began, y = time.perf_counter(), x
        for _ in range(row):
            y = product(y, x)
        jax.block_until_ready(y)
        rates.append(2e-9 * row * s.matmul**3 / (time.perf_counter() - began))
    return spread(rates)

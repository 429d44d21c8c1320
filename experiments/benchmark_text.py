"""The speed of a distillation step on texts through the real Trainer, with a living teacher and with stored logits,
beside PyTorch eager with the same networks, batch and parameters."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import benchmark_step, peers, peers_text
from experiments.benchmark_step import Contestant, Ours, contest, matmul_rate, p_slower
from experiments.benchmark_tables import Rows, between, show, verdict
from experiments.spread import spread
from kdjax import data, provenance, teachers
from kdjax.options import Options
from kdjax.parts import parts
from kdjax.recipes import Distill, Optimizer, Recipe
from kdjax.tasks import task
from kdjax.trainer import Trainer
from kdjax.types import Model, PyTree

OURS, STORED, TORCH = "kdjax Trainer", "kdjax Trainer, stored logits", "PyTorch eager"


@dataclasses.dataclass(frozen=True)
class Settings(benchmark_step.Settings):
    """What is measured.

    Attributes:
      length: tokens of a text, padding included; half to all of them are real.
      vocab_size: entries of the word tables.
      dropout: the student's rates.
    """

    teacher: str = "bert_4l_256"
    student: str = "bert_2l_128"
    num_classes: int = 77
    examples: int = 4096
    length: int = 64
    vocab_size: int = 2000
    dropout: float = 0.1

    def quick(self) -> Settings:
        """A smoke test of seconds: one narrow layer each, two rounds; its numbers mean little."""
        smaller: dict[str, Any] = {"rounds": 2, "seconds": 0.2, "examples": 512, "matmul": 1024, "length": 16}
        return dataclasses.replace(self, teacher="bert_1l_64", student="bert_1l_64", **smaller)

    @property
    def options(self) -> Options:
        """Of both networks."""
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        sizes = {"vocab_size": self.vocab_size, "max_position_embeddings": max(self.length, 8)}
        return Options({**sizes, **dict.fromkeys(rates, self.dropout)})


class Work(NamedTuple):
    """One step's ingredients, shared by all contestants."""

    settings: Settings
    hyper: peers.Hyper
    living: Trainer
    stored: Trainer
    teacher: Model
    teacher_variables: PyTree

    def torch(self) -> peers_text.Torch:
        """The peer on the Trainer's first batch, from the Trainer's own initial parameters."""
        s, made = self.settings, self.living.task
        rows = data.epoch_order(len(made.dataset.train.label), made.batch_size, seed=made.seed, epoch=0)[0]
        return peers_text.Torch(
            (s.student, s.options, self.living.init().params),
            (s.teacher, s.options, self.teacher_variables["params"]),
            {name: array[rows] for name, array in made.dataset.train.inputs.items()},
            made.dataset.train.label[rows],
            num_classes=s.num_classes,
            hyper=self.hyper,
            precision=s.precision,
            threads=provenance.environment()["cpus"],
        )


def texts(s: Settings, examples: int) -> Any:
    """Random token ids: the speed of a step does not depend on what is read."""
    draw = np.random.default_rng(0)
    n = examples + 2
    ids = draw.integers(0, s.vocab_size, (n, s.length)).astype(np.int32)
    real = draw.integers(s.length // 2, s.length + 1, n)
    mask = (np.arange(s.length) < real[:, None]).astype(np.int8)
    label = draw.integers(0, s.num_classes, n).astype(np.int32)

    def part(rows: slice) -> Any:
        return {"input_ids": ids[rows], "attention_mask": mask[rows]}, label[rows]

    return data.from_arrays(part(slice(2, n)), part(slice(0, 1)), part(slice(1, 2)), num_classes=s.num_classes)


def work(s: Settings) -> Work:
    """The Trainer of a student with an untrained teacher, living and stored; whole calls in every epoch."""
    hyper = peers.Hyper(lr=1e-4, weight_decay=0.01)
    per_call = s.steps_per_call or (1 if jax.default_backend() == "cpu" else 8)
    dataset = texts(s, max(1, s.examples // (s.batch * per_call)) * s.batch * per_call)
    recipe = Recipe(
        model=s.student,
        model_options=s.options,
        distill=Distill("kd", {"T": hyper.T}, alpha=hyper.alpha),
        optimizer=Optimizer(
            name="adamw",
            lr=hyper.lr,
            weight_decay=hyper.weight_decay,
            decay_mask="kernels",
            clip_norm=1.0,
            schedule="constant",
        ),
        epochs=1000,
        batch_size=s.batch,
        precision=s.precision,
    )
    teacher = parts(dataclasses.replace(recipe, model=s.teacher, distill=None), dataset).model
    tokens = jax.ShapeDtypeStruct((1, s.length), jnp.int32)
    shapes = jax.eval_shape(teacher.init, jax.random.key(0), {"input_ids": tokens, "attention_mask": tokens})
    draw = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: draw.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    table = np.zeros((len(dataset.train.label), s.num_classes), np.float32)
    trainers = [
        Trainer(task(recipe, dataset, one), devices=1, steps_per_call=per_call)
        for one in (teachers.frozen(teacher, variables), teachers.remembered(table))
    ]
    return Work(s, hyper, trainers[0], trainers[1], teacher, variables)


def gflop_per_token(w: Work, *, living: bool) -> float:
    """2 x (3 x student + teacher) MACs a token: backward costs two forwards; no teacher where logits are stored."""
    tokens = jax.ShapeDtypeStruct((1, w.settings.length), jnp.int32)
    inputs = {"input_ids": tokens, "attention_mask": tokens}
    student = jax.eval_shape(w.living.init).variables
    macs = 3 * peers.macs(w.living.task.parts.model, student, inputs)
    if living:
        macs += peers.macs(w.teacher, w.teacher_variables, inputs)
    return 2e-9 * macs / w.settings.length


def distillation_step(s: Settings) -> dict[str, Any]:
    """Tokens/s of the step and of its peer, their ratio round by round, and the share of the matmul rate."""
    w = work(s)
    contestants: dict[str, Contestant] = {OURS: Ours(w.living), STORED: Ours(w.stored)}
    absent = {}
    try:
        if s.torch:
            contestants[TORCH] = w.torch()
    except peers.Absent as why:
        absent[TORCH] = str(why)
    rate = matmul_rate(s)
    measured = contest(contestants, s, w.living.steps_per_call)
    for name, one in measured.items():
        gflop = gflop_per_token(w, living=name != STORED)
        one["tokens_per_s"] = spread([s.batch * s.length / t for t in one["seconds"]])
        one["gflop_per_token"] = gflop
        one["gflop_per_s"] = gflop * one["tokens_per_s"].median
        one["share_of_matmul"] = one["gflop_per_s"] / rate.median
        ratios = [seconds / ours for seconds, ours in zip(one["seconds"], measured[OURS]["seconds"], strict=True)]
        one["ours_over_this"], one["p_slower"] = spread(ratios), p_slower(ratios)
    return {
        **dataclasses.asdict(s),
        "steps_per_call": w.living.steps_per_call,
        "matmul_gflop_per_s": rate,
        "contestants": measured,
        "absent": absent,
    }


def show_section(section: dict[str, Any]) -> None:
    """The section as a table."""
    rows: Rows = []
    for name, one in section["contestants"].items():
        ratio = one["ours_over_this"]
        rows.append(
            (
                name,
                between(one["tokens_per_s"]),
                between(ratio, 2) if name != OURS else "",
                f"{one['gflop_per_s']:.1f}",
                f"{one['share_of_matmul']:.0%}",
                f"{one['first_call_s']:.1f}",
                str(ratio.n),
                verdict(ratio.median >= 1, ">= 1.0x") if name == TORCH else "",
            )
        )
    absent = "".join(f"\n{name}: {why}." for name, why in section["absent"].items())
    rate = section["matmul_gflop_per_s"]
    show(
        f"distillation step on texts {section['teacher']} → {section['student']}, batch {section['batch']} of "
        f"{section['length']} tokens, {section['precision']}, {section['steps_per_call']} step(s) a call",
        ("contestant", "tokens/s", "kdjax ÷ this", "GFLOP/s", "of matmul", "first call s", "n", "target"),
        rows,
        f"tokens count padding; operations counted from shapes; {section['matmul']}² matmul: {between(rate)} GFLOP/s, "
        f"n = {rate.n}; rounds alternate, median (min … max).{absent}",
    )

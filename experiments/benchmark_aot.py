"""The real steps compiled for an accelerator that is not here: kernels, bytes, memory, collectives and what they imply.

XLA's own compilers run on any machine (`kdjax[cuda]`, `kdjax[tpu]`), so what they make of a step is a fact. Seconds are
not: nothing runs. The floor is what the device cannot go below for that program by its data sheet.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from experiments import benchmark_hlo, benchmark_memory, benchmark_step, benchmark_targets
from experiments.benchmark_tables import show_compiled
from experiments.benchmark_targets import Target
from kdjax import data, layout, outputs, programs, shapes, stages, step, tasks, teachers
from kdjax.errors import Refused
from kdjax.feeds import Feed, Resident
from kdjax.parts import Parts, parts
from kdjax.recipes import Distill, Optimizer, Recipe, from_dict
from kdjax.trainer import usual_steps_per_call
from kdjax.types import Dataset, PyTree, Split

EXAMPLES = 50_000
"""Of the training split where no configuration names one: CIFAR's. A tenth as many are held out for calibration."""
CLASSES = 100
PER_DEVICE = 128
"""Examples of a batch on each device where none are given."""
EVALUATED = 500
"""Examples of a prediction call, as `Trainer` has it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled.

    Attributes:
      targets: names of `benchmark_targets.TARGETS`.
      config: "configs/cifar100.py:wrn_40_2,mdca,wrn_40_1,kd", or "" for `teacher`, `student` and KD on random pixels.
      batch: of all devices together; 0 is the configuration's, or 128 a device.
      precision: "" is the configuration's, or bfloat16.
      norm_group: None is the configuration's, and on several devices also the groups that need no communication.
      steps_per_call: 0 is what the Trainer chooses on an accelerator.
    """

    targets: tuple[str, ...] = ("h100",)
    config: str = ""
    teacher: str = "wrn_40_2"
    student: str = "wrn_40_1"
    batch: int = 0
    precision: str = ""
    norm_group: int | None = None
    steps_per_call: int = 0
    size: int = 32

    def quick(self) -> Settings:
        """Small networks, so that even the slowest compiler is done in seconds."""
        return dataclasses.replace(self, teacher="wrn_10_1", student="wrn_10_1", size=8)


class Work(NamedTuple):
    """A student's recipe with its teacher's, on one data set."""

    student: Recipe
    teacher: Recipe | None
    dataset: Dataset

    def given(self, s: Settings, target: Target) -> Work:
        """With the settings' batch and precision in place of the recipe's own."""
        changed: dict[str, Any] = {}
        if s.batch or not s.config:
            changed["batch_size"] = s.batch or PER_DEVICE * target.devices
        if s.precision:
            changed["precision"] = s.precision
        if s.norm_group is not None:
            changed["norm_group"] = s.norm_group
        if changed.get("batch_size", self.student.batch_size) % target.devices:
            raise Refused(
                f"--batch is {changed.get('batch_size', self.student.batch_size)} and the target has "
                f"{target.devices} devices; expected a multiple."
            )
        teacher = self.teacher and dataclasses.replace(self.teacher, precision=s.precision or self.teacher.precision)
        return Work(dataclasses.replace(self.student, **changed), teacher, self.dataset)


def work(s: Settings) -> Work:
    """The recipes of the configuration with its data set, or KD between two networks on random pixels.

    Raises:
      Refused: no such configuration, names that it does not know, a data set that is not here.
    """
    if s.config:
        tree = benchmark_memory.recipes(s.config)
        teacher, student = (from_dict(Recipe, {**tree[who], "data": tree["data"]}) for who in ("teacher", "student"))
        return Work(student, None if student.distill is None else teacher, stages.dataset(student.data))
    student = Recipe(
        model=s.student,
        distill=Distill("kd", {"T": 4.0}),
        transform=("pad_crop", "flip"),
        optimizer=Optimizer(milestones=(100.0, 150.0)),
        epochs=200,
        precision=s.precision or "bfloat16",
    )
    teacher = Recipe(model=s.teacher, epochs=200, precision=student.precision)
    pixels = benchmark_step.Settings(size=s.size, num_classes=CLASSES)
    return Work(student, teacher, benchmark_step.pixels(pixels, EXAMPLES))


def section(s: Settings) -> dict[str, Any]:
    """Compiles every program for every target; what each does, as JSON."""
    targets = {name: benchmark_targets.find(name) for name in s.targets}
    base = work(s)
    shown = []
    for name, target in targets.items():
        chosen = base.given(s, target)
        programs = _programs(chosen, target, s)
        shown.append({"target": name, "devices": target.devices, **_about(chosen), "programs": programs})
        show_compiled(shown[-1])
    return {"targets": shown}


def _about(chosen: Work) -> dict[str, Any]:
    student, teacher = chosen.student, chosen.teacher
    return {
        "student": student.model,
        "teacher": None if teacher is None else teacher.model,
        "method": student.method if student.distill is None else student.distill.method,
        "batch": student.batch_size,
        "precision": student.precision,
    }


def _programs(chosen: Work, target: Target, s: Settings) -> list[dict[str, Any]]:
    """A row for every program of a run: training, prediction, and the objective's refresh where it has one."""
    mesh = benchmark_targets.mesh(target)
    rows = [_train(chosen, target, mesh, s)]
    student, groups = chosen.student, chosen.student.batch_size // target.devices
    if s.norm_group is None and target.devices > 1 and not student.norm_group:
        aligned = dataclasses.replace(student, norm_group=groups)
        rows.append(_train(chosen._replace(student=aligned), target, mesh, s))
    return [*rows, *_evaluation(chosen, target, mesh)]


def _train(chosen: Work, target: Target, mesh: Mesh, s: Settings) -> dict[str, Any]:
    task = _task(chosen, mesh)
    calls = s.steps_per_call or usual_steps_per_call(task.steps_per_epoch, target.platform)
    feed, elements = _feed(task.dataset.train, (calls, task.batch_size), mesh)
    inputs = ((tasks.abstract(task, mesh),), feed, elements, tasks.teacher_variables(task))
    flops = 3 * _forward(task.parts, task.dataset)
    if chosen.teacher is not None and _live(chosen):
        flops += _forward(parts(chosen.teacher, chosen.dataset), chosen.dataset)
    group = chosen.student.norm_group
    name = "train" + (f", norm_group {group}" if group else "")
    program = tasks.train_program([task], mesh, steps_per_call=calls)
    lowered = program.lower(*inputs, np.uint32(0))
    about = {"program": name, "examples": task.batch_size, "steps_per_call": calls}
    return about | _compiled(lowered, target, chosen, flops * task.batch_size, calls)


def _evaluation(chosen: Work, target: Target, mesh: Mesh) -> list[dict[str, Any]]:
    task, n = _task(chosen, mesh), target.devices
    batch = -(-EVALUATED // n) * n
    feed, elements = _feed(task.dataset.train, (batch,), mesh)
    variables = tasks.abstract(task, mesh).variables
    program = step.predict_step(model=task.parts.model, prepare=task.parts.prepare, mesh=mesh)
    flops = _forward(task.parts, task.dataset) * batch
    lowered = program.lower(variables, feed, elements)
    about = {"program": "predict", "examples": batch, "steps_per_call": 1}
    rows = [about | _compiled(lowered, target, chosen, flops, 1)]
    if (objective := task.parts.objective).refresh is not None:
        examples, everywhere = len(task.dataset.calibration.label), layout.replicated(mesh)
        logits = _shape((examples, task.dataset.num_classes), np.float32, everywhere)
        labels = _shape((examples,), np.int32, everywhere)
        refresh = step.refresh_step(objective=objective, mesh=mesh)
        lowered = refresh.lower(tasks.abstract(task, mesh).objective, logits, labels)
        about = {"program": "refresh", "examples": examples, "steps_per_call": 1}
        rows.append(about | _compiled(lowered, target, chosen, 0.0, 1))
    return rows


def _task(chosen: Work, mesh: Mesh) -> tasks.Task:
    """The student's task, with a teacher of shapes alone."""
    teacher, examples = None, chosen.dataset
    if chosen.teacher is not None and _live(chosen):
        pieces, raw = parts(chosen.teacher, examples), tasks.example(examples.train)
        variables = jax.eval_shape(lambda x: pieces.model.init(programs.random_key(0), pieces.prepare(x)), raw)
        teacher = teachers.frozen(pieces.model, variables)
    elif chosen.teacher is not None:
        logits = (len(examples.train.label), examples.num_classes)
        teacher = teachers.table_of(jax.ShapeDtypeStruct(logits, np.float32))
    if teacher is not None:
        everywhere = layout.replicated(mesh)
        shaped = jax.tree.map(lambda x: _shape(x.shape, x.dtype, everywhere), teacher.variables)
        teacher = teacher._replace(variables=shaped)
    return tasks.task(chosen.student, examples, teacher)


def _live(chosen: Work) -> bool:
    return outputs.how(chosen.student, chosen.dataset) == outputs.LIVE


def _feed(split: Split, leading: tuple[int, ...], mesh: Mesh) -> tuple[Feed, PyTree]:
    """(the split as it lies on every device, positions in it with these leading axes); of a stream None and batches."""
    sharding = layout.along_batch(mesh) if len(leading) == 1 else layout.along_steps(mesh)
    one: Any = tasks.example_batch(split)
    if data.is_lazy(split):
        return None, jax.tree.map(lambda x: _shape((*leading, *x.shape[1:]), x.dtype, sharding), one)
    n, everywhere = len(split.label), layout.replicated(mesh)
    held = Resident(one.inputs, one.label, one.weight)
    feed = jax.tree.map(lambda x: _shape((n, *x.shape[1:]), x.dtype, everywhere), held)
    return feed, _shape(leading, np.int32, sharding)


def _shape(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _forward(pieces: Parts, dataset: Dataset) -> float:
    """Floating-point operations of one example's forward pass, as XLA counts the unoptimized program."""
    leaves, tree = jax.tree.flatten(tasks.example(dataset.train))
    return shapes.forward_flops(
        pieces.model, pieces.prepare, (tree, tuple((x.shape[1:], str(x.dtype)) for x in leaves))
    )


def _compiled(
    lowered: jax.stages.Lowered,
    target: Target,
    chosen: Work,
    flops: float,
    calls: int,
) -> dict[str, Any]:
    """What one step of a program does on one device, and the least time that it can take there.

    Args:
      flops: of one step, on all devices together.
      calls: steps in one call; what surrounds their loop is shared out among them.
    """
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    counts = benchmark_hlo.count(compiled.as_text() or "")
    kernels, moved = sum(counts.kernels.values()) / calls, sum(counts.bytes.values()) / calls
    floors = {
        "bytes": moved / target.bandwidth,
        "flop": flops / target.devices / target.flops[chosen.student.precision],
        "launches": kernels * target.launch,
    }
    bound = max(floors, key=lambda name: floors[name])
    return {
        "kernels": kernels,
        "gigabytes": moved / 1e9,
        "gflop": flops / 1e9,
        "peak_mb": (peak + memory.temp_size_in_bytes) / 1e6,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "fits": peak + memory.temp_size_in_bytes <= target.memory,
        "collectives": {name: n / calls for name, n in counts.collectives.items()},
        "collective_mb": counts.collective_bytes / calls / 1e6,
        "host_transfers": counts.host_transfers,
        "loops_counted_once": counts.loops,
        "compile_s": seconds,
        "floor_ms": 1e3 * floors[bound],
        "bound_by": bound,
        "floors_ms": {name: 1e3 * value for name, value in floors.items()},
        "kinds": {
            kind: {"kernels": n / calls, "megabytes": counts.bytes[kind] / calls / 1e6}
            for kind, n in counts.kernels.most_common()
        },
    }

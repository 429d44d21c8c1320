"""The sections of the benchmark: their flags, their settings, and what runs them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.benchmark_tables import (
    MEMORY_MB,
    Rows,
    show,
    show_dispatch,
    show_distillation,
    show_imports,
    show_pairs,
    show_traces,
    verdict,
)
from kdjax.errors import Refused, one_of, within

_QUICK = flags.DEFINE_bool("quick", False, "Tiny networks and few repeats: does the benchmark run at all?")
_REPEATS = flags.DEFINE_integer("repeats", 0, "Measurements of each number; 0 means the section's own choice.")
_BATCH = flags.DEFINE_integer("batch", 0, "Batch size of the distillation step; 0: 64, or 128 a device of aot.")
_PRECISION = flags.DEFINE_enum(
    "precision", None, ["float32", "bfloat16"], "Compute dtype of the networks; default float32, bfloat16 of aot."
)
_STEPS_PER_CALL = flags.DEFINE_integer("steps_per_call", 0, "Steps scanned per call; 0: 1 on CPU, up to 16 elsewhere.")
_TEACHER = flags.DEFINE_string("teacher", None, "The teacher's network; default wrn_40_2, or resnet8 with --quick.")
_STUDENT = flags.DEFINE_string("student", None, "The student's network; default wrn_40_1, or resnet8 with --quick.")
_TORCH = flags.DEFINE_bool("torch", True, "Compare with PyTorch where it is installed.")
_MEMORY_CONFIG = flags.DEFINE_string(
    "memory_config", "configs/cifar100.py:resnet8", "The run whose memory is measured."
)
_TARGET = flags.DEFINE_list("target", ["h100"], "What aot compiles for: h100, h100x8, v5e, v5e:2x2, ...")
_AOT_CONFIG = flags.DEFINE_string("config", "", "The configuration that aot compiles, default KD on random pixels.")
_TABLE = flags.DEFINE_string("table", None, "The table of workers; default quickstart, cut short, else a :cpu table.")
_NORM_GROUP = flags.DEFINE_integer("norm_group", -1, "recipe.norm_group of aot; default the recipe's.")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings() -> Any:
    """The step section's settings from the flags; networks that do not exist are refused here."""
    from experiments.benchmark_step import Settings
    from kdjax import models

    given = {"teacher": _TEACHER.value, "student": _STUDENT.value, "rounds": within("--repeats", _REPEATS.value, 0)}
    chosen = Settings(
        batch=within("--batch", _BATCH.value, 0) or Settings.batch,
        precision=_PRECISION.value or Settings.precision,
        steps_per_call=within("--steps_per_call", _STEPS_PER_CALL.value, 0),
        torch=_TORCH.value,
    )
    chosen = chosen.quick() if _QUICK.value else chosen
    chosen = dataclasses.replace(chosen, **{key: value for key, value in given.items() if value})
    for name in (chosen.teacher, chosen.student):
        models.build(name, num_classes=2)
    return chosen


def step_section() -> dict[str, Any]:
    """Imports in fresh processes first, then what needs this process's own JAX."""
    chosen = settings()
    from experiments import benchmark_dispatch, benchmark_memory, benchmark_step

    out: dict[str, Any] = {"import": benchmark_memory.imports(2 if _QUICK.value else 5)}
    show_imports(out["import"])
    out["dispatch"] = [row for n in benchmark_dispatch.LEAVES for row in benchmark_dispatch.dispatch(n, chosen.calls)]
    show_dispatch(out["dispatch"])
    out["traces"] = benchmark_dispatch.traces()
    show_traces(out["traces"])
    out["distillation"] = benchmark_step.distillation_step(chosen)
    show_distillation(out["distillation"])
    return out


def pairs_section() -> dict[str, Any]:
    from experiments import benchmark_step

    if _TEACHER.value or _STUDENT.value:
        raise Refused("--teacher and --student choose one pair, and pairs measures several; type step.")
    measured = benchmark_step.pairs(settings())
    show_pairs(measured)
    return {"pairs": measured}


def text_settings() -> Any:
    """The text section's settings from the flags; networks of images are left to the step section."""
    from experiments.benchmark_text import Settings
    from kdjax.models import transformer_names

    named = {"teacher": _TEACHER.value, "student": _STUDENT.value}
    given: dict[str, Any] = {key: value for key, value in named.items() if value and transformer_names.named(value)}
    given |= {"rounds": _REPEATS.value} if _REPEATS.value else {}
    chosen = Settings(
        batch=_BATCH.value or Settings.batch,
        precision=_PRECISION.value or Settings.precision,
        steps_per_call=_STEPS_PER_CALL.value,
        torch=_TORCH.value,
    )
    chosen = chosen.quick() if _QUICK.value else chosen
    return dataclasses.replace(chosen, **given)


def text_section() -> dict[str, Any]:
    from experiments import benchmark_text

    measured = benchmark_text.distillation_step(text_settings())
    benchmark_text.show_section(measured)
    return measured


def memory_section() -> dict[str, Any]:
    from experiments import benchmark_memory

    benchmark_memory.recipes(_MEMORY_CONFIG.value)
    measured = benchmark_memory.peak(_MEMORY_CONFIG.value, 2 if _QUICK.value else 20)
    if isinstance(measured, str):
        print(f"memory: skipped; {measured}")
        return {"skipped": measured}
    rows: Rows = []
    for one in measured:
        rows += [(f"{one['case']}: {mark}", f"{mb:,.0f}", "") for mark, mb in one["marks"].items()]
        rows.append((one["case"], f"{one['peak_mb']:,.0f}", verdict(one["peak_mb"] < MEMORY_MB, f"< {MEMORY_MB}")))
    first = measured[0]
    what = f"{first['config']}, {' → '.join(first['models'])}, batch {first['batch_size']}"
    show(
        f"peak resident memory so far, MB: {what}, {first['train_examples']:,} images resident",
        ("process, after", "peak MB", "target"),
        rows,
    )
    return {"n": 1, "target_mb": MEMORY_MB, "runs": measured}


def metrics_section() -> dict[str, Any]:
    from experiments import benchmark_metrics

    arguments = ["--threads", str(cores()), *(["--quick"] if _QUICK.value else [])]
    return benchmark_metrics.run([*arguments, *(["--repeats", str(_REPEATS.value)] if _REPEATS.value else [])])


def aot_section() -> dict[str, Any]:
    import jax

    # Nothing runs on the target, and without it the start of its backend would fail, or wait.
    jax.config.update("jax_platforms", "cpu")
    from experiments import benchmark_aot

    named: dict[str, Any] = {"teacher": _TEACHER.value, "student": _STUDENT.value, "precision": _PRECISION.value}
    group = within("--norm_group", _NORM_GROUP.value, -1)
    chosen = benchmark_aot.Settings(
        targets=tuple(_TARGET.value),
        config=_AOT_CONFIG.value,
        batch=within("--batch", _BATCH.value, 0),
        norm_group=None if group < 0 else group,
        steps_per_call=within("--steps_per_call", _STEPS_PER_CALL.value, 0),
    )
    chosen = chosen.quick() if _QUICK.value else chosen
    chosen = dataclasses.replace(chosen, **{key: value for key, value in named.items() if value})
    return benchmark_aot.section(chosen)


def workers_settings() -> Any:
    """The workers section's settings from the flags."""
    from experiments.all import TABLES
    from experiments.benchmark_workers import QUICKSTART, Settings

    chosen = Settings().quick() if _QUICK.value else Settings()
    if _TABLE.value:
        if _QUICK.value:
            raise Refused("--quick shortens the quickstart, and --table names another table; leave one of them out.")
        one_of("--table", _TABLE.value, [QUICKSTART, *TABLES])
        chosen = dataclasses.replace(chosen, table=_TABLE.value)
    return dataclasses.replace(chosen, rounds=_REPEATS.value or chosen.rounds)


def workers_section() -> dict[str, Any]:
    from experiments import benchmark_workers

    measured = benchmark_workers.measure(workers_settings())
    if isinstance(measured, str):
        print(f"workers: skipped; {measured}")
        return {"skipped": measured}
    benchmark_workers.show_section(measured)
    return measured


def sweep_settings() -> Any:
    """The sweep section's settings from the flags; networks that do not exist are refused here."""
    from experiments.benchmark_sweep import Settings
    from kdjax import models

    chosen = Settings().quick() if _QUICK.value else Settings()
    given = {
        "teacher": _TEACHER.value,
        "student": _STUDENT.value,
        "batch": within("--batch", _BATCH.value, 0),
        "precision": _PRECISION.value,
        "steps_per_call": within("--steps_per_call", _STEPS_PER_CALL.value, 0),
        "rounds": within("--repeats", _REPEATS.value, 0),
    }
    chosen = dataclasses.replace(chosen, torch=_TORCH.value, **{key: value for key, value in given.items() if value})
    for name in (chosen.teacher, chosen.student):
        models.build(name, num_classes=2)
    if chosen.batch > chosen.examples:
        raise Refused(f"--batch is {chosen.batch}, and the sweep has {chosen.examples} examples; expected no more.")
    return chosen


def sweep_section() -> dict[str, Any]:
    from experiments import benchmark_sweep

    measured = benchmark_sweep.measure(sweep_settings())
    benchmark_sweep.show_section(measured)
    return measured


# What runs in fresh processes goes first, while this process is small: a child's memory counters inherit its parent's.
SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "metrics": metrics_section,
    "memory": memory_section,
    "step": step_section,
    "text": text_section,
}
ON_REQUEST: dict[str, Callable[[], dict[str, Any]]] = {
    "aot": aot_section,
    "workers": workers_section,
    "sweep": sweep_section,
    "pairs": pairs_section,
}
"""Sections that run only when they are named: what they need is not installed everywhere, or they take long."""


def planned(chosen: Any) -> dict[str, str]:
    """What each section would measure, in words; `chosen` are the settings of the step."""
    from experiments.benchmark_step import PAIRS

    return {
        "text": "the distillation step on texts: tokens a second, beside PyTorch eager where it is installed",
        "metrics": "seconds and memory of the calibration errors",
        "aot": f"the steps compiled for {', '.join(_TARGET.value)}, which need not be here",
        "memory": f"peak memory of {_MEMORY_CONFIG.value}, from an empty and from a full cache, where its data set is",
        "workers": f"{workers_settings().table} with one worker and with several, {workers_settings().rounds} rounds, "
        "where there are several processors",
        "sweep": f"{len(sweep_settings().grid)} students as one cohort, one after another, and in PyTorch where it is "
        f"installed, {sweep_settings().rounds} rounds",
        "pairs": f"the distillation step of {len(PAIRS)} pairs of networks beside PyTorch, batch {chosen.batch}, "
        f"{_REPEATS.value or chosen.rounds} rounds",
        "step": (
            f"imports, dispatch, compiles, and the distillation step {chosen.teacher} → {chosen.student}, batch "
            f"{chosen.batch}, {chosen.precision}, {_REPEATS.value or chosen.rounds} rounds"
        ),
    }

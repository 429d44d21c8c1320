"""The flags of the benchmark: who reads which, what they are checked against, and the settings they become."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kdjax.errors import Refused, one_of, within
from kdjax.models.transformer_names import named

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


_STEP = frozenset({"quick", "repeats", "batch", "precision", "steps_per_call", "teacher", "student", "torch"})
READS: dict[str, frozenset[str]] = {
    "metrics": frozenset({"quick", "repeats"}),
    "memory": frozenset({"quick", "memory_config"}),
    "step": _STEP,
    "text": _STEP,
    "aot": _STEP - {"repeats", "torch"} | {"target", "config", "norm_group"},
    "workers": frozenset({"quick", "repeats", "table"}),
    "sweep": _STEP,
    "pairs": _STEP - {"teacher", "student"},
}
"""The flags that each section reads."""


def check(sections: Sequence[str]) -> None:
    """Refuses what was typed and would not be read.

    Raises:
      Refused: a flag of other sections, or a network that none of the sections trains.
    """
    read = {name for section in sections for name in READS[section]}
    for name in sorted({name for reads in READS.values() for name in reads} - read):
        if not flags.FLAGS[name].using_default_value:
            readers = ", ".join(section for section, reads in READS.items() if name in reads)
            chosen, verb = sections[0], "does"
            if len(sections) > 1:
                chosen, verb = f"{', '.join(sections[:-1])} and {sections[-1]}", "do"
            raise Refused(
                f"--{name} was given, which {chosen} {verb} not read; leave it out, or type one of {readers}."
            )
    for flag in (_TEACHER, _STUDENT):
        if flag.value and sections == ["text"] and not named(flag.value):
            raise Refused(f"--{flag.name} is {flag.value!r}, which does not read texts; expected one like bert_4l_256.")
        if flag.value and "text" not in sections and named(flag.value):
            raise Refused(f"--{flag.name} is {flag.value!r}, which does not read images; expected one like wrn_40_2.")


def quick() -> bool:
    return _QUICK.value


def metrics_arguments() -> list[str]:
    """The command line of `benchmark_metrics`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    repeats = within("--repeats", _REPEATS.value, 0)
    return [
        "--threads",
        str(cores),
        *(["--quick"] if quick() else []),
        *(["--repeats", str(repeats)] if repeats else []),
    ]


def memory_config() -> str:
    """The configuration of the memory section; one that does not exist is refused."""
    from experiments import benchmark_memory

    benchmark_memory.recipes(_MEMORY_CONFIG.value)
    return _MEMORY_CONFIG.value


def settings() -> Any:
    """The step section's settings from the flags; unknown networks are refused, those of texts passed over."""
    from experiments.benchmark_step import Settings
    from kdjax import models

    chosen = _distillation(Settings, texts=False)
    for name in (chosen.teacher, chosen.student):
        models.build(name, num_classes=2)
    return chosen


def text_settings() -> Any:
    """The text section's settings from the flags; networks of images are passed over."""
    from experiments.benchmark_text import Settings

    return _distillation(Settings, texts=True)


def _distillation(kind: Any, *, texts: bool) -> Any:
    networks = {"teacher": _TEACHER.value, "student": _STUDENT.value}
    chosen = kind(
        batch=within("--batch", _BATCH.value, 0) or kind.batch,
        precision=_PRECISION.value or kind.precision,
        steps_per_call=within("--steps_per_call", _STEPS_PER_CALL.value, 0),
        torch=_TORCH.value,
    )
    chosen = chosen.quick() if _QUICK.value else chosen
    return dataclasses.replace(
        chosen,
        rounds=within("--repeats", _REPEATS.value, 0) or chosen.rounds,
        **{key: value for key, value in networks.items() if value and bool(named(value)) == texts},
    )


def aot_settings() -> Any:
    """The aot section's settings from the flags; targets, networks and configurations that do not exist are refused.

    A compiler that is not installed is not: what would be compiled can be said without it.
    """
    import jax

    # Nothing runs on the target, and without it the start of its backend would fail, or wait.
    jax.config.update("jax_platforms", "cpu")
    from experiments import benchmark_aot, benchmark_memory, benchmark_targets
    from kdjax import models

    networks: dict[str, Any] = {"teacher": _TEACHER.value, "student": _STUDENT.value}
    networks = {key: value for key, value in networks.items() if value}
    if _AOT_CONFIG.value and networks:
        raise Refused(f"--config names the networks, and so does --{next(iter(networks))}; leave one of them out.")
    if _AOT_CONFIG.value:
        benchmark_memory.recipes(_AOT_CONFIG.value)
    for target in _TARGET.value:
        one_of("--target", target, benchmark_targets.TARGETS)
    group = within("--norm_group", _NORM_GROUP.value, -1)
    chosen = benchmark_aot.Settings(
        targets=tuple(_TARGET.value),
        config=_AOT_CONFIG.value,
        batch=within("--batch", _BATCH.value, 0),
        precision=_PRECISION.value or "",
        norm_group=None if group < 0 else group,
        steps_per_call=within("--steps_per_call", _STEPS_PER_CALL.value, 0),
    )
    chosen = dataclasses.replace(chosen.quick() if _QUICK.value else chosen, **networks)
    for name in (chosen.teacher, chosen.student):
        models.build(name, num_classes=2)
    return chosen


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


def planned(name: str) -> str:
    """What a section would measure, in words.

    Raises:
      Refused: a setting of that section that it would not run with.
    """
    return PLANS[name]()


def _plan_of_metrics() -> str:
    metrics_arguments()
    return "seconds and memory of the calibration errors"


def _plan_of_memory() -> str:
    return f"peak memory of {memory_config()}, from an empty and from a full cache, where its data set is"


def _plan_of_step() -> str:
    chosen = settings()
    return (
        f"imports, dispatch, compiles, and the distillation step {chosen.teacher} → {chosen.student}, batch "
        f"{chosen.batch}, {chosen.precision}, {chosen.rounds} rounds"
    )


def _plan_of_text() -> str:
    chosen = text_settings()
    return (
        f"tokens a second of the distillation step on texts, {chosen.teacher} → {chosen.student}, beside PyTorch eager "
        f"where it is installed, {chosen.rounds} rounds"
    )


def _plan_of_aot() -> str:
    chosen = aot_settings()
    what = chosen.config or f"{chosen.teacher} → {chosen.student}"
    return f"the steps of {what} compiled for {', '.join(chosen.targets)}, which need not be here"


def _plan_of_workers() -> str:
    chosen = workers_settings()
    return (
        f"{chosen.table} with one worker and with several, {chosen.rounds} rounds, where there are several processors"
    )


def _plan_of_sweep() -> str:
    chosen = sweep_settings()
    return (
        f"{len(chosen.grid)} students as one cohort, one after another, and in PyTorch where it is installed, "
        f"{chosen.rounds} rounds"
    )


def _plan_of_pairs() -> str:
    from experiments.benchmark_step import PAIRS

    chosen = settings()
    return (
        f"the distillation step of {len(PAIRS)} pairs of networks beside PyTorch, batch {chosen.batch}, "
        f"{chosen.rounds} rounds"
    )


PLANS: dict[str, Callable[[], str]] = {
    "metrics": _plan_of_metrics,
    "memory": _plan_of_memory,
    "step": _plan_of_step,
    "text": _plan_of_text,
    "aot": _plan_of_aot,
    "workers": _plan_of_workers,
    "sweep": _plan_of_sweep,
    "pairs": _plan_of_pairs,
}

"""The sections of the benchmark: each measures, shows what it measured, and returns it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments import benchmark_settings
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


def step_section() -> dict[str, Any]:
    """Imports in fresh processes first, then what needs this process's own JAX."""
    chosen = benchmark_settings.settings()
    from experiments import benchmark_dispatch, benchmark_memory, benchmark_step

    out: dict[str, Any] = {"import": benchmark_memory.imports(2 if benchmark_settings.quick() else 5)}
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

    measured = benchmark_step.pairs(benchmark_settings.settings())
    show_pairs(measured)
    return {"pairs": measured}


def text_section() -> dict[str, Any]:
    from experiments import benchmark_text

    measured = benchmark_text.distillation_step(benchmark_settings.text_settings())
    benchmark_text.show_section(measured)
    return measured


def memory_section() -> dict[str, Any]:
    from experiments import benchmark_memory

    measured = benchmark_memory.peak(benchmark_settings.memory_config(), 2 if benchmark_settings.quick() else 20)
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

    return benchmark_metrics.run(benchmark_settings.metrics_arguments())


def aot_section() -> dict[str, Any]:
    chosen = benchmark_settings.aot_settings()
    from experiments import benchmark_aot

    return benchmark_aot.section(chosen)


def workers_section() -> dict[str, Any]:
    from experiments import benchmark_workers

    measured = benchmark_workers.measure(benchmark_settings.workers_settings())
    if isinstance(measured, str):
        print(f"workers: skipped; {measured}")
        return {"skipped": measured}
    benchmark_workers.show_section(measured)
    return measured


def sweep_section() -> dict[str, Any]:
    from experiments import benchmark_sweep

    measured = benchmark_sweep.measure(benchmark_settings.sweep_settings())
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

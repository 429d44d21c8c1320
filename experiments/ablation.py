"""What distillation temperature and weight do to accuracy and calibration: a T x alpha grid as heat maps.

    python -m experiments.ablation --plan
    python -m experiments.ablation --config=configs/ablation.py:cpu --workdir runs/ablation_cpu

One teacher a seed teaches a student for every T and alpha of the configuration. Sizes are described in
configs/ablation.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import common, figures, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet
from experiments.tables import Row, values
from kdjax.errors import Refused
from kdjax.stages import Stage

IGNORED = {
    "teacher": common.ONLY["teacher"],
    **common.ONLY,
    "recipe.student.distill.options.T": "the ablation compares --config.recipe.T=(1.0,4.0)",
    "recipe.student.distill.alpha": "the ablation compares --config.recipe.alpha=(0.5,0.9)",
    "recipe.student.distill.weights": "the ablation compares --config.recipe.alpha=(0.5,0.9)",
}


def cell(T: float, alpha: float) -> str:
    return f"T = {T:g}, α = {alpha:g}"


def rows(config: ConfigDict) -> dict[str, Row]:
    """The teacher, and a student for every cell of the grid.

    Raises:
      Refused: no distillation method, or one without a temperature; values that are no different numbers.
    """
    common.distinct("config.recipe.T", config.recipe.T, float)
    common.distinct("config.recipe.alpha", config.recipe.alpha, float)
    teacher, student = common.pair(config, 0)
    term = student.recipe.distill
    if term is None or "T" not in term.options:
        method = "none" if term is None else repr(term.method)
        raise Refused(
            f"the ablation varies T of the distillation method, which is {method}; set "
            "config.recipe.student.distill.method to one that has it, e.g. kd."
        )
    made = {f"teacher {common.label(teacher.recipe)}": Row(teacher)}
    for T in config.recipe.T:
        for alpha in config.recipe.alpha:
            changed = dataclasses.replace(term, options={**term.options, "T": float(T)}, alpha=float(alpha), weights=())
            recipe = dataclasses.replace(student.recipe, distill=changed)
            made[cell(T, alpha)] = Row(Stage(recipe, teacher, name=f"student {cell(T, alpha)}"))
    return made


def run(given: Command) -> None:
    config = given.config
    finished = tables.run(given, rows(config))
    if finished is None:
        return
    by_name = {line.name: line for line in finished.lines}
    folder = Path(config.run.workdir)
    names = {"top-1 %": "top1", "ECE %": "ece"}
    panels = {head: grid_of(config, by_name, metric) for head, metric in names.items()}
    picture = figures.heat(
        folder / "ablation.png",
        panels,
        rows=[f"{alpha:g}" for alpha in config.recipe.alpha],
        columns=[f"{T:g}" for T in config.recipe.T],
        xlabel="T",
        ylabel="α",
        empty=[
            (i, j)
            for i, alpha in enumerate(config.recipe.alpha)
            for j, T in enumerate(config.recipe.T)
            if by_name[cell(T, alpha)].absent
        ],
    )
    tables.publish(
        given,
        "ablation",
        Sheet(finished.lines),
        finished,
        title="Temperature and weight of distillation",
        summary=[best(config, by_name)],
        figures=[("Mean over seeds on the test split", picture)],
        notes=[f"{published.KDC}, says in words, without a table, that students were best calibrated at T = 1."],
    )


def grid_of(config: ConfigDict, by_name: dict[str, Line], metric: str) -> np.ndarray:
    """Means in percent, [alpha, T]; NaN where no seed finished."""

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / len(numbers) if numbers else float("nan")

    return np.array([[mean(values(by_name[cell(T, a)], metric)) for T in config.recipe.T] for a in config.recipe.alpha])


def best(config: ConfigDict, by_name: dict[str, Line]) -> str:
    """Where the ECE was lowest, read off the table."""
    means = grid_of(config, by_name, "ece")
    if not np.isfinite(means).any():
        return "No student finished."
    i, j = np.unravel_index(np.nanargmin(means), means.shape)
    where = cell(config.recipe.T[j], config.recipe.alpha[i])
    return (
        f"The lowest mean ECE of {np.isfinite(means).sum()} settings is {means[i, j]:.2f} % at {where}; it is the "
        f"lowest of many, so expect less of it on new data. The highest is {np.nanmax(means):.2f} %."
    )


if __name__ == "__main__":
    common.main(run, "configs/ablation.py", workdir="runs/ablation", ignored=IGNORED)

"""KD(C), table 1 and its figures 2 and 3: every calibrator alone, and students of calibrated teachers.

    python -m experiments.table1 --plan
    python -m experiments.table1 --config=configs/table1.py:cpu --workdir runs/table1_cpu

Rows: each calibrator on the teacher's network and on each student's, NLL followed by temperature scaling, and each
student distilled from the teachers of `config.recipe.teachers`. Sizes are described in configs/table1.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from configs.base import meant
from experiments import common, figures, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet, printed
from experiments.tables import Row, values
from kdjax.stages import Stage


def alone(config: ConfigDict, network: str, method: str) -> Stage:
    """A network trained with one calibrator, without a teacher."""
    who = "teacher" if network == config.recipe.teacher.model else "student"
    recipe = common.recipe(config, who, 0, model=network, method=method, options=meant(method), distill=None)
    return Stage(recipe, name=f"{network} {method}")


def rows(config: ConfigDict) -> dict[str, Row]:
    """Every row by its name."""
    common.named("config.recipe.calibrators", config.recipe.calibrators)
    common.named("config.recipe.teachers", config.recipe.teachers)
    common.named("config.recipe.students", config.recipe.students)
    made = {}
    for network in dict.fromkeys([config.recipe.teacher.model, *config.recipe.students]):
        for method in config.recipe.calibrators:
            figures_of = printed(published.TABLE1.get((network, method)))
            made[f"{network} {method}"] = Row(alone(config, network, method), published=figures_of)
            if method == config.recipe.uncalibrated:
                figures_of = printed(published.TABLE1.get((network, f"{method} + temperature")))
                scaled = Row(alone(config, network, method), "temperature", figures_of)
                made[f"{network} {method} + temperature"] = scaled
    for network in config.recipe.students:
        student = common.recipe(config, "student", 0, model=network)
        for method in config.recipe.teachers:
            teacher = alone(config, config.recipe.teacher.model, method)
            name = f"{network} {kind(config, method)} from {config.recipe.teacher.model} {method}"
            figures_of = printed(published.TABLE1.get((network, f"kd from {method}")))
            made[name] = Row(Stage(student, teacher, name=name), published=figures_of)
    return made


def kind(config: ConfigDict, method: str) -> str:
    """How the paper calls distillation from a teacher of that method."""
    return "KD(UC)" if method == config.recipe.uncalibrated else "KD(C)"


def run(given: Command) -> None:
    config = given.config
    finished = tables.run(given, rows(config))
    if finished is None:
        return
    differences = {}
    teacher = config.recipe.teacher.model
    by_name = {line.name: line for line in finished.lines}
    for network in config.recipe.students:
        plain = by_name.get(f"{network} KD(UC) from {teacher} {config.recipe.uncalibrated}")
        for method in config.recipe.teachers:
            calibrated = by_name[f"{network} {kind(config, method)} from {teacher} {method}"]
            if plain is not None and calibrated is not plain and (difference := tables.paired(calibrated, plain)):
                differences[f"{network}, {method} teacher"] = difference
    sentences = [common.difference_sentence(where, difference["ece"]) for where, difference in differences.items()]
    if not sentences:
        sentences = ["Too few seeds finished, or too few teachers were asked for, to compare KD(C) with KD(UC)."]
    tables.publish(
        given,
        "table1",
        Sheet(finished.lines, published="top-1 / ECE / SCE / ACE %", source=f"{published.KDC}, table 1"),
        finished,
        title="KD(C), table 1: does calibration transfer by distillation?",
        summary=sentences,
        figures=drawn(config, by_name),
        kdc_minus_kduc=differences,
    )


def drawn(config: ConfigDict, by_name: Mapping[str, Line]) -> list[tuple[str, Path]]:
    """Figures 2 and 3 for each student."""
    folder, teacher = Path(config.run.workdir), config.recipe.teacher.model
    made = []
    for network in config.recipe.students:
        direct = {method: by_name[f"{network} {method}"] for method in config.recipe.calibrators}
        distilled = {m: by_name[f"{network} {kind(config, m)} from {teacher} {m}"] for m in config.recipe.teachers}
        groups = {
            method: {"trained alone": values(direct[method], "ece"), "distilled": values(distilled[method], "ece")}
            for method in config.recipe.teachers
            if method in direct and direct[method].metrics and distilled[method].metrics
        }
        if groups:
            path = figures.bars(
                folder / f"bars_{network}.png", groups, ylabel="ECE %", title=f"{network}: trained alone and distilled"
            )
            made.append((f"ECE of {network} trained with each calibrator, and distilled from its teacher", path))
        for metric, head in (("ece", "ECE %"), ("sce", "SCE %")):
            points = {"trained alone": means(direct, metric), "distilled": means(distilled, metric)}
            points = {name: labeled for name, labeled in points.items() if labeled}
            if points:
                path = figures.scatter(
                    folder / f"scatter_{metric}_{network}.png",
                    points,
                    xlabel="top-1 %",
                    ylabel=head,
                    title=f"{network}: accuracy and {head.removesuffix(' %')}",
                )
                made.append((f"Accuracy of {network} against {head.removesuffix(' %')}", path))
    return made


def means(lines: Mapping[str, Line], metric: str) -> dict[str, tuple[float, float]]:
    """Row -> (mean top-1, mean of the metric) over the seeds that finished."""

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / len(numbers)

    return {
        name: (mean(values(line, "top1")), mean(values(line, metric))) for name, line in lines.items() if line.metrics
    }


if __name__ == "__main__":
    common.main(run, "configs/table1.py", workdir="runs/table1")

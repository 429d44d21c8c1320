"""What KD(C)'s tables 1 and 2 are made of: every calibrator alone, and students of calibrated teachers.

Rows: each calibrator on the teacher's network and on each student's, NLL followed by temperature scaling, and each
student distilled from the teachers of `config.recipe.teachers`: a calibrator, or "CALIBRATOR + POSTHOC" for a teacher
that is calibrated after its training. `experiments.table1` and `experiments.table2` say which table it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from configs.base import meant
from experiments import common, figures, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet, printed
from experiments.tables import Row, values
from kdjax import objectives, posthoc
from kdjax.errors import Refused, one_of
from kdjax.recipes import Distill
from kdjax.stages import Stage

IGNORED = {
    **common.ONLY,
    "recipe.student.model": "the students are --config.recipe.students=('resnet8',)",
    "recipe.teacher.method": "the teachers are --config.recipe.teachers=('nll','mdca')",
    "recipe.teacher.options": "a calibrator has its own options here, see configs/base.py",
}


def alone(config: ConfigDict, network: str, method: str) -> Stage:
    """A network trained with one calibrator, without a teacher."""
    who = "teacher" if network == config.recipe.teacher.model else "student"
    recipe = common.recipe(config, who, 0, model=network, method=method, options=meant(method), distill=None)
    return Stage(recipe, name=f"{network} {method}")


def student(config: ConfigDict, network: str, teacher: str) -> Stage:
    """A network distilled from the teacher's network, trained and perhaps calibrated afterwards as `teacher` says."""
    method, plus, calibrator = teacher.partition(" + ")
    if plus:
        one_of(f"what follows the + of {teacher!r} in config.recipe.teachers", calibrator, posthoc.POSTHOC)
    recipe = common.recipe(config, "student", 0, model=network)
    if calibrator:
        term = dataclasses.replace(recipe.distill or Distill(), posthoc=calibrator)
        recipe = dataclasses.replace(recipe, distill=term)
    return Stage(
        recipe, alone(config, config.recipe.teacher.model, method), name=student_name(config, network, teacher)
    )


def rows(config: ConfigDict, figures_of: published.Figures) -> dict[str, Row]:
    """Every row by its name.

    Args:
      figures_of: (network, row) -> what the paper prints.
    """
    common.named("config.recipe.calibrators", config.recipe.calibrators)
    common.named("config.recipe.teachers", config.recipe.teachers)
    common.named("config.recipe.students", config.recipe.students)
    refuse_uncalibrated(config)
    given = config.recipe.get("stands_for", ())
    if any(not common.is_pair(pair) for pair in given):
        raise Refused(f"config.recipe.stands_for is {given}; expected pairs like (('resnet8', 'wrn_40_1'),), or ().")
    stands_for = dict(given)

    def expected(network: str, row: str) -> str:
        """What the paper prints; for a small network, of the one that it stands for, which is named."""
        of = stands_for.get(network, network)
        text = printed(figures_of.get((of, row)))
        return f"{text} ({of})" if text and of != network else text

    made = {}
    for network in dict.fromkeys([config.recipe.teacher.model, *config.recipe.students]):
        for method in config.recipe.calibrators:
            stage = alone(config, network, method)
            made[f"{network} {method}"] = Row(stage, published=expected(network, method))
            if method == config.recipe.uncalibrated:
                name = f"{method} + temperature"
                made[f"{network} {name}"] = Row(stage, "temperature", expected(network, name))
    for network in config.recipe.students:
        for teacher in config.recipe.teachers:
            stage = student(config, network, teacher)
            made[stage.name] = Row(stage, published=expected(network, f"kd from {teacher}"))
    return made


def refuse_uncalibrated(config: ConfigDict) -> None:
    """Refuses a name that is no calibrator: no teacher would be it, and every row would be called KD(C)."""
    calibrators = [name for name, method in objectives.METHODS.items() if method.role == "calibrator"]
    one_of("config.recipe.uncalibrated", config.recipe.uncalibrated, calibrators)


def kind(config: ConfigDict, teacher: str) -> str:
    """How the paper calls distillation from such a teacher."""
    return "KD(UC)" if teacher == config.recipe.uncalibrated else "KD(C)"


def student_name(config: ConfigDict, network: str, teacher: str) -> str:
    """The name of a student's row."""
    return f"{network} {kind(config, teacher)} from {config.recipe.teacher.model} {teacher}"


def run(given: Command, name: str, figures_of: published.Figures, *, title: str, source: str) -> None:
    """Runs the table and publishes it as NAME."""
    config = given.config
    finished = tables.run(given, rows(config, figures_of))
    if finished is None:
        return
    differences = {}
    by_name = {line.name: line for line in finished.lines}
    for network in config.recipe.students:
        plain = by_name.get(student_name(config, network, config.recipe.uncalibrated))
        for teacher in config.recipe.teachers:
            calibrated = by_name[student_name(config, network, teacher)]
            if plain is not None and calibrated is not plain and (difference := tables.paired(calibrated, plain)):
                differences[f"{network}, {teacher} teacher"] = difference
    sentences = [common.difference_sentence(where, difference["ece"]) for where, difference in differences.items()]
    if not sentences:
        sentences = ["Too few seeds finished, or too few teachers were asked for, to compare KD(C) with KD(UC)."]
    tables.publish(
        given,
        name,
        Sheet(finished.lines, published="top-1 / ECE / SCE / ACE %", source=source),
        finished,
        title=title,
        summary=sentences,
        figures=drawn(config, name, by_name),
        notes=temperature(config),
        kdc_minus_kduc=differences,
    )


def temperature(config: ConfigDict) -> list[str]:
    """What a reader who compares with the paper must know of T."""
    T = config.recipe.student.distill.options.get("T")
    if T is None:
        return []
    return [
        f"Students are distilled at T = {T:g}; the default of the paper's code is 20, and the paper found its students "
        "best calibrated at T = 1."
    ]


def drawn(config: ConfigDict, name: str, by_name: Mapping[str, Line]) -> list[tuple[str, Path]]:
    """Figures 2 and 3 for each student of the table NAME."""
    folder = Path(config.run.workdir)
    made = []
    for network in config.recipe.students:
        direct = {method: by_name[f"{network} {method}"] for method in config.recipe.calibrators}
        distilled = {teacher: by_name[student_name(config, network, teacher)] for teacher in config.recipe.teachers}
        # A teacher that is calibrated after its training stands beside the student calibrated so itself.
        direct |= {t: by_name[f"{network} {t}"] for t in config.recipe.teachers if f"{network} {t}" in by_name}
        groups = {
            method: {"trained alone": values(direct[method], "ece"), "distilled": values(distilled[method], "ece")}
            for method in config.recipe.teachers
            if method in direct and direct[method].metrics and distilled[method].metrics
        }
        if groups:
            title = f"{network}: trained alone and distilled"
            path = figures.bars(folder / f"{name}_bars_{network}.png", groups, ylabel="ECE %", title=title)
            made.append((f"ECE of {network} trained with each calibrator, and distilled from its teacher", path))
        for metric, head in (("ece", "ECE %"), ("sce", "SCE %")):
            points = {"trained alone": means(direct, metric), "distilled": means(distilled, metric)}
            points = {where: labeled for where, labeled in points.items() if labeled}
            if points:
                path = figures.scatter(
                    folder / f"{name}_scatter_{metric}_{network}.png",
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

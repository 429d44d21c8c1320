"""RTC's correlation study: is a student as good as its teacher is accurate, or as it is calibrated?

    python -m experiments.correlation --plan
    python -m experiments.correlation --config=configs/correlation.py:cpu --workdir runs/correlation_cpu

Every teacher of `config.recipe.teachers` teaches the same student. Over the teachers, means over seeds: the student's
top-1 against the teacher's top-1, ECE and class-wise ACE (the paper's measure), by Pearson, Spearman and partial
correlation, with intervals over resampled teachers. The control that the paper lacks: one teacher whose own temperature
T_c alone is changed, so that its accuracy stays as it is. Sizes are described in configs/correlation.py.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.base import meant
from experiments import associations, common, figures, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet
from experiments.tables import Row, values
from kdjax import posthoc, report
from kdjax.errors import Refused, one_of
from kdjax.recipes import Recipe
from kdjax.stages import Stage

COLUMNS = ("top1", "nll", "ece", "ece_over", "ece_under", "ace_classwise", "ece_refit")
MEASURES = {"top1": "top-1 %", "ece": "ECE %", "ace_classwise": "class-wise ACE %"}
TEACHERS = "config.recipe.teachers=(('resnet8','nll',0,1.0),)"
IGNORED = {
    **common.ONLY,
    "recipe.teacher.model": f"the teachers are --{TEACHERS}",
    "recipe.teacher.method": f"the teachers are --{TEACHERS}",
    "recipe.teacher.options": f"the teachers are --{TEACHERS}",
    "recipe.student.distill.options.T_c": f"the temperatures of teachers are --{TEACHERS} and --config.recipe.T_c",
}


class Teacher(NamedTuple):
    """One teacher of the study.

    Attributes:
      epochs: 0 for the configuration's.
      after: its own temperature T_c > 0, or the name of a post-hoc calibrator.
    """

    network: str
    method: str
    epochs: int
    after: float | str

    @property
    def label(self) -> str:
        words = [self.network, self.method]
        words += [f"{self.epochs} epochs"] if self.epochs else []
        if isinstance(self.after, str):
            words.append(f"+ {self.after}")
        elif self.after != 1:
            words.append(f"T_c = {self.after:g}")
        return " ".join(words)


def listed(config: ConfigDict) -> list[Teacher]:
    """The teachers of the study.

    Raises:
      Refused: a teacher that is no such four values, or fewer than three different ones.
    """
    for one in config.recipe.teachers:
        checked("config.recipe.teachers", one)
    made = [Teacher(*one) for one in config.recipe.teachers]
    # Epochs that are written out may be those of the configuration: one stage, whatever it is called.
    different = {(teacher_recipe(config, teacher), teacher.after): teacher for teacher in made}
    if len(different) < max(len(made), 3) or len({teacher.label for teacher in made}) < len(made):
        raise Refused(
            f"config.recipe.teachers names {len(different)} different teachers; expected 3 or more, each once."
        )
    return made


def checked(what: str, one: Any) -> None:
    kinds: tuple[Any, ...] = (str, str, int, (int, float, str))
    named = isinstance(one, tuple | list) and len(one) == 4
    if not named or any(isinstance(v, bool) or not isinstance(v, k) for v, k in zip(one, kinds, strict=True)):
        raise Refused(
            f"{what} holds {one!r}; expected (network, calibrator, epochs or 0, T_c or a post-hoc calibrator), like "
            "('resnet8', 'nll', 0, 1.0)."
        )
    if isinstance(one[3], str):
        one_of(f"the last of {tuple(one)!r} in {what}", one[3], posthoc.POSTHOC)


def teacher_recipe(config: ConfigDict, teacher: Teacher) -> Recipe:
    """Its recipe; milestones keep their share of the run."""
    recipe = common.recipe(config, "teacher", 0, model=teacher.network)
    recipe = dataclasses.replace(recipe, method=teacher.method, options=meant(teacher.method))
    if not teacher.epochs:
        return recipe
    milestones = tuple(m * teacher.epochs / recipe.epochs for m in recipe.optimizer.milestones)
    return tables.changed(recipe, optimizer={"milestones": milestones}, epochs=teacher.epochs)


def rows_of(config: ConfigDict, teacher: Teacher) -> dict[str, Row]:
    """The teacher as its student sees it, and the student.

    Raises:
      Refused: no distillation method with a T_c.
    """
    student = common.recipe(config, "student", 0)
    term = student.distill
    if term is None or "T_c" not in term.options:
        method = "none" if term is None else repr(term.method)
        raise Refused(
            f"the study tempers teachers by T_c of the distillation method, which is {method}; set "
            "config.recipe.student.distill.method to one that has it, e.g. kd."
        )
    stage = Stage(teacher_recipe(config, teacher), name=f"teacher {teacher.label}")
    if isinstance(teacher.after, str):
        term, row = dataclasses.replace(term, posthoc=teacher.after), Row(stage, teacher.after)
    else:
        T_c = float(teacher.after)
        term = dataclasses.replace(term, options={**term.options, "T_c": T_c})
        row = Row(stage, T=T_c)
    name = f"student of {teacher.label}"
    distilled = Stage(dataclasses.replace(student, distill=term), stage, name=name)
    return {f"teacher {teacher.label}": row, name: Row(distilled)}


def control(config: ConfigDict) -> list[Teacher]:
    """One teacher at every T_c; () for none."""
    if not config.recipe.control:
        return []
    common.distinct("config.recipe.T_c", config.recipe.T_c, float)
    checked("config.recipe.control", (*config.recipe.control, 1.0))
    network, method, epochs = config.recipe.control
    return [Teacher(network, method, epochs, float(T_c)) for T_c in config.recipe.T_c]


def rows(config: ConfigDict) -> dict[str, Row]:
    """Every teacher with its student, then the control's where it is not among them."""
    made: dict[str, Row] = {}
    for teacher in [*listed(config), *control(config)]:
        made |= rows_of(config, teacher)
    return made


class Point(NamedTuple):
    """Means over seeds, in percent.

    Attributes:
      student: its top-1.
      teacher: measure -> value.
    """

    student: float
    teacher: Mapping[str, float]


def points(teachers: Sequence[Teacher], by_name: Mapping[str, Line]) -> dict[str, Point]:
    """Label -> what finished of a teacher and its student."""
    made = {}
    for teacher in teachers:
        lines = [by_name[f"{who} {teacher.label}"] for who in ("teacher", "student of")]
        if all(line.metrics for line in lines):
            means = {measure: statistics.fmean(values(lines[0], measure)) for measure in MEASURES}
            made[teacher.label] = Point(statistics.fmean(values(lines[1], "top1")), means)
    return made


def run(given: Command) -> None:
    config = given.config
    declared = rows(config)
    finished = tables.run(given, declared)
    if finished is None:
        return
    by_name = {line.name: line for line in finished.lines}
    study, swept = points(listed(config), by_name), points(control(config), by_name)
    grids, told = [], ["Fewer than three teachers and students finished, so nothing is correlated."]
    associated: dict[str, Any] = {}
    if len(study) > 2:
        associated = correlations(study)
        told = sentences(associated, len(study))
        grids.append(
            (f"Student's top-1 against its teacher's, n = {len(study)} teachers", table_of(config, associated))
        )
    if len(swept) > 1:
        told.append(control_sentence(swept))
        grids.append(("One teacher, its temperature changed", control_table(swept)))
    tables.publish(
        given,
        "correlation",
        Sheet(finished.lines, COLUMNS),
        finished,
        title="RTC: does the student follow the teacher's accuracy or its calibration?",
        summary=told,
        figures=drawn(config, study, swept),
        grids=grids,
        notes=[
            "Intervals resample the teachers, 95 %. A partial correlation holds the other column fixed; teachers that "
            "share a network are not independent, so intervals are too narrow.",
            f"Published: squared Pearson correlations of {published.RTC}, as its reviewers quote them.",
        ],
        correlations=associated,
    )


def correlations(study: Mapping[str, Point]) -> dict[str, dict[str, Any]]:
    """measure -> "pearson", "spearman", "partial" -> value and interval; ACE and ECE given top-1, top-1 given ECE."""
    student = [point.student for point in study.values()]
    columns = {measure: [point.teacher[measure] for point in study.values()] for measure in MEASURES}
    made = {}
    for measure, column in columns.items():
        fixed = columns["ece" if measure == "top1" else "top1"]
        made[measure] = {
            "pearson": associations.with_interval(associations.pearson, student, column)._asdict(),
            "spearman": associations.with_interval(associations.spearman, student, column)._asdict(),
            "partial": associations.with_interval(associations.partial, student, column, fixed)._asdict(),
        }
    return made


def told_as(one: Mapping[str, float]) -> str:
    return f"{one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def sentences(associated: Mapping[str, Mapping[str, Mapping[str, float]]], n: int) -> list[str]:
    ece, top1 = associated["ece"], associated["top1"]
    return [
        f"Student's top-1 against its teacher's ECE: Pearson {told_as(ece['pearson'])}, given the teacher's accuracy "
        f"{told_as(ece['partial'])}; against its teacher's top-1: {told_as(top1['pearson'])}, given the teacher's ECE "
        f"{told_as(top1['partial'])}; n = {n} teachers."
    ]


def table_of(config: ConfigDict, associated: Mapping[str, Mapping[str, Mapping[str, float]]]) -> report.Grid:
    printed = published.CORRELATION.get(config.recipe.student.model, {})
    made = []
    for measure, head in MEASURES.items():
        of = associated[measure]
        fixed = "ECE" if measure == "top1" else "top-1"
        source = f"{printed[measure]:.4f}" if measure in printed else "-"
        cells = [told_as(of["pearson"]), f"{of['pearson']['value'] ** 2:.2f}", source, told_as(of["spearman"])]
        made.append([f"teacher's {head.removesuffix(' %')}", *cells, f"{told_as(of['partial'])} given {fixed}"])
    return report.Grid(["", "Pearson r", "R²", "published R²", "Spearman ρ", "partial r"], made)


def control_sentence(swept: Mapping[str, Point]) -> str:
    tops = [point.student for point in swept.values()]
    teacher = [point.teacher["top1"] for point in swept.values()]
    eces = [point.teacher["ece"] for point in swept.values()]
    best = max(swept, key=lambda label: swept[label].student)
    text = (
        f"Control, one teacher of {teacher[0]:.2f} % top-1 at {len(swept)} temperatures, ECE {min(eces):.2f} to "
        f"{max(eces):.2f} %: the student's top-1 is {min(tops):.2f} to {max(tops):.2f} %, best taught by {best}"
    )
    if len(swept) > 2:
        text += f"; Spearman with the teacher's ECE {associations.spearman(tops, eces):+.2f}"
    return text + "."


def control_table(swept: Mapping[str, Point]) -> report.Grid:
    rows_made = [
        [label, *(f"{point.teacher[m]:.2f}" for m in ("top1", "ece")), f"{point.student:.2f}"]
        for label, point in swept.items()
    ]
    return report.Grid(["", "teacher's top-1 %", "teacher's ECE %", "student's top-1 %"], rows_made)


def drawn(config: ConfigDict, study: Mapping[str, Point], swept: Mapping[str, Point]) -> list[tuple[str, Path]]:
    """The student's top-1 against each of the teacher's measures."""
    made = []
    for measure, head in MEASURES.items():
        kinds = {"teachers": study, "one teacher, T_c changed": {k: p for k, p in swept.items() if k not in study}}
        shown = {
            kind: {label: (point.teacher[measure], point.student) for label, point in of.items()}
            for kind, of in kinds.items()
            if of
        }
        if shown:
            short = head.removesuffix(" %")
            title = f"Student's top-1 against its teacher's {short}"
            path = Path(config.run.workdir) / f"correlation_{measure}.png"
            figures.scatter(path, shown, xlabel=f"teacher's {head}", ylabel="student's top-1 %", title=title)
            made.append((f"{title}, means over seeds", path))
    return made


if __name__ == "__main__":
    common.main(run, "configs/correlation.py", workdir="runs/correlation", ignored=IGNORED)

"""KD(C), figure 5: the penultimate layer of students taught by an LS and by an MDCA teacher, over T.

    python -m experiments.penultimate --plan
    python -m experiments.penultimate --config=configs/penultimate.py:cpu --workdir runs/penultimate_cpu

Three classes, two that look alike and a third, are projected on the plane of their weights (experiments/projection.py):
as pictures of the first seed, and as numbers of every seed. Test examples, the selected epoch. Sizes are described in
configs/penultimate.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.base import meant
from experiments import common, figures, projection, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet
from experiments.tables import Row, values
from kdjax import results, stages
from kdjax.errors import Refused, one_of
from kdjax.recipes import Distill
from kdjax.results import Result
from kdjax.stages import Stage

COLUMNS = ("top1", "ece", "plane_spread", "plane_near", "plane_far", "plane_ratio", "plane_alike")
IGNORED = {
    **common.ONLY,
    "recipe.teacher.method": "the teachers are --config.recipe.calibrators=('label_smoothing','mdca')",
    "recipe.teacher.options": "the teachers are --config.recipe.calibrators=('label_smoothing','mdca')",
    "recipe.student.distill.options.T": "the temperatures are --config.recipe.T=(1.0,4.0)",
}


def rows(config: ConfigDict) -> dict[str, Row]:
    """Each teacher, and its student at every T.

    Raises:
      Refused: no distillation method with a temperature; values that are no different numbers; unknown calibrators.
    """
    common.named("config.recipe.calibrators", config.recipe.calibrators)
    common.distinct("config.recipe.T", config.recipe.T, float)
    student = common.recipe(config, "student", 0)
    term = student.distill
    if term is None or "T" not in term.options:
        method = "none" if term is None else repr(term.method)
        raise Refused(
            f"the pictures are over T of the distillation method, which is {method}; set "
            "config.recipe.student.distill.method to one that has it, e.g. kd."
        )
    made = {}
    for method in config.recipe.calibrators:
        recipe = common.recipe(config, "teacher", 0, method=method, options=meant(method))
        teacher = Stage(recipe, name=f"{common.label(recipe)} teacher")
        made[f"{method} teacher"] = Row(teacher)
        for T in config.recipe.T:
            at_T: Distill = dataclasses.replace(term, options={**term.options, "T": float(T)})
            name = student_of(method, T)
            made[name] = Row(Stage(dataclasses.replace(student, distill=at_T), teacher, name=name))
    return made


def student_of(method: str, T: float) -> str:
    return f"student of {method}, T = {T:g}"


def shown(config: ConfigDict) -> tuple[int, ...]:
    """The numbers of the classes that are shown.

    Raises:
      Refused: a name that the data set does not have, with the nearest; other than three.
    """
    names = stages.dataset(common.recipe(config, "teacher", 0).data).label_names
    picked = config.recipe.shown_classes
    common.named("config.recipe.shown_classes", picked)
    if len(picked) != 3:
        raise Refused(f"config.recipe.shown_classes names {len(picked)} classes; expected three.")
    return tuple([*names].index(one_of("config.recipe.shown_classes", name, names)) for name in picked)


def points_of(result: Result, classes: tuple[int, ...], workdir: Path) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates [N, 2], labels [N]) of the test examples of a finished stage.

    Raises:
      Refused: a network whose last layer is not one linear layer called "head".
    """
    _, variables = results.selected(result.stage, workdir)
    if "kernel" not in variables["params"].get("head", {}):
        raise Refused(f"{result.stage.recipe.model!r} has no linear layer called head, whose weights span the plane.")
    logits, label = result.logits("test")
    return projection.projected(logits, projection.plane(variables["params"]["head"], classes)), label


def run(given: Command) -> None:
    config = given.config
    classes, declared = shown(config), rows(config)
    finished = tables.run(given, declared)
    if finished is None:
        return
    workdir = Path(config.run.workdir)
    lines: list[Line] = []
    panels: list[tuple[str, Mapping[str, np.ndarray]]] = []
    for line in finished.lines:
        if not line.metrics:
            lines.append(line)
            continue
        done = [finished.results[s.id] for s in finished.groups[line.name] if s.id in finished.results]
        pairs = [points_of(result, classes, workdir) for result in done]
        shapes = [projection.shape(*pair, classes) for pair in pairs]
        lines.append(line._replace(metrics=[{**m, **s} for m, s in zip(line.metrics, shapes, strict=True)]))
        points, label = pairs[0]
        names = dict(zip(config.recipe.shown_classes, classes, strict=True))
        panels.append((line.name, {name: points[label == c] for name, c in names.items()}))
    by_name = {line.name: line for line in lines}
    tables.publish(
        given,
        "penultimate",
        Sheet(lines, COLUMNS),
        finished,
        title="KD(C), figure 5: what the student's penultimate layer takes over from its teacher",
        summary=[sentence(config, by_name)],
        figures=drawn(config, by_name, panels),
        notes=[
            f"{published.KDC}, figure 5, shows pictures without numbers. The plane, its basis and the numbers are "
            "described in experiments/projection.py; spread and distances are in units of the features, so that only "
            "the last two columns compare one network with another.",
            f"Alike: {config.recipe.shown_classes[0]} and {config.recipe.shown_classes[1]}; "
            f"apart from them: {config.recipe.shown_classes[2]}.",
        ],
    )


def sentence(config: ConfigDict, by_name: Mapping[str, Line]) -> str:
    """Spread over distance of the students of each teacher."""
    parts = []
    for method in config.recipe.calibrators:
        ratios = {T: values(by_name[student_of(method, T)], "plane_ratio", 1.0) for T in config.recipe.T}
        told = [f"{sum(r) / len(r):.2f} at T = {T:g}" for T, r in ratios.items() if r]
        if told:
            parts.append(f"of {method} teachers {', '.join(told)}")
    return f"Spread over distance of the students {'; '.join(parts)}." if parts else "No student finished."


def drawn(
    config: ConfigDict, by_name: Mapping[str, Line], panels: list[tuple[str, Mapping[str, np.ndarray]]]
) -> list[tuple[str, Path]]:
    """The pictures of the first seed, and spread over distance as curves over T."""
    made, folder = [], Path(config.run.workdir)
    if panels:
        title = "Test examples on the plane of three class weights"
        path = folder / "penultimate.png"
        figures.clusters(path, panels, across=1 + len(config.recipe.T), title=title)
        made.append((f"{title}, first seed; every panel has its own scale", path))
    lines = {}
    for method in config.recipe.calibrators:
        points = {T: values(by_name[student_of(method, T)], "plane_ratio", 1.0) for T in config.recipe.T}
        if points := {T: ratios for T, ratios in points.items() if ratios}:
            lines[f"{method} teacher"] = figures.over_seeds(points)
    if lines:
        path = folder / "penultimate_ratio.png"
        title = "Spread of a class over the distance of classes"
        figures.series(path, lines, xlabel="T", ylabel="spread / distance", title=title, log=True)
        made.append((f"{title}, mean ± sd over seeds", path))
    return made


if __name__ == "__main__":
    common.main(run, "configs/penultimate.py", workdir="runs/penultimate", ignored=IGNORED)

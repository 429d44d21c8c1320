"""The whole path on real data in minutes: calibrate teachers, distill students, measure and report.

    python -m experiments.quickstart        # or make quickstart: the same command, in runs/quickstart

On noisy 8x8 digits and per seed: an NLL teacher and a calibrated teacher; the student alone, with NLL and with the
teacher's calibrator; and the student distilled from each teacher, KD(UC) and KD(C), at every temperature of the config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common, stored, tables
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Row
from kdjax import report
from kdjax.errors import Refused
from kdjax.recipes import Recipe
from kdjax.stages import Stage

IGNORED = {
    "teacher": common.ONLY["teacher"],
    "recipe.generations": common.ONLY["recipe.generations"],
    "recipe.student.distill.options.T": (
        "the quickstart compares the temperatures --config.recipe.temperatures=(1.0,4.0)"
    ),
}


def at_temperature(student: Recipe, T: float) -> Recipe:
    """The student's recipe with that distillation temperature."""
    if student.distill is None:
        raise Refused("the quickstart compares distilled students; set config.recipe.student.distill.method, e.g. kd.")
    options = {**student.distill.options, "T": float(T)}
    return dataclasses.replace(student, distill=dataclasses.replace(student.distill, options=options))


def rows(config: ConfigDict) -> dict[str, Row]:
    """Table rows, teachers first."""
    common.distinct("config.recipe.temperatures", config.recipe.temperatures, float)
    calibrated, student = common.pair(config, 0)
    method = calibrated.recipe.method
    plain = Stage(dataclasses.replace(calibrated.recipe, method="nll", options={}), name="NLL teacher")
    teachers = {"NLL": plain, method: dataclasses.replace(calibrated, name=f"{method} teacher")}
    made = {f"teacher, {name}": Row(teacher) for name, teacher in teachers.items()}
    for name, teacher in teachers.items():
        hard = teacher.recipe
        alone = dataclasses.replace(student.recipe, distill=None, method=hard.method, options=hard.options)
        made[f"student alone, {name}"] = Row(Stage(alone, name=f"student alone {name}"))
    for T in config.recipe.temperatures:
        for kind, teacher in zip(("KD(UC)", "KD(C)"), teachers.values(), strict=True):
            recipe = at_temperature(student.recipe, T)
            made[f"student {kind}, T={T:g}"] = Row(Stage(recipe, teacher, name=f"{kind} T={T:g}"))
    return made


def run(given: Command) -> None:
    config = given.config
    finished = tables.run(given, rows(config))
    if finished is None:
        return
    differences = {}
    for T in config.recipe.temperatures:
        sides = [finished.line(f"student {kind}, T={T:g}") for kind in ("KD(C)", "KD(UC)")]
        if difference := tables.paired(*sides):
            differences[f"T={T:g}"] = difference
    folder = Path(config.run.workdir)
    panels = [(name, common.pooled(finished.results, members)) for name, members in finished.groups.items()]
    figure = folder / "results_reliability.png"
    report.reliability_diagram([(name, bins) for name, bins in panels if bins is not None], figure)
    last = closing(
        {line.name: line.metrics for line in finished.lines if line.name in finished.groups},
        config.recipe.temperatures[-1],
    )
    sentences = [common.difference_sentence(where, d["ece"]) for where, d in differences.items()]
    tables.publish(
        given,
        "results",
        Sheet(finished.lines, tables.COLUMNS),
        finished,
        title="Does calibration survive distillation?",
        summary=[last.removeprefix("quickstart: ") + ".", *sentences],
        figures=[("Reliability on the test split, seeds pooled", figure)],
        kdc_minus_kduc=differences,
    )
    # Once more from the file, which is compared with the logits of its stages.
    rows_of = {row["name"]: row["metrics"] for row in stored.read(folder / "results.json")["rows"]}
    print(closing(rows_of, config.recipe.temperatures[-1]))


def closing(seeds: Mapping[str, Sequence[Mapping[str, float]]], T: float) -> str:
    """The last line, from the metrics of every row that was asked for, one mapping a seed."""
    names = [f"student {kind}, T={T:g}" for kind in ("KD(C)", "KD(UC)")]
    if left_out := [name for name in names if name not in seeds]:
        return f"quickstart: KD(C) and KD(UC) are not compared, {' and '.join(left_out)} not asked for in config.rows"
    ece = [[100 * seed["ece"] for seed in seeds[name]] for name in names]
    if not all(ece):
        return f"quickstart: no seed of both students at T={T:g} finished"
    means = [sum(values) / len(values) for values in ece]
    return f"quickstart: KD(C) ECE {means[0]:.2f}% vs KD(UC) ECE {means[1]:.2f}% over {len(ece[0])} seeds"


if __name__ == "__main__":
    common.main(run, "configs/digits.py", workdir="runs/quickstart", ignored=IGNORED)

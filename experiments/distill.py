"""Calibrate a teacher and distill a student from it, per seed; the student's NLL twin stands beside it.

python -m experiments.distill --config=configs/cifar100.py:wrn_40_2,mdca,wrn_40_1,kd --plan
python -m experiments.distill --config=configs/cifar100.py:cpu --workdir runs/c100

`--teacher=DIR` takes the finished run in a folder, here or elsewhere, as the teacher of all seeds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common, tables
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Row
from kdjax import elsewhere, report, starts
from kdjax.errors import Refused
from kdjax.stages import Stage

IGNORED = {field: why for field, why in common.ONLY.items() if field != "teacher"}


def rows(config: ConfigDict, teacher_folder: str = "") -> dict[str, Row]:
    """Teacher, student alone, student."""
    teacher, student = common.pair(config, 0)
    if teacher_folder:
        teacher = elsewhere.finished(teacher_folder, student.recipe.data)
        student = dataclasses.replace(student, teacher=teacher)
    begins_with = teacher if student.recipe.init == starts.TEACHER else None
    alone = Stage(dataclasses.replace(student.recipe, distill=None), begins_with, name="student alone")
    return {
        f"teacher: {common.label(teacher.recipe)}": Row(teacher),
        f"student alone: {common.label(alone.recipe)}": Row(alone),
        f"student: {common.label(student.recipe)}": Row(student),
    }


def run(given: Command) -> None:
    for field, word in given.fields.items():
        # A config string names the student's network after the teacher's, so that names of the teacher are let pass.
        if given.teacher and field.startswith("recipe.teacher.") and word.startswith("--"):
            raise Refused(f"{word} would change nothing here: --teacher={given.teacher} is finished; leave one out.")
    finished = tables.run(given, rows(given.config, given.teacher))
    if finished is None:
        return
    panels = [(name, common.pooled(finished.results, members)) for name, members in finished.groups.items()]
    shown = [(name, bins) for name, bins in panels if bins is not None]
    figure = Path(given.config.run.workdir) / "distill.png"
    if shown:
        report.reliability_diagram(shown, figure)
    _, alone, student = finished.lines
    difference = tables.paired(student, alone)
    sentence = "One seed, or a failed one: differences have no interval."
    if difference:
        sentence = common.difference_sentence("the same recipe", difference["ece"], "distilled - alone")
    tables.publish(
        given,
        "distill",
        Sheet(finished.lines, tables.COLUMNS),
        finished,
        title=f"{student.name} and its teacher",
        summary=[sentence],
        figures=[("Reliability on the test split, seeds pooled", figure)] if shown else [],
    )


if __name__ == "__main__":
    common.main(run, "configs/digits.py", ignored=IGNORED)

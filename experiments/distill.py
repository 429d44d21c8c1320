"""Calibrate a teacher and distill a student from it, per seed; the student's NLL twin stands beside it.

python -m experiments.distill --config=configs/cifar100.py:wrn_40_2,mdca,wrn_40_1,kd --plan
python -m experiments.distill --config=configs/cifar100.py:cpu --workdir runs/c100
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments import common
from experiments.command import Command
from kdjax import report
from kdjax.stages import Stage


def run(given: Command) -> None:
    config = given.config
    groups: dict[str, list[Stage]] = {}
    for seed in config.seeds:
        teacher, student = common.pair(config, seed)
        alone = Stage(dataclasses.replace(student.recipe, distill=None), name=f"student alone seed {seed}")
        groups.setdefault(f"teacher: {common.label(teacher.recipe)}", []).append(teacher)
        groups.setdefault(f"student alone: {common.label(alone.recipe)}", []).append(alone)
        groups.setdefault(f"student: {common.label(student.recipe)}", []).append(student)
    results = common.execute(given, [s for members in groups.values() for s in members])
    if results is None:
        return
    ids = {name: [s.id for s in members] for name, members in groups.items()}
    common.publish(given, "distill", common.rows(results, groups), stages=ids)
    panels = [(name, common.pooled(results, members)) for name, members in groups.items()]
    report.reliability_diagram(panels, Path(config.run.workdir) / "distill.png")


if __name__ == "__main__":
    common.main(run, "configs/digits.py")

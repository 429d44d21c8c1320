"""Train one teacher per seed and measure its calibration, before and after temperature scaling.

python -m experiments.calibrate --config=configs/cifar100.py:wrn_40_2,mdca --workdir runs/c100
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import common, tables
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Row
from kdjax.stages import Stage

ALONE = "experiments.calibrate trains the teacher alone; leave it out, or type python -m experiments.distill"
IGNORED = {**common.ONLY, "recipe.student": ALONE}


def rows(config: ConfigDict) -> dict[str, Row]:
    """The teacher, and the same with its temperature fitted on the calibration split."""
    recipe = common.recipe(config, "teacher", 0)
    name = common.label(recipe)
    stage = Stage(recipe, name=name)
    return {name: Row(stage), f"{name} + temperature": Row(stage, posthoc="temperature")}


def run(given: Command) -> None:
    finished = tables.run(given, rows(given.config))
    if finished is None:
        return
    before, after = finished.lines
    temperatures = [seed["temperature"] for seed in before.metrics]
    sentence = "No seed finished."
    if temperatures:
        ece = [sum(seeds) / len(seeds) for seeds in (tables.values(before, "ece"), tables.values(after, "ece"))]
        fitted = ", ".join(f"{T:.2f}" for T in temperatures)
        sentence = f"ECE {ece[0]:.2f} %, and {ece[1]:.2f} % after temperature scaling by T = {fitted}."
    tables.publish(
        given,
        "calibrate",
        Sheet(finished.lines, tables.COLUMNS),
        finished,
        title=f"Calibration of {before.name}",
        summary=[sentence],
        temperatures=temperatures,
    )


if __name__ == "__main__":
    common.main(run, "configs/digits.py", ignored=IGNORED)

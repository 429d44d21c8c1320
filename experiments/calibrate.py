"""Train one teacher per seed and measure its calibration, before and after temperature scaling.

python -m experiments.calibrate --config=configs/cifar100.py:wrn_40_2,mdca --workdir runs/c100
"""

from __future__ import annotations

import jax.numpy as jnp

from experiments import common
from experiments.command import Command
from kdjax import metrics, posthoc, report
from kdjax.stages import Stage

ALONE = "experiments.calibrate trains the teacher alone; leave it out, or type python -m experiments.distill"
IGNORED = {**common.ONLY, "recipe.student": ALONE}


def run(given: Command) -> None:
    config = given.config
    recipes = [common.recipe(config, "teacher", seed) for seed in config.seeds]
    stages = [Stage(r, name=f"{common.label(r)} seed {r.seed}") for r in recipes]
    results = common.execute(given, stages)
    if results is None:
        return
    name = common.label(recipes[0])
    rows = common.rows(results, {name: stages})
    scale = posthoc.POSTHOC["temperature"]
    rescaled, temperatures = [], []
    for stage in stages:
        fitted = scale.fit(*results[stage.id].logits("calibration"))
        logits, labels = results[stage.id].logits("test")
        rescaled.append(metrics.evaluate(scale.apply(fitted, jnp.asarray(logits)), labels))
        temperatures.append(float(fitted["T"]))
    rows.append(report.Row(f"{name} + temperature", rescaled))
    common.publish(given, "calibrate", rows, stages={name: [s.id for s in stages]}, temperatures=temperatures)


if __name__ == "__main__":
    common.main(run, "configs/digits.py", ignored=IGNORED)

"""Iterative self-distillation: two chains of generations, from an uncalibrated and from a calibrated generation 0.

    python -m experiments.generations --config=configs/cifar100.py:cpu --workdir runs/c100
    python -m experiments.generations --config.recipe.generations=6

In each chain generation 0 is the teacher's recipe (once with NLL, once with the config's calibrator), and every further
generation is the student's recipe, taught by the generation before it (KD(C), figure 4).
"""

from __future__ import annotations

import dataclasses

from experiments import common
from experiments.command import Command
from kdjax import metrics
from kdjax.stages import Stage, generations

IGNORED = {"recipe.temperatures": common.ONLY["recipe.temperatures"]}


def run(given: Command) -> None:
    config = given.config
    groups: dict[str, list[Stage]] = {}
    for seed in config.seeds:
        teacher, student = common.pair(config, seed)
        plain = dataclasses.replace(teacher.recipe, method="nll", options={})
        chains = {
            "KD(UC)": Stage(plain, name=f"{common.label(plain)} generation 0 seed {seed}"),
            "KD(C)": dataclasses.replace(teacher, name=f"{common.label(teacher.recipe)} generation 0 seed {seed}"),
        }
        for chain, start in chains.items():
            named = dataclasses.replace(student, teacher=start, name=f"{chain} seed {seed}")
            for k, stage in enumerate(generations(named, config.recipe.generations)):
                groups.setdefault(f"{chain} generation {k}", []).append(stage)
    results = common.execute(given, [s for members in groups.values() for s in members])
    if results is None:
        return
    differences = {}
    for k in range(config.recipe.generations + 1):
        ece = [
            [results[s.id].metrics["test"]["ece"] for s in groups[f"{chain} generation {k}"]]
            for chain in ("KD(C)", "KD(UC)")
        ]
        if len(config.seeds) > 1:
            differences[f"generation {k}"] = {"ece": metrics.paired(*ece)._asdict()}
    ids = {name: [s.id for s in members] for name, members in groups.items()}
    common.publish(given, "generations", common.rows(results, groups), stages=ids, kdc_minus_kduc=differences)


if __name__ == "__main__":
    common.main(run, "configs/digits.py", ignored=IGNORED)

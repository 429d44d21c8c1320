"""Iterative self-distillation: two chains of generations, from an uncalibrated and from a calibrated generation 0.

    python -m experiments.generations --config=configs/cifar100.py:cpu --workdir runs/c100
    python -m experiments.generations --config.recipe.generations=6

In each chain generation 0 is the teacher's recipe (once with NLL, once with the config's calibrator), and every further
generation is the student's recipe, taught by the generation before it (KD(C), figure 4).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common, figures, tables
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Row, values
from kdjax.stages import Stage, generations

IGNORED = {name: common.ONLY[name] for name in ("recipe.temperatures", "teacher")}
CHAINS = ("KD(UC)", "KD(C)")


def rows(config: ConfigDict) -> dict[str, Row]:
    """Both chains, generation by generation."""
    teacher, student = common.pair(config, 0)
    plain = dataclasses.replace(teacher.recipe, method="nll", options={})
    starts = {
        chain: Stage(recipe, name=f"{common.label(recipe)} generation 0")
        for chain, recipe in zip(CHAINS, (plain, teacher.recipe), strict=True)
    }
    made: dict[str, Row] = {}
    for chain, start in starts.items():
        chain_of = generations(dataclasses.replace(student, teacher=start, name=chain), config.recipe.generations)
        made |= {f"{chain} generation {k}": Row(stage) for k, stage in enumerate(chain_of)}
    return made


def run(given: Command) -> None:
    config = given.config
    finished = tables.run(given, rows(config))
    if finished is None:
        return
    differences, bars = {}, {}
    for k in range(config.recipe.generations + 1):
        lines = {chain: finished.line(f"{chain} generation {k}") for chain in CHAINS}
        if difference := tables.paired(lines["KD(C)"], lines["KD(UC)"]):
            differences[f"generation {k}"] = difference
        if shown := {chain: values(line, "ece") for chain, line in lines.items() if line.metrics}:
            bars[f"{k}"] = shown
    pictures = []
    if bars:
        path = Path(config.run.workdir) / "generations.png"
        title = "Calibration over generations of self-distillation"
        pictures = [(title, figures.bars(path, bars, ylabel="ECE %", title=title))]
    sentences = [common.difference_sentence(where, d["ece"]) for where, d in differences.items()]
    tables.publish(
        given,
        "generations",
        Sheet(finished.lines, tables.COLUMNS),
        finished,
        title="Does calibration survive generations of self-distillation?",
        summary=sentences or ["One seed, or a failed one: differences have no interval."],
        figures=pictures,
        kdc_minus_kduc=differences,
    )


if __name__ == "__main__":
    common.main(run, "configs/digits.py", ignored=IGNORED)

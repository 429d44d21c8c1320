"""KD(C), figure 4: two chains of self-distillation, from an uncalibrated and from a calibrated generation 0.

    python -m experiments.generations --plan
    python -m experiments.generations --config=configs/generations.py:cpu --workdir runs/generations_cpu

In each chain generation 0 is the teacher's recipe (once with NLL, once with the config's calibrator), and every further
generation is the student's recipe, taught by the generation before it. The gap of a generation is the difference of the
two chains. Sizes are described in configs/generations.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common, figures, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet
from experiments.tables import Row, values
from kdjax import report
from kdjax.options import integer
from kdjax.stages import Stage, generations

IGNORED = {name: common.ONLY[name] for name in ("recipe.temperatures", "teacher")}
CHAINS = ("KD(UC)", "KD(C)")
MOST = 100
"""Generations; a longer chain is taken for a typing error, and is too deep for the recursion that plans it."""
Differences = Mapping[str, Mapping[str, Mapping[str, float]]]


def rows(config: ConfigDict) -> dict[str, Row]:
    """Both chains, generation by generation.

    Raises:
      Refused: more than `MOST` generations, or none.
    """
    integer(1, MOST)("config.recipe.generations", config.recipe.generations)
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
    by_name = {line.name: line for line in finished.lines}
    differences = {}
    for k in range(config.recipe.generations + 1):
        if difference := tables.paired(*(by_name[f"{chain} generation {k}"] for chain in reversed(CHAINS))):
            differences[f"generation {k}"] = difference
    tables.publish(
        given,
        "generations",
        Sheet(finished.lines, tables.COLUMNS),
        finished,
        title="KD(C), figure 4: does calibration survive generations of self-distillation?",
        summary=sentences(differences),
        figures=drawn(config, by_name, differences),
        grids=[("The gap KD(C) - KD(UC) of each generation, in points", gaps(differences))] if differences else [],
        notes=[f"{published.KDC}, figure 4, prints curves without numbers: the gap narrows in each generation."],
        differences=differences,
    )


def sentences(differences: Differences) -> list[str]:
    """The gap of the first and of the last generation, and whether it became smaller."""
    if not differences:
        return ["One seed, or a failed one: the gap has no interval."]
    (first, start), (last, end) = next(iter(differences.items())), list(differences.items())[-1]
    made = [common.difference_sentence(first, start["ece"])]
    if last != first:
        made.append(common.difference_sentence(last, end["ece"]))
        sizes = [abs(one["ece"]["mean"]) for one in differences.values()]
        steps = sum(b < a for a, b in itertools.pairwise(sizes))
        ratio = f"{100 * sizes[-1] / sizes[0]:.0f} % of what it was" if sizes[0] else "as it was, zero,"
        made.append(
            f"The gap is {ratio} after {len(sizes) - 1} generations, and smaller than one generation before in {steps} "
            f"of {len(sizes) - 1}."
        )
    return made


def gaps(differences: Differences) -> report.Grid:
    """Generation, then the gap in top-1 and ECE with its interval."""
    rows_of = []
    for where, difference in differences.items():
        cells = [
            f"{100 * d['mean']:+.2f} [{100 * d['low']:+.2f}, {100 * d['high']:+.2f}]"
            for d in (difference["ece"], difference["top1"])
        ]
        rows_of.append([where, *cells, str(difference["ece"]["n"])])
    return report.Grid(["", "ECE", "top-1", "n"], rows_of)


def drawn(config: ConfigDict, by_name: Mapping[str, Line], differences: Differences) -> list[tuple[str, Path]]:
    """ECE and top-1 of both chains over generations, and the gap with its interval."""
    folder, made = Path(config.run.workdir), []
    for metric, head in (("ece", "ECE %"), ("top1", "top-1 %")):
        curves = {}
        for chain in CHAINS:
            lines = {float(k): by_name[f"{chain} generation {k}"] for k in range(config.recipe.generations + 1)}
            if points := {k: values(line, metric) for k, line in lines.items() if line.metrics}:
                curves[chain] = figures.over_seeds(points)
        if curves:
            title = f"{head.removesuffix(' %')} over generations"
            path = folder / f"generations_{metric}.png"
            figures.series(path, curves, xlabel="generation", ylabel=head, title=title)
            made.append((f"{title}, mean ± sd over seeds", path))
    if differences:
        gap: dict[float, tuple[float, float, float]] = {}
        for where, difference in differences.items():
            ece = difference["ece"]
            gap[float(where.split()[-1])] = (100 * ece["mean"], 100 * ece["low"], 100 * ece["high"])
        title = "Gap in ECE, KD(C) - KD(UC)"
        path = folder / "generations_gap.png"
        figures.series(path, {"gap": gap}, xlabel="generation", ylabel="points of ECE", title=title, zero=True)
        made.append((f"{title}, with its bootstrap interval over seeds", path))
    return made


if __name__ == "__main__":
    common.main(run, "configs/generations.py", workdir="runs/generations", ignored=IGNORED)

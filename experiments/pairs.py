"""RTC: does calibrating the teacher by a temperature of its own help its student, pair by pair and method by method?

    python -m experiments.pairs --plan
    python -m experiments.pairs --config=configs/pairs.py:cpu --workdir runs/pairs_cpu

For each pair of networks: the teacher, the student alone, and the student distilled by each method of the configuration
with the teacher's logits divided by each T_c. Sizes are described in configs/pairs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common, figures, published, tables
from experiments.command import Command
from experiments.sheets import Line, Sheet
from experiments.tables import Row, changed, values
from kdjax import objectives
from kdjax.errors import Refused
from kdjax.recipes import Distill
from kdjax.stages import Stage

IGNORED = {
    "teacher": common.ONLY["teacher"],
    **common.ONLY,
    "recipe.teacher.model": "the networks are --config.recipe.pairs=(('resnet20','resnet8'),)",
    "recipe.student.model": "the networks are --config.recipe.pairs=(('resnet20','resnet8'),)",
    "recipe.student.distill": "the methods are --config.recipe.methods=('kd','mlld'), at --config.recipe.T_c=(1.0,1.5)",
}


def setting(method: str, T_c: float) -> str:
    return method if T_c == 1 else f"{method} T_c={T_c:g}"


def rows(config: ConfigDict) -> dict[str, Row]:
    """Every row by its name.

    Raises:
      Refused: pairs that are none; a method that cannot temper its teacher alone.
    """
    common.distinct("config.recipe.T_c", config.recipe.T_c, float)
    common.named("config.recipe.methods", config.recipe.methods)
    if not config.recipe.pairs or any(not common.is_pair(pair) for pair in config.recipe.pairs):
        raise Refused(f"config.recipe.pairs is {config.recipe.pairs}; expected like (('resnet20', 'resnet8'),).")
    if config.recipe.small_lr_networks:
        common.named("config.recipe.small_lr_networks", config.recipe.small_lr_networks)
    made = {}
    for teacher_network, network in config.recipe.pairs:
        teacher = Stage(common.recipe(config, "teacher", 0, model=teacher_network), name=f"{teacher_network} teacher")
        made[f"{teacher_network}, the teacher"] = Row(teacher)
        student = common.recipe(config, "student", 0, model=network)
        if network.startswith(tuple(config.recipe.small_lr_networks)):
            student = changed(student, optimizer={"lr": config.recipe.small_lr})
        alone = Stage(changed(student, distill=None), name=f"{network} alone")
        made[f"{network} alone"] = Row(alone)
        printed = published.PAIRS.get((teacher_network, network), {})
        for method in config.recipe.methods:
            known = objectives.checked(method, {}, "distiller")
            if "T_c" not in known:
                raise Refused(f"{method!r} in config.recipe.methods cannot temper its teacher alone; try kd or mlld.")
            for T_c in config.recipe.T_c:
                name = f"{teacher_network} → {network}: {setting(method, T_c)}"
                term = Distill(method, {"T_c": float(T_c)}, weights=objectives.METHODS[method].weights)
                recipe = changed(student, distill=term)
                made[name] = Row(Stage(recipe, teacher, name=name), published=expected(printed, method, T_c))
    return made


def expected(printed: Mapping[str, float | tuple[float, float]], method: str, T_c: float) -> str:
    """The published top-1 of a cell: the method's own, or with RTC's gain at its T_c = 1.5."""
    base, gain = printed.get(method), printed.get(f"{method} gain")
    if base is None or isinstance(base, tuple) or T_c not in (1.0, 1.5):
        return ""
    if T_c == 1.0:
        return f"{base:.2f}"
    if isinstance(gain, tuple):
        return f"{base + gain[0]:.2f} to {base + gain[1]:.2f}"
    return "" if gain is None else f"{base + gain:.2f}"


def run(given: Command) -> None:
    config = given.config
    finished = tables.run(given, rows(config))
    if finished is None:
        return
    by_name = {line.name: line for line in finished.lines}
    sentences, differences = [], {}
    for teacher, network in config.recipe.pairs:
        for method in config.recipe.methods:
            lines = {T_c: by_name[f"{teacher} → {network}: {setting(method, T_c)}"] for T_c in config.recipe.T_c}
            for T_c, line in lines.items():
                where = f"{teacher} → {network}, {setting(method, T_c)}"
                if T_c != 1 and 1.0 in lines and (difference := tables.paired(line, lines[1.0])):
                    differences[where] = difference
                    sentences.append(gain_sentence(where, method, difference))
    tables.publish(
        given,
        "pairs",
        Sheet(finished.lines, published="top-1 %", source=f"{published.MDISTILLER}; gains of {published.RTC}"),
        finished,
        title="RTC: the teacher alone tempered",
        summary=sentences or ["Too few seeds finished, or T_c = 1 is missing, to compare with the method alone."],
        figures=drawn(config, by_name),
        differences=differences,
    )


def gain_sentence(where: str, method: str, difference: Mapping[str, Mapping[str, float]]) -> str:
    top1 = difference["top1"]
    return (
        f"{where}: top-1 {100 * top1['mean']:+.2f} points against {method}, 95 % bootstrap interval "
        f"[{100 * top1['low']:+.2f}, {100 * top1['high']:+.2f}], ECE {100 * difference['ece']['mean']:+.2f} points, "
        f"n = {top1['n']:.0f} seeds."
    )


def drawn(config: ConfigDict, by_name: Mapping[str, Line]) -> list[tuple[str, Path]]:
    """Top-1 and ECE over T_c, bars of each method, a figure for each pair."""
    made = []
    for teacher, network in config.recipe.pairs:
        for metric, head in (("top1", "top-1 %"), ("ece", "ECE %")):
            groups: dict[str, dict[str, list[float]]] = {}
            for T_c in config.recipe.T_c:
                cells = {m: by_name[f"{teacher} → {network}: {setting(m, T_c)}"] for m in config.recipe.methods}
                if shown := {m: values(line, metric) for m, line in cells.items() if line.metrics}:
                    groups[f"T_c = {T_c:g}"] = shown
            if groups:
                path = Path(config.run.workdir) / f"pairs_{teacher}_{network}_{metric}.png"
                figures.bars(path, groups, ylabel=head, title=f"{teacher} → {network}")
                made.append((f"{head.removesuffix(' %')} of {network} taught by {teacher}, over T_c", path))
    return made


if __name__ == "__main__":
    common.main(run, "configs/pairs.py", workdir="runs/pairs", ignored=IGNORED)

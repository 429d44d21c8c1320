"""Does calibration, trained in or distilled, survive shift? ECE by severity, AURC, and known against unknown images.

    python -m experiments.drift --plan
    python -m experiments.drift --config=configs/drift.py:cpu --workdir runs/drift_cpu
    python -m experiments.drift --config=configs/drift.py --config.recipe.shift.folder=CIFAR-100-C

Rows as in table 1 (experiments/transfer.py). Every finished network sees the test split after each corruption: the
published .npy files of CIFAR-10-C and CIFAR-100-C where `config.recipe.shift.folder` names them, else our own
(experiments/corruptions.py). Temperatures are fitted on the clean calibration split. OOD: the confidence of test images
against that of another data set. Sizes are described in configs/drift.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import kdjax
from experiments import common, figures, tables, transfer
from experiments.command import Command
from experiments.corruptions import SEVERITIES
from experiments.sheets import Line, Sheet
from experiments.shifts import Shifts, foreign, shifts
from experiments.tables import Finished, Row, values
from kdjax import metrics, report
from kdjax.files import Damaged, canonical, read_json, write_json

IGNORED = transfer.IGNORED
COLUMNS = (
    *("top1", "ece", *(f"ece_severity_{severity}" for severity in SEVERITIES)),
    *("ece_shifted", "top1_shifted", "aurc", "aurc_shifted"),
)
OOD = ("ood_auroc", "ood_fpr95")
MEASURES = ("top1", "ece", "aurc")


def rows(config: ConfigDict) -> dict[str, Row]:
    """Those of table 1 without its published figures, which are of the clean test split."""
    return transfer.rows(config, {})


def run(given: Command) -> None:
    config = given.config
    # What a run could not measure in the end is refused before it trains.
    shifted = shifts(config)
    unknown = foreign(config, shifted.dataset)
    finished = tables.run(given, rows(config))
    if finished is None:
        return
    folder = Path(config.run.workdir)
    measured = measure(finished, shifted, unknown, folder)
    lines = []
    for line in finished.lines:
        if line.metrics:
            done = [s.id for s in finished.groups[line.name] if s.id in finished.results]
            more = [summarized(measured[line.name, stage]) for stage in done]
            line = line._replace(metrics=[{**m, **s} for m, s in zip(line.metrics, more, strict=True)])
        lines.append(line)
    columns = (*COLUMNS, *(OOD if unknown is not None else ()))
    tables.publish(
        given,
        "drift",
        Sheet(lines, columns),
        finished,
        title="Calibration under shift",
        summary=[*sentences(lines), *compared(config, lines)],
        figures=drawn(lines, folder),
        grids=[("ECE % by corruption, mean over severities and seeds", by_kind(lines, shifted.kinds))],
        notes=[
            shifted.sentence(),
            "Severity columns are means over the corruptions; shifted: over corruptions and severities.",
            *([f"OOD: {config.recipe.shift.ood}'s test images, by confidence."] if unknown is not None else []),
        ],
        shift=shifted.digest(),
    )


Measured = Mapping[str, Any]


def measure(
    finished: Finished, shifted: Shifts, unknown: np.ndarray | None, folder: Path
) -> dict[tuple[str, str], Measured]:
    """(row, stage) -> "KIND SEVERITY" -> top-1, ECE and AURC, and "ood"; kept in the folder `drift`."""
    cells = {
        (name, stage.id): finished.results[stage.id]
        for name, members in finished.groups.items()
        for stage in members
        if stage.id in finished.results
    }
    foreign_id = "" if unknown is None else hashlib.sha256(unknown.tobytes()).hexdigest()
    of = f"{shifted.digest()} {foreign_id}"
    files = {}
    for name, stage in cells:
        row = finished.rows[name]
        files[name, stage] = folder / "drift" / f"{stage}{row.posthoc and f'_{row.posthoc}'}.json"
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for cell, path in files.items():
        content: Any = {}
        with contextlib.suppress(Damaged, FileNotFoundError):  # only kept to save time: a damaged one is made again
            content = read_json(path)
        if isinstance(content, dict) and content.get("of") == of and content.get("sha256") == _digest(content):
            made[cell] = content["measured"]
    todo = [cell for cell in cells if cell not in made]
    if not todo:
        return made  # type: ignore[return-value]
    networks = {stage: kdjax.load(cells[name, stage].directory) for name, stage in todo}
    change = {(name, stage): tables.adjusted(finished.rows[name], cells[name, stage]) for name, stage in todo}
    made |= {cell: {} for cell in todo}
    for shift in shifted:
        logits = {stage: network.logits(shift.images) for stage, network in networks.items()}
        for cell in todo:
            made[cell][f"{shift.kind} {shift.severity}"] = scores(change[cell](logits[cell[1]]), shift.label)
    if unknown is not None:
        logits = {stage: network.logits(unknown) for stage, network in networks.items()}
        for cell in todo:
            known, _ = cells[cell].logits("test")
            made[cell]["ood"] = metrics.ood(*(metrics.msp(change[cell](z)) for z in (known, logits[cell[1]])))
    (folder / "drift").mkdir(exist_ok=True)
    for cell in todo:
        sealed = {"of": of, "measured": made[cell]}
        write_json(files[cell], {**sealed, "sha256": _digest(sealed)})
    return made  # type: ignore[return-value]


def _digest(content: Mapping[str, Any]) -> str:
    """What seals a kept file: the hash of all of it but the hash."""
    return hashlib.sha256(canonical({key: content[key] for key in content if key != "sha256"}).encode()).hexdigest()


def scores(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    confidence, correct = metrics.top_label(logits, label)
    return {
        "top1": float(np.mean(correct)),
        "ece": float(metrics.ece(confidence, correct)),
        "aurc": metrics.aurc(confidence, correct),
    }


def summarized(measured: Measured) -> dict[str, float]:
    """The columns of one stage; `ece_KIND` is its ECE over the severities of one corruption."""
    of = {key: one for key, one in measured.items() if key != "ood"}

    def mean(metric: str, keys: Sequence[str]) -> float:
        return statistics.fmean(of[key][metric] for key in keys)

    made = {f"{metric}_shifted": mean(metric, [*of]) for metric in MEASURES}
    for severity in SEVERITIES:
        made[f"ece_severity_{severity}"] = mean("ece", [key for key in of if key.endswith(f" {severity}")])
    for kind in dict.fromkeys(key.rpartition(" ")[0] for key in of):
        made[f"ece_{kind}"] = mean("ece", [key for key in of if key.rpartition(" ")[0] == kind])
    return made | {f"ood_{name}": value for name, value in measured.get("ood", {}).items()}


def sentences(lines: Sequence[Line]) -> list[str]:
    """What shift adds to every row's ECE, the smallest under shift first."""
    told = sorted((mean(line, "ece_shifted"), mean(line, "ece"), line.name) for line in lines if line.metrics)
    if not told:
        return ["No row finished."]
    first = ", ".join(f"{name} {shifted:.2f} % (clean {clean:.2f} %)" for shifted, clean, name in told)
    return [f"ECE under shift, mean over corruptions, severities and seeds, the smallest first: {first}."]


def compared(config: ConfigDict, lines: Sequence[Line]) -> list[str]:
    """What a calibrated teacher changes in its student's ECE, clean and under shift."""
    made, by_name = [], {line.name: line for line in lines}
    for network in config.recipe.students:
        plain = by_name.get(transfer.student_name(config, network, config.recipe.uncalibrated))
        for teacher in config.recipe.teachers:
            line = by_name[transfer.student_name(config, network, teacher)]
            if plain is None or line is plain:
                continue
            differences = tables.paired(line, plain, names=("ece", "ece_shifted"))
            for metric, where in (("ece", "clean"), ("ece_shifted", "shifted")):
                if differences:
                    made.append(
                        common.difference_sentence(f"{network}, {teacher} teacher, {where}", differences[metric])
                    )
    return made


def mean(line: Line, metric: str) -> float:
    return statistics.fmean(values(line, metric))


def by_kind(lines: Sequence[Line], kinds: Sequence[str]) -> report.Grid:
    """Rows as rows, corruptions as columns."""
    shown = [line for line in lines if line.metrics]
    return report.Grid(
        ["", "clean", *kinds],
        [[x.name, *(f"{mean(x, m):.2f}" for m in ("ece", *(f"ece_{k}" for k in kinds)))] for x in shown],
    )


def drawn(lines: Sequence[Line], folder: Path) -> list[tuple[str, Path]]:
    """ECE and its rows over severity, 0 being the clean test split."""
    columns = {0: "ece", **{severity: f"ece_severity_{severity}" for severity in SEVERITIES}}
    shown = {
        line.name: figures.over_seeds({severity: values(line, metric) for severity, metric in columns.items()})
        for line in lines
        if line.metrics
    }
    if not shown:
        return []
    title = "ECE under shift"
    path = folder / "drift.png"
    figures.series(path, shown, xlabel="severity", ylabel="ECE %", title=title)
    return [(f"{title}, mean over corruptions; mean ± sd over seeds", path)]


if __name__ == "__main__":
    common.main(run, "configs/drift.py", workdir="runs/drift", ignored=IGNORED)

"""CUD on texts: its tables 1, 3, 4 and 5, the sweep of gamma and learning curves, each row beside its control.

    python -m experiments.cud --plan
    python -m experiments.cud --config=configs/cud.py:cpu --workdir runs/cud_cpu

Table 1 compares methods on every set and student; 4 takes CUD apart, beside an ordinary teacher as soft as the DUS
teacher, the exact projection of its eq. (2), and cross-fitted teacher outputs; 3 is the calibration of the same rows; 5
varies one number at a time. Its table 2, outliers, is experiments.ood. Sizes are described in configs/cud.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import common, figures, linear, published_text, tables, text_fields, texts
from experiments.command import Command
from experiments.published_text import TABLE1, TABLE4, TABLE5, of_set
from experiments.sheets import Line, Sheet
from experiments.tables import Part, Row
from experiments.texts import Bench
from kdjax import models, objectives
from kdjax.errors import Refused

CALIBRATION = (
    "top1",
    "confidence",
    "ece",
    "ece_over",
    "ece_under",
    "ece_refit",
    "temperature",
    "nll",
    "brier",
    "auroc",
)
AXES = {"lambda_h": "λ_H", "m": "m", "eta": "η", "lambda_kd": "λ_KD"}
"""Field of `config.recipe.axes` -> its letter."""
UNBUILT = ("MGSKD", "AD-KD", "CKD")
NO_OPTIONS = ("method", "weights", "students")
"""Fields of an entry of `config.recipe.features` that are no options of its method."""


def benches(config: ConfigDict) -> list[Bench]:
    return [Bench(config, name, texts.data(config, name)) for name in text_fields.at_hand(config)[0]]


def methods(bench: Bench, model: str) -> dict[str, Row]:
    """The rows of table 1 that the ablation has not: distillation of layers, and what the paper has and is not here."""
    made = {}
    for name, given in bench.config.recipe.features.to_dict().items():
        if model not in given.get("students", (model,)):
            continue
        method = given["method"]
        options = {key: value for key, value in given.items() if key not in NO_OPTIONS}
        weights = given.get("weights") or objectives.METHODS[method].weights or (1.0, 1.0)
        printed = of_set(TABLE1.get((model, name)), bench.name)
        stage = bench.student(model, bench.teacher(), method, weights=weights, **options)
        made[f"{bench.name}, {model}: {name}"] = Row(stage, published=printed, more=texts.fires)
    for name in UNBUILT:
        if printed := of_set(TABLE1.get((model, name)), bench.name):
            made[f"{bench.name}, {model}: {name}"] = Row(published=printed, absent=published_text.NOT_BUILT)
    return made


def missing(config: ConfigDict, name: str) -> dict[str, Row]:
    """The rows of a set that the paper used and that is not at hand."""
    why = published_text.NOT_AT_HAND[name]
    made = {f"{name}, bert_base: teacher": Row(published=of_set(published_text.TEACHER, name), absent=why)}
    for model in config.recipe.students:
        for method in (texts.LKD, texts.CUD):
            printed = of_set(TABLE1.get((model, method)), name)
            made[f"{name}, {model}: {method}"] = Row(published=printed, absent=why)
    return made


def swept(bench: Bench, model: str) -> dict[str, Row]:
    """Table 5 and the sweep of gamma: one number at a time, the others as published."""
    config, made = bench.config, {}
    for axis, points in config.recipe.axes.to_dict().items():
        for value in points:
            stage = _varied(bench, model, axis, float(value))
            made[f"{bench.name}, {model}: CUD, {AXES[axis]} = {value:g}"] = Row(stage, more=texts.fires)
    for gamma in config.recipe.gammas:
        teacher = bench.teacher("dus", gamma=float(gamma))
        made[f"{bench.name}, {config.recipe.teacher.model}: teacher, DUS, γ = {gamma:g}"] = Row(teacher)
        name = f"{bench.name}, {model}: LKD + DUS, γ = {gamma:g}"
        made[name] = Row(bench.student(model, teacher), more=texts.fires)
    return made


def _varied(bench: Bench, model: str, axis: str, value: float) -> Any:
    """CUD with one number changed."""
    shaped = bench.teacher("dus", **({"lambda_h": value} if axis == "lambda_h" else {}))
    weights = (round(1 - value, 12), value) if axis == "lambda_kd" else ()
    options: dict[str, Any] = {axis: value} if axis in ("m", "eta") else {}
    return bench.student(model, shaped, "cud", weights=weights, **options)


def check(config: ConfigDict) -> None:
    """Refuses unknown axes, methods and networks, a set for the sweeps that is not among the sets, and bad lists."""
    for axis, points in config.recipe.axes.to_dict().items():
        if axis not in AXES:
            raise Refused(f"config.recipe.axes has {axis!r}; expected some of {', '.join(AXES)}.")
        common.distinct(f"config.recipe.axes.{axis}", points, float)
    common.distinct("config.recipe.gammas", config.recipe.gammas, float)
    common.named("config.recipe.students", config.recipe.students)
    for name, given in config.recipe.features.to_dict().items():
        if not isinstance(given, Mapping):
            raise Refused(f"config.recipe.features[{name!r}] is {given!r}; expected fields, like {{'method': 'pkd'}}.")
        if name in (*texts.ROWS, *UNBUILT):
            raise Refused(f"config.recipe.features has {name!r}, which the table has already; give it another name.")
        objectives.checked(given.get("method", ""), {}, "distiller")
        if "students" in given:
            common.named(f"config.recipe.features[{name!r}].students", given["students"])
            for model in given["students"]:
                models.build(model, num_classes=2)
    swept_set = config.recipe.sensitivity_set
    if swept_set and swept_set not in text_fields.at_hand(config)[0]:
        raise Refused(
            f"config.recipe.sensitivity_set is {swept_set!r}, which is not among config.recipe.sets at hand; expected "
            f"one of {', '.join(text_fields.at_hand(config)[0])}, or '' for no sweeps."
        )


def declared(config: ConfigDict) -> tuple[dict[str, Row], list[Part]]:
    """(every row by its name, the tables that they are shown in)."""
    check(config)
    rows: dict[str, Row] = {}
    one: dict[str, str] = {}
    four: dict[str, str] = {}
    sweeps: dict[str, str] = {}
    for bench in benches(config):
        name = bench.name
        common_rows = {
            f"{name}, {linear.NAME}": linear.row(bench.data),
            **texts.teachers(bench, of_set(published_text.TEACHER, name)),
        }
        rows |= common_rows
        one |= {row: made.published for row, made in common_rows.items()}
        four |= dict.fromkeys(common_rows, "")
        for model in config.recipe.students:
            ablation, others = texts.ablation(bench, model), methods(bench, model)
            rows |= {**ablation, **others}
            for method in (texts.ALONE, texts.LKD):
                one[f"{name}, {model}: {method}"] = of_set(TABLE1.get((model, method)), name)
            one |= {row: made.published for row, made in others.items()}
            one[f"{name}, {model}: {texts.CUD}"] = of_set(TABLE1.get((model, texts.CUD)), name)
            last = model == config.recipe.students[-1]
            for row in ablation:
                method = row.rpartition(": ")[2]
                known = TABLE4.get(method) if model == "bert_4l_256" else None
                four[row] = of_set(known, name)
            if last and name == config.recipe.sensitivity_set:
                swept_rows = swept(bench, model)
                rows |= swept_rows
                sweeps = {row: _printed(row, name, model) for row in swept_rows}
    for name in text_fields.at_hand(config)[1]:
        absent = missing(config, name)
        rows |= absent
        one |= {row: made.published for row, made in absent.items()}
    source = published_text.CUD
    parts = [
        Part("Table 1: methods on every set", one, texts.COLUMNS, "accuracy %", f"{source}, table 1"),
        Part("Table 4: CUD taken apart", four, (*texts.COLUMNS, "matched_T"), "accuracy %", f"{source}, table 4"),
        Part("Table 3: calibration of the same rows (the paper's numbers could not be read)", four, CALIBRATION),
    ]
    if sweeps:
        title = "Table 5 and the sweep of γ: one number at a time"
        parts.append(Part(title, sweeps, texts.COLUMNS, "accuracy %", f"{source}, table 5"))
    return rows, parts


def _printed(row: str, name: str, model: str) -> str:
    """What table 5 prints for a row of the sweep."""
    if (name, model) != ("banking77", "bert_4l_256"):
        return ""
    axis, _, value = row.rpartition(", ")[2].partition(" = ")
    known: Mapping[float, float] = TABLE5.get(axis, {})
    return f"{known[float(value)]:.2f}" if value and float(value) in known else ""


def rows(config: ConfigDict) -> dict[str, Row]:
    """Every row by its name."""
    return declared(config)[0]


def run(given: Command) -> None:
    config = given.config
    every, parts = declared(config)
    finished = tables.run(given, every)
    if finished is None:
        return
    wheres = [f"{name}, {model}" for name in text_fields.at_hand(config)[0] for model in config.recipe.students]
    layers = [(f"{name} against LKD", name, texts.LKD) for name in config.recipe.features]
    sentences = texts.sentences(texts.verdicts(finished.lines, wheres, (*texts.CLAIMS, *layers)))
    for name in text_fields.at_hand(config)[0]:
        sentences += texts.against_linear(finished.lines, name)
    tables.publish(
        given,
        "cud",
        Sheet(finished.lines, texts.COLUMNS),
        finished,
        title="CUD on texts: doubt, clipped mistakes, and their controls",
        summary=sentences or ["One seed, or failed ones: differences have no interval."],
        figures=drawn(config, finished),
        notes=[
            "MASSIVE is not at hand; HWU64 stands in for it: another set of the same scheme.",
            texts.FIRES,
            texts.MATCHED,
        ],
        parts=parts,
        said=sentences,
    )


def drawn(config: ConfigDict, finished: tables.Finished) -> list[tuple[str, Path]]:
    """Learning curves of the ablation by set and student, and accuracy over gamma."""
    folder, made = Path(config.run.workdir), []
    for name in text_fields.at_hand(config)[0]:
        for model in config.recipe.students:
            curves = {}
            for method in (texts.ALONE, texts.LKD, texts.CONTROL, texts.DUS, texts.WCLIP, texts.CUD):
                members = finished.groups.get(f"{name}, {model}: {method}", [])
                paths = [finished.results[s.id].directory for s in members if s.id in finished.results]
                if paths:
                    curves[method] = [_curve(path) for path in paths]
            if curves:
                title = f"{name}, {model}: accuracy on the calibration split by epoch"
                path = folder / f"cud_curves_{name}_{model}.png"
                figures.curves(path, curves, xlabel="epoch", ylabel="top-1 %", title=title)
                made.append((title, path))
    gammas = _over_gamma(config, finished.lines)
    if gammas:
        title = f"{config.recipe.sensitivity_set}: over γ of the DUS teacher"
        path = figures.bars(folder / "cud_gamma.png", gammas, ylabel="top-1 %", title=title)
        made.append((title, path))
    return made


def _curve(directory: Path) -> list[float]:
    """Top-1 in percent on the calibration split after each epoch."""
    with (directory / "metrics.jsonl").open(encoding="utf-8") as file:
        return [100 * json.loads(line)["calibration"]["top1"] for line in file]


def _over_gamma(config: ConfigDict, lines: list[Line]) -> dict[str, dict[str, list[float]]]:
    name, student = config.recipe.sensitivity_set, config.recipe.students[-1]
    by_name = {line.name: line for line in lines}
    groups = {}
    for gamma in config.recipe.gammas if name else ():
        rows_of = {
            "teacher": f"{name}, {config.recipe.teacher.model}: teacher, DUS, γ = {gamma:g}",
            "student": f"{name}, {student}: LKD + DUS, γ = {gamma:g}",
        }
        shown = {who: tables.values(by_name[row], "top1") for who, row in rows_of.items() if by_name[row].metrics}
        if shown:
            groups[f"γ = {gamma:g}"] = shown
    return groups


if __name__ == "__main__":
    common.main(run, "configs/cud.py", workdir="runs/cud", ignored=texts.IGNORED)

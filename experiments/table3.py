"""KD(C), table 3: 20 Newsgroups. Every calibrator alone, and students of calibrated teachers.

    python -m experiments.table3 --plan
    python -m experiments.table3 --config=configs/table3.py:cpu --workdir runs/table3_cpu

Beside the paper's rows: KD(UC), which its caption names and its table lacks; the linear reference; CUD's teacher, the
ordinary teacher as soft as that, and W-Clip. Sizes are described in configs/table3.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from configs.base import meant
from experiments import common, figures, linear, published, published_text, tables, text_fields, texts, transfer
from experiments.command import Command
from experiments.published_text import TABLE3
from experiments.sheets import Sheet, printed
from experiments.tables import Part, Row
from experiments.texts import Bench
from kdjax.data import text_sets

COLUMNS = ("top1", "nll", "ece", "ece_over", "ece_under", "ace", "ece_refit", "firing_rate")
SCALED = "temperature"


def benches(config: ConfigDict) -> list[Bench]:
    """One for each way to strip the messages."""
    common.named("config.recipe.policies", config.recipe.policies)
    text_fields.refuse_unused(config)
    text_fields.refuse_unknown(config, "policies", text_sets.POLICIES)
    made = []
    for policy in config.recipe.policies:
        data = texts.data(config, "newsgroups20")
        data = dataclasses.replace(data, options={**data.options, "policy": policy})
        made.append(Bench(config, f"newsgroups20 {policy}", data))
    return made


def kind(config: ConfigDict, method: str) -> str:
    """How the paper calls distillation from a teacher of that method."""
    return "KD(UC)" if method == config.recipe.uncalibrated else "KD(C)"


def of_bench(bench: Bench) -> dict[str, Row]:
    """Every row of one table."""
    config, network = bench.config, bench.config.recipe.teacher.model
    made = {f"{bench.name}, {linear.NAME}": linear.row(bench.data)}
    of_teacher = {method: bench.teacher(method, **meant(method)) for method in config.recipe.teachers}
    shaped = bench.teacher("dus")
    for method, stage in of_teacher.items():
        made[f"{bench.name}, {network}: teacher, {method}"] = Row(stage)
    made[f"{bench.name}, {network}: teacher, DUS"] = Row(shaped)
    for model in config.recipe.students:
        rows: dict[str, Row] = {}
        for method in config.recipe.calibrators:
            rows[f"alone, {method}"] = Row(
                bench.alone(model, method, **meant(method)), published=_published(model, method)
            )
        for method, stage in of_teacher.items():
            student = bench.student(model, stage)
            known = _published(model, f"kd from {method}")
            rows[f"{kind(config, method)} from {method}"] = Row(student, published=known, more=texts.fires)
            if method == config.recipe.uncalibrated:
                scaled = bench.student(model, stage, posthoc=SCALED)
                known = _published(model, f"kd from {method} + {SCALED}")
                rows[f"KD(C) from {method} + {SCALED}"] = Row(scaled, published=known, more=texts.fires)
        ordinary = bench.teacher()
        rows |= {
            name: Row(stage, more=texts.fires)
            for name, stage in {
                texts.CONTROL: bench.student(model, ordinary, as_soft_as=shaped),
                texts.DUS: bench.student(model, shaped),
                texts.WCLIP: bench.student(model, ordinary, "cud"),
            }.items()
        }
        if folds := texts.crossfit(config):
            rows[texts.LKD + texts.CROSSED] = Row(
                bench.student(model, ordinary, teacher_outputs=folds), more=texts.fires
            )
            rows[texts.WCLIP + texts.CROSSED] = Row(
                bench.student(model, ordinary, "cud", teacher_outputs=folds), more=texts.fires
            )
        made |= {f"{bench.name}, {model}: {name}": row for name, row in rows.items()}
    return made


def _published(model: str, row: str) -> str:
    return printed(TABLE3.get(row)) if model == "distilbert" else ""


def rows(config: ConfigDict) -> dict[str, Row]:
    """Every row by its name."""
    common.named("config.recipe.calibrators", config.recipe.calibrators)
    common.named("config.recipe.teachers", config.recipe.teachers)
    common.named("config.recipe.students", config.recipe.students)
    transfer.refuse_uncalibrated(config)
    return {name: row for bench in benches(config) for name, row in of_bench(bench).items()}


def claims(config: ConfigDict) -> list[tuple[str, str, str]]:
    """KD(C) by each teacher against KD(UC), then what every text table claims."""
    usual = config.recipe.uncalibrated
    plain, alone = f"KD(UC) from {usual}", f"alone, {usual}"
    calibrated = [f"KD(C) from {method}" for method in config.recipe.teachers if method != usual]
    calibrated.append(f"KD(C) from {usual} + {SCALED}")
    own = [(f"{row} against KD(UC)", row, plain) for row in calibrated]
    own.append(("KD(UC) against the student alone", plain, alone))
    renamed = {texts.LKD: plain, texts.ALONE: alone}
    shared = [(claim, renamed.get(one, one), renamed.get(other, other)) for claim, one, other in texts.CLAIMS]
    return [*own, *[claim for claim in shared if claim[1:] not in {known[1:] for known in own}]]


def run(given: Command) -> None:
    config = given.config
    every = rows(config)
    finished = tables.run(given, every)
    if finished is None:
        return
    names = [bench.name for bench in benches(config)]
    wheres = [f"{name}, {model}" for name in names for model in config.recipe.students]
    sentences = texts.sentences(texts.verdicts(finished.lines, wheres, claims(config)))
    for name in names:
        sentences += texts.against_linear(finished.lines, name)
    parts = [
        Part(
            f"20 Newsgroups, {name.split()[1]}",
            {row: made.published for row, made in every.items() if row.startswith(f"{name}, ")},
            COLUMNS,
            "top-1 / ECE / AECE %",
            f"{published.KDC}, table 3, which does not say how messages were split, stripped and cut",
        )
        for name in names
    ]
    tables.publish(
        given,
        "table3",
        Sheet(finished.lines, COLUMNS),
        finished,
        title="KD(C), table 3: does calibration transfer by distillation on texts?",
        summary=sentences or ["One seed, or failed ones: differences have no interval."],
        figures=drawn(config, finished),
        notes=[
            "20 Newsgroups is split by date. body: without header, quoted lines and signature; as_is: whole messages, "
            "whose headers give the sender away.",
            texts.FIRES,
            texts.MATCHED,
            f"{published_text.CUD} is the source of DUS and W-Clip, which the paper of this table has not.",
        ],
        parts=parts,
        said=sentences,
    )


def drawn(config: ConfigDict, finished: tables.Finished) -> list[tuple[str, Path]]:
    """ECE of students trained alone and distilled, by calibrator."""
    made, by_name = [], {line.name: line for line in finished.lines}
    for bench in benches(config):
        for model in config.recipe.students:
            where = f"{bench.name}, {model}"
            groups = {}
            for method in config.recipe.teachers:
                both = {
                    "trained alone": by_name.get(f"{where}: alone, {method}"),
                    "distilled": by_name.get(f"{where}: {kind(config, method)} from {method}"),
                }
                shown = {name: tables.values(line, "ece") for name, line in both.items() if line and line.metrics}
                if shown:
                    groups[method] = shown
            if groups:
                path = Path(config.run.workdir) / (figures.file_name("table3_bars", where) + ".png")
                title = f"{where}: trained alone and distilled"
                made.append((title, figures.bars(path, groups, ylabel="ECE %", title=title)))
    return made


if __name__ == "__main__":
    common.main(run, "configs/table3.py", workdir="runs/table3", ignored=texts.IGNORED)

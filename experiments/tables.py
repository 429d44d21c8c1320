"""From rows declared over seeds to a finished table: run, measure, write, draw.

An experiment declares rows, `grid` makes a stage of each for every seed, and `publish` writes the sheet as Markdown,
CSV, LaTeX and JSON and a page that holds it with its figures. What failed is shown as failed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments import common, stored
from experiments.command import Command
from experiments.sheets import Line, Sheet
from kdjax import checkpoints, limits, metrics, posthoc, provenance, report, stages
from kdjax.recipes import Recipe
from kdjax.results import Result
from kdjax.stages import Stage
from kdjax.trainer import Diverged

COLUMNS = ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "sce", "ace")
"""The columns of the tables that have no published one."""

GLOSSARY = (
    "KD(UC): a student distilled from a teacher trained with plain NLL; KD(C): from a teacher trained to be "
    "calibrated. T: the distillation temperature of teacher and student; α: the weight of the distillation term, 1 - α "
    "that of the labels.",
    "ECE: top-label, 15 equal-width bins. ACE: top-label, equal-mass bins. SCE: class-wise, equal width.",
    "An interval resamples the paired differences of the seeds: with few of them it cannot leave their range and is "
    "shown for scale, not as a test.",
)
"""What every page explains."""


class Row(NamedTuple):
    """A row of a table before it is run.

    Attributes:
      stage: with any seed; `grid` gives it, and its teachers, the seeds of the experiment. None: a row that no stage
        stands behind.
      posthoc: a calibrator fitted to the stage's own calibration logits and applied to its test logits, or "".
      published: what the source prints.
      more: further numbers of a finished stage, beside its test metrics.
      reference: the metrics of a method that is not trained by stages, such as a linear model; computed once.
      absent: why the row cannot be computed here, such as a data set that is not at hand, or "".
    """

    stage: Stage | None = None
    posthoc: str = ""
    published: str = ""
    more: Callable[[Result], Mapping[str, float]] | None = None
    reference: Callable[[], Mapping[str, float]] | None = None
    absent: str = ""


def measured(row: Row, result: Result) -> dict[str, float]:
    """The test metrics of one finished stage, of its logits after the row's post-hoc calibrator."""
    if not row.posthoc:
        more = {} if row.more is None else row.more(result)
        return {**result.metrics["test"], **more}
    pair = posthoc.POSTHOC[row.posthoc]
    calibration = result.logits("calibration")
    fitted = pair.fit(*calibration)
    logits, labels = result.logits("test")
    after = [np.asarray(pair.apply(fitted, jnp.asarray(x))) for x in (calibration[0], logits)]
    refitted = posthoc.refitted(after[0], calibration[1], after[1], labels)
    return {**metrics.evaluate(after[1], labels), **refitted}


class Finished(NamedTuple):
    """Rows that were run.

    Attributes:
      rows: as declared.
      lines: every row with the seeds that finished.
      groups: row -> its stages, one a seed.
      results: by stage id, of the stages that finished.
      failures: stage name -> why it has no result.
    """

    rows: Mapping[str, Row]
    lines: list[Line]
    groups: dict[str, list[Stage]]
    results: Mapping[str, Result]
    failures: dict[str, str]

    @property
    def ids(self) -> dict[str, list[str]]:
        """Row -> the ids of its finished stages, by seed; only rows that show a stage's own logits."""
        return {
            name: [stage.id for stage in members if stage.id in self.results]
            for name, members in self.groups.items()
            if members and not self.rows[name].posthoc
        }

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)


def at_seed(stage: Stage, seed: int) -> Stage:
    """The stage and all that teach it, with that seed; a run that was finished elsewhere is as it is."""
    if stage.place is not None:
        return stage
    teacher, other = (None if parent is None else at_seed(parent, seed) for parent in (stage.teacher, stage.as_soft_as))
    return Stage(stage.recipe.with_seed(seed), teacher, f"{stage.name} seed {seed}", other)


def grid(rows: Mapping[str, Row], seeds: Sequence[int]) -> dict[str, list[Stage]]:
    """Row -> its stages, one a seed, none where no stage stands behind the row. Rows that need the same teacher share
    it, because equal stages have one id; a run that was finished elsewhere is one stage for all seeds, and counts once.

    Raises:
      Refused: more stages than can be planned.
    """
    declared = {name: row.stage for name, row in rows.items() if row.stage is not None}
    once = stages.order(declared.values())
    limits.refuse_stages(len(once) * len(seeds), len(seeds) * sum(stages.steps_of(stage.recipe) for stage in once))
    return {
        name: [*dict.fromkeys(at_seed(declared[name], seed) for seed in seeds)] if name in declared else []
        for name in rows
    }


def run(given: Command, rows: Mapping[str, Row]) -> Finished | None:
    """Runs every row over the seeds of the configuration; None under --plan and in processes that do not report.

    A stage that diverges costs its own row and those it teaches a seed, and nothing else.
    """
    groups = grid(rows, list(given.config.seeds))
    outcome = common.execute(given, [stage for members in groups.values() for stage in members])
    if given.plan:
        for name, row in rows.items():
            if row.absent:
                print(f"{name}: {row.absent}")
    if outcome is None:
        return None
    lines = []
    for name, row in rows.items():
        finished = [measured(row, outcome.results[s.id]) for s in groups[name] if s.id in outcome.results]
        if row.reference is not None:
            finished.append(dict(row.reference()))
        reasons = dict.fromkeys(outcome.failures[s.id] for s in groups[name] if s.id in outcome.failures)
        lines.append(Line(name, finished, row.published, "; ".join(reasons), row.absent))
    failures = {s.name: outcome.failures[s.id] for m in groups.values() for s in m if s.id in outcome.failures}
    return Finished(rows, lines, groups, outcome.results, failures)


def paired(
    one: Line, other: Line, *, names: Sequence[str] = ("top1", "nll", "brier", "ece")
) -> dict[str, dict[str, float]]:
    """metric -> the mean over seeds of `one` - `other` with its interval; {} for one seed, or where one is missing."""
    if one.failed or other.failed or len(one.metrics) != len(other.metrics) or len(one.metrics) < 2:
        return {}
    sides = [{name: [seed[name] for seed in line.metrics] for name in names} for line in (one, other)]
    return {name: metrics.paired(sides[0][name], sides[1][name])._asdict() for name in names}


def changed(recipe: Recipe, *, optimizer: Mapping[str, Any] | None = None, **fields: Any) -> Recipe:
    """The recipe with other fields, those of its optimizer by name."""
    made = dataclasses.replace(recipe.optimizer, **(optimizer or {}))
    return dataclasses.replace(recipe, optimizer=made, **fields)


class Part(NamedTuple):
    """Some rows of a table under a title of their own.

    Attributes:
      rows: name of a row -> what the source of this part prints for it, or "".
      columns, published, source: as in `Sheet`.
    """

    title: str
    rows: Mapping[str, str]
    columns: Sequence[str] = COLUMNS
    published: str = ""
    source: str = ""

    def sheet(self, lines: Sequence[Line]) -> Sheet:
        """The part as a sheet, its rows taken from all lines."""
        by_name = {line.name: line for line in lines}
        chosen = [by_name[name]._replace(published=text) for name, text in self.rows.items()]
        return Sheet(chosen, self.columns, self.published, self.source)


def values(line: Line, metric: str, scale: float = 100.0) -> list[float]:
    """One number a seed, in percent unless told."""
    return [scale * seed[metric] for seed in line.metrics]


def publish(
    given: Command,
    name: str,
    sheet: Sheet,
    finished: Finished,
    *,
    title: str,
    summary: Sequence[str],
    page: str = "",
    figures: Sequence[tuple[str, Path]] = (),
    notes: Sequence[str] = (),
    parts: Sequence[Part] = (),
    **extra: Any,
) -> None:
    """Prints the sheet and writes NAME.md, .csv, .tex, .json and a page into the work directory.

    Args:
      page: the page's file name, without .html; NAME if empty.
      parts: the sheets that are printed and shown in place of the one that holds all rows, where a table has several;
        NAME.csv and NAME.json hold all rows still.
      extra: more entries of the JSON file.

    Raises:
      Diverged: stages failed; everything is written before, with their rows marked.
    """
    folder = Path(given.config.run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    shown = [(part.title, part.sheet(finished.lines)) for part in parts]
    shown = shown or [("Test split, mean ± sd over seeds", sheet)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for caption, one in shown:
        if parts:
            print(caption)
        console.print(one.rich())
    markdown = "\n".join(f"{caption}\n\n{one.markdown()}" if parts else one.markdown() for caption, one in shown)
    latex = "\n".join(f"% {caption}\n{one.latex()}" if parts else one.latex() for caption, one in shown)
    for ending, text in (("md", markdown), ("csv", sheet.csv()), ("tex", latex)):
        checkpoints.write_text(folder / f"{name}.{ending}", text)
    environment = provenance.environment()
    content = {
        "command": given.text,
        "environment": environment,
        "seeds": list(given.config.seeds),
        "columns": list(sheet.columns),
        "rows": [line._asdict() for line in sheet.lines],
        "published": {"what": sheet.published, "source": sheet.source},
        "stages": finished.ids,
        **({"parts": [part._asdict() for part in parts]} if parts else {}),
        **extra,
    }
    stored.write(folder / f"{name}.json", content)
    versions = environment["versions"]
    measured_on = f"Measured on {environment['device']}, {environment['cpus']} cores, jax {versions['jax']}."
    about = [*common.data_sentences(finished.groups), *([f"Size: {given.config.size}"] if given.config.size else [])]
    report.page(
        folder / f"{page or name}.html",
        title=title,
        summary=[*summary],
        tables=shown,  # type: ignore[arg-type]
        figures=figures,
        notes=[*about, *GLOSSARY, *notes, f"Command: {given.text}", measured_on],
    )
    for sentence in summary:
        print(sentence)
    print(f"report: {folder / f'{page or name}.html'}")
    if finished.failures:
        first = [f"{stage}: {why}" for stage, why in finished.failures.items()][:3]
        raise Diverged(f"{len(finished.failures)} stages failed, and their rows say so; {'; '.join(first)}")

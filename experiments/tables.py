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

from experiments import common, pages, stored
from experiments.command import Command
from experiments.sheets import PART_COLUMNS, Line, Part, Sheet
from kdjax import checkpoints, limits, metrics, posthoc, provenance, report, stages
from kdjax.errors import one_of
from kdjax.recipes import Recipe
from kdjax.results import Result
from kdjax.stages import Stage
from kdjax.trainer import Diverged

COLUMNS = PART_COLUMNS

NOT_ASKED = "not asked for"

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
      T: the stage's logits are divided by it before they are measured; > 0.
    """

    stage: Stage | None = None
    posthoc: str = ""
    published: str = ""
    more: Callable[[Result], Mapping[str, float]] | None = None
    reference: Callable[[], Mapping[str, float]] | None = None
    absent: str = ""
    T: float = 1.0


def adjusted(row: Row, result: Result) -> Callable[[np.ndarray], np.ndarray]:
    """logits [N, K] -> logits [N, K] as the row shows them: divided by T, then calibrated after training."""
    if not row.posthoc:
        return lambda logits: logits if row.T == 1 else np.asarray(logits / np.float32(row.T))
    pair = posthoc.POSTHOC[row.posthoc]
    logits, labels = result.logits("calibration")
    fitted = pair.fit(logits / np.float32(row.T), labels)
    return lambda logits: np.asarray(pair.apply(fitted, jnp.asarray(logits / np.float32(row.T))))


def measured(row: Row, result: Result) -> dict[str, float]:
    """The test metrics of one finished stage, of its logits as the row shows them."""
    if not row.posthoc and row.T == 1:
        more = {} if row.more is None else row.more(result)
        return {**result.metrics["test"], **more}
    change = adjusted(row, result)
    splits = [(change(logits), labels) for logits, labels in map(result.logits, ("calibration", "test"))]
    return {**metrics.evaluate(*splits[1]), **posthoc.refitted(*splits[0], *splits[1])}


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
            if members and not self.rows[name].posthoc and self.rows[name].T == 1
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

    A stage that diverges costs its own row and those it teaches a seed, and nothing else. Rows that `config.rows`
    leaves out are neither run nor printed.

    Raises:
      Refused: `config.rows` names a row that this table does not have.
    """
    picked = given.config.get("rows", ())
    if picked:
        common.named("config.rows", picked)
    asked = [one_of("config.rows", name, rows) for name in picked] or [*rows]
    groups = grid({name: rows[name] for name in asked}, list(given.config.seeds))
    outcome = common.execute(given, [stage for members in groups.values() for stage in members])
    if given.plan:
        for name, row in rows.items():
            if row.absent:
                print(f"{name}: {row.absent}")
    if outcome is None:
        return None
    lines = []
    for name, row in rows.items():
        if name not in groups:
            lines.append(Line(name, [], row.published, absent=NOT_ASKED))
            continue
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
    figures: Sequence[tuple[str, Path]] = (),
    grids: Sequence[tuple[str, report.Grid]] = (),
    notes: Sequence[str] = (),
    parts: Sequence[Part] = (),
    **extra: Any,
) -> None:
    """Prints the sheet and writes NAME.md, .csv, .tex, .json and the page report.html into the work directory.

    Args:
      figures: (caption, PNG in the work directory), each called NAME.png or NAME_*.png: other tables share the folder.
      grids: (caption, a further small table).
      parts: the sheets that are printed and shown in place of the one that holds all rows, where a table has several;
        NAME.csv and NAME.json hold all rows still.
      extra: more entries of the JSON file.

    Raises:
      Diverged: stages failed; everything is written before, with their rows marked.
      ValueError: a figure that is called otherwise.
    """
    for _, path in figures:
        if path.stem != name and not path.stem.startswith(f"{name}_"):
            raise ValueError(f"a figure of {name} is called {path.name}; expected {name}.png or {name}_*.png.")
    folder = Path(given.config.run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = sheet._replace(lines=[line for line in sheet.lines if line.absent != NOT_ASKED])
    asked = {line.name for line in sheet.lines}
    parts = [part for part in parts if asked & {*part.rows}]
    shown = [(part.title, part.sheet(sheet.lines)) for part in parts]
    shown = shown or [("Test split, mean ± sd over seeds", sheet)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for caption, one in shown:
        if parts:
            print(caption)
        console.print(one.rich())
    markdown = [f"{caption}\n\n{one.markdown()}" if parts else one.markdown() for caption, one in shown]
    markdown += [f"{caption}:\n\n{markdown_of(grid)}" for caption, grid in grids]
    latex = "\n".join(f"% {caption}\n{one.latex()}" if parts else one.latex() for caption, one in shown)
    for ending, text in (("md", "\n".join(markdown)), ("csv", sheet.csv()), ("tex", latex)):
        checkpoints.write_text(folder / f"{name}.{ending}", text)
    environment = provenance.environment()
    about = [*common.data_sentences(finished.groups), *([f"Size: {given.config.size}"] if given.config.size else [])]
    versions = environment["versions"]
    measured_on = f"Measured on {environment['device']}, {environment['cpus']} cores, jax {versions['jax']}."
    content = {
        "command": given.text,
        "environment": environment,
        "seeds": list(given.config.seeds),
        "columns": list(sheet.columns),
        "rows": [line._asdict() for line in sheet.lines],
        "published": {"what": sheet.published, "source": sheet.source},
        "stages": finished.ids,
        "grids": [{"caption": caption, "head": grid.heads(), "rows": grid.cells()} for caption, grid in grids],
        "summary": [*summary],
        "page": {
            "title": title,
            "figures": [[caption, Path(path).name] for caption, path in figures],
            "notes": [*about, *GLOSSARY, *notes, f"Command: {given.text}", measured_on],
        },
        **({"parts": [part._asdict() for part in parts]} if parts else {}),
        **extra,
    }
    stored.write(folder / f"{name}.json", content)
    pages.write(folder, first=name)
    for sentence in summary:
        print(sentence)
    print(f"report: {folder / pages.NAME}")
    if finished.failures:
        first = [f"{stage}: {why}" for stage, why in finished.failures.items()][:3]
        raise Diverged(f"{len(finished.failures)} stages failed, and their rows say so; {'; '.join(first)}")


def markdown_of(grid: report.Grid) -> str:
    """A small table as Markdown, ending in a newline."""
    heads, *body = [[cell.replace("|", "\\|") for cell in row] for row in (grid.heads(), *grid.cells())]
    rule = ["---", *("---:" for _ in heads[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *body))

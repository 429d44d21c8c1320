"""Result tables with a published column: Markdown, CSV, LaTeX, a terminal and a page.

A row that lost seeds says so: a stage that failed is shown as failed, never left out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from kdjax import report
from kdjax.errors import one_of

COLUMNS = ("top1", "nll", "ece", "ece_over", "ece_under", "sce", "ace", "ece_refit")
PART_COLUMNS = ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "sce", "ace")
"""The columns of the tables that have no published one."""


class Line(NamedTuple):
    """One row of a sheet.

    Attributes:
      name: free text.
      metrics: one dict a seed that finished, as `kdjax.metrics.evaluate` returns it.
      published: what the source prints, or "".
      failed: why seeds are missing, or "".
      absent: why the row cannot be computed here at all, such as a data set that is not at hand, or "".
    """

    name: str
    metrics: Sequence[dict[str, float]]
    published: str = ""
    failed: str = ""
    absent: str = ""


class Sheet(NamedTuple):
    """Rows beside what was published.

    Attributes:
      lines: in the order they are printed.
      columns: keys of `kdjax.report.COLUMNS`.
      published: what the values of the published column are, e.g. "top-1 / ECE / SCE / ACE %"; "" for no such column.
      source: where they are printed.
    """

    lines: Sequence[Line]
    columns: Sequence[str] = COLUMNS
    published: str = ""
    source: str = ""

    def heads(self) -> list[str]:
        columns = [f"{c.head} {c.better}".strip() for c in map(report.COLUMNS.__getitem__, self.columns)]
        return ["", *columns, "n", *([f"published: {self.published}"] if self.published else [])]

    def cells(self) -> list[list[str]]:
        """What every printed form says: name, "mean ± sd" a column, n, and what was published."""
        return [self._cells(line) for line in self.lines]

    def _cells(self, line: Line) -> list[str]:
        published = [line.published or "-"] if self.published else []
        if not line.metrics:
            why = line.absent or f"failed: {line.failed}"
            return [f"{line.name} ({why})", *("-" for _ in self.columns), "0", *published]
        shown: dict[str, str] = {}
        if measured := self._measured(line):
            _, *cells, _ = report.table([report.Row(line.name, list(line.metrics))], measured).cells()[0]
            shown = dict(zip(measured, cells, strict=True))
        name = f"{line.name} (a seed failed: {line.failed})" if line.failed else line.name
        return [name, *(shown.get(column, "-") for column in self.columns), str(len(line.metrics)), *published]

    def _measured(self, line: Line) -> list[str]:
        """The columns that the row has a number for: a student without a teacher has no firing rate.

        Raises:
          Refused: a column that `kdjax.report.COLUMNS` does not know.
        """
        known = [one_of("column", column, report.COLUMNS) for column in self.columns]
        return [column for column in known if all(column in seed for seed in line.metrics)]

    def markdown(self) -> str:
        """A Markdown table, ending in a newline."""
        heads, *body = [[cell.replace("|", "\\|") for cell in row] for row in (self.heads(), *self.cells())]
        rule = ["---", *("---:" for _ in heads[1:])]
        lines = "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *body))
        return lines + (f"\nPublished: {self.source}.\n" if self.source else "")

    def csv(self) -> str:
        """Full precision and unscaled: name, n, then mean and sd of every metric, what was published, and failures."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        spreads = [f"{name}_{part}" for name in self.columns for part in ("mean", "sd")]
        writer.writerow(["name", "n", *spreads, "published", "failed"])
        for line in self.lines:
            numbers = ["0", *("" for _ in spreads)]
            if line.metrics:
                measured, values = self._measured(line), dict[str, str]()
                if measured:
                    table = report.table([report.Row(line.name, list(line.metrics))], measured)
                    values = next(csv.DictReader(io.StringIO(table.csv())))
                numbers = [str(len(line.metrics)), *(values.get(spread, "") for spread in spreads)]
            writer.writerow([line.name, *numbers, line.published, line.failed or line.absent])
        return text.getvalue()

    def latex(self) -> str:
        """A `tabular` with booktabs' rules."""
        heads, *body = [[_latex(cell) for cell in row] for row in (self.heads(), *self.cells())]
        rows = [f"{' & '.join(row)} \\\\" for row in body]
        lines = [f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule", f"{' & '.join(heads)} \\\\"]
        lines += ["\\midrule", *rows, "\\bottomrule", "\\end{tabular}"]
        if self.source:
            lines.append(f"% Published: {self.source}.")
        return "\n".join([*lines, ""])

    def rich(self) -> RichTable:
        """For a terminal."""
        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        made.caption, made.caption_justify = "mean ± sd over n seeds", "left"
        if self.source:
            made.caption += f"; published: {self.source}"
        for head in self.heads():
            made.add_column(head, justify="right" if head else "left")
        for cells in self.cells():
            made.add_row(*map(Text, cells))
        return made


class Part(NamedTuple):
    """Some rows of a table under a title of their own.

    Attributes:
      rows: name of a row -> what the source of this part prints for it, or "".
      columns, published, source: as in `Sheet`.
    """

    title: str
    rows: Mapping[str, str]
    columns: Sequence[str] = PART_COLUMNS
    published: str = ""
    source: str = ""

    def sheet(self, lines: Sequence[Line]) -> Sheet:
        """The part as a sheet, its rows taken from those of the lines that exist."""
        chosen = [line._replace(published=self.rows[line.name]) for line in lines if line.name in self.rows]
        return Sheet(chosen, self.columns, self.published, self.source)


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "→": r"$\to$"}
_LATEX |= {"β": r"$\beta$", "γ": r"$\gamma$", "η": r"$\eta$", "λ": r"$\lambda$", "ρ": r"$\rho$"}
_LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "α": r"$\alpha$", "$": r"\$", "{": r"\{", "}": r"\}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def printed(values: Sequence[float] | None) -> str:
    """Published values as the source prints them, "74.39 / 13.04 / 0.32 / 13.04"; "" where there are none."""
    return " / ".join(f"{value:.2f}" for value in values) if values else ""

"""Means and standard deviations over seeds, for Markdown, CSV, a terminal or a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kdjax.errors import Refused, literal, one_of
from kdjax.metrics import Spread, over_seeds

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Row(NamedTuple):
    """One model, or one setting, over its seeds.

    Attributes:
      name: free text.
      metrics: one dict a seed, as `kdjax.metrics.evaluate` returns it: fractions, and nats for the NLL.
    """

    name: str
    metrics: list[dict[str, float]]


class Column(NamedTuple):
    """How a metric is printed: its heading, the factor it is multiplied by, decimals, and the better direction."""

    head: str
    scale: float = 100.0
    digits: int = 2
    better: str = "↓"


COLUMNS: Mapping[str, Column] = {
    "top1": Column("top-1 %", better="↑"),
    "top5": Column("top-5 %", better="↑"),
    "nll": Column("NLL", 1.0, 3),
    "brier": Column("Brier", 1.0, 3),
    "entropy": Column("entropy", 1.0, 3, ""),
    "confidence": Column("confidence %", better=""),
    "ece": Column("ECE %"),
    "ece_over": Column("over %"),
    "ece_under": Column("under %"),
    "mce": Column("MCE %"),
    "oe": Column("OE %"),
    "rms": Column("RMS CE %"),
    "average_ce": Column("average CE %"),
    "ace": Column("ACE %"),
    "sce": Column("SCE %"),
    "ace_classwise": Column("class-wise ACE %"),
    "ace_classwise_kdc": Column("KD(C) ACE %"),
    "smece": Column("smooth ECE %"),
    "debiased_l2": Column("debiased L2 %"),
    "aurc": Column("AURC %"),
    "eaurc": Column("E-AURC %"),
    "auroc": Column("AUROC %", better="↑"),
    "aupr": Column("AUPR %", better="↑"),
    "aupr_errors": Column("AUPR errors %", better="↑"),
    "fpr95": Column("FPR95 %"),
    "ece_refit": Column("ECE after T %"),
    "temperature": Column("fitted T", 1.0, 2, ""),
    "firing_rate": Column("W-Clip fires %", better=""),
    "matched_T": Column("T of the control", 1.0, 2, ""),
    "agreement": Column("agrees with teacher %", better=""),
    "kl_to_teacher": Column("KL to teacher", 1.0, 3, ""),
    "js_to_teacher": Column("JS to teacher", 1.0, 3, ""),
    # Under shift: ECE by severity, means over what was done to the images.
    **{f"ece_severity_{severity}": Column(f"ECE % at {severity}") for severity in range(1, 6)},
    "ece_shifted": Column("ECE shifted %"),
    "top1_shifted": Column("top-1 shifted %", better="↑"),
    "aurc_shifted": Column("AURC shifted %"),
    # On the plane of three class weights, in units of the features.
    "plane_spread": Column("spread", 1.0, 3, ""),
    "plane_near": Column("alike apart by", 1.0, 3, ""),
    "plane_far": Column("others apart by", 1.0, 3, ""),
    "plane_ratio": Column("spread / distance", 1.0, 3, ""),
    "plane_alike": Column("alike / others", 1.0, 3, ""),
    "ood_auroc": Column("OOD AUROC %", better="↑"),
    "ood_fpr95": Column("OOD FPR95 %"),
    "ood_auroc_energy": Column("OOD AUROC % (energy)", better="↑"),
    "ood_fpr95_energy": Column("OOD FPR95 % (energy)"),
    "ood_aupr_out": Column("OOD AUPR out %", better="↑"),
    "ood_confidence": Column("confidence outside %"),
    "ood_ece": Column("ECE % with outside as wrong"),
    **{
        f"{metric}_{part}": Column(f"{head}, {part}", scale, digits, better)
        for part in ("head", "middle", "tail")
        for metric, head, scale, digits, better in (
            ("top1", "top-1 %", 100.0, 2, "↑"),
            ("ece", "ECE %", 100.0, 2, "↓"),
            ("nll", "NLL", 1.0, 3, "↓"),
        )
    },
    "top1_macro": Column("macro top-1 %", better="↑"),
}


class Table(NamedTuple):
    """Rows of `Spread` (mean, sd with n - 1, n), to be printed in one of four ways; see `table`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Spread, ...]], ...]

    def cells(self) -> list[list[str]]:
        """What every printed form says: name, "mean ± sd" a column (the mean alone for one seed), n."""
        return [[literal(name), *map(_cell, self.columns, spreads), str(spreads[0].n)] for name, spreads in self.rows]

    def heads(self) -> list[str]:
        return ["", *(f"{c.head} {c.better}".strip() for c in map(COLUMNS.__getitem__, self.columns)), "n"]

    def markdown(self) -> str:
        """A Markdown table, ending in a newline."""
        heads, *body = [[cell.replace("|", "\\|") for cell in row] for row in (self.heads(), *self.cells())]
        rule = ["---", *("---:" for _ in heads[1:])]
        return "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *body))

    def csv(self) -> str:
        """Full precision and unscaled: name, n, then <metric>_mean and <metric>_sd (empty for one seed)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", "n", *(f"{name}_{part}" for name in self.columns for part in ("mean", "sd"))])
        for name, spreads in self.rows:
            pairs = ((s.mean, s.sd if s.n > 1 else None) for s in spreads)
            numbers = ["" if value is None else repr(float(value)) for pair in pairs for value in pair]
            writer.writerow([name, spreads[0].n, *numbers])
        return text.getvalue()

    def rich(self) -> RichTable:
        """For a terminal."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        made.caption, made.caption_justify = "mean ± sd over n seeds", "left"
        for head in self.heads():
            made.add_column(head, justify="right" if head else "left")
        for cells in self.cells():
            made.add_row(*map(Text, cells))
        return made


class Grid(NamedTuple):
    """Cells that are text already, for `page`; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def heads(self) -> list[str]:
        return list(self.head)

    def cells(self) -> list[list[str]]:
        return [list(row) for row in self.rows]


def _cell(name: str, spread: Spread) -> str:
    column = COLUMNS[name]
    parts = (spread.mean, spread.sd) if spread.n > 1 else (spread.mean,)
    return " ± ".join(f"{column.scale * part:.{column.digits}f}" for part in parts)


DEFAULT = ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "sce", "ace")


def table(rows: Sequence[Row], columns: Sequence[str] = DEFAULT) -> Table:
    """Mean and standard deviation (n - 1) over the seeds of each row.

    Args:
      columns: keys of `COLUMNS`.

    Raises:
      Refused: no rows, a row without seeds, a metric that is unknown, missing from a row or NaN.
    """
    if not rows:
        raise Refused("the table has no rows; expected at least one Row(name, metrics).")
    made = []
    for row in rows:
        if not row.metrics:
            raise Refused(f"row {row.name!r} has no seeds; expected one dict of metrics a seed.")
        for column in columns:
            one_of("column", column, COLUMNS)
            for seed in row.metrics:
                one_of(f"column of row {row.name!r}", column, seed)
        made.append((row.name, tuple(over_seeds([seed[column] for seed in row.metrics]) for column in columns)))
    return Table(tuple(columns), tuple(made))

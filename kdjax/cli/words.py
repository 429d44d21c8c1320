"""Numbers in the words of a reader who never heard of them: one table for the terminal and the page, one paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.cli.predictions import Predictions
from kdjax.metrics import Interval, Resampled, intervals
from kdjax.report import Grid

# metric -> (words, is a fraction printed in percent)
METRICS: Mapping[str, tuple[str, bool]] = {
    "top1": ("accuracy", True),
    "confidence": ("mean confidence", True),
    "gap": ("confidence - accuracy", True),
    "ece": ("ECE", True),
    "ece_over": ("ECE, over-confident part", True),
    "ece_under": ("ECE, under-confident part", True),
    "smece": ("smooth ECE", True),
    "sce": ("class-wise ECE", True),
    "nll": ("NLL", False),
    "brier": ("Brier score", False),
    "aurc": ("AURC", True),
}
# Fewer examples than this in a bin say little about its accuracy: one in five may be off by 0.1 or more.
FEW = 20


def number(name: str, value: float, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f} %" if METRICS[name][1] else f"{value:{sign}.4f}"


def ranged(name: str, interval: Interval, signed: bool = False) -> str:
    """ "8.21 % [6.90, 9.51]"; "-" for a difference of two infinite values."""
    scale, digits, sign = (100, 2, "+" if signed else "") if METRICS[name][1] else (1, 4, "+" if signed else "")
    if not np.isfinite(interval.value):
        return "-" if np.isnan(interval.value) else number(name, interval.value, signed)
    low, high = (f"{scale * end:{sign}.{digits}f}" for end in interval[1:])
    return f"{number(name, interval.value, signed)} [{low}, {high}]"


def metric_table(result: Resampled) -> Grid:
    """Each metric with its 95 % interval."""
    rows = [[METRICS[name][0], ranged(name, interval, name == "gap")] for name, interval in ordered(intervals(result))]
    return Grid(("metric", "value [95 % interval]"), rows)


def ordered(by_name: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, by_name[name]) for name in METRICS]


def class_name(predictions: Predictions, j: int) -> str:
    return predictions.classes[j] if predictions.classes else f"class {j}"


def class_table(predictions: Predictions, result: Resampled, most: int = 100) -> Grid:
    """The classes by how far their confidence is off for sure, the worst first; at most `most` of them."""
    table = result.classes
    rows = []
    for j in worst_first(result)[:most]:
        if table.predicted[j]:
            says = f"{100 * table.confidence[j]:.1f}"
            right = f"{100 * table.accuracy[j]:.1f}"
            gap = f"{100 * table.gap[j]:+.1f} [{100 * table.low[j]:+.1f}, {100 * table.high[j]:+.1f}]"
        else:
            says = right = gap = "-"
        rows.append([class_name(predictions, j), str(table.predicted[j]), says, right, gap])
    return Grid(("class", "predicted", "says %", "right %", "gap [95 % interval]"), rows)


def worst_first(result: Resampled) -> np.ndarray:
    """Classes by the end of the gap's interval that is nearer to 0, so that a few examples make no worst class."""
    table = result.classes
    sure = np.maximum(table.low, 0) + np.maximum(-table.high, 0)
    return np.lexsort((-table.predicted, -abs(table.gap), -sure))


def bin_table(result: Resampled) -> Grid:
    """What the model says and how often it is right, by bin of confidence, with the number of examples in each."""
    count, bins = np.asarray(result.bins.count), result.bins
    edges = np.linspace(0, 100, len(count) + 1)
    rows = [
        [
            f"{edges[b]:.0f} to {edges[b + 1]:.0f} %",
            f"{int(count[b])}{' (few)' if count[b] < FEW else ''}",
            f"{100 * float(bins.mean_confidence[b]):.1f}",
            f"{100 * float(bins.accuracy[b]):.1f}",
        ]
        for b in range(len(count))
        if count[b]
    ]
    return Grid(("confidence", "examples", "says %", "right %"), rows)


def paragraph(predictions: Predictions, result: Resampled) -> str:
    """The measured confidence, accuracy and their difference in plain sentences."""
    shown = intervals(result)
    value, count = result.values, len(predictions.logits)
    gap = shown["gap"]
    sentences = [
        f"On {count} examples {predictions.name} says {100 * value['confidence']:.1f} % on average and is right in "
        f"{100 * value['top1']:.1f} % of them"
    ]
    points = f"{100 * abs(gap.value):.1f} points (95 % interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    if gap.low > 0:
        sentences[0] += f": it is over-confident by {points}."
    elif gap.high < 0:
        sentences[0] += f": it is under-confident by {points}."
    else:
        sentences[0] += (
            f"; a difference of {100 * gap.value:+.1f} points, which {count} examples cannot tell from none (95 % "
            f"interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f})."
        )
    ece = shown["ece"]
    sentences.append(
        f"Bin by bin its confidence is off by {100 * ece.value:.1f} % (ECE, {len(result.bins.count)} bins; "
        f"{100 * ece.low:.1f} to {100 * ece.high:.1f}); a perfectly calibrated model would show about "
        f"{100 * result.floor:.1f} % on as many examples."
    )
    if worst := _worst(predictions, result):
        sentences.append(worst)
    thin = int(((np.asarray(result.bins.count) > 0) & (np.asarray(result.bins.count) < FEW)).sum())
    if thin:
        hold, say = ("holds", "says") if thin == 1 else ("hold", "say")
        sentences.append(
            f"{thin} of the {len(result.bins.count)} bins {hold} fewer than {FEW} examples and {say} little."
        )
    return " ".join(sentences)


def _worst(predictions: Predictions, result: Resampled) -> str:
    table, j = result.classes, int(worst_first(result)[0])
    if len(predictions.logits[0]) < 3 or not (table.low[j] > 0 or table.high[j] < 0):
        return ""
    return (
        f"The worst class is {class_name(predictions, j)}: predicting it ({table.predicted[j]} times), the model "
        f"says {100 * table.confidence[j]:.1f} % and is right {100 * table.accuracy[j]:.1f} %."
    )


def aligned(grid: Grid) -> str:
    """For a terminal: the first column to the left, the others to the right."""
    rows = [list(grid.head), *grid.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + _line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()

"""`kdjax audit`: is the model's confidence right? One page and its numbers as JSON."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kdjax
from kdjax import metrics, report
from kdjax.cli import words
from kdjax.cli.predictions import How, Predictions, read
from kdjax.errors import Refused
from kdjax.files import replaceable, write_json

FORMAT = 1


class Audit(NamedTuple):
    """One file's predictions and what was measured on them; `refit` after one temperature, where one was fitted."""

    predictions: Predictions
    result: metrics.Resampled
    refit: dict[str, float] | None


def audit(files: list[str], how: How, calibration: str, out: str, bins: int) -> list[str]:
    """Measures every file, writes the page and the JSON, and returns the lines to print.

    Raises:
      Refused: a wrong file; the disk is asked first whether the page can be written where it should be.
    """
    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise Refused(f"--out is {out!r}; expected a name that ends in .html.")
    if not page.parent.is_dir():
        raise Refused(f"--out is {out!r}, and the directory {str(page.parent)!r} does not exist; make it first.")
    numbers_of = page.with_suffix(".json")
    if not replaceable(numbers_of, "kdjax", "audits"):
        raise Refused(
            f"--out is {out!r}, beside which {numbers_of} would be written, and that is a file of another kind "
            f"already; give another name, such as --out {page.with_stem(page.stem + '_audit')}."
        )
    held_out = read(calibration, how) if calibration else None
    lines, audits = [], []
    for file in files:
        predictions = read(file, how)
        lines.append(describe(predictions))
        labels = predictions.truth
        refuse_one_class(predictions)
        refit = None if held_out is None else _refit(held_out, predictions, bins)
        made = Audit(predictions, metrics.resampled(predictions.logits, labels, bins=bins), refit)
        lines += ["", words.aligned(words.metric_table(made.result)), "", _paragraph(made), ""]
        # The logits of a large file need not stay while the next one is read; their shape does.
        empty = np.broadcast_to(np.float32(0), predictions.logits.shape)
        audits.append(made._replace(predictions=predictions._replace(logits=empty)))
    _page(page, audits)
    write_json(numbers_of, {"format": FORMAT, "kdjax": kdjax.__version__, "audits": [_data(a) for a in audits]})
    return [*lines, f"wrote {page} and {numbers_of}"]


def describe(predictions: Predictions) -> str:
    """What the file holds and how it was read, in one line."""
    count, num_classes = predictions.logits.shape
    return f"{predictions.name}: {count} examples, {num_classes} classes; {'; '.join(predictions.said)}."


def refuse_one_class(predictions: Predictions) -> None:
    """Refuses labels that are all one class: the wrong array, or a file in the order of its classes that was cut."""
    labels = predictions.truth
    if labels.min() == labels.max():
        name = words.class_name(predictions, int(labels[0]))
        raise Refused(f"{predictions.name}: every label is {name}; expected labels of examples of several classes.")


def _paragraph(made: Audit) -> str:
    text = words.paragraph(made.predictions, made.result)
    if made.refit is not None:
        text += (
            f" One temperature fitted on the calibration file (T = {made.refit['temperature']:.3g}) leaves an ECE of "
            f"{100 * made.refit['ece_refit']:.1f} %."
        )
    return text


def _refit(held_out: Predictions, predictions: Predictions, bins: int) -> dict[str, float]:
    from kdjax import posthoc

    if held_out.logits.shape[1] != predictions.logits.shape[1]:
        raise Refused(
            f"{held_out.name} has {held_out.logits.shape[1]} classes and {predictions.name} has "
            f"{predictions.logits.shape[1]}; expected calibration predictions of the same model."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a temperature at its clamp is seen in the number
        return posthoc.refitted(held_out.logits, held_out.truth, predictions.logits, predictions.truth, bins=bins)


def _page(path: Path, audits: list[Audit]) -> None:
    several = len(audits) > 1
    tables, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i, made in enumerate(audits):
            name = made.predictions.name
            of = f" of {name}" if several else ""
            picture = Path(folder) / f"{i}.png"
            report.reliability_diagram([(name, made.result.bins)], picture)
            figures.append((f"Reliability{of}", picture))
            num_classes = len(made.result.classes.examples)
            shown = f", the worst 100 of {num_classes}" if num_classes > 100 else ", the worst first"
            tables += [
                (f"Numbers{of}", words.metric_table(made.result)),
                (f"Classes{of}{shown}", words.class_table(made.predictions, made.result)),
                (f"Bins of confidence{of}", words.bin_table(made.result)),
            ]
        title = f"Audit of {audits[0].predictions.name}" if not several else f"Audit of {len(audits)} models"
        report.page(
            path,
            title=title,
            summary=[_paragraph(made) for made in audits],
            tables=tables,
            figures=figures,
            notes=[*(describe(made.predictions) for made in audits), *NOTES],
            figures_first=True,
        )


NOTES = (
    "The reliability diagram: a calibrated model's bars end on the diagonal. Hatched is the gap between what the model "
    "says and how often it is right; the ECE is the mean height of the hatched parts, weighted by the examples below.",
    "Classes: among the examples predicted as the class, the mean confidence, the fraction that is right, and the gap.",
    "NLL and Brier score fall when a model is more accurate or better calibrated. AURC is the mean error rate over all "
    "ways to keep only the most confident predictions: it asks whether confidence ranks right above wrong.",
    "Intervals: 95 % bootstrap over the examples: for new examples of the same kind, not for another training.",
)


def numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no infinity: null stands for the NLL of a label that has no probability."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _data(made: Audit) -> dict[str, Any]:
    predictions, result = made.predictions, made.result
    table = result.classes
    every = {name: numbers(interval._asdict()) for name, interval in metrics.intervals(result).items()}
    bins = result.bins
    return {
        "file": predictions.name,
        "examples": result.dealt[0],
        "classes": result.dealt[1],
        "scores": predictions.scores,
        "read_as": predictions.said,
        "metrics": every,
        "ece_of_a_calibrated_model": result.floor,
        **({} if made.refit is None else {"after_one_temperature": numbers(made.refit)}),
        "bins": [
            {"examples": int(n), "confidence": float(says), "accuracy": float(right)}
            for n, says, right in zip(bins.count, bins.mean_confidence, bins.accuracy, strict=True)
        ],
        "per_class": [
            {
                "class": words.class_name(predictions, j),
                "examples": int(table.examples[j]),
                "predicted": int(table.predicted[j]),
                "confidence": float(table.confidence[j]),
                "accuracy": float(table.accuracy[j]),
                "gap": {"value": float(table.gap[j]), "low": float(table.low[j]), "high": float(table.high[j])},
                "ece": float(table.error[j]),
            }
            for j in range(len(table.examples))
        ],
    }

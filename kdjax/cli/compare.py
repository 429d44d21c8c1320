"""`kdjax compare`: which of two models is better, on the same examples."""

from __future__ import annotations

import numpy as np

from kdjax import metrics
from kdjax.cli import words
from kdjax.cli.audit import describe
from kdjax.cli.predictions import How, Predictions, read
from kdjax.errors import Refused
from kdjax.report import Grid

# Metrics of which more is better; of the gap and the mean confidence neither direction is.
_MORE, _NEITHER = {"top1"}, {"gap", "confidence"}


def compare(first: str, second: str, bins: int, how: How) -> list[str]:
    """Measures both and returns the lines to print.

    Raises:
      Refused: a wrong file; other examples, or another order, in the second.
    """
    a, b = read(first, how), read(second, how)
    if a.labels is None and b.labels is not None:
        a = a._replace(labels=b.labels)
    if b.labels is None and a.labels is not None:
        b = b._replace(labels=a.labels)
    _check_same_examples(a, b)
    one, other = (metrics.resampled(p.logits, p.truth, bins=bins) for p in (a, b))
    difference = metrics.differences(one, other)
    rows = []
    for name, interval in words.ordered(difference):
        rows.append(
            [
                words.METRICS[name][0],
                words.number(name, one.values[name]),
                words.number(name, other.values[name]),
                words.ranged(name, interval, signed=True),
                _better(name, interval),
            ]
        )
    same = float((a.logits.argmax(1) == b.logits.argmax(1)).mean())
    table = words.aligned(Grid(("metric", "A", "B", "A - B [95 % interval]", "better"), rows))
    return [
        f"A is {describe(a)}",
        f"B is {describe(b)}",
        "",
        table,
        "",
        f"They predict the same class for {100 * same:.1f} % of the examples. Intervals: 95 % bootstrap over the "
        "examples, the same draws for both; '-' where the interval holds 0.",
    ]


def _check_same_examples(a: Predictions, b: Predictions) -> None:
    if a.logits.shape != b.logits.shape:
        raise Refused(
            f"{a.name} has shape {list(a.logits.shape)} and {b.name} {list(b.logits.shape)}; expected the same "
            "examples and classes of both."
        )
    if a.classes and b.classes and a.classes != b.classes:
        raise Refused(f"{a.name} and {b.name} name their classes differently, or in another order.")
    differ = np.flatnonzero(a.truth != b.truth)
    if differ.size:
        raise Refused(
            f"{a.name} and {b.name} differ in {differ.size} labels, the first at example {differ[0]}; expected the "
            "same examples in the same order."
        )


def _better(name: str, interval: metrics.Interval) -> str:
    if name in _NEITHER or not (interval.low > 0 or interval.high < 0):
        return "-"
    return "A" if (interval.low > 0) == (name in _MORE) else "B"

"""Reliability diagrams. Matplotlib is imported when one is drawn, without pyplot and its global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.errors import Refused
from kdjax.files import write_bytes
from kdjax.metrics import Bins

_BAR, _OVER, _UNDER, _INK, _FAINT = "#9db4d3", "#d1495b", "#1b7f79", "#22272e", "#8b949e"


def reliability_diagram(panels: Sequence[tuple[str, Bins]], path: Path) -> str:
    """Accuracy against confidence, one panel a model, as PNG.

    Above, a bar a bin: the dark line is its accuracy, and the part between accuracy and mean confidence is what ECE
    adds up, hatched one way where the model is over-confident and the other way where it is under-confident. Below, the
    share of examples in each bin, with the overall accuracy and mean confidence as lines: their distance is what
    remains of the gap when bins may cancel.

    Args:
      panels: (name, top-label `Bins` of equal width, [M]).

    Returns:
      The same in words, for readers who do not see the picture; it is also stored in the PNG, as its Description.

    Raises:
      Refused: no panel, or bins that are class-wise or empty.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not panels:
        raise Refused("the reliability diagram has no panels; expected at least one (name, Bins).")
    for name, bins in panels:
        if np.ndim(bins.count) != 1 or not np.sum(bins.count) > 0:
            raise Refused(
                f"the bins of {name!r} have shape {np.shape(bins.count)} and {np.sum(bins.count):g} members; "
                "expected one axis and at least one member."
            )
    across = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 4
    down = -(-len(panels) // across)
    style: Any = {
        "font.size": 9,
        "axes.edgecolor": _FAINT,
        "axes.linewidth": 0.6,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "hatch.linewidth": 0.5,
    }
    with mpl.rc_context(style):
        spaced = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04)
        figure = Figure(figsize=(2.9 * across + 0.5, 3.75 * down + 0.45), dpi=160, layout=spaced)
        grid = figure.add_gridspec(down, across)
        for i, (name, bins) in enumerate(panels):
            cell = grid[i // across, i % across].subgridspec(2, 1, height_ratios=(3, 1), hspace=0.03)
            upper = figure.add_subplot(cell[0])
            _panel(upper, figure.add_subplot(cell[1], sharex=upper), name, bins, i % across == 0)
        keys = [
            Line2D([], [], color=_INK, linewidth=1.3, label="accuracy"),
            Line2D([], [], color=_INK, linewidth=1.3, linestyle=(0, (3, 2)), label="mean confidence"),
            Patch(facecolor=_OVER, alpha=0.45, hatch="////", edgecolor=_OVER, label="over-confident gap"),
            Patch(facecolor=_UNDER, alpha=0.45, hatch="\\\\\\\\", edgecolor=_UNDER, label="under-confident gap"),
        ]
        keys_across = 4 if across > 2 else 2
        figure.legend(handles=keys, loc="outside lower center", ncols=keys_across, frameon=False, fontsize=8)
        words = "Reliability diagram. " + " ".join(f"{name}: {_in_words(bins)}." for name, bins in panels)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Title": "Reliability diagram", "Description": words})
    write_bytes(Path(path), png.getvalue())
    return words


def _panel(upper: Any, lower: Any, name: str, bins: Bins, leftmost: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    accuracy, confidence = np.asarray(bins.accuracy, float), np.asarray(bins.mean_confidence, float)
    share, some = np.asarray(bins.weight, float), np.asarray(bins.count) > 0
    width = 1 / len(share)
    left = np.arange(len(share)) * width
    bar: dict[str, Any] = {"width": width, "align": "edge", "linewidth": 0.5}
    upper.bar(left[some], np.minimum(accuracy, confidence)[some], color=_BAR, edgecolor="white", **bar)
    for color, hatch, mine in ((_OVER, "////", confidence > accuracy), (_UNDER, "\\\\\\\\", confidence < accuracy)):
        at = some & mine
        low, gap = np.minimum(accuracy, confidence)[at], abs(confidence - accuracy)[at]
        upper.bar(left[at], gap, bottom=low, color=color, alpha=0.45, hatch=hatch, edgecolor=color, **bar)
    upper.hlines(accuracy[some], left[some], left[some] + width, color=_INK, linewidth=1.1)
    upper.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=3)
    upper.set(xlim=(0, 1), ylim=(0, 1), aspect="auto")
    upper.tick_params(labelbottom=False, length=2)
    upper.set_title(f"{_cut(name)}\n", fontsize=10, fontweight="bold", loc="left")
    upper.text(0, 1.025, _numbers(bins), transform=upper.transAxes, fontsize=8, color=_INK)
    lower.bar(left, share, color=_BAR, edgecolor="white", **bar)
    overall, mean = float((share * accuracy).sum()), float((share * confidence).sum())
    lower.axvline(overall, color=_INK, linewidth=1.1)
    lower.axvline(mean, color=_OVER if mean > overall else _UNDER, linewidth=1.1, linestyle=(0, (3, 2)))
    lower.set(ylim=(0, max(share.max() * 1.15, 1e-9)), xlabel="confidence")
    lower.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    lower.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    lower.tick_params(length=2)
    if leftmost:
        upper.set_ylabel("accuracy")
        lower.set_ylabel("examples")
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)


def _cut(name: str, longest: int = 34) -> str:
    """No mathematics: a name is text. A longer one would run into the next panel."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def _numbers(bins: Bins) -> str:
    ece, over, under = (100 * float(value) for value in (bins.ece, bins.over, bins.under))
    return f"ECE {ece:.1f} %  =  {over:.1f} over + {under:.1f} under"


def _in_words(bins: Bins) -> str:
    total = float(np.sum(bins.count))
    accuracy, confidence = (100 * float(np.sum(part)) / total for part in (bins.correct, bins.confidence))
    return f"accuracy {accuracy:.1f} %, mean confidence {confidence:.1f} %, {_numbers(bins)}, {total:.0f} examples"

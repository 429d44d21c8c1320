"""Figures of the tables, each as PNG and PDF: bars, scatter plots and heat maps.

Colors are Okabe and Ito's, which most kinds of color blindness tell apart; every value is also in the tables.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.text import Text
from matplotlib.transforms import Bbox

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
MARKERS = "os^Dv*Px"
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "//", "..", "xx")
STYLE: dict[str, Any] = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
LINE = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
LABEL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "in_layout": False}
GAPS = (5, *range(12, 180, 7))
"""Between a point and its label, in points of 1/72 inch; a wider one where a narrower has no room."""


class Look(NamedTuple):
    """What tells a line, or a kind of points or bars, from the others; no two of 32 are alike in color and the rest."""

    color: str
    marker: str
    dashes: str
    hatch: str


def _looks() -> Iterator[Look]:
    """Looks without end: every color once, then again with the next marker, dashes and hatch."""
    for k in itertools.count():
        again, i = divmod(k, len(COLORS))
        marker = MARKERS[(i + again) % len(MARKERS)]
        yield Look(COLORS[i], marker, DASHES[again % len(DASHES)], HATCHES[again % len(HATCHES)])


def file_name(*parts: str) -> str:
    """A file name of letters, digits and underscores, whatever the parts are called: "longtail_clinc150_rho_50"."""
    return re.sub(r"[^A-Za-z0-9]+", "_", "_".join(parts).replace("ρ", "rho")).strip("_")


def _save(figure: Any, path: Path, description: str) -> Path:
    """Writes `path` as PNG, with its description for those who cannot see it, and beside it as PDF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".pdf"), metadata={"Subject": description, "CreationDate": None})
    figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Description": description})
    _pyplot().close(figure)
    return path.with_suffix(".png")


def _lines(title: str, figure: Any, across: int = 1) -> str:
    """The title in lines that fit above one of so many pictures side by side."""
    return textwrap.fill(title, int(11 * figure.get_figwidth() / across))


def _pyplot() -> Any:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def bars(path: Path, groups: Mapping[str, Mapping[str, Sequence[float]]], *, ylabel: str, title: str) -> Path:
    """Bars side by side: group -> bar -> one value a seed; the height is the mean, the line one standard deviation."""
    kinds = [*dict.fromkeys(kind for values in groups.values() for kind in values)]
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(5.0, 1.1 * len(groups)), 3.6), layout="constrained")
        width = 0.8 / len(kinds)
        for k, (kind, look) in enumerate(zip(kinds, _looks(), strict=False)):
            shown = [(i, np.asarray(v[kind])) for i, v in enumerate(groups.values()) if kind in v]
            at = [i + (k - (len(kinds) - 1) / 2) * width for i, _ in shown]
            sd = [v.std(ddof=1) if len(v) > 1 else 0.0 for _, v in shown]
            axes.bar(
                at,
                [v.mean() for _, v in shown],
                width,
                yerr=sd,
                color=look.color,
                hatch=look.hatch,
                label=kind,
                capsize=2,
            )
        axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
        axes.set(ylabel=ylabel)
        axes.set_title(_lines(title, figure), loc="left")
        figure.legend(loc="outside lower center", ncols=min(len(kinds), 3), frameon=False, fontsize=8)
        words = "; ".join(
            f"{group}: {', '.join(f'{kind} {np.mean(v):.2f}' for kind, v in values.items())}"
            for group, values in groups.items()
        )
        return _save(figure, path, f"{title}. {ylabel}: {words}.")


def scatter(
    path: Path,
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
) -> Path:
    """Labeled points: kind (color) -> label -> (x, y)."""
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 4.4), layout="constrained")
        labels = []
        for look, (kind, labeled) in zip(_looks(), points.items(), strict=False):
            x, y = zip(*labeled.values(), strict=True)
            axes.scatter(x, y, color=look.color, marker=look.marker, label=kind)
            labels += [axes.annotate(label, at, (0, 0), arrowprops=LINE, **LABEL) for label, at in labeled.items()]
        axes.margins(0.1)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(_lines(title, figure), loc="left")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        _beside(figure, axes, labels)
        words = "; ".join(
            f"{kind} {label} ({x:.2f}, {y:.2f})"
            for kind, labeled in points.items()
            for label, (x, y) in labeled.items()
        )
        return _save(figure, path, f"{title}. {ylabel} against {xlabel}: {words}.")


def _beside(figure: Any, axes: Any, labels: Sequence[Any]) -> None:
    """Puts each label beside its point where it hides no point and no earlier label; a line leads back from afar."""
    figure.canvas.draw()  # what is placed by pixels needs the final layout
    pixels, frame = figure.dpi / 72, axes.get_window_extent()
    points = [axes.transData.transform(label.xy) for label in labels]
    taken = [Bbox([at - 3.5 * pixels, at + 3.5 * pixels]) for at in points]
    for label, at in zip(labels, points, strict=True):
        box = Text.get_window_extent(label, figure.canvas.get_renderer())
        size = np.array([box.width, box.height])

        def place(gap: float, right: int, up: float, at: Any = at, size: Any = size) -> tuple[float, float, Any]:
            low = at + gap * pixels * np.array([right, up]) - size * [(1 - right) / 2, (1 - up) / 2]
            box = Bbox([low, low + size])
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            return sum(box.overlaps(other) for other in taken) + 10 * outside, gap, box

        places = [place(*way) for way in itertools.product(GAPS, (1, -1, 0), (0.7, -0.7, 1.4, -1.4))]
        _, gap, box = min(places, key=lambda place: place[:2])
        label.set(ha="left", va="bottom", position=(box.p0 - at) / pixels)
        label.arrow_patch.set_visible(gap > GAPS[0])
        taken.append(box)


def curves(
    path: Path,
    lines: Mapping[str, Sequence[Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
) -> Path:
    """A line a row, the mean over its seeds from 1 on, with a band of one standard deviation."""
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 4.0), layout="constrained")
        words = []
        for look, (name, seeds) in zip(_looks(), lines.items(), strict=False):
            values = np.asarray(seeds, float)
            mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
            x = np.arange(1, len(mean) + 1)
            axes.plot(x, mean, color=look.color, linestyle=look.dashes, label=name)
            axes.fill_between(x, mean - sd, mean + sd, color=look.color, alpha=0.15, linewidth=0)
            words.append(f"{name} {mean[0]:.2f} at first, {mean[-1]:.2f} at last")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(_lines(title, figure), loc="left")
        axes.legend(frameon=False)
        return _save(figure, path, f"{title}. {ylabel} over {xlabel}: {'; '.join(words)}.")


Points = Mapping[float, tuple[float, float, float]]
"""x -> (y, lower end, upper end)."""


def over_seeds(points: Mapping[float, Sequence[float]]) -> Points:
    """x -> values, as x -> (mean, mean - sd, mean + sd)."""
    made = {}
    for x, seeds in points.items():
        mean, sd = float(np.mean(seeds)), float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0
        made[float(x)] = (mean, mean - sd, mean + sd)
    return made


def series(
    path: Path,
    lines: Mapping[str, Points],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    zero: bool = False,
    log: bool = False,
) -> Path:
    """Points joined by lines, each with its interval.

    Args:
      zero: draw the line of no difference.
      log: x on a logarithmic scale.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.8 + 0.1 * len(lines)), layout="constrained")
        if zero:
            axes.axhline(0.0, color="#666666", linewidth=0.8)
        if log:
            axes.set_xscale("log")
        for look, (name, points) in zip(_looks(), lines.items(), strict=False):
            x, (y, low, high) = [*points], np.array([*points.values()]).T
            axes.errorbar(
                x, y, (y - low, high - y), color=look.color, marker=look.marker, label=name, capsize=2, linewidth=1.2
            )
        at = sorted({x for points in lines.values() for x in points})
        axes.set_xticks(at, [f"{x:g}" for x in at])
        axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(_lines(title, figure), loc="left")
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        words = "; ".join(
            f"{name}: {', '.join(f'{x:g}: {y:.2f} ({low:.2f} to {high:.2f})' for x, (y, low, high) in points.items())}"
            for name, points in lines.items()
        )
        return _save(figure, path, f"{title}. {ylabel} over {xlabel}: {words}.")


def clusters(path: Path, panels: Sequence[tuple[str, Mapping[str, np.ndarray]]], *, across: int, title: str) -> Path:
    """Points of several classes in the plane, a panel each: (heading, class -> points [n, 2]).

    Every panel has its own scale, and the same one for both axes.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        down = -(-len(panels) // across)
        size = (2.1 * across + 0.2, 2.2 * down + 0.6)
        figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
        for ax in grid.flat[len(panels) :]:
            ax.axis("off")
        for ax, (heading, points) in zip(grid.flat, panels, strict=False):
            for look, (name, at) in zip(_looks(), points.items(), strict=False):
                ax.scatter(
                    at[:, 0], at[:, 1], color=look.color, marker=look.marker, label=name, s=6, alpha=0.7, linewidths=0
                )
            ax.set_title(_lines(heading, figure, across), loc="left", fontsize=8)
            ax.set_aspect("equal", adjustable="datalim")
            ax.tick_params(labelsize=6, length=2)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, markerscale=2)
        middles = [(heading, {name: at.mean(0) for name, at in points.items()}) for heading, points in panels]
        words = "; ".join(
            f"{heading}: {', '.join(f'{name} around ({x:.2f}, {y:.2f})' for name, (x, y) in points.items())}"
            for heading, points in middles
        )
        return _save(figure, path, f"{title}. {words}.")


def heat(
    path: Path,
    panels: Mapping[str, np.ndarray],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str,
    empty: Collection[tuple[int, int]] = (),
) -> Path:
    """One map a panel, values [rows, columns] written into the cells; NaN is a cell that failed.

    Args:
      empty: the cells (row, column) that nobody asked for.
    """
    plt = _pyplot()
    with plt.rc_context(STYLE):
        size = (1.2 + 0.75 * len(columns) * len(panels), 1.6 + 0.5 * len(rows))
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        for ax, (title, values) in zip(axes[0], panels.items(), strict=True):
            ax.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
            middle = np.nanmean(values) if np.isfinite(values).any() else 0.0
            for i, j in np.ndindex(values.shape):
                text = f"{values[i, j]:.1f}" if np.isfinite(values[i, j]) else "" if (i, j) in empty else "failed"
                ax.text(j, i, text, ha="center", va="center", color="white" if values[i, j] < middle else "black")
            ax.set_xticks(range(len(columns)), columns)
            ax.set_yticks(range(len(rows)), rows)
            ax.set(xlabel=xlabel, ylabel=ylabel)
            ax.set_title(_lines(title, figure, len(panels)), loc="left")
        told = [at for at in np.ndindex(len(rows), len(columns)) if at not in empty]
        words = "; ".join(
            f"{title}: {', '.join(f'{rows[i]} {columns[j]} {v[i, j]:.2f}' for i, j in told)}"
            for title, v in panels.items()
        )
        return _save(figure, path, f"{words}.")

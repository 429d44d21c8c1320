"""Laws of the pictures that tables come with."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from experiments import figures


@pytest.fixture
def placed(monkeypatch):
    """(axes, their frame, the boxes of its labels) of the pictures that are saved."""
    kept = []
    save = figures._save

    def measured(figure, *rest):
        figure.canvas.draw()
        (axes,) = figure.axes
        labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
        shown = [Text.get_window_extent(label, figure.canvas.get_renderer()) for label in labels]
        kept.append((axes, axes.get_window_extent(), shown))
        return save(figure, *rest)

    monkeypatch.setattr(figures, "_save", measured)
    return kept


def scatter(path, points):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return figures.scatter(path, points, xlabel="x", ylabel="y", title="t")


@pytest.mark.parametrize("where", ["apart", "stacked", "one"])
def test_labels_of_points_lie_inside_and_not_on_each_other(tmp_path, placed, where):
    rng = np.random.default_rng(0)
    at = {"apart": rng.random((14, 2)), "stacked": np.tile([0.5, 0.5], (5, 1)), "one": np.ones((1, 2))}[where]
    points = {"first": {f"a long label {i}": (float(x), float(y)) for i, (x, y) in enumerate(at)}}
    scatter(tmp_path / "p.png", points)
    ((axes, frame, shown),) = placed
    assert len(shown) == len(at)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(shown, 2))
    for box in shown:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        marks = axes.transData.transform(at)
        assert not any(box.contains(*mark) for mark in marks), "no label hides a point"


def test_a_picture_of_points_is_the_same_bytes_each_time(tmp_path):
    points = {"a": {str(i): (i % 3 / 3, i / 20) for i in range(20)}, "b": {"x": (0.1, 0.2)}}
    first, second = (scatter(tmp_path / name, points).read_bytes() for name in ("1.png", "2.png"))
    assert first == second


MANY = {f"line {i}": float(i) for i in range(10)}
DRAWN = {
    "bars": lambda path: figures.bars(path, {"g": {k: [v] for k, v in MANY.items()}}, ylabel="y", title="t"),
    "scatter": lambda path: scatter(path, {k: {"a": (v, v)} for k, v in MANY.items()}),
    "curves": lambda path: figures.curves(
        path, {k: [[v, v + 1]] for k, v in MANY.items()}, xlabel="x", ylabel="y", title="t"
    ),
    "series": lambda path: figures.series(
        path, {k: figures.over_seeds({0: [v], 1: [v]}) for k, v in MANY.items()}, xlabel="x", ylabel="y", title="t"
    ),
    "clusters": lambda path: figures.clusters(
        path, [("p", {k: np.full((2, 2), v) for k, v in MANY.items()})], across=1, title="t"
    ),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_ten_lines_are_all_drawn_and_none_looks_like_another(tmp_path, monkeypatch, kind):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path, words: kept.append((figure, words)) or path)
    DRAWN[kind](tmp_path / "p.png")
    ((figure, words),) = kept
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == [*MANY] and all(name in words for name in MANY)
    looks = [*itertools.islice(figures._looks(), 32)]
    for part in ("marker", "dashes", "hatch"):
        assert len({(look.color, getattr(look, part)) for look in looks}) == 32
    first = [(figures.COLORS[i], figures.MARKERS[i], "-", "") for i in range(8)]
    assert [tuple(look) for look in looks[:8]] == first, "what was drawn before looks as it did"
    figures._pyplot().close(figure)


def test_a_cell_that_nobody_asked_for_has_not_failed(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path, words: kept.append((figure, words)) or path)
    values = np.array([[1.0, np.nan, np.nan]])
    figures.heat(tmp_path / "h.png", {"p": values}, rows="r", columns="abc", xlabel="", ylabel="", empty=[(0, 1)])
    ((figure, words),) = kept
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.0", "", "failed"] and "r b" not in words
    figures._pyplot().close(figure)

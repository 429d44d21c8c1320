"""Tables, diagrams and pages: the numbers are those computed by hand, the files need nothing and say who they are."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kdjax import report
from kdjax.errors import Refused
from kdjax.metrics import Bins, binned, evaluate
from kdjax.report import Row, table

ROWS = [
    Row("KD(C) | T=1", [{"top1": 0.80, "nll": 0.5, "ece": 0.02}, {"top1": 0.90, "nll": 0.7, "ece": 0.05}]),
    Row("<b>one seed</b> [red]", [{"top1": 0.125, "nll": 2.0, "ece": 0.3}]),
]
KEYS = ("top1", "nll", "ece")


def test_markdown_by_hand():
    """sd with n - 1: of (0.8, 0.9) it is 0.1 / sqrt 2; one seed has none."""
    assert table(ROWS, KEYS).markdown() == (
        "|  | top-1 % ↑ | NLL ↓ | ECE % ↓ | n |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| KD(C) \\| T=1 | 85.00 ± 7.07 | 0.600 ± 0.141 | 3.50 ± 2.12 | 2 |\n"
        "| <b>one seed</b> [red] | 12.50 | 2.000 | 30.00 | 1 |\n"
    )


def test_csv_has_full_precision_and_no_scaling():
    rng = np.random.default_rng(0)
    values = rng.random((5, 2))
    made = table([Row('a, "b"', [{"top1": a, "nll": b} for a, b in values])], ("top1", "nll"))
    header, row = csv.reader(io.StringIO(made.csv()))
    assert header == ["name", "n", "top1_mean", "top1_sd", "nll_mean", "nll_sd"]
    assert row[:2] == ['a, "b"', "5"]
    mean = values.sum(0) / 5
    sd = [math.sqrt(sum((v - m) ** 2 for v in column) / 4) for column, m in zip(values.T, mean, strict=True)]
    assert [float(x) for x in row[2:]] == pytest.approx([mean[0], sd[0], mean[1], sd[1]], rel=1e-14)
    one = list(csv.reader(io.StringIO(table(ROWS, KEYS).csv())))[2]
    assert one == ["<b>one seed</b> [red]", "1", "0.125", "", "2.0", "", "0.3", ""]


def test_rich_prints_names_as_they_are():
    console = Console(width=100, file=io.StringIO())
    console.print(table(ROWS, KEYS).rich())
    text = console.file.getvalue()
    assert "<b>one seed</b> [red]" in text and "85.00 ± 7.07" in text and "top-1 % ↑" in text


def test_the_default_columns_come_from_evaluate():
    rng = np.random.default_rng(0)
    scores = evaluate(rng.normal(size=(40, 7)), rng.integers(0, 7, 40))
    made = table([Row("random", [scores])])
    assert made.columns == ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "sce", "ace")
    assert f" {100 * scores['ece']:.2f} |" in made.markdown() and f" {scores['nll']:.3f} |" in made.markdown()
    assert scores.keys() <= report.COLUMNS.keys()


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], KEYS, r"the table has no rows"),
        ([Row("a", [])], KEYS, r"row 'a' has no seeds"),
        (ROWS, ("ecce",), r"column is 'ecce', which does not exist; did you mean ece"),
        (ROWS, ("top5",), r"column of row 'KD\(C\) \| T=1' is 'top5', which does not exist; did you mean top1"),
        ([Row("a", [{"ece": float("nan")}])], ("ece",), r"NaN|nan"),
    ],
)
def test_refusals(rows, columns, message):
    with pytest.raises(Refused, match=message):
        table(rows, columns)


def bins(gap: float = 0.2) -> Bins:
    """Confidences 0.1, 0.3, ..., 0.9, each ten times, hit `gap` less often than they say."""
    confidence = np.repeat(np.arange(0.1, 1.0, 0.2), 10)
    hits = np.concatenate([np.arange(10) < round(10 * (c - gap)) for c in np.arange(0.1, 1.0, 0.2)])
    return binned(confidence, hits, bins=10)


@pytest.mark.parametrize(("panels", "across", "down"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (5, 4, 2)])
def test_diagram_is_a_png_with_its_panels(tmp_path, panels, across, down):
    path = tmp_path / "reliability.png"
    names = [f"model {i}" for i in range(panels)]
    words = report.reliability_diagram([(name, bins()) for name in names], path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.info["Description"] == words
        width, height = (size / 160 for size in image.size)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert 2.5 * across < width < 3.6 * across and 3.5 * down < height < 4.5 * down
    assert all(f"{name}: accuracy " in words for name in names)
    # each cell of the grid is drawn on iff it has a panel: its share of bar-blue pixels
    blue = np.abs(pixels - [0x9D, 0xB4, 0xD3]).sum(-1) < 12
    for i in range(across * down):
        y, x = (i // across) * blue.shape[0] // down, (i % across) * blue.shape[1] // across
        cell = blue[y : y + blue.shape[0] // down, x : x + blue.shape[1] // across]
        assert (cell.mean() > 0.02) == (i < panels)


def test_diagram_says_its_numbers(tmp_path):
    """By hand: the lowest bin cannot be 0.2 below 0.1; it is 0.1 below, the other four 0.2."""
    words = report.reliability_diagram([("over $x$", bins(0.2)), ("under", bins(-0.1))], tmp_path / "x.png")
    assert "over $x$: accuracy 32.0 %, mean confidence 50.0 %, ECE 18.0 %  =  18.0 over + 0.0 under, 50 ex" in words
    assert "under: accuracy 60.0 %, mean confidence 50.0 %, ECE 10.0 %  =  0.0 over + 10.0 under" in words


def test_diagram_refuses(tmp_path):
    for panels, message in (
        ([], "no panels"),
        ([("a", Bins.empty(15))], r"bins of 'a' have shape \(15,\) and 0 members"),
        ([("a", Bins.empty(15, 3))], r"shape \(3, 15\)"),
    ):
        with pytest.raises(Refused, match=message):
            report.reliability_diagram(panels, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


class Read(HTMLParser):
    """Tags, attributes and text of a page; raises on tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def html(tmp_path) -> str:
    figure = tmp_path / "reliability.png"
    report.reliability_diagram([("<script>alert(1)</script>", bins())], figure)
    report.page(
        tmp_path / "report.html",
        title="A & B </title>",
        summary=["first <i>", "second"],
        tables=[('Test "split"', table(ROWS, KEYS))],
        figures=[("Reliability", figure)],
        notes=["<img src=http://example.org/x.png>"],
    )
    figure.unlink()
    return (tmp_path / "report.html").read_text()


def test_page_needs_nothing_else_and_escapes_everything(html):
    page = Read(html)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "link" not in tags and "i" not in tags and tags.count("img") == 1
    assert tags.count("title") == tags.count("h1") == 1
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert str(attributes.get(name, "data:")).startswith("data:"), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style and not re.search(r"url\(|@import|https?:", style[1])
    assert "prefers-color-scheme: dark" in style[1]
    text = "".join(page.text)
    for shown in ("A & B </title>", "first <i>", "<b>one seed</b> [red]", "<img src=http://example.org/x.png>"):
        assert shown in text
    assert "85.00 ± 7.07" in text


def test_page_is_accessible(html):
    page = Read(html)
    image = next(attributes for tag, attributes in page.tags if tag == "img")
    assert "<script>alert(1)</script>: accuracy 32.0 %" in image["alt"]
    assert int(image["width"]) > 300 and int(image["height"]) > 300
    assert dict(page.tags[0][1]) == {"lang": "en"}
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert scopes.count("col") == 5 and scopes.count("row") == 2
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")


def test_page_without_anything_but_text_and_with_a_bad_figure(tmp_path):
    report.page(tmp_path / "x.html", title="t", summary="alone")
    assert Read((tmp_path / "x.html").read_text()).text.count("alone") == 1
    (tmp_path / "bad.png").write_text("no picture")
    for bad in ("bad.png", "absent.png"):
        with pytest.raises(Refused, match=f"{bad} is missing or is not a PNG"):
            report.page(tmp_path / "y.html", title="t", summary="s", figures=[("f", tmp_path / bad)])
    assert not (tmp_path / "y.html").exists()


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, kdjax.report; assert not {'matplotlib', 'PIL'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=120)

"""Pages in a real browser: no errors, nothing to scroll sideways on a telephone, every figure visible.

Skipped with a reason where playwright, a Chromium, or the site (`make docs`) is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import pages, stored
from experiments.sheets import Line, Sheet
from kdjax import cli, report

ROOT = Path(__file__).parent.parent
SITE = ROOT / "docs" / "_build" / "html"
EXAMPLES = ROOT / "docs" / "examples"
TELEPHONE, DESK = 420, 1200
PAGES = {
    "report": "report.html",
    "audit": "audit.html",
    "front page": "index.html",
    "methods": "methods.html",
    "tutorial": "tutorials/audit_sklearn.html",
    "results": "papers.html",
    "formulas": "concepts/teachers.html",
    "reference": "reference/training.html",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        installed = [
            running.chromium.executable_path,
            *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
        ]
        program = next((path for path in installed if path and Path(path).exists()), None)
        if program is None:
            pytest.skip("no Chromium is installed; type playwright install chromium")
        # Without a sandbox: containers seldom let a browser make one, and these pages are our own.
        chromium = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A report of stored results and an audit of the example files."""
    folder = tmp_path_factory.mktemp("pages")
    content = stored.read(ROOT / "experiments" / "results" / "quickstart.json")
    sheet = Sheet([Line(**row) for row in content["rows"]], content["columns"])
    report.page(
        folder / "report.html",
        title="Does calibration survive distillation?",
        summary=["Stored results.", "A second paragraph."],
        tables=[("ECE and top-1", pages.shortened(sheet)), ("Every measure", sheet)],
        figures=[("Reliability", ROOT / "docs" / "quickstart.png"), ("Theorems", ROOT / "docs" / "theory.png")],
        notes=["A note."],
    )
    audit = ["audit", str(EXAMPLES / "test.csv"), "--calibration", str(EXAMPLES / "val.csv")]
    assert cli.main([*audit, "--out", str(folder / "audit.html")]) == 0
    return folder


@pytest.mark.parametrize("width", [TELEPHONE, DESK])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_errors_fits_and_shows_its_figures(name, width, browser, folder):
    path = (folder if name in ("report", "audit") else SITE) / PAGES[name]
    if not path.is_file():
        pytest.skip("the site is not built; type make docs")
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"{request.url} failed"))
    page.goto(path.as_uri(), wait_until="load")
    images = page.evaluate(
        "[...document.images].map(i => [i.src.slice(0, 60), i.naturalWidth, i.getBoundingClientRect().width])"
    )
    scrolls = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if shots := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(shots) / f"{name.replace(' ', '_')}_{width}.png"), full_page=True)
    context.close()
    assert errors == []
    assert scrolls <= 0, f"{name} scrolls {scrolls} pixels sideways at {width}"
    assert images or name not in ("report", "audit", "front page")
    for source, natural, shown in images:
        assert natural > 0 and shown > 0, f"{source} is not visible"

"""One page, report.html, for all tables of a work directory: what each shows, ECE first, then every measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import stored
from experiments.sheets import Line, Part, Sheet
from kdjax import report
from kdjax.errors import Refused
from kdjax.files import read_json

NAME = "report.html"


def write(folder: Path, first: str) -> None:
    """Writes the page of every NAME.json in the folder that `tables.publish` wrote, `first` before the others.

    A table whose file was changed since, or whose stages were, is left out, with the sentence that says so.
    """
    names = sorted((path.stem for path in folder.glob("*.json")), key=lambda name: (name != first, name))
    summary: list[str] = []
    titles: list[str] = []
    tables: list[tuple[str, Any]] = []
    figures: list[tuple[str, Path]] = []
    notes: list[str] = []
    for name in names:
        try:
            content = _content(folder / f"{name}.json")
        except (Refused, OSError, ValueError) as error:
            notes.append(f"Left out: {error}")
            continue
        if content is None:
            continue
        page = content["page"]
        titles.append(page["title"])
        lead = page["title"] if page["title"].endswith("?") else f"{page['title']}."
        summary += [f"{lead} {content['summary'][0]}" if name != first else content["summary"][0]]
        summary += content["summary"][1:]
        for caption, sheet in _sheets(content):
            where = f"{page['title']} {caption}".strip()
            tables += [(f"{where} (ECE and top-1)", shortened(sheet)), (f"{where} (every measure)", sheet)]
        tables += [(grid["caption"], report.Grid(grid["head"], grid["rows"])) for grid in content["grids"]]
        shown = [(caption, folder / file) for caption, file in page["figures"]]
        figures += [(caption, path) for caption, path in shown if path.is_file()]
        notes += page["notes"]
    report.page(
        folder / NAME,
        title=titles[0] if titles else "No finished table",
        summary=summary or ["No table in this folder is finished."],
        tables=tables,
        figures=figures,
        notes=[*dict.fromkeys(notes)],
    )


def shortened(sheet: Sheet) -> report.Grid:
    """Name, ECE and top-1, beside what was published: narrow enough for a telephone."""
    columns = [name for name in ("ece", "top1") if name in sheet.columns]
    heads, cells = sheet.heads(), sheet.cells()
    keep = [0, *(1 + [*sheet.columns].index(name) for name in columns)]
    if sheet.published:
        keep.append(len(heads) - 1)
    return report.Grid([heads[i] for i in keep], [[row[i] for i in keep] for row in cells])


def _content(path: Path) -> dict[str, Any] | None:
    """What `tables.publish` wrote there; None for any other JSON."""
    raw = read_json(path)
    if not isinstance(raw, Mapping) or "page" not in raw:
        return None
    return stored.read(path)


def _sheets(content: Mapping[str, Any]) -> list[tuple[str, Sheet]]:
    """(caption, sheet): the parts of a table that has some, else the one of all rows."""
    lines = [Line(**row) for row in content["rows"]]
    if content.get("parts"):
        return [(part["title"], Part(**part).sheet(lines)) for part in content["parts"]]
    published = content["published"]
    return [("", Sheet(lines, content["columns"], published["what"], published["source"]))]

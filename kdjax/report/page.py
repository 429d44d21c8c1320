"""One HTML file that holds tables, pictures and text, and asks nothing of the network."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from kdjax.errors import Refused, literal
from kdjax.files import write_text
from kdjax.report.tables import Grid, Table

# Tables of few columns and pictures of one panel (in pixels) fit a telephone; others scroll in their box.
NARROW, FITS = 5, 1000


def page(
    path: Path,
    *,
    title: str,
    summary: str | Sequence[str],
    tables: Sequence[tuple[str, Table | Grid]] = (),
    figures: Sequence[tuple[str, Path]] = (),
    notes: Sequence[str] = (),
    figures_first: bool = False,
) -> None:
    """One HTML file that needs nothing else: inline CSS, pictures as data, no script, no network, light and dark.

    Args:
      summary: one or more paragraphs; the first is set larger.
      tables: (caption, table).
      figures: (caption, PNG). The alternative text is the PNG's Description, or the caption if it has none.
      figures_first: pictures before the tables.
      notes: small print. All texts are plain text and are escaped.

    Raises:
      Refused: if a figure is missing or is not a PNG.
    """
    paragraphs = [summary] if isinstance(summary, str) else list(summary)
    text = _escaped
    body = [f"<h1>{text(title)}</h1>"]
    body += [f"<p{' class=lead' * (i == 0)}>{text(part)}</p>" for i, part in enumerate(paragraphs)]
    shown = [[_table_html(caption, one) for caption, one in tables]]
    shown.insert(0 if figures_first else 1, [_figure_html(caption, Path(one)) for caption, one in figures])
    body += [*shown[0], *shown[1]]
    if notes:
        items = "".join(f"<li>{text(note)}</li>" for note in notes)
        body.append(f'<section class="notes"><h2>Notes</h2><ul>{items}</ul></section>')
    write_text(Path(path), _PAGE.format(title=text(title), style=_STYLE, body="\n".join(body)))


def _escaped(text: str) -> str:
    return html.escape(literal(text))


def _table_html(caption: str, one: Table | Grid) -> str:
    text = _escaped
    kind = " narrow" * (len(one.heads()) <= NARROW)
    head = "".join(f'<th scope="col">{text(cell) or "model"}</th>' for cell in one.heads())
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(map(_cell_html, cells))}</tr>\n' for name, *cells in one.cells()
    )
    return (
        f'<section><h2>{text(caption)}</h2><div class="scroll{kind}" tabindex="0" role="region" '
        f'aria-label="{text(caption)}"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div></section>'
    )


def _cell_html(cell: str) -> str:
    """The spread or the interval behind a number is set smaller."""
    number, sign, rest = re.match(r"(.*?)( ± | \[|$)(.*)", cell, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"<td>{_escaped(number)}{f'<small>{sign}{_escaped(rest)}</small>' * bool(sign)}</td>"


def _figure_html(caption: str, path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            (width, height), words = image.size, str(image.info.get("Description") or caption)
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise Refused(f"figure {path} is missing or is not a PNG; expected what reliability_diagram wrote.") from error
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><h2>{_escaped(caption)}</h2><div class="scroll{" fits" * (width <= FITS)}" tabindex="0" '
        f'role="region" aria-label="{_escaped(caption)}"><img src="{source}" width="{width}" height="{height}" '
        f'alt="{_escaped(words)}"></div></figure>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --paper: #fbfbfa; --card: #fff; --ink: #22272e; --soft: #5b6470; --line: #e1e4e8; --accent: #2f5d9b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --card: #1c2025; --ink: #e4e7ea; --soft: #9aa4af; --line: #30363d; --accent: #8fb5ea; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1, h2, p, li { overflow-wrap: anywhere; }
main { max-width: 82rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem); }
h1 { font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; margin: 0 0 1rem; letter-spacing: -.015em;
  text-wrap: balance; }
h2 { font-size: 1.05rem; margin: 2.6rem 0 .8rem; }
p { max-width: 46rem; margin: .5rem 0; color: var(--soft); }
.lead { font-size: 1.15rem; color: var(--ink); border-left: 3px solid var(--accent); padding-left: .9rem;
  margin-bottom: 1rem; }
figure { margin: 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.narrow { max-width: 46rem; }
figure .scroll { background: #fff; padding: .6rem; }
img { display: block; margin: 0 auto; max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
td small { color: var(--soft); font-size: .86em; }
thead th { font-weight: 600; color: var(--soft); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: color-mix(in srgb, var(--accent) 9%, var(--card)); }
.notes ul { padding-left: 1.1rem; margin: 0; color: var(--soft); font-size: .9rem; max-width: 60rem; }
@media (max-width: 40rem) {
  img { max-width: 60rem; }
  .fits img { max-width: 100%; }
  tbody th { white-space: normal; min-width: 9rem; }
  .narrow :is(th, td) { padding: .45rem .35rem; min-width: 0; }
  .narrow th:first-child { min-width: 4.2rem; overflow-wrap: anywhere; }
  .narrow thead th { white-space: normal; font-size: .8rem; }
  .narrow td small { display: block; }
}
@media print { body { background: #fff; } .scroll { overflow: visible; border: 0; } h2 { break-after: avoid; } }
"""

"""Names that are markup, escape sequences or no text at all, and terminals that cannot print or have gone."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from kdjax import console, report
from kdjax.errors import literal
from tests.processes import ROOT, environment

NASTY = [
    "[bold]x",
    "[/red]",
    "\x1b[31mred\x1b[0m",
    "\udc80 lone",
    "a\nb\tc",
    "\u202eright to left",
    "<script>x</script>",
    "a|b",
]
METRICS = dict.fromkeys(report.tables.DEFAULT, 0.5)


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_name_is_shown_literally(name, capsys, monkeypatch):
    shown = literal(name)
    assert shown.isprintable()
    plain = console.Plain()
    plain.stage(name, 1, 2, epochs=1)
    plain.epoch(1, 0.5, "")
    plain.message(name)
    printed = capsys.readouterr().out
    assert printed.count(shown) == 3 and printed.replace("\n", "").isprintable()

    screen = io.StringIO()
    monkeypatch.setattr(console, "Console", lambda **_: Console(file=screen, width=120, force_terminal=True))
    live = console.Live()
    live.stage(name, 1, 2, epochs=1)
    live.epoch(1, 0.5, "")
    live.stage(name, 2, 2, epochs=1, note="reused")
    live.message(name)
    live.close()
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())  # rich's own colors and cursor
    assert seen.count(shown) >= 3
    assert "\x1b[31mred" not in screen.getvalue() and "\u202e" not in screen.getvalue()


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_name_in_a_report(name, tmp_path):
    table = report.table([report.Row(name, [METRICS])])
    text = table.markdown()
    assert text.count("\n") == 3 and text.replace("\n", "").isprintable()
    screen = io.StringIO()
    Console(file=screen, width=200).print(table.rich())
    assert literal(name) in screen.getvalue()
    report.page(tmp_path / "x.html", title=name, summary=name, tables=[(name, table)], notes=[name])
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.replace("\n", "").isprintable()


SPEAK = """
from kdjax import console
console.steady()
for i in range(20000):
    print("± → ü \\ud800", flush=i % 100 == 0)
"""


@pytest.mark.parametrize(("locale", "line"), [("ascii", b"+- -> \\xfc \\ud800"), ("latin-1", b"\xb1 -> \xfc \\ud800")])
def test_every_locale_prints(locale, line):
    done = subprocess.run(
        [sys.executable, "-c", SPEAK], cwd=ROOT, env={**environment(), "PYTHONIOENCODING": locale}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == line


def test_a_reader_that_goes_away_is_no_error():
    """As `| head -1`: what comes after is written nowhere, and the exit code is that of the work."""
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", SPEAK], cwd=ROOT, env=environment(), stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert os.read(reading, 1)
    os.close(reading)
    assert child.communicate(timeout=120)[1] == b"" and child.returncode == 0

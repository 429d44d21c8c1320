"""The attacker for a short while, and the page that says what was tried."""

from __future__ import annotations

import ast
import re

import pytest

from tests.faults import attack
from tests.processes import ROOT


@pytest.mark.slow
def test_an_attacker_finds_nothing(monkeypatch):
    """Acts on files alone, in eight seconds (`make attack` does all); what it finds, it raises with its seed."""
    monkeypatch.setattr(attack, "disturbed", attack.flip)
    ends = attack.attack(8, seed=20260, say=lambda _: None)
    assert ends["same"]


def test_the_page_names_tests_that_exist():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*test*.py")]
    known = {node.name for tree in sources for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert named and named <= known, named - known
    classical = re.findall(r"^\| (\d+) \| .* \| .* \| (.*) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in classical] == [*range(1, 30)]
    assert all("`test_" in tests for _, tests in classical)


def test_no_wall_clock_decides():
    """Waits and durations are monotonic; ages are differences between two times of one file system."""
    for path in (ROOT / "kdjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in (
                    "time.time",
                    "time.time_ns",
                    "datetime.now",
                    "datetime.datetime.now",
                ), path

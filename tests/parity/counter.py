"""Prints, after a run, how many golden cases were compared; workers of xdist report to the controller.

A plugin of the whole suite (`tests/conftest.py`): the controller of xdist loads no conftest of a subfolder.
"""

from __future__ import annotations

import pytest

from tests.parity import golden
from tests.text import golden as text


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["golden"] = {objective: sorted(ids) for objective, ids in golden.COMPARED.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for objective, ids in getattr(node, "workeroutput", {}).get("golden", {}).items():
        golden.COMPARED.setdefault(objective, set()).update(ids)


def pytest_terminal_summary(terminalreporter):
    sets = {
        "golden": {objective: len(golden.cases(objective)) for objective in golden.objectives()},
        "golden text": {kind: len(cases) for kind, cases in text.cases().items()},
    }
    for name, totals in sets.items():
        counts = {kind: len(ids) for kind, ids in sorted(golden.COMPARED.items()) if kind in totals}
        if counts:
            each = ", ".join(f"{kind} {count}/{totals[kind]}" for kind, count in counts.items())
            total = sum(totals.values())
            terminalreporter.write_line(f"{name}: {sum(counts.values())} of {total} cases compared ({each})")

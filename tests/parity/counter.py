"""Prints, after a run, how many golden cases were compared; workers of xdist report to the controller.

A plugin of the whole suite (`tests/conftest.py`): the controller of xdist loads no conftest of a subfolder.
"""

from __future__ import annotations

import pytest

from tests.parity import golden


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["golden"] = {objective: sorted(ids) for objective, ids in golden.COMPARED.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for objective, ids in getattr(node, "workeroutput", {}).get("golden", {}).items():
        golden.COMPARED.setdefault(objective, set()).update(ids)


def pytest_terminal_summary(terminalreporter):
    if not golden.COMPARED:
        return
    total = sum(len(golden.cases(objective)) for objective in golden.objectives())
    terminalreporter.write_line(
        f"golden: {sum(map(len, golden.COMPARED.values()))} of {total} cases compared ("
        + ", ".join(
            f"{objective} {len(ids)}/{len(golden.cases(objective))}"
            for objective, ids in sorted(golden.COMPARED.items())
        )
        + ")"
    )

"""Two processes write one checkpoint, and agree on which one to restore."""

from __future__ import annotations

import json

import pytest

from tests.processes import both


@pytest.mark.slow
def test_two_processes_save_and_fall_back_together(tmp_path):
    printed = both(lambda port, process: ["-m", "tests.faults.pair", port, str(process), str(tmp_path)])
    for process, lines in enumerate(printed):
        found = json.loads(lines[-1])
        (message,) = found.pop("skipped")
        assert "checkpoint.json has 2 bytes instead of" in message and message.endswith("falling back to step 1.")
        assert found == {
            "step": 1,
            "steps": [1, 2],
            "weights": [0, 1, 2, 3, 4, 5],
            "history": [[0, 1], [2, 3]][process],
            "host": [0, 1, 2],
        }

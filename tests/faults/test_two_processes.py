"""Two processes write one checkpoint, and agree on which one to restore."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def test_two_processes_save_and_fall_back_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.pair", port, str(process), str(tmp_path)],
            cwd=Path(__file__).parent.parent.parent,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for process, child in enumerate(children):
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        (message,) = found.pop("skipped")
        assert "checkpoint.json has 2 bytes instead of" in message and message.endswith("falling back to step 1.")
        assert found == {
            "step": 1,
            "steps": [1, 2],
            "weights": [0, 1, 2, 3, 4, 5],
            "history": [[0, 1], [2, 3]][process],
            "host": [0, 1, 2],
        }

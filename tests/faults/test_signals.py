"""Signals at any time of a command's life: exit code 75 and one sentence, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment, slow


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_a_signal_while_libraries_are_imported(tmp_path, number):
    """The first line of a library that is imported late says that it is time."""
    (tmp_path / "rich.py").write_text("import os, time\nos.write(1, b'here\\n')\ntime.sleep(60)\n")
    child = subprocess.Popen(
        [sys.executable, "-m", "experiments.distill", f"--workdir={tmp_path / 'runs'}"],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "here\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 75
    assert err == "stopped: interrupted; what is finished stays, run the same command to go on.\n"

"""A table whose run is killed ends with the numbers of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.processes import ROOT, environment
from tests.test_tables import words


def command(folder: Path, arrays: str) -> list[str]:
    """`table1:cpu` on the tiny data set: three epochs of four steps, saved after each."""
    lists = ("students=('mlp',)", "calibrators=('nll','adafocal')", "teachers=('nll','adafocal')")
    fields = [*lists, "teacher.epochs=3", "student.epochs=3"]
    named = [word for word in words(folder, arrays)[1:] if not word.startswith("--config.recipe.student.model")]
    typed = [*named, *(f"--config.recipe.{field}" for field in fields)]
    cpu = "--config=configs/table1.py:cpu"
    return [sys.executable, "-m", "experiments.table1", cpu, *typed, "--config.run.checkpoint_epochs=1"]


def begun(folder: Path) -> bool:
    """Whether one stage is finished, and another has a checkpoint and is not."""
    stages = [path for path in folder.glob("*") if path.is_dir()]
    done = [(stage / "manifest.json").is_file() for stage in stages]
    saved = [any((stage / "checkpoints").glob("*/manifest.json")) for stage in stages]
    return any(done) and any(has and not is_done for has, is_done in zip(saved, done, strict=True))


@pytest.mark.slow
def test_a_killed_table_resumes_and_ends_with_the_same_numbers(tmp_path):
    arrays = tiny.npz(tmp_path)
    killed, clean = tmp_path / "killed", tmp_path / "clean"
    with open(tmp_path / "said", "w") as said:
        child = subprocess.Popen(command(killed, arrays), cwd=ROOT, env=environment(), stdout=said, stderr=said)
        end = time.monotonic() + 240
        while child.poll() is None and time.monotonic() < end and not begun(killed):
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()[-3000:]
    assert not (killed / "table1.json").exists()
    for folder in (killed, clean):
        done = subprocess.run(
            command(folder, arrays), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("done before, reused" in done.stdout) == (folder == killed)
    rows = [json.loads((folder / "table1.json").read_text())["rows"] for folder in (killed, clean)]
    assert rows[0] == rows[1] and len(rows[0]) == 5 and all(len(row["metrics"]) == 2 for row in rows[0])

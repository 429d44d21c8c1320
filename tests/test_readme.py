"""The README's commands work when pasted in order; generated tables are current. Its Python runs in test_docs.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import commands, fenced

ROOT = Path(__file__).parent.parent

CHEAP = {
    "make quickstart": "make {make} quickstart ARGS=\"--config=configs/digits.py:mlp,mdca,mlp,kd --config.seeds='(0,)' "
    "--config.recipe.temperatures='(1.0,)' --config.recipe.teacher.epochs=1 --config.recipe.student.epochs=1\"",
    "python -m experiments.quickstart": "python -m experiments.quickstart --config=configs/digits.py:mlp,mdca,mlp,kd "
    "--config.seeds='(0,)'",
    "make test": "make {make} test ARGS='tests/test_targets.py -n 0 -k projection'",
    "pip install .": "true",
    "pip install '.[text]'": "true",
}
"""What the README says -> what is pasted in its place: the same targets, smaller. `.ci/wheel` installs the wheel."""


def test_generated_tables_are_current():
    checked = subprocess.run(
        [sys.executable, "-m", "experiments.methods", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_result_blocks_are_what_their_json_says():
    from experiments import results

    for path in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        assert results.render(path.read_text()) == path.read_text(), f"{path.name}: run python -m experiments.results"


@pytest.mark.slow
def test_the_commands_of_the_readme_work_when_pasted_in_order(tmp_path):
    """One fresh shell, a copy of the checkout, every line of every shell block of the README."""
    checkout = tmp_path / "kdjax"
    ignored = shutil.ignore_patterns(".git", ".venv", "_build", "runs", "build", "dist", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    (tmp_path / "ready").touch()  # the environment that runs this test stands for the one that make would set up
    make = f"BIN={Path(sys.executable).parent} READY={tmp_path / 'ready'}"
    lines = [line for language, text in fenced(ROOT / "README.md") if language in ("", "sh") for line in commands(text)]
    typed = [line for line in lines if line.startswith(("make ", "pip ", "kdjax ", "python "))]
    assert {*CHEAP} <= {*typed} and any(line.startswith("kdjax audit") for line in typed)
    script = ["set -eu", 'kdjax() { "$PYTHON" -m kdjax "$@"; }', 'python() { "$PYTHON" "$@"; }']
    script += [CHEAP.get(line, line).replace("{make}", make) for line in typed]
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=checkout, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for file in ("runs/quickstart/report.html", "audit.html", "calibrator.json", "calibrated.csv"):
        assert (checkout / file).stat().st_size > 0

"""The README's example runs word for word, and its generated tables are current."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_library_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    printed = ast.literal_eval(done.stdout)
    assert printed["top1"] > 0.8 and 0 <= printed["ece"] < 0.2


def test_generated_tables_are_current():
    checked = subprocess.run(
        [sys.executable, "-m", "experiments.methods", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_result_blocks_are_what_their_json_says():
    from experiments import results

    for path in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        assert results.render(path.read_text()) == path.read_text(), f"{path.name}: run python -m experiments.results"

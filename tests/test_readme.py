"""The generated tables of the pages are current; that their examples run is in test_docs.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_generated_tables_are_current():
    checked = subprocess.run(
        [sys.executable, "-m", "experiments.methods", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_result_blocks_are_what_their_json_says():
    from experiments import results

    for path in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        assert results.render(path.read_text()) == path.read_text(), f"{path.name}: run python -m experiments.results"

"""Writes the result tables of README.md and experiments/README.md from the JSON under experiments/results.

    cp runs/quickstart/results.json experiments/results/quickstart.json    # what an experiment wrote
    python -m experiments.results

A block starts with `<!-- results: NAME -->` and ends with `<!-- end -->`; what is between is replaced by the command,
the table, the paired differences and the hardware that `experiments/results/NAME.json` records. No number is typed by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from absl import app

from experiments import common
from kdjax import checkpoints, report
from kdjax.errors import Refused

ROOT = Path(__file__).parent.parent
STORE = ROOT / "experiments" / "results"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def block(stored: dict[str, Any]) -> str:
    """One result as Markdown."""
    table = report.table([report.Row(**row) for row in stored["rows"]]).markdown()
    lines = ["```", stored["command"], "```", "", table.strip(), ""]
    for where, found in stored.get("kdc_minus_kduc", {}).items():
        lines.append(f"- {common.difference_sentence(where, found['ece'])}")
    e = stored["environment"]
    versions = ", ".join(f"{name} {e['versions'][name]}" for name in ("jax", "flax", "optax"))
    seeds = len(stored["seeds"])
    lines += ["", f"Test split, mean ± sd over n = {seeds} seed{'s' * (seeds > 1)}; {e['device']}, {e['cpus']} cores;"]
    lines += [f"{versions}; commit {e['commit'][:12]}.", ""]
    return "\n".join(lines)


def render(text: str) -> str:
    """The text with every block filled from its JSON."""

    def fill(found: re.Match) -> str:
        path = STORE / f"{found[2]}.json"
        if not path.exists():
            raise Refused(f"{path.relative_to(ROOT)} does not exist; copy the JSON that the experiment wrote there.")
        return found[1] + "\n" + block(checkpoints.read_json(path)) + found[3]

    return BLOCK.sub(fill, text)


def main(argv: list[str]) -> None:
    del argv
    for path in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        path.write_text(render(path.read_text()))
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    app.run(main)

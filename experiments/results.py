"""Writes the result tables of README.md and experiments/README.md from the JSON under experiments/results.

    cp runs/quickstart/results.json experiments/results/quickstart.json    # what an experiment wrote
    cp runs/table1_cpu/*.png experiments/results/table1/                   # its figures, if they are to be shown
    python -m experiments.results

A block starts with `<!-- results: NAME -->` and ends with `<!-- end -->`; what is between is replaced by the command,
the tables, the sentences, the figures and the hardware that `experiments/results/NAME.json` records. No number is typed
by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app

from experiments import benchmark_sweep, benchmark_tables, benchmark_workers, common, stored, tables
from experiments.benchmark_tables import Rows
from experiments.sheets import Line, Sheet
from kdjax import checkpoints, report
from kdjax.errors import Refused

ROOT = Path(__file__).parent.parent
STORE = ROOT / "experiments" / "results"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def block(content: dict[str, Any], name: str = "") -> str:
    """One result as Markdown, with the figures of it that lie in `experiments/results/NAME/`."""
    lines_of = [Line(**row) for row in content["rows"]]
    what = content.get("published", {"what": "", "source": ""})
    lines = ["```", content["command"], "```", ""]
    for sentence in content.get("data", []):
        lines += [sentence, ""]
    parts = [tables.Part(**part) for part in content.get("parts", [])]
    for part in parts:
        lines += [f"**{part.title}**", "", part.sheet(lines_of).markdown().strip(), ""]
    if not parts:
        sheet = Sheet(lines_of, content.get("columns", tables.COLUMNS), what["what"], what["source"])
        lines += [sheet.markdown().strip(), ""]
    for grid in content.get("grids", []):
        body = tables.markdown_of(report.Grid(grid["head"], grid["rows"]))
        lines += [f"{grid['caption']}:", "", body.strip(), ""]
    differences = content.get("kdc_minus_kduc", {}).items()
    told = [common.difference_sentence(where, difference["ece"]) for where, difference in differences]
    said = [*content["said"], *told] if "said" in content else content.get("summary", told)
    lines += [f"- {sentence}" for sentence in said]
    for caption, file in content.get("page", {}).get("figures", []):
        if (STORE / name / file).is_file():
            lines += ["", f"![{caption}](results/{name}/{file})"]
    e = content["environment"]
    versions = ", ".join(f"{name} {e['versions'][name]}" for name in ("jax", "flax", "optax"))
    n = len(content["seeds"])
    shown = f"mean ± sd over n = {n} seeds" if n > 1 else "one seed, so no spread"
    lines += ["", f"Test split, {shown}; {e['device']}, {e['cpus']} cores;"]
    lines += [f"{versions}; commit {e['commit'][:12]}.", ""]
    return "\n".join(lines)


def spread(s: dict[str, float], digits: int = 0) -> str:
    """median (min … max)."""
    return f"{s['median']:,.{digits}f} ({s['min']:,.{digits}f} … {s['max']:,.{digits}f})"


def benchmark(content: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark --json FILE` measured, as Markdown: median (min … max) of n."""
    step, distillation = content["step"], content["step"]["distillation"]
    lines = [
        "```",
        content["command"],
        "```",
        "",
        content["hardware"]["text"] + ".",
    ]
    lines += [
        "",
        f"Distillation step {distillation['teacher']} → {distillation['student']}, batch {distillation['batch']}, "
        f"{distillation['precision']}:",
    ]
    lines += ["", "| contestant | images/s | kdjax ÷ this | first call, s | n |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, one in distillation["contestants"].items():
        ratio = spread(one["ours_over_this"], 2) if one["is_peer"] else ""
        cells = (
            name,
            spread(one["images_per_s"], 1),
            ratio,
            f"{one['first_call_s']:.1f}",
            str(one["images_per_s"]["n"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{name}: {why}." for name, why in distillation["absent"].items()]
    lines += [
        "",
        "| one call with nothing to compute | model leaves | µs until done | n |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in step["dispatch"]:
        lines.append(f"| {row['what']} | {row['model_leaves']} | {spread(row['done_us'])} | {row['done_us']['n']} |")
    most = max(row["traces"] for row in step["traces"])
    lines += ["", f"- compiles per (stage, split, program), most of {len(step['traces'])}: {most}"]
    for row in step["import"]:
        heavy = ", ".join(row["heavy"]) or "no TensorFlow, tfds, matplotlib, grain, scikit-learn or torch"
        lines.append(f"- `import {row['module']}`: {spread(row['seconds'], 2)} s, n = {row['seconds']['n']}; {heavy}")
    for row in content["memory"].get("runs", []):
        lines.append(f"- peak memory, {row['config']}, {row['case']}: {row['peak_mb']:,.0f} MB, n = 1")
    for row in content["metrics"]["rows"]:
        seconds = f"{row['median_s']:.2f} ({row['min_s']:.2f} … {row['max_s']:.2f}) s, n = {row['repeats']}"
        size = f"N = {row['examples']:,}, K = {row['classes']}"
        lines.append(f"- `{row['call']}`, {size}: {seconds}; {row['extra_mb']:,.0f} MB beyond its input")
    return "\n".join([*lines, ""])


def compiled(content: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark aot --json FILE` counted, as Markdown; its compile seconds are left out."""
    lines = ["```", content["command"], "```", ""]
    shown = [k for k, column in enumerate(benchmark_tables.AOT_COLUMNS) if column != "compile s"]
    for one in content["aot"]["targets"]:
        head = [benchmark_tables.AOT_COLUMNS[k] for k in shown]
        rows = [[row[k] for k in shown] for row in benchmark_tables.compiled_rows(one)]
        lines += [
            f"{benchmark_tables.compiled_title(one)}:",
            "",
            tables.markdown_of(report.Grid(head, rows)).strip(),
            "",
        ]
    e = content["hardware"]
    versions = ", ".join(f"{name} {e['versions'][name]}" for name in ("jax", "flax", "optax"))
    note = benchmark_tables.compiled_note(content["aot"]["targets"])
    lines += [f"{note} Compiled with {versions}; commit {e['commit'][:12]}.", ""]
    return "\n".join(lines)


def _measured(content: dict[str, Any], title: str, columns: Sequence[str], rows: Rows, note: str) -> str:
    """The one table of a section of the benchmark, with its command and hardware."""
    lines = ["```", content["command"], "```", "", f"{content['hardware']['text']}.", ""]
    lines += [f"{title}:", "", tables.markdown_of(report.Grid(columns, rows)).strip(), ""]
    return "\n".join([*lines, note, ""])


def swept(content: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark sweep --json FILE` measured, as Markdown."""
    b, section = benchmark_sweep, content["sweep"]
    return _measured(content, b.title(section), b.COLUMNS, b.table(section), b.note(section))


def paired(content: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark pairs --json FILE` measured, as Markdown."""
    b, section = benchmark_tables, content["pairs"]["pairs"]
    return _measured(content, b.pair_title(section), b.PAIR_COLUMNS, b.pair_rows(section), b.pair_note(section))


def shared_out(content: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark workers --json FILE` measured, as Markdown."""
    b, section = benchmark_workers, content["workers"]
    return _measured(content, b.title(section), b.COLUMNS, b.table(section), b.NOTE)


def tokens(content: dict[str, Any]) -> str:
    """What `python -m experiments.benchmark text --json FILE` measured, as Markdown."""
    lines = ["```", content["command"], "```", "", f"{content['hardware']['text']}.", ""]
    head = ["contestant", "tokens a second", "kdjax Trainer is faster by", "share of a matrix product's rate", "n"]
    rows = [
        [
            name,
            spread(one["tokens_per_s"]),
            spread(one["ours_over_this"], 2),
            f"{one['share_of_matmul']:.0%}",
            str(one["tokens_per_s"]["n"]),
        ]
        for name, one in sorted(content["text"]["contestants"].items())
    ]
    lines += [tables.markdown_of(report.Grid(head, rows)).strip(), ""]
    return "\n".join([*lines, "Median (min … max); rounds alternate, and tokens count padding.", ""])


SECTIONS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "aot": compiled,
    "sweep": swept,
    "pairs": paired,
    "workers": shared_out,
    # The whole benchmark has a section on texts too.
    "step": benchmark,
    "text": tokens,
}
"""Section of a benchmark's JSON -> what writes its block; all other files are an experiment's."""


def render(text: str) -> str:
    """The text with every block filled from its JSON."""

    def fill(match: re.Match) -> str:
        path = STORE / f"{match[2]}.json"
        if not path.exists():
            raise Refused(f"{path.relative_to(ROOT)} does not exist; copy the JSON that the experiment wrote there.")
        content = checkpoints.read_json(path)
        of_benchmark = next((section for section in SECTIONS if section in content), None)
        text = SECTIONS[of_benchmark](content) if of_benchmark else block(stored.read(path), match[2])
        return match[1] + "\n" + text + match[3]

    return BLOCK.sub(fill, text)


def main(argv: list[str]) -> None:
    del argv
    for path in (ROOT / "README.md", ROOT / "experiments" / "README.md"):
        checkpoints.write_text(path, render(path.read_text(encoding="utf-8")))
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    app.run(main)

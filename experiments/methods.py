"""Writes `docs/methods.md` from the registry, so that it cannot drift.

python -m experiments.methods           # rewrites it
python -m experiments.methods --check   # says whether it is current: exit code 0 or 2
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from absl import app, flags

from kdjax import models, objectives, posthoc
from kdjax.objectives import METHODS, Method

_CHECK = flags.DEFINE_bool("check", False, "Only compare; exit code 2 if a file is stale.")
ROOT = Path(__file__).parent.parent
VERIFIED = {
    "golden": "golden values of the authors' code",
    "law": "identities, laws and finite differences",
    "paper": "the paper's formula only",
}

NOTES = {
    "distiller": (
        "`cud` and `knowledge_adjustment` act where the teacher's top class is not the label; `metrics.jsonl` has that",
        "share as `firing_rate`. On the teacher's own training examples it is small: cross-fitted outputs,",
        "`--config.recipe.student.teacher_outputs=crossfit:5`, err as often as on new data.",
        "`--config.recipe.student.distill.options.control=entropy` is the control: the teacher tempered to the same",
        "mean entropy; with `...options.control='entropy(nats=1.2)'` to 1.2 nats, such as the `entropy` in a `dus`",
        "teacher's `result.json`. With the method `kd`, `...options.target='project(near_mass=0.4)'`, `margin(c=0.1)`",
        "or `top1` solves CUD's constraints exactly; targets are named with their options, see `kdjax/targets/`.",
        "",
    ),
}


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def config_line(name: str, method: Method) -> str:
    """What selects the method: its name in the config string of any family."""
    string = name if method.role == "calibrator" else f"conv_small,mdca,conv_tiny,{name}"
    module = "calibrate" if method.role == "calibrator" else "distill"
    return f"`python -m experiments.{module} --config=configs/digits.py:{string}`"


def options(name: str) -> str:
    return ", ".join(f"`{k}={v!r}`" for k, v in objectives.options(name).items()) or "none"


def weights(method: Method) -> str:
    """Of label term and soft term, as choosing the method in a config string sets them."""
    if method.role == "calibrator":
        return "-"
    return " : ".join(f"{w:g}" for w in method.weights) if method.weights else "1-α : α, α = 0.9"


def document() -> str:
    """docs/methods.md, whole."""
    lines = [
        "# Methods",
        "",
        "Written from the registry by `python -m experiments.methods`; edit `kdjax/objectives/` instead.",
        "p, q: student and teacher probabilities; z: logits; y: label; r, c: confidence, correctness of the predicted",
        "class. Published figures are the source's own, for scale only: they belong to its networks and schedule.",
        "Weights: of label and soft term, set by choosing the method in a config string; any other by",
        "`--config.recipe.student.distill.weights=(0.5,2.0)`, or `=()` to go by `distill.alpha`.",
        "Options: `--config.recipe.teacher.options.NAME=...`, and of a distiller",
        "`--config.recipe.student.distill.options.NAME=...`.",
        "",
    ]
    for role, title in (("calibrator", "Calibrators"), ("distiller", "Distillation")):
        lines += [f"## {title}", "", *NOTES.get(role, ())]
        head = (
            "name",
            "formula",
            "needs",
            "remembers",
            "options",
            "weights",
            "source",
            "published",
            "verified by",
            "selected by",
        )
        lines += [row(head), row("---" for _ in head)]
        for name, m in METHODS.items():
            if m.role == role:
                needs = ", ".join(m.needs) or "logits"
                lines.append(
                    row(
                        (
                            f"`{name}`",
                            m.formula,
                            needs,
                            "; ".join(filter(None, (m.state, m.params and f"trained: {m.params}"))) or "-",
                            options(name),
                            weights(m),
                            m.source,
                            m.published,
                            VERIFIED[m.verified],
                            config_line(name, m),
                        )
                    )
                )
        lines.append("")
    lines += [
        "## Post-hoc calibrators",
        "",
        "Fitted to the teacher on the calibration split before it teaches; as library functions, on any logits.",
        "",
    ]
    columns = ("name", "formula", "source", "published", "verified by", "selected by")
    lines += [row(columns), row("---" for _ in columns)]
    for name, p in posthoc.POSTHOC.items():
        line = f"`python -m experiments.distill --config=configs/digits.py:conv_small,nll,conv_tiny,kd,{name}`"
        lines.append(row((f"`{name}`", p.formula, p.source, p.published, VERIFIED[p.verified], line)))
    lines += ["", "## Networks", ""]
    lines += [", ".join(f"`{name}`" for name in models.MODELS) + ", and any `wrn_<d>_<k>` with d = 6n+4.", ""]
    return "\n".join(lines)


def targets() -> dict[Path, str]:
    """File -> what it should hold."""
    return {ROOT / "docs" / "methods.md": document()}


def main(argv: list[str]) -> None:
    del argv
    stale = [path for path, text in targets().items() if not path.exists() or path.read_text() != text]
    if _CHECK.value and stale:
        print(f"stale: {', '.join(str(p.relative_to(ROOT)) for p in stale)}; run python -m experiments.methods")
        sys.exit(2)
    for path in stale:
        path.write_text(targets()[path])
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    app.run(main)

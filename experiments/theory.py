"""The seven checks of KD(C)'s Theorems 1 and 2: a table, a figure and a JSON file, all computed on the spot.

    python -m experiments.theory --workdir runs/theory
    python -m experiments.theory --plan     # only says what would be checked

It takes seconds, needs no data, and ends with exit code 0 if every check holds, else 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from kdjax import files, theory
from kdjax.errors import Refused
from kdjax.theory import Check, Measurement

EXIT_REFUSED, EXIT_IO = 2, 74
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"


def expected(m: Measurement) -> str:
    """The interval of a measurement in words."""
    low, high = max(m.low, 0.0), m.high
    if high == np.inf:
        return f"≥ {low:.3g}"
    if high - low < 1e-6 * high and low > 0:
        return f"{(low + high) / 2:.4g} ± {(high - low) / 2:.0e}"
    return f"≤ {high:.0e}" if low == 0 else f"[{low:g}, {high:g}]"


def table(checks: Sequence[Check]) -> Table:
    """One section a check: what is claimed, then each number beside the interval it must lie in."""
    out = Table(title="Theorems 1 and 2 of KD(C), linear networks, float64", title_justify="left")
    for column in ("check", "statement"):
        out.add_column(column, no_wrap=column == "check")
    for column in ("measured", "expected", "holds"):
        out.add_column(column, justify="right", no_wrap=True)
    for check in checks:
        out.add_row(f"[bold]{check.name}", f"[bold]{check.statement}", "", "", _word(check.holds))
        for m in check.measurements:
            out.add_row("", f"· {m.what}", f"{m.value:.4g}", expected(m), _word(m.holds))
        out.add_section()
    return out


def _word(holds: bool) -> str:
    return "[green]yes" if holds else "[red]no"


def payload(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The same for machines; an open end of an interval is null."""
    return [
        {
            "check": check.name,
            "statement": check.statement,
            "holds": check.holds,
            "measurements": [
                {
                    "what": m.what,
                    "value": m.value,
                    "low": m.low if np.isfinite(m.low) else None,
                    "high": m.high if np.isfinite(m.high) else None,
                    "holds": m.holds,
                }
                for m in check.measurements
            ],
            "curves": dict(check.curves),
        }
        for check in checks
    ]


def figure(checks: Sequence[Check], path: Path) -> None:
    """Four panels: the order of Theorem 1's error, its projector, Theorem 2's gap, and what Theorem 2 does not say."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = {check.name[0]: check.curves for check in checks}
    style: Any = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"figure.constrained_layout.hspace": 0.06, "figure.constrained_layout.wspace": 0.04}
    with plt.rc_context(style):
        fig, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
        _order(axes[0, 0], curves["1"])
        _projector(axes[0, 1], curves["3"])
        _gap(axes[1, 0], curves["5"])
        _mixture(axes[1, 1], curves["7"])
        fig.savefig(path, dpi=150)
        plt.close(fig)


def _order(ax: Any, curve: Any) -> None:
    scale, error = np.array(curve["scale"]), np.array(curve["error"])
    ax.loglog(scale, error, "o-", color=BLUE, label="measured")
    ax.loglog(scale, error[-1] * (scale / scale[-1]) ** 2, "--", color=GREY, label="slope 2")
    _scales(ax, scale)
    ax.set(xlabel="scale of all logits", ylabel="relative error of the weights")
    ax.set_title("Theorem 1, N ≥ d, α = 0.5, T = 1:\nthe closed form is right for small logits only", loc="left")
    ax.legend(frameon=False)


def _scales(ax: Any, scale: np.ndarray) -> None:
    """Ticks where there are points."""
    ax.set_xticks(scale, [f"{value:g}" for value in scale])
    ax.minorticks_off()


def _projector(ax: Any, curve: Any) -> None:
    ax.plot(curve["alpha"], curve["printed"], "s-", color=ORANGE, label="as printed: $α W_t$")
    ax.plot(curve["alpha"], curve["corrected"], "o-", color=BLUE, label="with the projector: $α P W_t$")
    ax.set(xlabel="α, weight of the distillation term", ylabel="relative error of the weights", ylim=(0, None))
    ax.set_title(
        "Theorem 1, N < d, T = 4: it needs the projector P;\nat small α separable labels break both", loc="left"
    )
    ax.legend(frameon=False)


def _gap(ax: Any, curve: Any) -> None:
    scale, gap = np.array(curve["scale"]), np.array(curve["T=4"])
    floor = np.finfo(float).eps
    ax.loglog(scale, gap, "o-", color=ORANGE, label="T = 4")
    ax.loglog(scale, gap[-1] * (scale / scale[-1]) ** 3, "--", color=GREY, label="slope 3")
    ax.loglog(scale, np.maximum(curve["T=1"], floor), "o-", color=BLUE, label="T = 1 (drawn at 2⁻⁵² where below)")
    _scales(ax, scale)
    ax.set(xlabel="scale of all logits", ylabel="|mean of $p_s − y$|", ylim=(floor / 10, 1))
    ax.set_title("Theorem 2, teacher with $Σp_t = Σy$, α = 0.5:\nexact at T = 1, of third order otherwise", loc="left")
    ax.legend(frameon=False, loc="center left")


def _mixture(ax: Any, curve: Any) -> None:
    alpha, ece = np.array(curve["alpha"]), np.array(curve["ece"])
    limit = ece[-2] / alpha[-2]
    ax.plot(np.append(alpha[:-1], 1), np.append(ece[:-1], limit), "-", color=ORANGE, label="student")
    ax.plot(1, limit, "o", mfc="white", mec=ORANGE)
    ax.plot(1, ece[-1], "o", color=ORANGE, zorder=3)
    ax.axhline(0, color=BLUE, linestyle="--", label="teacher, and |mean gap| of every student")
    ax.annotate("α = 1: the student\nis the teacher", (1, ece[-1]), (0.68, 0.09), arrowprops={"arrowstyle": "-"})
    ax.set(xlabel="α, weight of the distillation term", ylabel="ECE", ylim=(-0.015, None))
    ax.set_title(
        "η(x) ∈ {0.1, 0.9}, teacher says 0.5, T = 1: equal means,\ncalibrated teacher, under-confident student",
        loc="left",
    )
    ax.legend(frameon=False, loc="upper left")


def run(workdir: Path) -> bool:
    """Writes theory.json and theory.png, prints the table; whether all checks hold.

    Raises:
      Refused: a check met a problem without a solution.
      OSError: the folder cannot be written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    checks = theory.run_checks()
    files.write_json(workdir / "theory.json", payload(checks))
    figure(checks, workdir / "theory.png")
    Console(width=None if sys.stdout.isatty() else 120).print(table(checks))
    held = sum(check.holds for check in checks)
    print(f"theory: {held} of {len(checks)} checks hold; see {workdir / 'theory.png'} and {workdir / 'theory.json'}")
    return held == len(checks)


def planned(workdir: Path) -> list[str]:
    """What a run would compute and write, a line each."""
    lines = [f"{check.__name__}: {(check.__doc__ or '').strip().splitlines()[0]}" for check in theory.CHECKS]
    return [
        *lines,
        f"{len(lines)} checks, seconds in all; writes {workdir / 'theory.json'} and {workdir / 'theory.png'}",
    ]


def main() -> None:
    """The command."""
    workdir = flags.DEFINE_string("workdir", "runs/theory", "Where theory.json and theory.png are written.")
    plan = flags.DEFINE_bool("plan", False, "Print what would be checked and written; compute nothing.")

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            print(f"{argv[1]!r} is no flag; the options are --workdir and --plan.", file=sys.stderr)
            sys.exit(EXIT_REFUSED)
        if plan.value:
            print("\n".join(planned(Path(workdir.value))))
            sys.exit(0)
        try:
            sys.exit(0 if run(Path(workdir.value)) else 1)
        except Refused as error:
            print(error, file=sys.stderr)
            sys.exit(EXIT_REFUSED)
        except OSError as error:
            print(f"{error.strerror or error} ({error.filename or workdir.value}).", file=sys.stderr)
            sys.exit(EXIT_IO)

    app.run(guarded)


if __name__ == "__main__":
    main()

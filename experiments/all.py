"""Every table of one size, one after the other in one work directory, so that they share what they can; those on texts
come last, and need the folder of text sets in KDJAX_TEXT_DIR.

    python -m experiments.all --size=cpu --plan
    python -m experiments.all --size=cpu --workdir runs/cpu

`--workers` and `--executor` say who computes, as in every experiment; the numbers do not depend on them.
What is finished is reused and what was begun goes on, so the same command may be typed again after any interruption.
The exit code is the first one that is not 0; the tables after it are still made, unless a signal asked for a stop.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from experiments import (
    ablation,
    command,
    common,
    correlation,
    cud,
    drift,
    generations,
    longtail,
    ood,
    pairs,
    penultimate,
    table1,
    table2,
    table3,
)
from kdjax import console, worker_count
from kdjax.errors import Refused, one_of
from kdjax.settings import EXIT_INTERRUPTED, EXIT_REFUSED

TABLES = {
    "table1": table1,
    "drift": drift,
    "generations": generations,
    "penultimate": penultimate,
    "table2": table2,
    "ablation": ablation,
    "pairs": pairs,
    "correlation": correlation,
    "cud": cud,
    "table3": table3,
    "ood": ood,
    "longtail": longtail,
}
SIZES = ("cpu", "short", "paper")


def commands(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(table, its words) of every table.

    Raises:
      Refused: an unknown size or flag.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("size", "cpu", "cpu, short or paper, as in configs/table1.py.", values)
    flags.DEFINE_string("workdir", None, "Holds all stages and tables; default runs/SIZE.", values)
    flags.DEFINE_bool("plan", False, "Print what would run; run nothing.", values)
    flags.DEFINE_bool("probe", False, "With --plan: time five steps of every kind, and say how many hours.", values)
    flags.DEFINE_string("executor", command.LOCAL, "local, or ray: stages are tasks of a Ray cluster.", values)
    flags.DEFINE_string("workers", worker_count.AUTO, "Local processes that share the stages of a table.", values)
    try:
        left = values([*argv])
    except flags.Error as error:
        raise Refused(" ".join(str(error).split())) from error
    if len(left) > 1:
        raise Refused(
            f"{left[1]!r} is no flag; the flags are --size, --workdir, --workers, --executor, --plan and --probe."
        )
    if values["probe"].value and not values["plan"].value:
        raise Refused("--probe times steps for a plan; type --plan --probe.")
    size = one_of("--size", str(values["size"].value), SIZES)
    executor = one_of("--executor", str(values["executor"].value), (command.LOCAL, command.RAY))
    elsewhere = f"--executor={executor}" if executor != command.LOCAL else ""
    workers = worker_count.check(str(values["workers"].value), elsewhere=elsewhere)
    shared = [
        f"--workdir={values['workdir'].value or f'runs/{size}'}",
        *(f"--{name}" for name in ("plan", "probe") if values[name].value),
    ]
    shared += [f"--workers={workers}"] if workers != worker_count.AUTO else []
    shared += [elsewhere] if elsewhere else []
    return [(name, [f"experiments.{name}", f"--config=configs/{name}.py:{size}", *shared]) for name in TABLES]


def run(argv: Sequence[str]) -> int:
    """The first exit code that is not 0, after all tables."""
    try:
        planned = commands(argv)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return EXIT_REFUSED
    codes = []
    for name, words in planned:
        print(f"== {' '.join(words)}", flush=True)
        module = TABLES[name]
        ignored = getattr(module, "IGNORED", common.ONLY)
        codes.append(common.call(module.run, words, f"configs/{name}.py", ignored=ignored))
        if codes[-1] == EXIT_INTERRUPTED:
            break
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    if any(word in ("-h", "--help", "-help") for word in sys.argv[1:]):
        print((__doc__ or "").strip())
        sys.exit(0)
    console.steady()
    common.leave(run(sys.argv))

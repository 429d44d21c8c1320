"""What every experiment module shares: flags, the door from a config to stages, the plan, and the exit codes."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

import configs
from kdjax import checkpoints, console, metrics, provenance, report, stages, train
from kdjax.errors import Refused
from kdjax.processes import is_primary
from kdjax.recipes import Recipe, from_dict
from kdjax.stages import Stage
from kdjax.trainer import Diverged

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Holds one directory per stage and the report; overrides config.run.workdir."
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed", None, "Join several processes: auto (Slurm, Open MPI, Kubernetes, TPU), or HOST:PORT,COUNT,INDEX."
)
_PLAN = flags.DEFINE_bool("plan", False, "Print the stages, what is done and what the rest would cost; run nothing.")


def main(run: Callable[[ConfigDict], None], default: str) -> None:
    """Parses flags, calls `run(config)`, and turns refusals and faults into one sentence and an exit code.

    Exit codes: 0 done, 2 refused, 70 internal (a diverged loss), 74 disk, 75 interrupted and resumable.
    """
    holder: list[Any] = []

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            help_text = "A configuration file and names, e.g. configs/cifar100.py:wrn_40_2,mdca,wrn_40_1,kd"
            holder.append(config_flags.DEFINE_config_file("config", _located(default), help_text))
            return flags.FLAGS([*map(_located, argv)])
        except Exception as error:  # absl and ml_collections raise nearly every type here
            _leave(_flag_sentence(error), train.EXIT_REFUSED)
        raise AssertionError("unreachable")

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _leave(f"{argv[1]!r} is no flag; flags look like --config.recipe.student.epochs=5.", train.EXIT_REFUSED)
        logging.set_verbosity(logging.WARNING)
        try:
            config = holder[0].value
            # A config file that could not be loaded says so at its first use.
            config.run.workdir = _WORKDIR.value or config.run.workdir
        except OSError as error:
            _leave(_flag_sentence(error), train.EXIT_REFUSED)
        try:
            if _DISTRIBUTED.value:
                join(_DISTRIBUTED.value)
            distinct("config.seeds", config.seeds, int)
            run(config)
        except Refused as error:
            _leave(str(error), train.EXIT_REFUSED)
        except Diverged as error:
            _leave(str(error), train.EXIT_INTERNAL)
        except train.Interrupted as error:
            _leave(str(error), train.EXIT_INTERRUPTED)
        except OSError as error:
            _leave(str(error), train.EXIT_IO)
        except KeyboardInterrupt:
            _leave("interrupted; what is finished stays, run the same command to go on.", train.EXIT_INTERRUPTED)
        except Exception:  # what nobody foresaw keeps its traceback and gets the internal exit code
            traceback.print_exc()
            sys.exit(train.EXIT_INTERNAL)

    app.run(guarded, flags_parser=parse)


def _located(text: str) -> str:
    """`configs/...`, in --config= or alone, of the installed project where the current directory has no such file."""
    flag, equals, name = text.rpartition("=")
    path, colon, names = name.partition(":")
    installed = Path(configs.__file__).parents[1] / path
    if flag in ("", "--config") and path.startswith("configs/") and not Path(path).exists() and installed.is_file():
        return f"{flag}{equals}{installed}{colon}{names}"
    return text


def distinct(what: str, found: Sequence[Any], kind: type) -> None:
    """Refuses replicates or settings that are none, of another kind, or named twice and so counted twice."""
    wrong = [x for x in found if isinstance(x, bool) or not isinstance(x, kind | int)]
    if not found or wrong or len({*found}) < len(found):
        raise Refused(f"{what} is {tuple(found)}; expected one or more different {kind.__name__}s, like ({kind(1)},).")


def join(how: str) -> None:
    """Makes this process one of several, before JAX looks for devices.

    Raises:
      Refused: `how` is neither "auto" nor HOST:PORT,COUNT,INDEX, or there is no cluster to be found.
    """
    if how == "auto":
        try:
            return jax.distributed.initialize()
        except ValueError as error:
            raise Refused(
                "--distributed=auto found no cluster here; say --distributed=HOST:PORT,COUNT,INDEX."
            ) from error
    found = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", how)
    if found is None or int(found[3]) >= int(found[2]):
        raise Refused(
            f"--distributed is {how!r}; expected auto, or the coordinator's HOST:PORT, the number of processes and "
            "this one's index from 0, such as --distributed=host0:9999,2,0."
        )
    jax.distributed.initialize(found[1], num_processes=int(found[2]), process_id=int(found[3]))


def _flag_sentence(error: Exception) -> str:
    """One sentence from what absl and ml_collections raise; our own refusal inside their report is taken out of it."""
    text = str(error).replace("\\n", " ").replace("\\'", "'")
    if found := re.search(r"kdjax\.errors\.Refused: (.*)", text, re.DOTALL):
        return found[1].strip()
    if "Is a directory" in text or "empty string" in text:
        return "--config names no file; expected a configuration such as configs/digits.py."
    if "get_config" in text:
        return "--config names a file without get_config; expected a configuration such as configs/digits.py."
    if isinstance(error, AttributeError | KeyError) and (found := re.search(r"(\w+)\W+(Did you mean (\S+).*)?", text)):
        hint = f"did you mean {found[3]}?" if found[3] else "see configs/base.py for the fields."
        return f"the configuration has no field {found[1]!r}; {hint}"
    if "No such file" in text and (found := re.search(r"No such file or directory: '?([^'\s]+)", text)):
        return f"{found[1]} does not exist; expected a configuration such as configs/digits.py."
    return re.sub(r"\s+", " ", text).strip()


def _leave(sentence: str, code: int) -> None:
    print(f"refused: {sentence}" if code == train.EXIT_REFUSED else f"stopped: {sentence}", file=sys.stderr, flush=True)
    # Compiled work may still be queued on the device; nothing of it is needed.
    sys.stdout.flush()
    os._exit(code)


def recipe(config: ConfigDict, who: str, seed: int, **changes: Any) -> Recipe:
    """`config.recipe.<who>` on `config.recipe.data` with that seed, as the frozen dataclass."""
    given = {**config.recipe[who].to_dict(), "data": config.recipe.data.to_dict(), "seed": seed}
    return dataclasses.replace(from_dict(Recipe, given, f"config.recipe.{who}"), **changes)


def pair(config: ConfigDict, seed: int) -> tuple[Stage, Stage]:
    """(teacher, student) stages of a config."""
    teacher = recipe(config, "teacher", seed)
    student = recipe(config, "student", seed)
    taught = Stage(teacher, name=f"{label(teacher)} teacher seed {seed}")
    return taught, Stage(student, taught, name=f"{label(student)} student seed {seed}")


def label(recipe: Recipe) -> str:
    """How people call a recipe: "wrn_40_2 mdca", "wrn_40_1 kd(T=1)"."""
    if recipe.distill is None:
        return f"{recipe.model} {recipe.method}"
    options = dict(recipe.distill.options)
    temperature = f"(T={options['T']:g})" if "T" in options else ""
    return f"{recipe.model} {recipe.distill.method}{temperature}"


def settings(config: ConfigDict) -> train.Run:
    return from_dict(train.Run, config.run.to_dict(), "config.run")


def execute(config: ConfigDict, targets: Sequence[Stage]) -> dict[str, train.Result] | None:
    """Runs the stages and returns the results to the one process that reports; None elsewhere and under --plan."""
    run = settings(config)
    if _PLAN.value:
        rows = stages.plan(targets, Path(run.workdir))
        if is_primary():
            show_plan(rows)
        return None
    reporter = console.reporter() if is_primary() else console.Silent()
    try:
        results = train.run_all(targets, run, reporter)
    finally:
        reporter.close()
    return results if is_primary() else None


def show_plan(rows: Sequence[stages.Planned]) -> None:
    """The DAG as a table, parents first."""
    table = Table(title="plan", title_justify="left")
    for column in ("stage", "id", "taught by", "status", "steps", "TFLOP", "objective state"):
        table.add_column(column, justify="right" if column in ("steps", "TFLOP", "objective state") else "left")
    for row in rows:
        teacher = row.stage.teacher.id if row.stage.teacher is not None else "-"
        size = f"{row.state_bytes / 1e6:.3f} MB" if row.state_bytes else "-"
        table.add_row(
            row.stage.name, row.stage.id, teacher, row.status, str(row.steps), f"{row.flops / 1e12:.3f}", size
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    todo = [row for row in rows if row.status != "done"]
    print(f"{len(rows)} stages, {len(todo)} to run, about {sum(r.flops for r in todo) / 1e12:.3f} TFLOP.")


def rows(results: dict[str, train.Result], groups: dict[str, list[Stage]]) -> list[report.Row]:
    """One table row a group: the test metrics of its stages, one a seed."""
    return [
        report.Row(name, [dict(results[s.id].metrics["test"]) for s in members]) for name, members in groups.items()
    ]


def publish(config: ConfigDict, name: str, rows: Sequence[report.Row], **extra: Any) -> report.Table:
    """Prints the table of the rows and writes it as Markdown, CSV and JSON, with command and environment."""
    folder = Path(config.run.workdir)
    table = report.table(rows)
    Console(width=None if sys.stdout.isatty() else 140).print(table.rich())
    (folder / f"{name}.md").write_text(table.markdown())
    (folder / f"{name}.csv").write_text(table.csv())
    stored = {
        "command": command(),
        "environment": provenance.environment(),
        "seeds": list(config.seeds),
        "rows": [row._asdict() for row in rows],
        **extra,
    }
    checkpoints.write_json(folder / f"{name}.json", stored)
    return table


def command() -> str:
    """What was typed, without where it was written to and who else took part."""
    given, left_out = sys.argv[1:], {"--workdir", "--distributed"}
    pairs = zip(["", *given], given, strict=False)
    typed = [a for before, a in pairs if not left_out & {before, a.split("=")[0]}]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return " ".join(["python -m", spec.name if spec else "experiments", *typed])


def pooled(results: dict[str, train.Result], members: Sequence[Stage]) -> Any:
    """The reliability bins of a group, its seeds' test examples pooled."""
    bins = [metrics.reliability(*results[s.id].logits("test")) for s in members]
    total = bins[0]
    for other in bins[1:]:
        total = total.merge(other)
    return total


def difference_sentence(where: str, ece: dict[str, float]) -> str:
    """A paired difference with its interval, in points of ECE."""
    return (
        f"ECE, KD(C) - KD(UC) at {where}: {100 * ece['mean']:+.2f} points, 95 % bootstrap interval "
        f"[{100 * ece['low']:+.2f}, {100 * ece['high']:+.2f}], n = {ece['n']:.0f} seeds."
    )

"""What every experiment module shares: the door from a config to stages, the plan, tables, and the exit codes."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments import command, plans, usage
from experiments.command import Command
from experiments.plans import label
from kdjax import (
    console,
    launch,
    layout,
    meeting,
    metrics,
    planning,
    provenance,
    ray_cluster,
    results,
    runs,
    settings,
    signals,
    signing,
    stages,
    worker_count,
    workers,
)
from kdjax.console import Reporter
from kdjax.errors import Refused, literal
from kdjax.manifests import MANIFEST
from kdjax.processes import is_primary
from kdjax.recipes import Data, Recipe, from_dict
from kdjax.stages import Stage
from kdjax.trainer import Diverged

ONLY = {
    "recipe.generations": "only experiments.generations counts generations",
    "teacher": "only experiments.distill takes a teacher that is finished",
    "recipe.temperatures": (
        "only experiments.quickstart compares temperatures; type --config.recipe.student.distill.options.T=4.0"
    ),
}
"""Fields that belong to one experiment -> what to type in the others."""


def main(
    run: Callable[[Any], None],
    default: str,
    *,
    workdir: str = "runs",
    ignored: Mapping[str, str] = ONLY,
    read: Callable[..., Command] = command.read,
) -> None:
    """Reads the command, calls `run(command)`, and ends the process with `call`'s exit code.

    Args:
      default: the configuration where none is typed.
      workdir: where stages and report go where nothing else is typed.
      ignored: fields that the experiment does not look at, see `experiments.command.read`.
      read: what makes a command of the words, for an experiment with words of its own.
    """
    console.steady()
    leave(call(run, sys.argv, default, workdir=workdir, ignored=ignored, read=read))


def leave(code: int) -> None:
    """Ends the process with an exit code; returns if it is 0 and several processes belong together."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Compiled work may still be queued on the device, and nothing of it is needed; while an interpreter shuts down, a
    # signal would kill it. Several processes take leave of each other in the ordinary way.
    if code or not jax.distributed.is_initialized():
        os._exit(code)


def call(
    run: Callable[[Any], None],
    argv: Sequence[str],
    default: str,
    *,
    workdir: str = "runs",
    ignored: Mapping[str, str] = ONLY,
    read: Callable[..., Command] = command.read,
) -> int:
    """The exit code of an experiment, after one sentence on stderr for whatever is refused or went wrong.

    0 done, 2 refused, 70 internal (a diverged loss), 74 disk, 75 interrupted and resumable.
    """
    logging.set_verbosity(logging.WARNING)
    try:
        if usage.wants_help(argv):
            documentation = sys.modules[run.__module__].__doc__ or ""
            print(usage.help_text(argv, documentation, default=default, workdir=workdir))
            return 0
        given = read(argv, default=default, workdir=workdir, ignored=ignored)
        if given.distributed:
            launch.join(given.distributed, patience=given.distributed_timeout)
        distinct("config.seeds", given.config.seeds, int)
        run(given)
        return 0
    except Refused as error:
        return _stop(f"refused: {error}", settings.EXIT_REFUSED)
    except Diverged as error:
        return _stop(f"stopped: {error}", settings.EXIT_INTERNAL)
    except (settings.Interrupted, meeting.Lost) as error:
        return _stop(f"stopped: {error}", settings.EXIT_INTERRUPTED)
    except OSError as error:
        return _stop(f"stopped: {error}", settings.EXIT_IO)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = (str(error).splitlines() or ["no memory left"])[0]
        sentence = f"stopped: the machine could not go on ({reason}); what is finished stays. Is its memory too small?"
        return _stop(sentence, settings.EXIT_INTERNAL)
    except KeyboardInterrupt:
        sentence = "stopped: interrupted; what is finished stays, run the same command to go on."
        return _stop(sentence, settings.EXIT_INTERRUPTED)
    except Exception:  # what nobody foresaw keeps its traceback and gets the internal exit code
        traceback.print_exc()
        return settings.EXIT_INTERNAL


def _stop(sentence: str, code: int) -> int:
    print(literal(sentence), file=sys.stderr, flush=True)
    return code


def distinct(what: str, values: Sequence[Any], kind: type) -> None:
    """Refuses replicates or settings that are none, of another kind, or named twice and so counted twice."""
    wrong = [x for x in values if isinstance(x, bool) or not isinstance(x, kind | int)]
    # Rows are called after their numbers, with six digits.
    if not values or wrong or len({x if kind is int else f"{x:g}" for x in values}) < len(values):
        raise Refused(f"{what} is {tuple(values)}; expected one or more different {kind.__name__}s, like ({kind(1)},).")


def named(what: str, values: Sequence[Any]) -> None:
    """Refuses a list of names that is empty, holds anything else, or names one twice."""
    if not values or any(not isinstance(x, str) for x in values) or len({*values}) < len(values):
        raise Refused(f"{what} is {tuple(values)}; expected one or more different names, like ('nll', 'mdca').")


def is_pair(one: Any) -> bool:
    """Whether it is two names."""
    return isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(name, str) for name in one)


def recipe(config: ConfigDict, who: str, seed: int, **changes: Any) -> Recipe:
    """`config.recipe.<who>` on `config.recipe.data` with that seed, as the frozen dataclass."""
    given = {**config.recipe[who].to_dict(), "data": config.recipe.data.to_dict(), "seed": seed}
    return dataclasses.replace(from_dict(Recipe, given, f"config.recipe.{who}"), **changes)


def pair(config: ConfigDict, seed: int) -> tuple[Stage, Stage]:
    """(teacher, student) stages of a config."""
    teacher = recipe(config, "teacher", seed)
    student = recipe(config, "student", seed)
    teacher_stage = Stage(teacher, name=f"{label(teacher)} teacher")
    return teacher_stage, Stage(student, teacher_stage, name=f"{label(student)} student")


def run_settings(config: ConfigDict) -> settings.Settings:
    """`config.run` as the frozen dataclass."""
    return from_dict(settings.Settings, config.run.to_dict(), "config.run")


def execute(given: Command, targets: Sequence[Stage]) -> runs.Outcome | None:
    """Runs the stages; results and failures for the one process that reports, None elsewhere and under --plan.

    Raises:
      Refused: whatever a run would refuse, under --plan too.
    """
    run = run_settings(given.config).check()
    if given.plan:
        mesh = layout.mesh(run.devices)
        for stage in stages.order(targets):
            layout.check_batch(stage.recipe.batch_size, mesh)
        planned = planning.plan(targets, Path(run.workdir))
        seconds = plans.probe(planned, run) if given.probe else None
        count, why = sharing(given, run, lambda: planned)
        if is_primary():
            plans.show(planned, seconds)
            for line in planning.shared_logits(planned, Path(run.workdir)):
                print(literal(line))
            if count > 1 or why:
                print(f"{count} local workers would share them. {why}".strip())
        return None
    key = signing.Key(given.sign_with, "--sign-with") if given.sign_with else None
    if not given.mixed_settings and given.executor == command.LOCAL:  # what the nodes of a cluster have is seen after
        refuse_mixed(targets, Path(run.workdir))
    reporter = console.reporter() if is_primary() else console.Silent()
    try:
        outcome = computed(given, targets, run, reporter)
    finally:
        reporter.close()
    if not given.mixed_settings:
        refuse_mixed(targets, Path(run.workdir))
    if not is_primary():
        return None
    if key is not None:
        for result in outcome.results.values():
            key.sign(result.directory)
    return outcome


def computed(given: Command, targets: Sequence[Stage], run: settings.Settings, reporter: Reporter) -> runs.Outcome:
    """The outcome of the stages: by a Ray cluster, by this process, or by as many workers as are asked for or pay."""
    if given.executor == command.RAY:
        return ray_cluster.run_all(targets, run, reporter, given.imports)
    count, why = sharing(given, run, lambda: planning.plan(targets, Path(run.workdir)))
    if why:
        reporter.message(why)
    if count > 1:
        return workers.run_all(targets, run, reporter, count, given.imports)
    return runs.run_all(targets, run, reporter)


def sharing(given: Command, run: settings.Settings, plan: Callable[[], Sequence[planning.Planned]]) -> tuple[int, str]:
    """(local workers, why they are fewer than there is work for, or ""); a plan is made where several are possible."""
    if given.executor == command.RAY:
        return 1, ""
    with signals.watched():  # a plan traces networks, and JAX may turn an interruption into an error of its own
        possible = worker_count.possible(given.workers, run)
        return worker_count.choose(given.workers, plan(), run.cohort) if possible else (1, "")


def refuse_mixed(targets: Sequence[Stage], workdir: Path) -> None:
    """Refuses numbers of different settings (XLA's flags, device, threads, x64, versions) in one table.

    Stages that are not finished count as computed here and now.

    Raises:
      Refused: naming two stages and the first setting in which they differ.
    """
    sessions: list[tuple[str, Mapping[str, Any]]] = []
    for stage in stages.order(targets):
        directory = stage.directory(workdir)
        done = (directory / MANIFEST).is_file() and (directory / "environment.json").is_file()
        known = results.numerics(directory) if done else [provenance.numerics()]
        sessions += [(literal(stage.name), settings) for settings in known]
    if text := provenance.mixed(sessions):
        raise Refused(
            f"{text}; type --mixed_settings to put them in one table all the same, or another --workdir to compute "
            "all of them here."
        )


def data_sentence(data: Data) -> str:
    """What was trained and measured on."""
    dataset = stages.dataset(data)
    source = Path(data.path).name if data.path else dataset.name
    sizes = [f"{len(split.label):,}" for split in (dataset.train, dataset.calibration, dataset.test)]
    noise = f", with additive noise of sd {data.noise:g} of the pixel range" if data.noise else ""
    return (
        f"Data: {source}, {dataset.num_classes} classes{noise}; {sizes[0]} training examples, {sizes[1]} held out for "
        f"calibration, {sizes[2]} for the test, which is read once."
    )


def data_sentences(groups: Mapping[str, Sequence[Stage]]) -> list[str]:
    """`data_sentence` of every data set that stages of a table are on."""
    sets = dict.fromkeys(stage.recipe.data for members in groups.values() for stage in members)
    return [*dict.fromkeys(map(data_sentence, sets))]


def pooled(results: Mapping[str, Any], members: Sequence[Stage]) -> Any:
    """The reliability bins of a row, the test examples of its finished seeds pooled; None where none finished."""
    bins = [metrics.reliability(*results[s.id].logits("test")) for s in members if s.id in results]
    return functools.reduce(lambda total, other: total.merge(other), bins) if bins else None


def difference_sentence(where: str, ece: Mapping[str, float], what: str = "KD(C) - KD(UC)") -> str:
    """A paired difference with its interval, in points of ECE."""
    return (
        f"ECE, {what} at {where}: {100 * ece['mean']:+.2f} points, 95 % bootstrap interval "
        f"[{100 * ece['low']:+.2f}, {100 * ece['high']:+.2f}], n = {ece['n']:.0f} seeds."
    )

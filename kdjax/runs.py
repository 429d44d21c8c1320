"""Running stages: parents first, reused where they are done, resumed where they were begun."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from kdjax import checkpoints, claim, console, layout, results, signals, stages, step
from kdjax.errors import Held
from kdjax.parts import parts
from kdjax.processes import any_process, on_primary
from kdjax.results import Result
from kdjax.settings import Interrupted, Settings
from kdjax.stage_run import StageRun
from kdjax.stages import Stage
from kdjax.trainer import Diverged

WAIT_SECONDS = 5.0
"""Between two looks at stages that other processes hold."""


class Outcome(NamedTuple):
    """What `run_all` brought about.

    Attributes:
      results: by stage id.
      failures: stage id -> one sentence, for stages that diverged or whose teacher did.
    """

    results: dict[str, Result]
    failures: dict[str, str]


def run_all(targets: Iterable[Stage], settings: Settings, reporter: console.Reporter | None = None) -> Outcome:
    """Runs every stage and its ancestors that are not done, parents first.

    Whatever can be refused is refused before anything compiles: a student that cannot be trained must not be found out
    after its teacher has been trained. A stage that diverges is reported and the others go on without it and its
    students. A stage that another process holds is left for later; when nothing else is left, it is waited for.

    Raises:
      Refused, Interrupted, OSError: see `run_stage`.
    """
    reporter = reporter or console.Silent()
    settings.check()
    outcome, reasons = Outcome({}, {}), dict[str, str]()
    with signals.watched() as asked:
        queue = stages.order(targets)
        for stage in queue:
            stages.check(stage)
            layout.check_batch(stage.recipe.batch_size, layout.mesh(settings.devices))
        for stage in queue:
            if not (stage.directory(Path(settings.workdir)) / checkpoints.MANIFEST).exists():
                stages.rehearse(stage)
        pending, waiting = list(queue), False
        while pending:
            held = _pass(pending, queue, settings, reporter, asked, outcome, reasons)
            if len(held) == len(pending):
                if not waiting:
                    reason = next(iter(reasons.values()))
                    reporter.message(
                        f"waiting for {len(held)} stages that other processes hold or lead up to: {reason}"
                    )
                waiting = True
                _wait(asked)
            pending = held
    return outcome


def _pass(
    pending: list[Stage],
    queue: list[Stage],
    settings: Settings,
    reporter: console.Reporter,
    asked: signals.Asked,
    outcome: Outcome,
    reasons: dict[str, str],
) -> list[Stage]:
    """Runs what can be run of `pending`; returns the stages that another process holds, and those taught by them.

    `reasons` maps the ids of those that are held to who holds them.
    """
    held: list[Stage] = []
    for i, stage in enumerate(pending):
        if any_process(bool(asked)):
            raise Interrupted(f"stopped before {stage.name}; everything is saved, run the same command to go on.")
        teacher = stage.teacher
        if teacher is not None and teacher.id in outcome.failures:
            outcome.failures[stage.id] = f"its teacher, {teacher.name!r}, failed"
            continue
        if teacher is not None and teacher.id not in outcome.results:
            held.append(stage)
            continue
        try:
            position = next(n for n, s in enumerate(queue, 1) if s.id == stage.id)
            outcome.results[stage.id] = run_stage(stage, settings, reporter, asked, position, len(queue))
        except Held as error:
            held.append(stage)
            reasons[stage.id] = str(error)
        except Diverged as error:
            outcome.failures[stage.id] = str(error)
            reporter.message(f"{stage.name}: {error}")
        _forget(stage, [*held, *pending[i + 1 :]])
    return held


def _forget(stage: Stage, later: list[Stage]) -> None:
    """Drops the compiled programs that no later stage shares with this one."""
    mine = parts(stage.recipe, stages.dataset(stage.recipe.data))
    if all(parts(other.recipe, stages.dataset(other.recipe.data)).objective is not mine.objective for other in later):
        step.forget_programs(mine.objective)


def _wait(asked: Mapping[str, int]) -> None:
    """WAIT_SECONDS, or less once a signal comes."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and not asked:
        time.sleep(0.1)


def run_stage(
    stage: Stage,
    settings: Settings,
    reporter: console.Reporter,
    asked: signals.Asked | None = None,
    position: int = 1,
    total: int = 1,
) -> Result:
    """One stage: reused if its manifest verifies, resumed if it was begun, trained otherwise.

    Raises:
      Refused: the directory belongs to another recipe, or cannot be written.
      Held: another process is at work on it.
      Diverged: a term was not finite; nothing after the last good checkpoint is kept.
      Interrupted: a signal came; the state is saved.
    """
    asked = asked if asked is not None else signals.Asked()
    workdir = Path(settings.workdir)
    directory = stage.directory(workdir)
    if on_primary(lambda: _done(stage, directory)):
        reporter.stage(stage.name, position, total, stage.recipe.epochs, note=f"done before, reused ({stage.id})")
        result = results.read(stage, workdir)
        if text := result.other_numerics():
            reporter.message(f"{stage.name}: computed under other settings: {text}; its numbers stay as they are.")
        return result
    with claim.locked(directory) as confirm:
        # Under the lock: whoever held it until now may have finished the stage, or still be listing its files.
        if on_primary(lambda: _done(stage, directory)):
            return results.read(stage, workdir)
        on_primary(lambda: claim.write_owner(stage, directory))
        return StageRun(stage, settings, reporter, asked, confirm).finish(position, total)


def _done(stage: Stage, directory: Path) -> bool:
    """Whether the manifest verifies.

    Raises:
      Refused: it does, and was computed with a default that has changed since.
    """
    if checkpoints.verify_manifest(directory, stage.owner):
        return False
    claim.check_owner(stage, directory)
    return True

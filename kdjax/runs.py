"""Running stages: parents first, reused where they are done, resumed where they were begun."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdjax import checkpoints, claim, console, layout, programs, results, signals, stages
from kdjax.errors import Held, Refused
from kdjax.objectives import Objective
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
    check_settings(settings)
    with signals.watched() as asked:
        queue = stages.order(targets)
        refuse_early(queue, settings)
        return work(queue, settings, reporter, asked)


def check_settings(settings: Settings) -> None:
    """Refuses what is no `Settings`, or holds a number out of range."""
    if not isinstance(settings, Settings):
        raise Refused(
            f"run_all got a {type(settings).__name__} as settings; type kdjax.Settings(workdir='runs'), which says "
            "where the stages are written and how they are run."
        )
    settings.check()


def refuse_early(queue: Sequence[Stage], settings: Settings) -> None:
    """Refuses what can be refused before anything compiles, of stages in the order of `stages.order`.

    Raises:
      Refused: see `stages.check_all`; a batch that the devices cannot share out evenly.
    """
    mesh, workdir = layout.mesh(settings.devices), Path(settings.workdir)
    for stage in queue:
        layout.check_batch(stage.recipe.batch_size, mesh)
    stages.check_all(queue, begin=lambda stage: not (stage.directory(workdir) / checkpoints.MANIFEST).exists())


def work(
    queue: Sequence[Stage],
    settings: Settings,
    reporter: console.Reporter,
    asked: signals.Asked,
    *,
    failures: dict[str, str] | None = None,
    later: Callable[[Stage], bool] = lambda stage: False,
    waiting: Callable[[str], None] | None = None,
    pause: float | None = None,
) -> Outcome:
    """Runs stages, each with its ancestors among them, until each has a result or a failure, whoever brought it about.

    Args:
      failures: what is known of stages that failed elsewhere, by id; new ones are added.
      later: which stages are looked at after the others.
      waiting: is told what there is to wait for, each time when nothing else is left.
      pause: seconds between two looks at stages that other processes hold; `WAIT_SECONDS` by default.
    """
    tell = waiting or reporter.message
    table = _Table(queue, settings, reporter, asked, {} if failures is None else failures)
    pending, still = sorted(queue, key=later), False
    while pending:
        held = table.work_through(pending)
        if len(held) < len(pending):
            still = False
        else:
            if not still:
                reason = next(iter(table.holders.values()))
                tell(f"waiting for {len(held)} stages that other processes hold or lead up to: {reason}")
            still = True
            _wait(asked, WAIT_SECONDS if pause is None else pause)
        pending = held
    return table.outcome


class _Table:
    """Stages on their way to results.

    Attributes:
      outcome: of the stages that have ended.
      holders: id of a stage that is held -> who holds it.
    """

    def __init__(
        self,
        queue: Sequence[Stage],
        settings: Settings,
        reporter: console.Reporter,
        asked: signals.Asked,
        failures: dict[str, str],
    ):
        self.settings, self.reporter, self.asked = settings, reporter, asked
        self.outcome, self.holders = Outcome({}, failures), dict[str, str]()
        self._positions = {stage.id: n for n, stage in enumerate(queue, 1)}
        self._users = Counter(_objective(stage) for stage in queue)

    def work_through(self, pending: list[Stage]) -> list[Stage]:
        """Runs what can be run; returns the stages that another process holds, and those taught by them."""
        held: list[Stage] = []
        for stage in pending:
            if any_process(bool(self.asked)):
                raise Interrupted(f"stopped before {stage.name}; everything is saved, run the same command to go on.")
            if not self._run(stage):
                held.append(stage)
                continue
            objective = _objective(stage)
            self._users[objective] -= 1
            if self._users[objective] <= 0:
                programs.forget_programs(objective)
        return held

    def _run(self, stage: Stage) -> bool:
        """Whether the stage has ended, with a result or a failure."""
        finished, failures = self.outcome
        if stage.id in failures:
            return True
        for parent in stage.parents:
            if parent.id in failures:
                kind = "the stage that it is as soft as" if parent is stage.as_soft_as else "its teacher"
                failures[stage.id] = f"{kind}, {parent.name!r}, failed"
                return True
        if any(parent.id not in finished for parent in stage.parents):
            return False
        position = self._positions[stage.id]
        try:
            finished[stage.id] = run_stage(
                stage, self.settings, self.reporter, self.asked, position, len(self._positions)
            )
        except Held as error:
            self.holders[stage.id] = str(error)
            return False
        except Diverged as error:
            failures[stage.id] = str(error)
            self.reporter.message(f"{stage.name}: {error}")
        return True


def _objective(stage: Stage) -> Objective:
    """What the compiled programs of a stage are remembered by."""
    return parts(stage.recipe, stages.dataset(stage.recipe.data)).objective


def _wait(asked: Mapping[str, int], seconds: float) -> None:
    """So many seconds, or fewer once a signal comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asked:
        time.sleep(min(0.1, seconds))


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
    if (result := reused(stage, workdir, reporter, position, total)) is not None:
        return result
    if stage.place is not None:
        raise Refused(f"{directory} is not finished, or was changed since the command began; finish that run first.")
    with claim.locked(directory) as confirm:
        # Under the lock: whoever held it until now may have finished the stage, or still be listing its files.
        if on_primary(lambda: _done(stage, directory)):
            return results.read(stage, workdir)
        on_primary(lambda: claim.write_owner(stage, directory))
        return StageRun(stage, settings, reporter, asked, confirm).finish(position, total)


def reused(stage: Stage, workdir: Path, reporter: console.Reporter, position: int = 1, total: int = 1) -> Result | None:
    """The result of a stage that was finished before; None where its manifest does not verify.

    Raises:
      Refused: it was computed with a default that has changed since.
    """
    if not on_primary(lambda: _done(stage, stage.directory(workdir))):
        return None
    reporter.stage(stage.name, position, total, stage.recipe.epochs, note=f"done before, reused ({stage.id})")
    result = results.read(stage, workdir)
    if text := result.other_numerics():
        reporter.message(f"{stage.name}: computed under other settings: {text}; its numbers stay as they are.")
    return result


def _done(stage: Stage, directory: Path) -> bool:
    """Whether the manifest verifies.

    Raises:
      Refused: it does, and was computed with a default that has changed since.
    """
    if checkpoints.verify_manifest(directory, stage.owner):
        return False
    claim.check_owner(stage, directory)
    return True

"""Running stages: parents first, reused where they are done, resumed where they were begun."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdjax import checkpoints, console, layout, programs, signals, stages
from kdjax.cohort import Diverged
from kdjax.cohort_stages import Holder, reused, run_cohort, run_stage
from kdjax.errors import Held, Refused
from kdjax.grouping import groups, refuse_large
from kdjax.objectives import Objective
from kdjax.parts import parts
from kdjax.processes import any_process
from kdjax.results import Result
from kdjax.settings import Interrupted, Settings
from kdjax.source_code import replaced
from kdjax.stages import Stage

__all__ = [
    "WAIT_SECONDS",
    "Outcome",
    "check_settings",
    "refuse_early",
    "reused",
    "run_all",
    "run_cohort",
    "run_stage",
    "work",
]

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
      Refused, Interrupted, OSError: see `run_stage`; Refused also a stage whose code was registered anew since it was
        made.
    """
    reporter = reporter or console.Silent()
    if isinstance(targets, Stage):
        raise Refused("run_all got one Stage; expected a list of them: type run_all([stage], settings).")
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
      Refused: see `stages.check_all`; a batch that the devices cannot share out evenly; a cohort that is too large.
    """
    mesh, workdir = layout.mesh(settings.devices), Path(settings.workdir)
    for stage in queue:
        if replaced() and stage.place is None and stage.id != dataclasses.replace(stage).id:
            raise Refused(
                f"stage {stage.name!r} was made before code that its recipe names was registered anew; make it again, "
                "and the stages that it teaches: type Stage(recipe, teacher)."
            )
        layout.check_batch(stage.recipe.batch_size, mesh)
    stages.check_all(queue, begin=lambda stage: not (stage.directory(workdir) / checkpoints.MANIFEST).exists())
    for group in groups(queue, settings.cohort):
        refuse_large(group)


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
                reason = next(iter(table.holders.values())).sentence
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
        self.outcome, self.holders = Outcome({}, failures), dict[str, Holder]()
        self._positions = {stage.id: n for n, stage in enumerate(queue, 1)}
        self._users = Counter(_objective(stage) for stage in queue)
        formed = groups(queue, settings.cohort)
        self._groups = {stage.id: group for group in formed for stage in group}

    def work_through(self, pending: list[Stage]) -> list[Stage]:
        """Runs what can be run; returns the stages that another process holds, and those taught by them."""
        held: list[Stage] = []
        left = {stage.id: stage for stage in pending}
        while left:
            first = next(iter(left.values()))
            group = [left.pop(stage.id) for stage in self._groups[first.id] if stage.id in left]
            if any_process(bool(self.asked)):
                raise Interrupted(f"stopped before {first.name}; everything is saved, run the same command to go on.")
            waiting = self._run(group)
            held += waiting
            for stage in group:
                if not any(stage is other for other in waiting):
                    self._forget(_objective(stage))
        return held

    def _forget(self, objective: Objective) -> None:
        """Drops the programs of an objective after the last stage that has it."""
        self._users[objective] -= 1
        if self._users[objective] <= 0:
            programs.forget_programs(objective)

    def _run(self, group: Sequence[Stage]) -> list[Stage]:
        """Runs those of a cohort that can be run; returns the stages that have neither a result nor a failure."""
        finished, failures = self.outcome
        waiting, ready = [], []
        for stage in group:
            failed = next((parent for parent in stage.parents if parent.id in failures), None)
            if stage.id in failures:
                continue
            if failed is not None:
                kind = "the stage that it is as soft as" if failed is stage.as_soft_as else "its teacher"
                failures[stage.id] = f"{kind}, {failed.name!r}, failed"
            elif any(parent.id not in finished for parent in stage.parents):
                waiting.append(stage)
            else:
                ready.append(stage)
        if not ready:
            return waiting
        places = [self._positions[stage.id] for stage in ready]
        outcomes = run_cohort(
            ready, self.settings, self.reporter, self.asked, places, len(self._positions), self.holders
        )
        for stage in ready:
            outcome = outcomes[stage.id]
            if isinstance(outcome, Held):
                waiting.append(stage)
            elif isinstance(outcome, Diverged):
                failures[stage.id] = str(outcome)
            else:
                finished[stage.id] = outcome
        return waiting


def _objective(stage: Stage) -> Objective:
    """What the compiled programs of a stage are remembered by."""
    return parts(stage.recipe, stages.dataset(stage.recipe.data)).objective


def _wait(asked: Mapping[str, int], seconds: float) -> None:
    """So many seconds, or fewer once a signal comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asked:
        time.sleep(min(0.1, seconds))

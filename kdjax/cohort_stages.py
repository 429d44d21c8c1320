"""Stages on their way from whatever is on disk to results: one alone, or a cohort whose students share every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from kdjax import checkpoints, claim, console, results, signals
from kdjax.cohort import Cohort, Diverged, Progress, refuse_different
from kdjax.errors import Held, Refused
from kdjax.grouping import shared
from kdjax.processes import any_process, on_primary
from kdjax.results import Result
from kdjax.settings import Interrupted, Settings
from kdjax.stage_run import StageRun
from kdjax.stages import Stage

Outcome = Result | Diverged | Held

SETTLED = 2.0
"""Seconds within which a process has locked all members of a cohort once it has locked one."""


class Holder(NamedTuple):
    """Who holds a stage, in a sentence too, and when it was first seen to, by `time.monotonic`."""

    who: str
    sentence: str
    since: float


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


def run_cohort(
    group: Sequence[Stage],
    settings: Settings,
    reporter: console.Reporter,
    asked: signals.Asked | None = None,
    places: Sequence[int] = (),
    total: int = 0,
    holders: dict[str, Holder] | None = None,
) -> dict[str, Outcome]:
    """Stages that share every step, or one: reused where a manifest verifies, resumed where they were begun, else
    trained, and each evaluated; the outcomes by id.

    Members go on together that were trained together, from the newest step of which all of them have a checkpoint;
    those without any begin together. So a member that was begun alone ends alone, and after a kill the same command
    computes the same bits. A member that diverges has its `Diverged` as outcome, and the others go on without it.

    Args:
      places: the number of each stage among `total`, for the reporter.
      holders: by id of the stages that were seen held before; new ones are added. Who holds a member may be about to
        take all of them: they are left for later, `Held`, until one process has held the member for `SETTLED` seconds.
        Then the others go on without that member.

    Raises:
      Refused: members that differ in what is `shared`; a directory that belongs to another recipe, or cannot be
        written.
      Interrupted: a signal came; the states are saved.
    """
    refuse_different([shared(stage) for stage in group] if len(group) > 1 else [], [s.name for s in group])
    asked = asked if asked is not None else signals.Asked()
    holders = {} if holders is None else holders
    workdir, outcomes = Path(settings.workdir), dict[str, Outcome]()
    numbers = dict(zip((stage.id for stage in group), places or range(1, len(group) + 1), strict=True))
    total = total or len(group)
    missing = []
    for stage in group:
        if (result := reused(stage, workdir, reporter, numbers[stage.id], total)) is not None:
            outcomes[stage.id] = result
        elif stage.place is not None:
            directory = stage.directory(workdir)
            raise Refused(
                f"{directory} is not finished, or was changed since the command began; finish that run first."
            )
        else:
            missing.append(stage)
    with contextlib.ExitStack() as locks:
        confirms = dict[str, Callable[[], None]]()
        for stage in missing:
            try:
                confirms[stage.id] = locks.enter_context(claim.locked(stage.directory(workdir)))
            except Held as error:
                outcomes[stage.id] = error
                if not _settled(holders, stage, error):
                    return {**{each.id: error for each in missing}, **outcomes}
        begun: list[StageRun] = []
        for stage in missing:
            if stage.id not in confirms:
                continue
            if (result := _finished(stage, workdir)) is not None:
                outcomes[stage.id] = result
            else:
                beside = begun[0] if begun else None
                begun.append(StageRun(stage, settings, reporter, confirms[stage.id], beside))
        for members, step in together(begun):
            position = min(numbers[member.stage.id] for member in members)
            try:
                outcomes |= finish(members, step, reporter, asked, position, total)
            except Held as error:  # a directory was taken over while this process did not move
                outcomes |= {member.stage.id: error for member in members}
                for member in members:
                    _settled(holders, member.stage, error)
    return outcomes


def _settled(holders: dict[str, Holder], stage: Stage, error: Held) -> bool:
    """Notes who holds a stage; whether that process has held it for a while, by the clock of process 0."""
    seen = holders.get(stage.id)
    if seen is None or seen.who != error.holder:
        holders[stage.id] = seen = Holder(error.holder, str(error), time.monotonic())
    return on_primary(lambda: time.monotonic() - seen.since >= SETTLED)


def _finished(stage: Stage, workdir: Path) -> Result | None:
    """Under its lock: the result of a stage that whoever held it until now may have finished; None where it is to be
    computed, once its directory is marked as its own."""
    directory = stage.directory(workdir)
    if on_primary(lambda: _done(stage, directory)):
        return results.read(stage, workdir)
    on_primary(lambda: claim.write_owner(stage, directory))
    return None


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
    outcome = run_cohort([stage], settings, reporter, asked, [position], total)[stage.id]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def together(members: Sequence[StageRun]) -> list[tuple[list[StageRun], int | None]]:
    """The members in those groups that go on together, each with the step to go on from: -1 begins anew, None is the
    newest.

    Of a step a checkpoint names the stages that computed it. They go on from it together where all of them that are
    here have it; so a kill between two saves of one step takes all of them back to the step before, and whoever had
    diverged by then is not waited for.
    """
    if len(members) <= 1:
        return [([*members], None)] if members else []
    saved = {member.stage.id: member.saved() for member in members}
    pending = {member.stage.id: member for member in members}
    formed: list[tuple[list[StageRun], int | None]] = []
    for step in sorted({step for steps in saved.values() for step in steps}, reverse=True):
        for stage in [*pending]:
            ids = saved[stage].get(step)
            here = [other for other in pending if ids is not None and other in ids]
            if stage in here and all(saved[other].get(step) == ids for other in here):
                formed.append(([pending.pop(other) for other in here], step))
    if pending:
        formed.append(([*pending.values()], -1))
    return formed


def finish(
    members: Sequence[StageRun],
    step: int | None,
    reporter: console.Reporter,
    asked: signals.Asked,
    position: int = 1,
    total: int = 1,
) -> dict[str, Outcome]:
    """The outcomes by id, after all epochs that are left.

    Args:
      step: as `together` returns it.

    Raises:
      Interrupted: a signal came; every state is saved.
    """
    began, settings = time.monotonic(), members[0].settings
    first, epochs = members[0].stage, members[0].stage.recipe.epochs
    name = first.name if len(members) == 1 else f"{len(members)} in one step: {_names(members)}"
    reporter.stage(name, position, total, epochs)
    restored = [None if step == -1 else member.restored(step) for member in members]
    if any(one is None for one in restored):
        restored = [None] * len(members)
    ids = [member.stage.id for member in members]
    states = [member.begin(one, ids) for member, one in zip(members, restored, strict=True)]
    # Several processes agree on a stop only where all of them ask, at the end of a window.
    alone = jax.process_count() == 1
    failed: dict[str, Outcome] = {}
    with contextlib.ExitStack() as writing:
        for member, state in zip(members, states, strict=True):
            writing.enter_context(member.writing(int(state.step)))
        with asked.later():
            for progress in Cohort([member.trainer for member in members]).epochs(
                states,
                every=settings.checkpoint_steps,
                asked=lambda: alone and bool(asked),
                evaluate=True,
            ):
                _leave_out(members, progress, failed, reporter)
                going = [(m, p) for m, p in zip(members, progress, strict=True) if isinstance(p, Progress)]
                _record(going, reporter, any_process(bool(asked)))
        ended = {m.stage.id: m.end(began) for m in members if m.stage.id not in failed}
    return {**failed, **ended}


def _leave_out(
    members: Sequence[StageRun],
    progress: Sequence[Progress | Diverged],
    failed: dict[str, Outcome],
    reporter: console.Reporter,
) -> None:
    """Notes and tells who has diverged since; the others' checkpoints are from now on of a cohort without them."""
    before = len(failed)
    for member, outcome in zip(members, progress, strict=True):
        if isinstance(outcome, Diverged) and member.stage.id not in failed:
            failed[member.stage.id] = outcome
            reporter.message(f"{member.stage.name}: {outcome}")
    if len(failed) > before and len(failed) < len(members):
        going = [(m, p) for m, p in zip(members, progress, strict=True) if isinstance(p, Progress)]
        reporter.message(
            f"{len(going)} others of its cohort go on without it; their numbers stay the same to rounding."
        )
        for member, one in going:
            member.note_session(one.step, [m.stage.id for m, _ in going])


def _record(going: Sequence[tuple[StageRun, Progress]], reporter: console.Reporter, stop: bool) -> None:
    """Logs and saves what is due of each, tells the epoch, and stops here if a signal asked for it."""
    for member, progress in going:
        member.record(progress, save=stop)
    if not going:
        return
    members, progress = [member for member, _ in going], going[0][1]
    if progress.ended:
        lines = [member.lines[-1] for member in members]
        loss = float(np.mean([line["train"]["loss"] for line in lines]))
        scores = [line["calibration"] for line in lines]
        text = " ".join(
            f"{label} {_range(s[key] for s in scores)}" for label, key in (("top-1", "top1"), ("ECE", "ece"))
        )
        reporter.epoch(progress.epoch, loss, text)
    if stop and progress.step < members[0].task.total_steps:
        raise Interrupted(
            f"{_names(members)}: stopped at step {progress.step} and saved; run the same command to go on."
        )


def _names(members: Iterable[StageRun]) -> str:
    return ", ".join(member.stage.name for member in members)


def _range(values: Iterable[float]) -> str:
    texts = [f"{value:.1%}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"

"""The trainer: one loop for every stage, with its checkpoints, signals, logs and evaluation (floor 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import checkpoints, claim, console, metrics, posthoc, provenance, stages, step, teachers
from kdjax.errors import Refused, within
from kdjax.processes import any_process, on_primary
from kdjax.recipes import Parts
from kdjax.stages import Stage
from kdjax.step import State
from kdjax.trainer import Diverged, Trainer, abstract, gather, refuse_divergence, task
from kdjax.types import PyTree

EXIT_REFUSED, EXIT_INTERNAL, EXIT_IO, EXIT_INTERRUPTED = 2, 70, 74, 75


class Interrupted(RuntimeError):
    """A signal asked for a stop and everything is saved: exit code 75, the same command resumes."""


@dataclasses.dataclass(frozen=True)
class Run:
    """How a stage is run; none of it changes a number.

    Attributes:
      workdir: holds one directory per stage.
      checkpoint_epochs: save every so many epochs.
      checkpoint_steps: save also every so many steps; 0 means only at epochs.
      keep: checkpoints kept per stage.
      devices: how many; 0 means all.
      steps_per_call: optimizer steps scanned per compiled call; 0 chooses 1 on CPU, where gradient convolutions in a
        loop fall to a slow kernel, and up to 16 elsewhere.
      eval_batch_size: examples per prediction call.
    """

    workdir: str = "runs"
    checkpoint_epochs: int = 10
    checkpoint_steps: int = 0
    keep: int = 2
    devices: int = 0
    steps_per_call: int = 0
    eval_batch_size: int = 500

    def check(self) -> Run:
        """Returns itself if every number is in range.

        Raises:
          Refused: naming the field.
        """
        for name in ("checkpoint_epochs", "keep", "eval_batch_size"):
            within(f"run.{name}", getattr(self, name), 1)
        for name in ("checkpoint_steps", "devices", "steps_per_call"):
            within(f"run.{name}", getattr(self, name), 0)
        return self


class Result(NamedTuple):
    """What a finished stage left behind, read from its files.

    Attributes:
      metrics: split name -> metric name -> value (fractions, nats), of the selected epoch.
    """

    stage: Stage
    directory: Path
    metrics: Mapping[str, Mapping[str, float]]
    epoch: int
    reused: bool

    def logits(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(logits [N, K], labels [N]) of "calibration" or "test"."""
        with np.load(self.directory / "logits" / f"{split}.npz", allow_pickle=False) as file:
            return file["logits"], file["label"]


def teacher_of(stage: Stage, workdir: Path) -> teachers.Teacher | None:
    """The finished parent of a stage as a teacher, post-hoc calibrated on the calibration split if the recipe says so.

    Raises:
      Refused: if the parent is not finished, or its files no longer verify.
    """
    if stage.teacher is None or stage.recipe.distill is None:
        return None
    directory = stage.teacher.directory(workdir)
    problems = checkpoints.verify_manifest(directory, stage.teacher.owner)
    if problems:
        raise Refused(
            f"the teacher of {stage.name!r} in {directory} is not finished or not intact ({problems[0]}); run it first."
        )
    pieces, variables = selected(stage.teacher, workdir)
    teacher = teachers.frozen(pieces.model, variables)
    if stage.recipe.distill.posthoc:
        pair = posthoc.POSTHOC[stage.recipe.distill.posthoc]
        with np.load(directory / "logits" / "calibration.npz", allow_pickle=False) as file:
            teacher = teachers.calibrated(teacher, pair.apply, pair.fit(file["logits"], file["label"]))
    return teacher


def selected(stage: Stage, workdir: Path) -> tuple[Parts, PyTree]:
    """(pure functions, variables) of a finished stage at its selected epoch."""
    own = stages.dataset(stage.recipe.data)
    made = task(stage.recipe, own)
    store = _store(stage, workdir, "selected", keep=1)
    restored = store.restore(abstract(made, step.mesh()).variables)
    if restored is None:
        raise Refused(f"{stage.directory(workdir)} holds no selected checkpoint that verifies; run the stage again.")
    return made.parts, restored.tree


def _store(stage: Stage, workdir: Path, part: str, keep: int) -> checkpoints.Checkpoints:
    """The stage's checkpoints in its subdirectory `part`, which nobody else's are taken for."""
    return checkpoints.Checkpoints(stage.directory(workdir) / part, keep=keep, owner={**stage.owner, "part": part})


def run_all(targets: Iterable[Stage], run: Run, reporter: console.Reporter | None = None) -> dict[str, Result]:
    """Runs every stage and its ancestors that are not done, parents first; returns results by id.

    Whatever can be refused is refused before anything compiles: a student that cannot be trained must not be found out
    after its teacher has been.

    Raises:
      Refused, Diverged, Interrupted, OSError: see `run_stage`.
    """
    reporter = reporter or console.Silent()
    run.check()
    queue = stages.order(targets)
    for stage in queue:
        stages.check(stage)
        step.check_batch(stage.recipe.batch_size, step.mesh(run.devices))
    for stage in queue:
        if not (stage.directory(Path(run.workdir)) / checkpoints.MANIFEST).exists():
            stages.rehearse(stage)
    results = {}
    with _signals() as asked:
        for position, stage in enumerate(queue, 1):
            if any_process(bool(asked)):
                raise Interrupted(f"stopped before {stage.name}; everything is saved, run the same command to go on.")
            results[stage.id] = run_stage(stage, run, reporter, asked, position, len(queue))
    return results


def run_stage(
    stage: Stage,
    run: Run,
    reporter: console.Reporter,
    asked: Mapping[str, int] | None = None,
    position: int = 1,
    total: int = 1,
) -> Result:
    """One stage: reused if its manifest verifies, resumed if it was begun, trained otherwise.

    Raises:
      Refused: the directory belongs to another recipe, is in use, or cannot be written.
      Diverged: a term was not finite; nothing after the last good checkpoint is kept.
      Interrupted: a signal came; the state is saved.
    """
    asked = asked if asked is not None else {}
    workdir = Path(run.workdir)
    directory = stage.directory(workdir)
    if on_primary(lambda: not checkpoints.verify_manifest(directory, stage.owner)):
        reporter.stage(stage.name, position, total, stage.recipe.epochs, note=f"done before, reused ({stage.id})")
        return read_result(stage, workdir)
    with claim.locked(directory):
        # Under the lock: whoever held it until now may have finished the stage, or still be listing its files.
        if on_primary(lambda: not checkpoints.verify_manifest(directory, stage.owner)):
            return read_result(stage, workdir)
        on_primary(lambda: claim.own(stage, directory))
        return _Run(stage, run, reporter, asked).finish(position, total)


def read_result(stage: Stage, workdir: Path, reused: bool = True) -> Result:
    """The result of a finished stage, from its files.

    Metrics are functions of the stored logits: those in `result.json` are read if the same code made them, and measured
    again if the metrics have changed since, so that one table never mixes two definitions.
    """
    directory = stage.directory(workdir)
    stored = checkpoints.read_json(directory / "result.json")
    result = Result(stage, directory, stored["metrics"], stored["epoch"], reused)
    if stored["ruler"] == _ruler():
        return result
    return result._replace(metrics=_measure(stage, workdir, {s: result.logits(s) for s in ("calibration", "test")}))


@functools.cache
def _ruler() -> str:
    """SHA-256 over the sources of what measures."""
    rooms = [Path(room.__file__ or "").parent for room in (metrics, posthoc)]
    return hashlib.sha256(b"".join(p.read_bytes() for room in rooms for p in sorted(room.glob("*.py")))).hexdigest()


def _measure(
    stage: Stage, workdir: Path, found: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Every metric of (logits, labels) by split; on the test split also what a temperature fitted on the calibration
    split leaves, and how closely a student follows its teacher."""
    scores = {split: metrics.evaluate(*pair) for split, pair in found.items()}
    scores["test"] |= posthoc.refitted(*found["calibration"], *found["test"])
    if stage.teacher is not None:
        theirs = read_result(stage.teacher, workdir).logits("test")[0]
        if theirs.shape == found["test"][0].shape:
            scores["test"] |= metrics.teacher_fidelity(found["test"][0], theirs)
    return scores


@contextlib.contextmanager
def _signals() -> Iterator[dict[str, int]]:
    """SIGTERM or Ctrl-C asks for a stop after the current step; the second one ends the process at once."""
    asked: dict[str, int] = {}

    def handle(number: int, frame: Any) -> None:
        if asked:
            os._exit(128 + number)
        asked["signal"] = number

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: the caller keeps its own handlers
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """One stage on its way from whatever is on disk to a manifest."""

    def __init__(self, stage: Stage, run: Run, reporter: console.Reporter, asked: Mapping[str, int]):
        self.stage, self.run, self.reporter, self.asked = stage, run, reporter, asked
        self.workdir = Path(run.workdir)
        self.directory = stage.directory(self.workdir)
        self.task = task(stage.recipe, stages.dataset(stage.recipe.data), teacher_of(stage, self.workdir))
        self.trainer = Trainer(
            self.task,
            devices=run.devices,
            steps_per_call=run.steps_per_call,
            eval_batch_size=run.eval_batch_size,
        )
        self.store = _store(stage, self.workdir, "checkpoints", keep=run.keep)
        # As many improvements stay as epochs since the oldest state kept: whichever is resumed from finds its best.
        self.best = _store(stage, self.workdir, "selected", keep=run.keep * run.checkpoint_epochs + 1)
        self.lines: list[dict[str, Any]] = []
        self.window: dict[str, list[float]] = {}

    def finish(self, position: int, total: int) -> Result:
        recipe, began = self.stage.recipe, time.monotonic()
        self.reporter.stage(self.stage.name, position, total, recipe.epochs)
        state = self._resume()
        last = recipe.epochs * self.task.steps_per_epoch
        while int(state.step) < last:
            state = self._epoch(state)
        self._evaluate(began)
        self.best.prune(1)
        on_primary(lambda: checkpoints.write_manifest(self.directory, self.stage.owner) and None)
        return read_result(self.stage, self.workdir, reused=False)

    def _resume(self) -> State:
        restored = self.store.restore(self.trainer.abstract())
        for message in restored.skipped if restored is not None else ():
            self.reporter.message(message)
        if restored is not None:
            self.lines, self.window = restored.extra["lines"], restored.extra["window"]
            if problem := self._lost():
                self.reporter.message(f"{problem}; the stage begins anew.")
                restored, self.lines, self.window = None, [], {}
        at = -1 if restored is None else restored.step
        self.store.rewind(at)
        self.best.rewind(at)
        on_primary(self._write_lines)
        if restored is None:
            return self.trainer.init()
        self.reporter.message(f"{self.stage.name}: resumed at step {at}")
        return restored.tree

    def _selected(self) -> int | None:
        """The step whose variables are the stage's outcome so far; the last epoch's are known only at the end."""
        if self.stage.recipe.select == "best":
            return max(self.lines, key=lambda line: line["calibration"]["top1"])["step"] if self.lines else None
        return self.lines[-1]["step"] if len(self.lines) == self.stage.recipe.epochs else None

    def _lost(self) -> str | None:
        """What is wrong with the variables selected so far, which cannot be computed from a later state."""
        at = self._selected()
        problems = on_primary(lambda: self.best.problems(at)) if at is not None else []
        return f"checkpoint {self.best.directory / str(at)} is damaged: {problems[0]}" if problems else None

    def _epoch(self, state: State) -> State:
        """From wherever in the epoch the state is to the epoch's end, or to a saved stop if a signal asks for one."""
        per_epoch, every = self.task.steps_per_epoch, self.run.checkpoint_steps
        at = int(state.step)
        end = (at // per_epoch + 1) * per_epoch
        stop = False
        while at < end and not stop:
            due = min(end, (at // every + 1) * every) if every else end
            state, at = self._steps(state, at, due)
            stop = any_process(bool(self.asked))
            if at < end and (stop or (every and at % every == 0)):
                self._save(state, at)
        if at == end:
            state = self._close_epoch(state, at, save=stop)
        if stop and at < self.stage.recipe.epochs * per_epoch:
            raise Interrupted(f"{self.stage.name}: stopped at step {at} and saved; run the same command to go on.")
        return state

    def _steps(self, state: State, at: int, stop: int) -> tuple[State, int]:
        collected, before = [], at
        for state, logs in self.trainer.steps(state, stop=stop):
            collected.append(logs)
            at += len(logs["loss"])
            # Several processes agree on a stop only where all of them ask, at the end of this window.
            if self.asked and jax.process_count() == 1:
                break
        logs = gather(collected)
        refuse_divergence(logs, before, self.stage.name, self.task.parts.schedule)
        for name, values in logs.items():
            self.window.setdefault(name, []).extend(float(v) for v in values)
        return state, at

    def _close_epoch(self, state: State, at: int, save: bool) -> State:
        split = self.task.dataset.calibration
        logits = self.trainer.predict(state.variables, split)
        if not np.isfinite(logits).all():
            # The last step's loss was taken before its update: what that update broke shows here first.
            raise Diverged(
                f"{self.stage.name}: logits of the calibration split are not finite after step {at}; the last "
                "checkpoint is kept. Lower recipe optimizer.lr, or set optimizer.clip_norm."
            )
        state = self.trainer.refresh(state, logits, split.label)
        scores = metrics.evaluate(logits, split.label)
        epoch = at // self.task.steps_per_epoch
        train = {name: float(np.mean(values)) for name, values in sorted(self.window.items())}
        rate = float(self.task.parts.schedule(at - 1))
        line = {"epoch": epoch, "step": at, "lr": rate, "train": train, "calibration": scores}
        self.lines.append(line)
        if self._selected() == at:
            self.best.save(at, step.to_host(state.variables))
        self.window = {}
        on_primary(self._write_lines)
        save |= epoch % self.run.checkpoint_epochs == 0 or epoch == self.stage.recipe.epochs
        if save or (self.run.checkpoint_steps and at % self.run.checkpoint_steps == 0):
            self._save(state, at)
        text = f"top-1 {scores['top1']:.1%} ECE {scores['ece']:.1%}"
        self.reporter.epoch(epoch, train["loss"], text)
        return state

    def _save(self, state: State, at: int) -> None:
        self.store.save(at, state, extra={"window": self.window, "lines": self.lines})

    def _write_lines(self) -> None:
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.lines)
        checkpoints.write_text(self.directory / "metrics.jsonl", text)

    def _evaluate(self, began: float) -> None:
        """Logits of the selected epoch on the calibration and, for the first and only time, the test split."""
        restored = self.best.restore(self.trainer.abstract().variables, step=self._selected())
        assert restored is not None
        logits = {
            name: self.trainer.predict(restored.tree, getattr(self.task.dataset, name))
            for name in ("calibration", "test")
        }
        on_primary(lambda: self._write_results(logits, restored.step // self.task.steps_per_epoch, began))

    def _write_results(self, logits: Mapping[str, np.ndarray], epoch: int, began: float) -> None:
        (self.directory / "logits").mkdir(exist_ok=True)
        pairs = {}
        for name, found in logits.items():
            split = getattr(self.task.dataset, name)
            stored = io.BytesIO()
            np.savez(stored, logits=found, label=split.label, index=split.index)
            checkpoints.write_bytes(self.directory / "logits" / f"{name}.npz", stored.getvalue())
            pairs[name] = (found, split.label)
        scores = _measure(self.stage, self.workdir, pairs)
        result = {"epoch": epoch, "metrics": scores, "ruler": _ruler()}
        checkpoints.write_json(self.directory / "result.json", result)
        checkpoints.write_json(self.directory / "environment.json", provenance.environment(time.monotonic() - began))

"""The trainer: one loop for every stage, with its checkpoints, signals, logs and evaluation (floor 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import checkpoints, console, metrics, posthoc, provenance, stages, step, teachers
from kdjax.errors import Refused
from kdjax.processes import any_process, is_primary, on_primary
from kdjax.recipes import Parts
from kdjax.stages import Stage
from kdjax.step import State
from kdjax.trainer import Trainer, abstract, gather, refuse_divergence, task
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
      steps_per_call: optimiser steps scanned per compiled call; 0 chooses 1 on CPU, where gradient convolutions in a
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
    problems = checkpoints.verify_manifest(directory)
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
    store = checkpoints.Checkpoints(stage.directory(workdir) / "selected", keep=1)
    restored = store.restore(abstract(made, step.mesh()).variables)
    store.close()
    if restored is None:
        raise Refused(f"{stage.directory(workdir)} holds no selected checkpoint that verifies; run the stage again.")
    return made.parts, restored.tree


def run_all(targets: Iterable[Stage], run: Run, reporter: console.Reporter | None = None) -> dict[str, Result]:
    """Runs every stage and its ancestors that are not done, parents first; returns results by id.

    Raises:
      Refused, Diverged, Interrupted, OSError: see `run_stage`.
    """
    reporter = reporter or console.Silent()
    queue = stages.order(targets)
    for stage in queue:
        stages.check(stage)
        step.check_batch(stage.recipe.batch_size, step.mesh(run.devices))
    results = {}
    with _signals() as asked:
        for position, stage in enumerate(queue, 1):
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
    if on_primary(lambda: not checkpoints.verify_manifest(directory)):
        reporter.stage(stage.name, position, total, stage.recipe.epochs, note=f"done before, reused ({stage.id})")
        return read_result(stage, workdir)
    on_primary(lambda: _own(stage, directory))
    with checkpoints.Lock(directory) if is_primary() else contextlib.nullcontext():
        return _Run(stage, run, reporter, asked).finish(position, total)


def read_result(stage: Stage, workdir: Path, reused: bool = True) -> Result:
    """The result of a finished stage, from its files."""
    directory = stage.directory(workdir)
    stored = checkpoints.read_json(directory / "result.json")
    return Result(stage, directory, stored["metrics"], stored["epoch"], reused)


def _own(stage: Stage, directory: Path) -> None:
    """Makes the directory this stage's, or refuses it."""
    recipe = json.loads(stage.recipe.canonical())
    parents = [stage.teacher.id] if stage.teacher is not None else []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / "recipe.json").exists():
            found = checkpoints.read_json(directory / "recipe.json")
            if found != recipe:
                keys = ", ".join(sorted(_differences(found, recipe)))
                raise Refused(
                    f"{directory} belongs to another recipe (it differs in {keys}); choose another --workdir, or "
                    "delete that directory."
                )
        checkpoints.write_json(directory / "parents.json", parents)
        checkpoints.write_json(directory / "recipe.json", recipe)
    except OSError as error:
        raise Refused(f"{directory} cannot be written ({error.strerror}); choose another --workdir.") from error


def _differences(a: Any, b: Any, path: str = "") -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return set().union(*(_differences(a.get(k), b.get(k), f"{path}.{k}".lstrip(".")) for k in {*a, *b}), set())
    return set() if a == b else {path or "everything"}


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
        self.store = checkpoints.Checkpoints(self.directory / "checkpoints", keep=run.keep)
        # Between two saves of the state every improvement stays, so that whichever save is resumed from finds its best.
        self.best = checkpoints.Checkpoints(self.directory / "selected", keep=run.checkpoint_epochs + 1)
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
        self.store.close()
        self.best.prune(1)
        self.best.close()
        on_primary(lambda: checkpoints.write_manifest(self.directory) and None)
        return read_result(self.stage, self.workdir, reused=False)

    def _resume(self) -> State:
        restored = self.store.restore(self.trainer.abstract())
        if restored is None:
            self.best.rewind(-1)
            on_primary(self._write_lines)
            return self.trainer.init()
        for message in restored.skipped:
            self.reporter.message(message)
        self.store.rewind(restored.step)
        self.best.rewind(restored.step)
        self.window = restored.extra["window"]
        path = self.directory / "metrics.jsonl"
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # a torn last line: what follows the checkpoint is computed again anyway
                break
            if line["step"] <= restored.step:
                self.lines.append(line)
        on_primary(self._write_lines)
        self.reporter.message(f"{self.stage.name}: resumed at step {restored.step}")
        return restored.tree

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
        state = self.trainer.refresh(state, logits, split.label)
        scores = metrics.evaluate(logits, split.label)
        epoch = at // self.task.steps_per_epoch
        train = {name: float(np.mean(values)) for name, values in sorted(self.window.items())}
        history = [line["calibration"]["top1"] for line in self.lines]
        rate = float(self.task.parts.schedule(at - 1))
        line = {"epoch": epoch, "step": at, "lr": rate, "train": train, "calibration": scores}
        if self.stage.recipe.select == "last" or not history or scores["top1"] > max(history):
            self.best.save(at, step.to_host(state.variables))
        self.lines.append(line)
        self.window = {}
        on_primary(self._write_lines)
        save |= epoch % self.run.checkpoint_epochs == 0 or epoch == self.stage.recipe.epochs
        if save or (self.run.checkpoint_steps and at % self.run.checkpoint_steps == 0):
            self._save(state, at)
        text = f"top-1 {scores['top1']:.1%} ECE {scores['ece']:.1%}"
        self.reporter.epoch(epoch, train["loss"], text)
        return state

    def _save(self, state: State, at: int) -> None:
        self.store.save(at, state, extra={"window": self.window})

    def _write_lines(self) -> None:
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.lines)
        checkpoints.write_text(self.directory / "metrics.jsonl", text)

    def _evaluate(self, began: float) -> None:
        """Logits of the selected epoch on the calibration and, for the first and only time, the test split."""
        restored = self.best.restore(self.trainer.abstract().variables)
        if restored is None:
            raise OSError(f"{self.directory / 'selected'} holds no checkpoint that verifies; delete it and run again.")
        logits = {
            name: self.trainer.predict(restored.tree, getattr(self.task.dataset, name))
            for name in ("calibration", "test")
        }
        on_primary(lambda: self._write_results(logits, restored.step // self.task.steps_per_epoch, began))

    def _write_results(self, logits: Mapping[str, np.ndarray], epoch: int, began: float) -> None:
        scores, splits = {}, self.task.dataset
        (self.directory / "logits").mkdir(exist_ok=True)
        for name, found in logits.items():
            split = getattr(splits, name)
            np.savez(self.directory / "logits" / f"{name}.npz", logits=found, label=split.label, index=split.index)
            scores[name] = metrics.evaluate(found, split.label)
        scores["test"] |= posthoc.refitted(
            logits["calibration"], splits.calibration.label, logits["test"], splits.test.label
        )
        scores["test"] |= self._fidelity(logits["test"])
        checkpoints.write_json(self.directory / "result.json", {"epoch": epoch, "metrics": scores})
        checkpoints.write_json(self.directory / "environment.json", provenance.environment(time.monotonic() - began))

    def _fidelity(self, logits: np.ndarray) -> dict[str, float]:
        """How closely a student follows its teacher on the test split, from the teacher's own stored logits."""
        if self.stage.teacher is None:
            return {}
        theirs = read_result(self.stage.teacher, self.workdir).logits("test")[0]
        return metrics.teacher_fidelity(logits, theirs) if theirs.shape == logits.shape else {}

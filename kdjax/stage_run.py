"""One stage on its way from whatever is on disk to a manifest: checkpoints, logs and evaluation around the trainer."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax import checkpoints, console, data, metrics, predictor, provenance, results, stages, writers
from kdjax.layout import to_host
from kdjax.processes import on_primary
from kdjax.results import Result
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.step import State
from kdjax.tasks import Task, task
from kdjax.trainer import Progress, Trainer


class StageRun:
    """What is on disk of one stage while it trains: `restored`, begun, recorded and ended by `kdjax.cohort_stages`,
    alone or side by side with the other members of a cohort.

    Args:
      confirm: raises Held where the stage's directory is no longer this run's; called before what is written counts.
      beside: another member of its cohort, whose teacher, and data on the device, it takes.
    """

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        reporter: console.Reporter,
        confirm: Callable[[], None] = lambda: None,
        beside: StageRun | None = None,
    ):
        self.stage, self.settings, self.reporter = stage, settings, reporter
        self.confirm = confirm
        self.workdir = Path(settings.workdir)
        self.directory = stage.directory(self.workdir)
        here = None if beside is None else beside.task
        teacher = results.teacher_of(stage, self.workdir, settings.devices) if here is None else here.given
        start = results.start_of(stage, self.workdir)
        self.task: Task = task(stage.recipe, stages.dataset(stage.recipe.data), teacher, start=start)
        self.trainer: Trainer = Trainer(
            self.task,
            devices=settings.devices,
            steps_per_call=settings.steps_per_call,
            eval_batch_size=settings.eval_batch_size,
            feed=settings.feed,
            readers=settings.readers,
            beside=None if beside is None else beside.trainer,
        )
        self.store = results.checkpoints_of(stage, self.workdir, "checkpoints", keep=settings.keep)
        # Keep `selected` back to the oldest resumable state: whichever is resumed then has its best epoch on disk.
        most = settings.keep * settings.checkpoint_epochs + 1
        self.best = results.checkpoints_of(stage, self.workdir, "selected", keep=most)
        self.lines: list[dict[str, Any]] = []
        self.window: dict[str, list[float]] = {}
        self.sessions: list[dict[str, Any]] = []

    def saved(self) -> dict[int, list[str]]:
        """Step -> ids of the stages that were trained in one step with this one, itself included, of each checkpoint
        that verifies, the newest first.

        Raises:
          Damaged: there are checkpoints and none verifies.
        """
        verified: dict[str, list[str]] = on_primary(self._saved)
        if not verified:
            self.store.restore(self.trainer.abstract())  # says what is wrong, if anything is there
        return {int(step): ids for step, ids in verified.items()}

    def _saved(self) -> dict[str, list[str]]:
        verified = {}
        for step in reversed(self.store.steps()):
            if problems := self.store.problems(step):
                self.reporter.message(f"checkpoint {self.store.directory / str(step)} is damaged: {problems[0]}.")
                continue
            extra = self.store.extra(step)
            if self._unreadable(extra) is None:
                verified[str(step)] = self._cohort()
        return verified

    def _cohort(self) -> list[str]:
        """Ids of the stages that the last session trained in one step."""
        return self.sessions[-1].get("cohort", [self.stage.id]) if self.sessions else [self.stage.id]

    def restored(self, step: int | None = None) -> checkpoints.Restored | None:
        """The newest state that verifies, or that of a step, with its log; None where there is none to go on from."""
        restored = self.store.restore(self.trainer.abstract(), step=step)
        for message in restored.skipped if restored is not None else ():
            self.reporter.message(message)
        if restored is not None:
            problem = self._unreadable(restored.extra) or self._lost_selection()
            if problem:
                self.reporter.message(f"{problem}; the stage begins anew.")
                return None
        return restored

    def begin(self, restored: checkpoints.Restored | None, cohort: Sequence[str]) -> State:
        """The state to go on from, the one at step 0 without any; what was written later is dropped.

        Args:
          restored: what `restored` returned, or None.
          cohort: ids of the stages that are trained in one step with this one, itself included.
        """
        if restored is None:
            self.lines, self.window, self.sessions = [], {}, []
        at = -1 if restored is None else restored.step
        left = restored is not None and restored.step < self.task.total_steps
        if left and len(before := self._cohort()) != len(cohort):
            self.reporter.message(
                f"{self.stage.name}: its last session trained {len(before)} stages in one step, and this one trains "
                f"{len(cohort)}; its numbers stay the same to rounding."
            )
        self.note_session(max(at, 0), cohort)
        self.store.rewind(at)
        self.best.rewind(at)
        on_primary(self._write_lines)
        state = self.trainer.init() if restored is None else restored.tree
        if restored is not None:
            self.reporter.message(f"{self.stage.name}: resumed at step {at}")
        if not self.task.epochs:
            self.best.save(0, to_host(state.variables))
        return state

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Within it the numbers of every epoch go to `run.writer` too, from that step on."""
        stage, kind = self.stage, self.settings.writer
        recipe = stage.recipe.resolved()
        with writers.opened(kind, self.workdir, run=stage.id, title=stage.name, config=recipe, step=step) as writer:
            self.writer: writers.Writer = writer
            yield

    def end(self, began: float) -> Result:
        """Evaluates the selected epoch and closes the directory; the result.

        Args:
          began: when, by `time.monotonic`.
        """
        self._evaluate(began)
        self.best.prune(1)
        on_primary(lambda: checkpoints.write_manifest(self.directory, self.stage.owner) and None)
        return results.read(self.stage, self.workdir, reused=False)

    def _unreadable(self, extra: Mapping[str, Any]) -> str | None:
        """Takes the log and the sessions from a checkpoint; what is wrong with them if they are not what is saved."""
        try:
            lines = [{**line, "step": int(line["step"])} for line in extra["lines"]]
            selectable = [float(line["calibration"]["top1"]) for line in lines]
            window = {str(name): [float(v) for v in values] for name, values in extra["window"].items()}
            sessions = [{**s, "step": int(s["step"]), "numerics": {**s["numerics"]}} for s in extra["sessions"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"the log in the checkpoints of {self.store.directory} is not readable ({type(error).__name__})"
        assert len(selectable) == len(lines)
        self.lines, self.window, self.sessions = lines, window, sessions
        return None

    def note_session(self, at: int, cohort: Sequence[str]) -> None:
        """Notes the settings that change numbers, and the cohort; says so where the last session had other settings."""
        now = provenance.numerics()
        if self.sessions and (text := provenance.difference(self.sessions[-1]["numerics"], now)):
            self.reporter.message(f"{self.stage.name}: resumed under other settings: {text}; numbers may differ.")
        several = {"cohort": [*cohort]} if len(cohort) > 1 else {}
        self.sessions.append({"step": at, "numerics": now, **several})

    def _selected(self) -> int | None:
        """The step whose variables are the stage's outcome so far; the last epoch's are known only at the end."""
        if not self.stage.recipe.epochs:
            return 0
        if self.stage.recipe.select == "best":
            return max(self.lines, key=lambda line: line["calibration"]["top1"])["step"] if self.lines else None
        return self.lines[-1]["step"] if len(self.lines) == self.stage.recipe.epochs else None

    def _lost_selection(self) -> str | None:
        """What is wrong with the variables selected so far, which cannot be computed from a later state."""
        at = self._selected()
        problems = on_primary(lambda: self.best.problems(at)) if at is not None else []
        return f"checkpoint {self.best.directory / str(at)} is damaged: {problems[0]}" if problems else None

    def record(self, progress: Progress, save: bool = False) -> None:
        """Logs these steps, and saves the state if that is due or asked for."""
        for name, values in progress.logs.items():
            self.window.setdefault(name, []).extend(float(v) for v in values)
        if progress.ended:
            self._close_epoch(progress)
        if save or self._due(progress):
            self.confirm()
            self.store.save(progress.step, progress.state, extra=self._extra())

    def _extra(self) -> dict[str, Any]:
        return {"window": self.window, "lines": self.lines, "sessions": self.sessions}

    def _due(self, progress: Progress) -> bool:
        """Whether a checkpoint is due after these steps."""
        settings = self.settings
        if settings.checkpoint_steps and progress.step % settings.checkpoint_steps == 0:
            return True
        last = progress.epoch == self.stage.recipe.epochs
        return progress.ended and (last or progress.epoch % settings.checkpoint_epochs == 0)

    def _close_epoch(self, progress: Progress) -> None:
        """Adds the epoch's line to the log, and keeps its variables if it is the best so far."""
        assert progress.calibration_logits is not None
        pair = data.existing_rows(progress.calibration_logits, self.task.dataset.calibration)
        scores = metrics.evaluate(*pair)
        train = {name: float(np.mean(values)) for name, values in sorted(self.window.items())}
        line = {"epoch": progress.epoch, "step": progress.step, "train": train, "calibration": scores}
        if self.task.parts.schedule is not None:
            line["lr"] = float(self.task.parts.schedule(progress.step - 1))
        self.lines.append(line)
        if self._selected() == progress.step:
            self.best.save(progress.step, to_host(progress.state.variables))
        self.window = {}
        on_primary(self._write_lines)
        self.writer.write(progress.step, {name: line[name] for name in ("train", "calibration", "lr") if name in line})

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
        self.confirm()
        on_primary(lambda: self._write_results(logits, restored.step // self.task.steps_per_epoch, began))

    def _write_results(self, logits: Mapping[str, np.ndarray], epoch: int, began: float) -> None:
        (self.directory / "logits").mkdir(exist_ok=True)
        pairs = {}
        for name, values in logits.items():
            split = getattr(self.task.dataset, name)
            pairs[name] = data.existing_rows(values, split)
            stored = io.BytesIO()
            np.savez(stored, logits=pairs[name][0], label=pairs[name][1], index=data.existing_index(split))
            checkpoints.write_bytes(self.directory / "logits" / f"{name}.npz", stored.getvalue())
        scores = results.measure(self.stage, self.workdir, pairs)
        result = {"epoch": epoch, "metrics": scores, "metrics_source": results.metrics_source_hash()}
        checkpoints.write_json(self.directory / "result.json", result)
        self.writer.write(self.task.total_steps, {"test": scores["test"]})
        described = predictor.describe(self.stage.recipe, self.task.dataset, scores["test"]["temperature"])
        checkpoints.write_json(self.directory / predictor.FILE, described)
        predictor.save_vocabulary(self.directory, self.task.dataset)
        environment = {**provenance.environment(time.monotonic() - began), "sessions": self.sessions}
        checkpoints.write_json(self.directory / "environment.json", environment)

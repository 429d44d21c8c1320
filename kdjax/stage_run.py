"""One stage on its way from whatever is on disk to a manifest: checkpoints, logs and evaluation around the trainer."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import checkpoints, console, data, metrics, predictor, provenance, results, stages, writers
from kdjax.layout import to_host
from kdjax.processes import any_process, on_primary
from kdjax.results import Result
from kdjax.settings import Interrupted, Settings
from kdjax.signals import Asked
from kdjax.stages import Stage
from kdjax.step import State
from kdjax.tasks import task
from kdjax.trainer import Progress, Trainer


class StageRun:
    """Trains one stage, from the newest checkpoint that verifies, and evaluates it once.

    Args:
      asked: not empty once a signal has asked for a stop.
      confirm: raises Held where the stage's directory is no longer this run's; called before what is written counts.
    """

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        reporter: console.Reporter,
        asked: Asked,
        confirm: Callable[[], None] = lambda: None,
    ):
        self.stage, self.settings, self.reporter, self.asked = stage, settings, reporter, asked
        self.confirm = confirm
        self.workdir = Path(settings.workdir)
        self.directory = stage.directory(self.workdir)
        teacher = results.teacher_of(stage, self.workdir, settings.devices)
        start = results.start_of(stage, self.workdir)
        self.task = task(stage.recipe, stages.dataset(stage.recipe.data), teacher, start=start)
        self.trainer = Trainer(
            self.task,
            devices=settings.devices,
            steps_per_call=settings.steps_per_call,
            eval_batch_size=settings.eval_batch_size,
            feed=settings.feed,
            readers=settings.readers,
        )
        self.store = results.checkpoints_of(stage, self.workdir, "checkpoints", keep=settings.keep)
        # Keep `selected` back to the oldest resumable state: whichever is resumed then has its best epoch on disk.
        most = settings.keep * settings.checkpoint_epochs + 1
        self.best = results.checkpoints_of(stage, self.workdir, "selected", keep=most)
        self.lines: list[dict[str, Any]] = []
        self.window: dict[str, list[float]] = {}
        self.sessions: list[dict[str, Any]] = []

    def finish(self, position: int, total: int) -> Result:
        """The result, after all epochs that are left.

        Raises:
          Diverged: a term was not finite; nothing after the last good checkpoint is kept.
          Interrupted: a signal came; the state is saved.
        """
        began = time.monotonic()
        self.reporter.stage(self.stage.name, position, total, self.stage.recipe.epochs)
        state = self._resume()
        if not self.task.epochs:
            self.best.save(0, to_host(state.variables))
        # Several processes agree on a stop only where all of them ask, at the end of a window.
        alone = jax.process_count() == 1
        with self._writing(int(state.step)) as self.writer:
            with self.asked.later():
                for progress in self.trainer.epochs(
                    state,
                    every=self.settings.checkpoint_steps,
                    asked=lambda: alone and bool(self.asked),
                    evaluate=True,
                ):
                    self._record(progress)
            self._evaluate(began)
        self.best.prune(1)
        on_primary(lambda: checkpoints.write_manifest(self.directory, self.stage.owner) and None)
        return results.read(self.stage, self.workdir, reused=False)

    def _writing(self, step: int) -> contextlib.AbstractContextManager[writers.Writer]:
        stage, kind = self.stage, self.settings.writer
        recipe = stage.recipe.resolved()
        return writers.opened(kind, self.workdir, run=stage.id, title=stage.name, config=recipe, step=step)

    def _resume(self) -> State:
        """The newest state that verifies, with its log; the state at step 0 if there is none."""
        restored = self.store.restore(self.trainer.abstract())
        for message in restored.skipped if restored is not None else ():
            self.reporter.message(message)
        if restored is not None:
            problem = self._unreadable(restored.extra) or self._lost_selection()
            if problem:
                self.reporter.message(f"{problem}; the stage begins anew.")
                restored, self.lines, self.window, self.sessions = None, [], {}, []
        at = -1 if restored is None else restored.step
        self._begin_session(max(at, 0))
        self.store.rewind(at)
        self.best.rewind(at)
        on_primary(self._write_lines)
        if restored is None:
            return self.trainer.init()
        self.reporter.message(f"{self.stage.name}: resumed at step {at}")
        return restored.tree

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

    def _begin_session(self, at: int) -> None:
        """Notes the settings that change numbers, and says so where the last session had others."""
        now = provenance.numerics()
        if self.sessions and (text := provenance.difference(self.sessions[-1]["numerics"], now)):
            self.reporter.message(f"{self.stage.name}: resumed under other settings: {text}; numbers may differ.")
        self.sessions.append({"step": at, "numerics": now})

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

    def _record(self, progress: Progress) -> None:
        """Logs and saves what is due, and stops here if a signal asked for it."""
        for name, values in progress.logs.items():
            self.window.setdefault(name, []).extend(float(v) for v in values)
        stop = any_process(bool(self.asked))
        if progress.ended:
            self._close_epoch(progress)
        if stop or self._due(progress):
            self.confirm()
            self.store.save(progress.step, progress.state, extra=self._extra())
        if stop and progress.step < self.task.total_steps:
            raise Interrupted(
                f"{self.stage.name}: stopped at step {progress.step} and saved; run the same command to go on."
            )

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
        text = f"top-1 {scores['top1']:.1%} ECE {scores['ece']:.1%}"
        self.reporter.epoch(progress.epoch, train["loss"], text)

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

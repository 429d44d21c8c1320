"""One of several workers on one machine: a process that `kdjax.workers` starts, and that ends with it.

It is given the stages as one line of JSON and runs all of them that nobody else holds, exactly as a command does. What
it has to tell goes out as lines of JSON; a failure that another worker met comes in as one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Hashable, Sequence
from typing import Any, TextIO

import jax

from kdjax import console, provenance, runs, signals, stage_text, stages
from kdjax.errors import Held, Refused
from kdjax.settings import EXIT_INTERNAL, EXIT_INTERRUPTED, Interrupted, Settings
from kdjax.stages import Stage

PAUSE = 0.2
"""Seconds between two looks at stages that other workers hold."""
_RAISED: dict[str, type[BaseException]] = {
    "Held": Held,
    "Refused": Refused,
    "Interrupted": Interrupted,
    "OSError": OSError,
    "MemoryError": MemoryError,
}


class Teller(console.Silent):
    """A reporter whose words are lines of JSON. What was done before is for the reader of the results to tell."""

    def __init__(self, out: TextIO):
        self._out, self._lock, self._reused = out, threading.Lock(), False

    def tell(self, event: str, **news: Any) -> None:
        with self._lock:
            self._out.write(json.dumps({"event": event, **news}) + "\n")
            self._out.flush()

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        self._reused = bool(note)
        if not note:
            self.tell("stage", name=name, position=position, total=total, epochs=epochs)

    def epoch(self, epoch: int, loss: float, text: str) -> None:
        self.tell("epoch", epoch=epoch, loss=loss, text=text)

    def message(self, text: str) -> None:
        if not self._reused:
            self.tell("message", text=text)

    def waiting(self, text: str) -> None:
        self.tell("waiting", text=text)


class Failures(dict[str, str]):
    """Stages that failed, by id: those of this worker are told, those of others are heard."""

    def __init__(self, teller: Teller):
        super().__init__()
        self._teller = teller

    def __setitem__(self, stage: str, sentence: str) -> None:
        super().__setitem__(stage, sentence)
        self._teller.tell("failed", stage=stage, sentence=sentence)

    def hear(self, stage: str, sentence: str) -> None:
        super().__setitem__(stage, sentence)


def later(queue: Sequence[Stage], worker: int, workers: int) -> set[str]:
    """Ids of the stages that a worker leaves to the others at first: workers begin with different programs, so that
    most are compiled once."""
    programs = {program: n for n, program in enumerate(dict.fromkeys(map(program_of, queue)))}
    return {stage.id for stage in queue if programs[program_of(stage)] % workers != worker}


def program_of(stage: Stage) -> Hashable:
    """What a stage's step is compiled from: of its teacher the network alone, since its variables are an argument."""
    teacher = stages.taught_by(stage)
    return stage.recipe.kind(), None if teacher is None else (teacher.model, teacher.model_options, teacher.precision)


def run(given: dict[str, Any], teller: Teller, failures: Failures) -> None:
    """Runs the stages that the first line names.

    Raises:
      Refused: the code or the data here are not those of the plan, or computed under other settings; as `run_stage`.
    """
    for module in given["imports"]:
        importlib.import_module(module)
    with signals.watched() as asked:
        here = provenance.numerics()
        if text := provenance.difference(given["numerics"], here, ("in the command", "in its worker")):
            raise Refused(f"a worker would compute under other settings ({text}); set them in the environment.")
        queue = stage_text.parse(given["stages"])
        others = later(queue, given["worker"], given["workers"])
        settings = Settings(**given["settings"]).check()
        runs.work(
            queue,
            settings,
            teller,
            asked,
            failures=failures,
            later=lambda stage: stage.id in others,
            waiting=teller.waiting,
            pause=PAUSE,
        )


def _listen(failures: Failures) -> None:
    """Hears of failures; ends the process where its parent is gone."""
    for line in sys.stdin.buffer:
        failures.hear(**json.loads(line))
    os._exit(EXIT_INTERRUPTED)


def main() -> None:
    """Ends the process: 0 when every stage has a result or a failure, else after telling what was raised."""
    teller = Teller(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # whatever else is printed must not mix with the lines
    console.steady()
    failures, code = Failures(teller), 0
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_listen, args=(failures,), daemon=True).start()
    try:
        run(given, teller, failures)
    except Exception as error:
        if not (kind := kind_of_error(error)):
            traceback.print_exc()
        teller.tell("raised", kind=kind, text=str(error))
        code = EXIT_INTERNAL
    sys.stderr.flush()
    os._exit(code)


def kind_of_error(error: BaseException) -> str:
    """What another process raises in its place, by name; "" for what nobody foresaw."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "MemoryError"
    return next((name for name, known in _RAISED.items() if isinstance(error, known)), "")


def raised(kind: str, text: str) -> BaseException:
    """What a worker raised, as its parent raises it."""
    return _RAISED.get(kind, RuntimeError)(text)

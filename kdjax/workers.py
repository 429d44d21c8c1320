"""Several local processes that share the stages of one command, each on processors of its own.

Stages of small networks keep little more than one processor busy, and many of them do not depend on each other. The
processes are the command's workers; it plans, tells what they tell, and reads the results, and computes nothing itself.
Who does what is settled by the locks that already let two people share a work directory (`kdjax.locks`).

No number depends on how many there are: every worker has as many threads, and compiles for as many, as the command
would alone. Only where the threads run is shared out, from outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdjax import console, provenance, results, runs, signals, stage_text, stages, worker
from kdjax.runs import Outcome
from kdjax.settings import Interrupted, Settings
from kdjax.stages import Stage

_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kdjax import worker; worker.main()"
_RESUME = "what is saved stays"


def run_all(
    targets: Iterable[Stage],
    settings: Settings,
    reporter: console.Reporter,
    workers: int,
    imports: Sequence[str] = (),
) -> Outcome:
    """As `kdjax.runs.run_all`, by so many processes.

    Args:
      imports: modules that register what the stages name.

    Raises:
      Refused, Interrupted, OSError, MemoryError: as one process, whichever worker met it; the others save and stop.
        Interrupted also where every worker was killed.
    """

    def compute(queue: Sequence[Stage], missing: Sequence[Stage], asked: signals.Asked) -> dict[str, str]:
        crew = _Crew(reporter, asked, min(workers, len(missing)))
        crew.run({"settings": dataclasses.asdict(settings), "imports": [*imports]}, queue)
        return crew.failures

    return by_others(targets, settings, reporter, compute)


def by_others(
    targets: Iterable[Stage],
    settings: Settings,
    reporter: console.Reporter,
    compute: Callable[[Sequence[Stage], Sequence[Stage], signals.Asked], dict[str, str]],
) -> Outcome:
    """The outcome of stages that other processes compute: this one refuses early, and reads the results.

    Args:
      compute: called with all stages, parents first, those of them that are missing, and the signals, which are only
        noted; returns the failures once every missing stage has a result or is among them.
    """
    runs.check_settings(settings)
    with signals.watched() as asked:
        queue = stages.order(targets)
        runs.refuse_early(queue, settings)
        workdir, outcome = Path(settings.workdir), Outcome({}, {})
        for position, stage in enumerate(queue, 1):
            result = runs.reused(stage, workdir, reporter, position, len(queue))
            if result is not None:
                outcome.results[stage.id] = result
        missing = [stage for stage in queue if stage.id not in outcome.results]
        if missing:
            with asked.later():
                outcome.failures.update(compute(queue, missing, asked))
        for stage in missing:
            if stage.id not in outcome.failures:
                outcome.results[stage.id] = results.read(stage, workdir, reused=False)
        return outcome


class _Worker:
    """One process and what is known of it.

    Attributes:
      waiting: what it waits for; "" while it computes, or starts.
    """

    def __init__(self, number: int, reporter: console.Reporter):
        self.number, self.reporter, self.waiting, self.explained = number, reporter, "", False
        self.since, self._line = time.monotonic(), b""
        # In another process group: Ctrl-C reaches the parent, which passes it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )

    def send(self, news: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, which is seen elsewhere
            self.process.stdin.write(json.dumps(news).encode() + b"\n")
            self.process.stdin.flush()

    def heard(self) -> list[dict[str, Any]] | None:
        """What it told since, or None if it has ended."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 65536)
        *lines, self._line = (self._line + data).split(b"\n")
        # What Python itself prints while it starts, as a user's own start file may, is no line of ours.
        return [json.loads(line) for line in lines if line.startswith(b'{"event"')] if data else None

    def close(self) -> None:
        """Ends it, if it has not ended, and gives its pipes back."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what it did not read
                pipe.close()  # type: ignore[union-attr]


class _Crew:
    """All workers of a command.

    Attributes:
      failures: a sentence by stage id, of those that diverged or whose teacher did.
    """

    def __init__(self, reporter: console.Reporter, asked: signals.Asked, count: int):
        self.reporter, self.asked, self.failures = reporter, asked, dict[str, str]()
        self.error: BaseException | None = None
        self.stopping = self.told = False
        self.workers = [_Worker(n, console.beside(reporter) if n else reporter) for n in range(count)]
        self.running = [*self.workers]
        reporter.message(f"{count} workers share the stages; no number depends on how many there are.")

    def run(self, given: dict[str, Any], queue: Sequence[Stage]) -> None:
        """Attends to all until they have ended.

        Raises:
          Interrupted: a signal came; or every worker was killed.
          whatever one of them raised.
        """
        shared = {**given, "numerics": provenance.numerics(), "stages": stage_text.plain(queue)}
        try:
            for one in self.workers:
                one.send({**shared, "worker": one.number, "workers": len(self.workers)})
            with selectors.DefaultSelector() as selector:
                for one in self.workers:
                    selector.register(one.process.stdout, selectors.EVENT_READ, one)  # type: ignore[arg-type]
                while selector.get_map():
                    for key, _ in selector.select(0.1):
                        if (events := key.data.heard()) is None:
                            selector.unregister(key.fileobj)
                            self._ended(key.data)
                        for event in events or ():
                            self._hear(key.data, **event)
                    if self.asked and not self.stopping:
                        self._stop()
                    self._tell_of_waiting()
        finally:
            for one in self.workers:
                one.close()
        if self.asked:
            raise Interrupted("every worker has saved what it computed; run the same command to go on.")
        if self.error is not None:
            raise self.error

    def _hear(self, one: _Worker, event: str, **news: Any) -> None:
        if event == "stage":
            one.waiting, self.told = "", False
            one.reporter.stage(*(news[name] for name in ("name", "position", "total", "epochs")))
            self._share_out()
        elif event == "epoch":
            one.reporter.epoch(*(news[name] for name in ("epoch", "loss", "text")))
        elif event == "message":
            self.reporter.message(news["text"])
        elif event == "waiting":
            one.waiting, one.since = news["text"], time.monotonic()
            self._share_out()
        elif event == "failed":
            self.failures.setdefault(news["stage"], news["sentence"])
            for other in self.running:
                if other is not one:
                    other.send(news)
        elif event == "raised":
            one.explained = True
            if not self.stopping:
                text = news["text"] if news["kind"] else f"worker {one.number + 1} ended with the error printed above"
                self.error = worker.raised(news["kind"], text)
                self._stop()

    def _ended(self, one: _Worker) -> None:
        code = one.process.wait()
        self.running.remove(one)
        if code == 0 or one.explained or self.stopping:
            return self._share_out()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        sentence = f"worker {one.number + 1} of {len(self.workers)} was ended {how} (was memory short?)"
        if self.running:
            self.reporter.message(f"{sentence}; the others go on with its stage.")
        else:
            self.error = Interrupted(f"{sentence}, and no other is left; {_RESUME}, run the same command to go on.")
        return self._share_out()

    def _stop(self) -> None:
        """Each saves its state and ends."""
        self.stopping = True
        for one in self.running:
            one.process.terminate()

    def _tell_of_waiting(self) -> None:
        """A worker waits for the others most of the time; where all do, somebody else has the stages."""
        now = time.monotonic()
        alike = self.running and all(one.waiting and now - one.since > runs.WAIT_SECONDS for one in self.running)
        if alike and not self.told:
            self.reporter.message(self.running[0].waiting)
            self.told = True

    def _share_out(self) -> None:
        """Gives each worker that computes its share of the processors, all of them to the last one."""
        if not hasattr(os, "sched_setaffinity"):
            return
        busy = [one for one in self.running if not one.waiting]
        for one, processors in zip(busy, shares(sorted(os.sched_getaffinity(0)), len(busy)), strict=True):
            for thread in _threads(one.process.pid):
                with contextlib.suppress(OSError):  # a thread that has ended
                    os.sched_setaffinity(thread, processors)


def _threads(process: int) -> list[int]:
    """Its threads but for the first, by whose processors XLA decides what it compiles for."""
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{process}/task") if name != str(process)]
    return []


def shares(processors: Sequence[int], workers: int) -> list[list[int]]:
    """The processors in as many parts as there are workers, neighbors together."""
    edges = [n * len(processors) // max(workers, 1) for n in range(workers + 1)]
    return [[*processors[low:high]] or [processors[low % len(processors)]] for low, high in itertools.pairwise(edges)]

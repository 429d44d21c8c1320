"""Several processes as one command: they meet, watch each other, and end together in one sentence.

A process that loses a peer in the middle of a collective waits for it, aborts, or dies inside a library, each time
differently. So each command is two processes: a watcher, which never computes, and the worker that it forks. Watchers
keep a connection to process 0's watcher and tell each other how their workers ended; when one is lost, the others stop
their own and say which one it was. What is saved stays, and the same command resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from kdjax import meeting
from kdjax.errors import Refused
from kdjax.meeting import Meeting

EXIT_INTERNAL, EXIT_INTERRUPTED = 70, 75
T = TypeVar("T")
PATIENCE = 60.0
"""Seconds to wait for a process that has not come, or that is no longer heard from."""
PING = 2.0
GRACE = 10.0
"""Seconds that a worker has to end by itself after another one ended with an error, which it may share."""
# What JAX and Gloo print in a worker that fails because another one is gone.
_ANOTHER = re.compile(r"another task died|distributed service detected|coordination service|gloo|closed by peer", re.I)
# How lines begin that a library's abort prints: its own log, a stack trace, Python's list of modules.
_NOISE = re.compile(
    r"^([EFIW]\d{4} |\*\*\* |\s+@ +0x|Fatal Python error|Current thread 0x|Thread 0x|  File \"|Extension modul)"
)


def join(how: str, *, patience: float = PATIENCE) -> None:
    """Makes this command one process of several, before JAX looks for devices; returns in the worker alone.

    Args:
      how: "auto" (Slurm, Open MPI, Kubernetes, TPU), or HOST:PORT,COUNT,INDEX. The port is the watchers'; JAX's own
        coordinator takes a free one beside it.
      patience: seconds to wait for a process that has not come, or is no longer heard from.

    Raises:
      Refused: `how` cannot be, the port is taken, or there is no cluster to be found.
      Lost: the others were not there in time.
    """
    if how == "auto":
        _fork(None)
        try:
            return jax.distributed.initialize(initialization_timeout=int(patience))
        except ValueError as error:
            raise Refused(
                "--distributed=auto found no cluster here; say --distributed=HOST:PORT,COUNT,INDEX."
            ) from error
    place = meeting.parse(how)
    if place.processes == 1:
        return None
    peers, coordinator = (meeting.gather if place.process == 0 else meeting.report)(place, patience)
    _fork(_Watch(place, peers, patience))
    for connection in peers.values():
        connection.close()
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    return jax.distributed.initialize(
        coordinator, num_processes=place.processes, process_id=place.process, initialization_timeout=int(patience)
    )


class _Watch:
    """The watcher's view: its worker, and the watchers it is connected to."""

    def __init__(self, place: Meeting, peers: dict[int, socket.socket], patience: float):
        self.place, self.peers, self.patience = place, peers, patience
        self.heard = dict.fromkeys(peers, time.monotonic())
        self.buffers = dict.fromkeys(peers, b"")
        self.finished: set[int] = set()
        self.told = 0.0

    def lost(self) -> str | None:
        """Looks once at every connection; how a process was lost, in words, or None."""
        now = time.monotonic()
        if now - self.told > PING:
            self.told = now
            self.tell({})
        ready = select.select([self.peers[i] for i in self.peers], [], [], 0.1)[0] if self.peers else []
        for index, connection in list(self.peers.items()):
            if connection in ready:
                self.heard[index] = now
                try:
                    data = connection.recv(65536)
                except OSError:
                    data = b""
                lines = (self.buffers[index] + data).split(b"\n")
                self.buffers[index] = lines.pop()
                for line in lines:
                    news = json.loads(line)
                    if "lost" in news:
                        return str(news["lost"])
                    if "done" in news:
                        self.finished.add(news["done"])
                if not data:
                    del self.peers[index]
                    if index not in self.finished:
                        return f"process {index} of {self.place.processes} is gone"
            elif now - self.heard[index] > self.patience:
                return f"process {index} of {self.place.processes} was not heard from for {self.patience:.0f} s"
        return None

    def tell(self, news: dict[str, Any]) -> None:
        for connection in self.peers.values():
            with contextlib.suppress(OSError):
                meeting.send(connection, news)


def _fork(watch: _Watch | None) -> None:
    """Returns in the worker; the watcher stays here until the worker or a peer has ended, and exits."""
    lifeline, kept = os.pipe()
    heard, said = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    worker = os.fork()
    if worker == 0:
        os.setpgid(0, 0)  # Ctrl-C reaches the watcher, which passes it on once
        os.dup2(said, 2)
        for handle in (kept, heard, said):
            os.close(handle)
        threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
        return
    os.close(lifeline)
    os.close(said)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: _signal(worker, number))
    held: list[str] = []
    relay = threading.Thread(target=_relay, args=(heard, held), daemon=True)
    relay.start()

    def last_words() -> list[str]:
        relay.join(1.0)
        return held

    code, sentence = _attend(worker, watch, last_words)
    relay.join(2.0)
    text = f"stopped: {sentence}\n" if sentence else "".join(held)
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
    os._exit(code)


def _attend(worker: int, watch: _Watch | None, last_words: Callable[[], list[str]]) -> tuple[int, str]:
    """(exit code, sentence or "") of this process: its worker's, or 75 when another process was lost."""
    name = "this process" if watch is None else f"process {watch.place.process} of {watch.place.processes}"
    resume = "what is saved stays, run the same command on all to go on."
    code, reason = None, None
    while code is None and reason is None:
        code = _ended(worker)
        if code is None:
            reason = _look(watch)
    if reason is None and code not in (0, EXIT_INTERRUPTED, -signal.SIGKILL):
        # A worker whose peer has died fails too, often before its watcher hears of the other. Where the worker's last
        # words name another one, that one's watcher speaks first.
        named = any(map(_ANOTHER.search, last_words()))
        reason = _wait(GRACE if named else 1.5, lambda: _look(watch))
    if code is None and reason is not None:
        if "exit code" in reason:  # this worker may have been refused the same thing, and says so better itself
            code = _wait(GRACE, lambda: _ended(worker))
        if code is None:
            _signal(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            code = -signal.SIGKILL
    assert code is not None
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if watch is not None:
        watch.tell({"lost": reason or f"{name} {how}"} if code or reason else {"done": watch.place.process})
    if reason is not None and (code < 0 or code == EXIT_INTERNAL):
        return EXIT_INTERRUPTED, f"{reason}; {resume}"
    return (EXIT_INTERRUPTED, f"{name} {how}; {resume}") if code < 0 else (code, "")


def _look(watch: _Watch | None) -> str | None:
    if watch is None:
        time.sleep(0.05)
        return None
    return watch.lost()


def _ended(worker: int) -> int | None:
    """The worker's exit code, negative for a signal; None while it runs. Not to be asked again once it is known."""
    ended, status = os.waitpid(worker, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _wait(seconds: float, ask: Callable[[], T | None]) -> T | None:
    """The first answer that is not None, within so many seconds."""
    end = time.monotonic() + seconds
    answer = ask()
    while answer is None and time.monotonic() < end:
        time.sleep(0.02)
        answer = ask()
    return answer


def _relay(handle: int, held: list[str]) -> None:
    """Passes the worker's error stream on, but holds back a library's log and whatever follows a traceback: it is shown
    at the end, if nothing better can be said."""
    with open(handle, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            if held or _NOISE.match(line) or line.startswith("Traceback"):
                held.append(line)
                del held[:-500]
            else:
                with contextlib.suppress(OSError):
                    sys.stderr.write(line)
                    sys.stderr.flush()


def _end_with(lifeline: int) -> None:
    """Ends the worker when its watcher is gone."""
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    os._exit(EXIT_INTERRUPTED)


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)

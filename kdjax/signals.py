"""What SIGTERM and Ctrl-C do while stages run."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from kdjax.settings import EXIT_INTERRUPTED, Interrupted

_SENTENCE = "stopped; what is saved stays, run the same command to go on."


PATIENCE = 60.0
"""Seconds that a step, or whatever else Python waits for, may take after a signal."""


class Asked(dict[str, int]):
    """Not empty once a signal has asked for a stop."""

    _later = False
    handled = 0
    """Signals that Python has acted upon; it cannot while it waits for a computation."""

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Within it a signal is only noted, so that the present step ends and is saved.

        Raises:
          Interrupted: on leaving, if a signal came and nobody acted on it.
        """
        self._later = True
        try:
            yield
        finally:
            self._later = False
        if self and not jax.distributed.is_initialized():
            raise Interrupted(_SENTENCE)

    def handle(self, number: int, frame: Any) -> None:
        """Raises Interrupted where a signal may end the work at once; the second signal ends the process.

        Everything on disk is whole at any moment. Several processes, which would leave each other in the middle of a
        collective, only note it and agree on a stop.
        """
        self.handled += 1
        if self:
            os._exit(128 + number)
        self["signal"] = number
        if not self._later and not jax.distributed.is_initialized():
            raise Interrupted(_SENTENCE)


def _heed(pipe: int, asked: Asked) -> None:
    """Ends the process where Python cannot: it acts on a signal between two of its own steps alone, and a computation
    that has lost its memory or its device may never end."""
    arrived, since = 0, 0.0
    while True:
        if select.select([pipe], [], [], 0.1 if arrived > asked.handled else None)[0]:
            number = os.read(pipe, 1)[0]
            if number == 0:
                return
            if number in (signal.SIGTERM, signal.SIGINT):
                arrived, since = arrived + 1, time.monotonic()
        waiting = arrived - asked.handled
        if waiting > 0 and time.monotonic() - since > (PATIENCE if waiting == 1 else 1.0):
            os.write(2, b"stopped: the present step did not end; what is saved stays, run the same command to go on.\n")
            os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _heeded(asked: Asked) -> Iterator[None]:
    """Runs `_heed` within, in a thread that the system tells of every signal."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    thread = threading.Thread(target=_heed, args=(reads, asked), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.set_blocking(writes, True)
        os.write(writes, b"\0")
        thread.join()
        os.close(reads)
        os.close(writes)


def _follows_an_interruption(error: BaseException) -> bool:
    """Whether an Interrupted was being handled when the error arose."""
    earlier = error.__context__
    while earlier is not None and not isinstance(earlier, Interrupted):
        earlier = earlier.__context__
    return earlier is not None


@contextlib.contextmanager
def watched() -> Iterator[Asked]:
    """Handles SIGTERM and SIGINT within; in a thread that may not, the caller keeps its own handlers."""
    asked, show, warn = Asked(), sys.unraisablehook, warnings.showwarning

    def again() -> None:
        """Sends the signal anew, a moment later and so outside of what ignored it."""
        with contextlib.suppress(KeyError):
            threading.Timer(0.01, os.kill, (os.getpid(), asked.pop("signal"))).start()

    def unraisable(ignored: Any) -> None:
        """Python ignores what is raised in a finalizer or a callback of the garbage collector."""
        if isinstance(ignored.exc_value, Interrupted):
            again()
        else:
            show(ignored)

    def warned(message: Warning | str, *given: Any, **named: Any) -> None:
        """JAX makes a warning of whatever is raised while it reads or writes its cache of compiled programs."""
        if asked and _SENTENCE in str(message):
            again()
        else:
            warn(message, *given, **named)

    try:
        before = {number: signal.signal(number, asked.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        yield asked
        return
    sys.unraisablehook, warnings.showwarning = unraisable, warned
    try:
        # While JAX looks for devices it turns whatever is raised into an error of its own.
        with asked.later():
            jax.devices()
        with _heeded(asked):
            yield asked
    except Exception as error:
        # JAX shortens the traceback of what is raised while it traces, and can fail in doing so.
        if not isinstance(error, Interrupted) and asked and _follows_an_interruption(error):
            raise Interrupted(_SENTENCE) from error
        raise
    finally:
        sys.unraisablehook, warnings.showwarning = show, warn
        for number, handler in before.items():
            signal.signal(number, handler)

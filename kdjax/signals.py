"""What SIGTERM and Ctrl-C do while stages run."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

from kdjax.settings import Interrupted

_SENTENCE = "stopped; what is saved stays, run the same command to go on."


class Asked(dict[str, int]):
    """Not empty once a signal has asked for a stop."""

    _later = False

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
        if self:
            os._exit(128 + number)
        self["signal"] = number
        if not self._later and not jax.distributed.is_initialized():
            raise Interrupted(_SENTENCE)


@contextlib.contextmanager
def watched() -> Iterator[Asked]:
    """Handles SIGTERM and SIGINT within; in a thread that may not, the caller keeps its own handlers."""
    asked, show = Asked(), sys.unraisablehook

    def again(ignored: Any) -> None:
        """Python ignores what is raised in a finalizer or a callback of the garbage collector: the signal is sent
        anew, a moment later and so outside of it."""
        if isinstance(ignored.exc_value, Interrupted) and asked:
            threading.Timer(0.01, os.kill, (os.getpid(), asked.pop("signal"))).start()
        else:
            show(ignored)

    try:
        before = {number: signal.signal(number, asked.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        yield asked
        return
    sys.unraisablehook = again
    try:
        # While JAX looks for devices it turns whatever is raised into an error of its own.
        with asked.later():
            jax.devices()
        yield asked
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)

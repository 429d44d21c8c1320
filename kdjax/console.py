"""Live progress: stage k of n, epoch, loss, time left; plain lines when nobody watches a terminal.

Names come from people and from files. They are shown literally: what would move a cursor, change a color or reverse the
writing appears as an escape, and nothing in a name is markup.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kdjax.errors import literal

_ASCII = {"±": "+-", "→": "->", "↑": "^", "↓": "v", "·": "*", "−": "-", "–": "-", "µ": "u", "…": "..."}


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """What a locale without the character prints: its usual spelling in ASCII, or its escape."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("unicode_escape").decode() for c in letters), error.end


codecs.register_error("kdjax", _spelled)


class _Steady:
    """A text stream that loses its reader without an error, as in `command | head -1`: the rest is written nowhere."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._nowhere()

    def _nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with contextlib.suppress(OSError):
            self._stream.flush()


def steady() -> None:
    """Makes stdout and stderr print every character in every locale, and outlive whoever reads them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _Steady):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="kdjax")
        setattr(sys, name, _Steady(stream))


class Reporter(Protocol):
    """What a run tells while it runs."""

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None: ...
    def epoch(self, epoch: int, loss: float, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Tells nothing: for library use and tests."""

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None: ...
    def epoch(self, epoch: int, loss: float, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class Plain:
    """One line a stage's start and about ten a stage, for logs and pipes."""

    def __init__(self) -> None:
        self._name, self._epochs, self._started, self._said = "", 1, 0.0, 0.0

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        self._name, self._epochs = literal(f"[{position}/{total}] {name}"), epochs
        self._started = self._said = time.monotonic()
        print(f"{self._name}: {note or f'{epochs} epochs'}", flush=True)

    def epoch(self, epoch: int, loss: float, text: str) -> None:
        now = time.monotonic()
        if epoch < self._epochs and now - self._said < 10 and epoch % max(1, self._epochs // 4):
            return
        self._said = now
        left = (now - self._started) / max(epoch, 1) * (self._epochs - epoch)
        print(f"{self._name}: epoch {epoch}/{self._epochs} loss {loss:.4f} {text} eta {left:.0f}s", flush=True)

    def message(self, text: str) -> None:
        print(literal(text), flush=True)

    def close(self) -> None: ...


class Live:
    """One bar per running stage on a terminal.

    Args:
      beside: the one of whose bars this one's is another; the terminal is given back when that one is closed.
    """

    _progress: Progress

    def __init__(self, beside: Live | None = None) -> None:
        self._task: int | None = None
        self._head, self._epochs = "", 1
        if beside is not None:
            self._progress = beside._progress
            return
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)  # type: ignore[arg-type]
        head = literal(f"{position}/{total} {name}")
        if note:
            self._print(f"{head}: {note}")
            self._task = None
            return
        self._head, self._epochs = head, epochs
        self._task = self._progress.add_task(head, total=epochs, text="compiling")

    def epoch(self, epoch: int, loss: float, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=epoch, text=f"loss {loss:.4f} {text}")  # type: ignore[arg-type]
            if epoch == self._epochs:
                self._print(f"{self._head}: loss {loss:.4f} {text}")

    def message(self, text: str) -> None:
        self._print(literal(text))

    def _print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, emoji=False)

    def close(self) -> None:
        self._progress.stop()


def reporter() -> Reporter:
    """`Live` on a terminal, else `Plain`."""
    return Live() if sys.stderr.isatty() else Plain()


def beside(reporter: Reporter) -> Reporter:
    """One more reporter on the same terminal or log, for stages that run at the same time."""
    if isinstance(reporter, Live):
        return Live(reporter)
    return Plain() if isinstance(reporter, Plain) else reporter

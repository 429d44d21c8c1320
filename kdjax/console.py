"""Live progress: stage k of n, epoch, loss, time left; plain lines when nobody watches a terminal (floor 5)."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


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
        self._name, self._epochs = f"[{position}/{total}] {name}", epochs
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
        print(text, flush=True)

    def close(self) -> None: ...


class Live:
    """One bar per running stage on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: int | None = None
        self._head, self._epochs = "", 1
        self._progress.start()

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)  # type: ignore[arg-type]
        head = f"[bold]{position}/{total}[/bold] {name}"
        if note:
            self._progress.console.print(f"{head}: {note}")
            self._task = None
            return
        self._head, self._epochs = head, epochs
        self._task = self._progress.add_task(head, total=epochs, text="compiling")

    def epoch(self, epoch: int, loss: float, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=epoch, text=f"loss {loss:.4f} {text}")  # type: ignore[arg-type]
            if epoch == self._epochs:
                self._progress.console.print(f"{self._head}: loss {loss:.4f} {text}")

    def message(self, text: str) -> None:
        self._progress.console.print(text)

    def close(self) -> None:
        self._progress.stop()


def reporter() -> Reporter:
    """`Live` on a terminal, else `Plain`."""
    return Live() if sys.stderr.isatty() else Plain()

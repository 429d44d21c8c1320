"""Two processes of one JAX program on this machine, and children with a clean environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """Ours, with one CPU device instead of the tests' two."""
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def slow(*values: Any) -> list[Any]:
    """Parameters of a sweep that `make test` leaves to `make test-all`; one of each kind stays quick."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def but_first(values: Sequence[Any]) -> list[Any]:
    """Parameters of which `make test` takes the first alone."""
    return [values[0], *slow(*values[1:])]


def both(arguments: Callable[[str, int], Sequence[str]], timeout: float = 240) -> list[list[str]]:
    """Runs `python *arguments(port, rank)` twice, rank 0 and 1, and returns the lines that each printed.

    A child that fails takes the other, which would wait for it forever, with it, and its errors are shown.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, *arguments(port, rank)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    end = time.monotonic() + timeout
    while any(c.poll() is None for c in children):
        if any(c.poll() for c in children) or time.monotonic() > end:
            time.sleep(1)  # the other's own message, if it has one
            for child in children:
                child.kill()
            break
        time.sleep(0.05)
    printed = [child.communicate() for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(err[-3000:] for _, err in printed)
    return [out.splitlines() for out, _ in printed]

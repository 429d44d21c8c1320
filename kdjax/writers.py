"""Curves for people who watch runs elsewhere: TensorBoard or Weights & Biases, beside `metrics.jsonl`.

Neither is imported unless it is asked for, and nothing reads back what is written here.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from kdjax.errors import Refused, one_of
from kdjax.processes import is_primary

_MODULES = {"tensorboard": ("tensorboardX", "SummaryWriter"), "wandb": ("wandb", "init")}
WRITERS = ("", *_MODULES)


class Writer(Protocol):
    """Where a stage's numbers go."""

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds numbers after `step` optimizer steps; nested mappings become names with slashes."""


def check(kind: str) -> str:
    """Returns the name of a writer that can be used here.

    Raises:
      Refused: an unknown name, or one whose library is not installed.
    """
    one_of("run.writer", kind, WRITERS)
    if kind:
        _library(kind)
    return kind


def _library(kind: str) -> ModuleType:
    name, attribute = _MODULES[kind]
    try:
        module = importlib.import_module(name)
        getattr(module, attribute)  # a folder of logs in the current directory is imported as an empty package
    except (ImportError, AttributeError) as error:
        raise Refused(
            f"run.writer is {kind!r} and {name} is not installed; type pip install 'kdjax[{kind}]'."
        ) from error
    return module


@contextlib.contextmanager
def opened(
    kind: str, workdir: str | Path, *, run: str, title: str, config: Mapping[str, Any], step: int
) -> Iterator[Writer]:
    """A writer for one stage, closed at the end; one that writes nothing in all processes but the first.

    Args:
      kind: of `WRITERS`.
      run: the stage's id: a run that is resumed goes on under the same one.
      title: the stage's name.
      config: the resolved recipe, for the table of runs.
      step: where the stage begins or goes on; what was written for later steps before a kill is void.
    """
    if not kind or not is_primary():
        yield _Nowhere()
        return
    writer = (_TensorBoard if kind == "tensorboard" else _WandB)(
        _library(kind), Path(workdir), run, title, config, step
    )
    try:
        yield writer
    finally:
        writer.close()


class _Nowhere:
    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        pass


class _TensorBoard:
    """Event files in WORKDIR/tensorboard/TITLE-RUN."""

    def __init__(self, library: Any, workdir: Path, run: str, title: str, config: Mapping[str, Any], step: int):
        folder = workdir / "tensorboard" / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', title)[:80]}-{run}"
        # What a killed run wrote for later steps than its last checkpoint is hidden.
        self._writer = library.SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in flat(scalars):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of the project that WANDB_PROJECT names, "kdjax" unless set; WANDB_MODE=offline keeps it in WORKDIR."""

    def __init__(self, library: Any, workdir: Path, run: str, title: str, config: Mapping[str, Any], step: int):
        settings: dict[str, Any] = {"id": run, "name": title, "config": dict(config), "dir": str(workdir)}
        self._run = library.init(project=_project(), resume="allow", **settings)
        # Steps of their own: a run that resumes from an earlier checkpoint writes some of them again.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._run.log({**dict(flat(scalars)), "step": step})

    def close(self) -> None:
        self._run.finish()


def _project() -> str | None:
    """None leaves the choice to W&B's own settings."""
    return None if os.environ.get("WANDB_PROJECT") else "kdjax"


def flat(scalars: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name with slashes, number) of every finite number."""
    for name, value in scalars.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)

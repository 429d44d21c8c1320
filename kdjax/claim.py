"""Whose a stage's directory is: one recipe's for good, and one run's at a time (floor 5)."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdjax import checkpoints, files, locks
from kdjax.errors import Refused
from kdjax.processes import is_primary, on_primary
from kdjax.stages import Stage


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the directory and holds its lock, by process 0 for all; a refusal reaches every process.

    Raises:
      Refused: it cannot be written, or another run holds it.
    """
    on_primary(lambda: _writable(directory))
    lock = checkpoints.Lock(directory)
    on_primary(lambda: lock.__enter__() and None)
    try:
        yield
    finally:
        if is_primary():
            lock.__exit__(None, None, None)


def _writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Tried rather than asked: os.access goes by the real user and knows nothing of a share's own rules.
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise Refused(f"{directory} cannot be written ({error.strerror}); choose another --workdir.") from error


def own(stage: Stage, directory: Path) -> None:
    """Writes into the directory whose it is.

    Raises:
      Refused: it is another stage's or a newer kdjax's, or holds a symbolic link, through which files elsewhere would
        be written.
    """
    files.refuse_links(directory)
    recipe = json.loads(stage.recipe.canonical())
    try:
        found = checkpoints.read_json(directory / "recipe.json")
    except (FileNotFoundError, checkpoints.Damaged):  # a damaged one is written anew: the directory is named by the id
        found = recipe
    if found != recipe:
        keys = ", ".join(sorted(_differences(found, recipe)))
        raise Refused(
            f"{directory} belongs to another recipe (it differs in {keys}); choose another --workdir, or delete that "
            "directory."
        )
    files.refuse_foreign(directory, stage.owner)
    for folder in (directory, directory / "logits"):
        locks.sweep(folder, whoever=True)
    checkpoints.write_json(directory / "parents.json", [stage.teacher.id] if stage.teacher is not None else [])
    checkpoints.write_json(directory / "recipe.json", recipe)


def _differences(a: Any, b: Any, path: str = "") -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return set().union(*(_differences(a.get(k), b.get(k), f"{path}.{k}".lstrip(".")) for k in {*a, *b}), set())
    return set() if a == b else {path or "everything"}

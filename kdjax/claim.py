"""Whose a stage's directory is: one recipe's for good, and one run's at a time."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdjax import checkpoints, locks, manifests
from kdjax.errors import Held, Refused
from kdjax.processes import is_primary, on_primary
from kdjax.stages import Stage


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Callable[[], None]]:
    """Makes the directory and holds its lock, by process 0 for all; a refusal reaches every process.

    Yields a function to be called before anything is written: it raises Held where another run has taken the directory
    over, because this one's heartbeat had stopped (a suspended machine, a disk that was away).

    Raises:
      Refused: it cannot be written.
      Held: another run holds it.
    """
    on_primary(lambda: _writable(directory))
    lock = checkpoints.Lock(directory)
    on_primary(lambda: lock.__enter__() and None)

    def confirm() -> None:
        if not lock.held():
            raise Held(f"{directory} was taken over by another run, or its lock removed, while this one did not move.")

    try:
        yield lambda: on_primary(confirm)
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


def write_owner(stage: Stage, directory: Path) -> None:
    """Writes into the directory whose it is: the resolved recipe and the parents' ids.

    Raises:
      Refused: as `check_owner`; it is another stage's or a newer kdjax's, or holds a symbolic link, through which files
        elsewhere would be written.
    """
    manifests.refuse_links(directory)
    manifests.refuse_foreign(directory, stage.owner)
    _refuse_begun_by_another(stage, directory)
    check_owner(stage, directory)
    for folder in (directory, directory / "logits"):
        locks.sweep(folder, whoever=True)
    checkpoints.write_json(directory / "owner.json", stage.owner)
    checkpoints.write_json(directory / "parents.json", [parent.id for parent in stage.parents])
    checkpoints.write_json(directory / "recipe.json", stage.recipe.resolved())


def _refuse_begun_by_another(stage: Stage, directory: Path) -> None:
    """As `manifests.refuse_foreign`, for a stage that is not finished and so has no manifest yet."""
    try:
        owner = checkpoints.read_json(directory / "owner.json")
    except (FileNotFoundError, checkpoints.Damaged):
        return
    begun_for = owner.get("stage") if isinstance(owner, dict) else None
    if isinstance(begun_for, str) and begun_for != stage.id:
        raise Refused(
            f"{directory} is written for stage {begun_for}, and here is stage {stage.id}; move it back to where it "
            "belongs, or delete it to begin anew."
        )


def check_owner(stage: Stage, directory: Path) -> None:
    """Refuses a directory whose resolved recipe is not today's.

    Defaults are no part of an id, so a directory that was computed with another default has the same one.

    Raises:
      Refused: naming a field, its value then and now, and what to type to keep either.
    """
    try:
        stored = checkpoints.read_json(directory / "recipe.json")
    except (FileNotFoundError, checkpoints.Damaged):  # a damaged one is written anew: the directory is named by the id
        return
    today = stage.recipe.resolved()
    # A field that did not exist then was at its default.
    differences = [(name, *pair) for name, *pair in _differences(stored, today) if pair[0] is not _ABSENT]
    if differences:
        name, then, now = differences[0]
        more = f" (and {len(differences) - 1} more fields differ)" if len(differences) > 1 else ""
        raise Refused(
            f"{directory} was computed with {name} = {_shown(then)}, and today's value is {_shown(now)}{more}; set "
            f"recipe.{name} to {_shown(then)} to compute with the old value, or delete that directory, or choose "
            "another --workdir, to compute with today's."
        )


_ABSENT = object()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) of every leaf that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _differences(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{path}.{key}".lstrip("."))
    elif a != b:
        yield path or "recipe", a, b

"""Checkpoints whose every byte is checked and that name whose they are.

Orbax restores a flipped byte without a word, so each checkpoint carries our manifest, and nothing is restored that does
not verify or was written for another run. On disk a tree is nested plain dicts (a NamedTuple by its field names, a
tuple by its positions), so that no class of this package is part of the format.

    checkpoints/
      7/  manifest.json     owner, size and SHA-256 of every file, written last
          checkpoint.json   step, name -> (dtype, shape) of every array, the caller's extra
          state/            Orbax: OCDBT chunks and JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax import storage
from kdjax.errors import Refused
from kdjax.files import (
    FORMAT,
    TEMPORARY,
    Damaged,
    canonical,
    read_json,
    sync_directory,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)
from kdjax.locks import Lock, abandoned
from kdjax.manifests import MANIFEST, refuse_foreign, verify_manifest, write_manifest
from kdjax.processes import broadcast, on_primary
from kdjax.types import PyTree
from kdjax.variables import load_variables, named, nested, refuse_misfit, save_variables

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Checkpoints",
    "Damaged",
    "Lock",
    "Restored",
    "load_variables",
    "named",
    "nested",
    "read_json",
    "save_variables",
    "verify_manifest",
    "write_bytes",
    "write_json",
    "write_manifest",
    "write_text",
]


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns.

    Attributes:
      step: the step it was saved at.
      tree: arrays in the structure, dtypes and shardings of `like`, bit-equal to what was saved.
      extra: the JSON that was saved beside it.
      skipped: one sentence for each newer checkpoint that was passed over, naming the file and the step used instead.
    """

    step: int
    tree: PyTree
    extra: dict[str, Any]
    skipped: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run in one directory.

    Every process of a run calls the same methods; process 0 writes the manifest, and all restore the same step.

    Args:
      directory: made if missing. What a killed process of this host left half written is removed.
      keep: how many of the newest checkpoints stay after a save.
      owner: what the checkpoints belong to, as JSON; written into every manifest, and refused where it differs. Empty
        asks for nobody.

    Raises:
      Refused: here, and whenever checkpoints are read or dropped, if one is of another owner or a newer FORMAT.
    """

    def __init__(self, directory: Path, *, keep: int = 2, owner: Mapping[str, Any] = {}):
        if keep < 1:
            raise Refused(f"keep is {keep}; at least 1 checkpoint must stay.")
        self.directory = Path(os.path.abspath(directory))
        self.keep = keep
        self.owner = dict(owner)
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if TEMPORARY in path.name and abandoned(path.name):
                    _remove(path)
        self._refuse_foreign()

    def save(self, step: int, tree: PyTree, extra: Mapping[str, Any] = {}) -> None:
        """Saves a tree of arrays, whole or not at all, then drops what `keep` does not keep.

        Checkpoints of later steps are dropped too: a run that saves step 7 has left whatever once came after it.

        Raises:
          Refused: if `step` is there with other contents (equal contents: nothing happens; damaged: replaced) or for
            another owner, or a leaf is not an array.
          OSError: naming the directory, the room needed and the room left; earlier checkpoints are intact.
        """
        leaves = named(tree)
        final = self.directory / str(step)
        self._refuse_foreign()
        if self._agreed(self.problems(step)):
            self._write(step, final, leaves, extra)
        elif not self._same(final, tree, extra):
            raise Refused(
                f"{final} exists and holds other values; call rewind({step - 1}) first if the run goes on from there, "
                "or choose another directory."
            )
        self._drop({s for s in self._all() if s > step} | set(self.steps()[: -self.keep]))

    def steps(self) -> list[int]:
        """The steps that are complete (have a manifest), ascending; `restore` says whether they verify."""
        return [step for step in self._all() if (self.directory / str(step) / MANIFEST).is_file()]

    def problems(self, step: int) -> list[str]:
        """What is wrong with the checkpoint of a step, in words; `[]` means that it verifies and is this owner's."""
        return verify_manifest(self.directory / str(step), self._owner(step))

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON that was saved beside a step; for one that verifies."""
        return _described(self.directory / str(step))["extra"]

    def prune(self, keep: int) -> None:
        """Drops all but the newest `keep` checkpoints."""
        self._drop(set(self.steps()[:-keep]))
        _barrier(f"prune {keep}")

    def rewind(self, step: int) -> None:
        """Drops every checkpoint later than `step`, because the run goes on from there and may differ."""
        self._refuse_foreign()
        self._drop({s for s in self._all() if s > step})
        _barrier(f"rewind {step}")

    def restore(self, like: PyTree, *, step: int | None = None) -> Restored | None:
        """The newest checkpoint that verifies, or the one of `step`, or None if there is none at all.

        Args:
          like: a tree of arrays or `jax.ShapeDtypeStruct`s: structure, shapes, dtypes and target shardings (a leaf
            without one goes to the default device), on however many devices it was saved.

        Raises:
          Refused: if names, shapes or dtypes differ from `like` (another model, another number of training examples,
            an objective without its state), one of another owner or a newer FORMAT, or no such step. Falling back
            would not help.
          Damaged: if there are checkpoints and none verifies, or the one asked for does not.
        """
        there = self._agreed(self._all())
        if step is not None and step not in there:
            raise Refused(f"{self.directory} holds no checkpoint of step {step}; it has {there or 'none'}.")
        self._refuse_foreign()
        bad: list[str] = []
        for candidate in reversed(there if step is None else [step]):
            path = self.directory / str(candidate)
            problems = self._agreed(self.problems(candidate))
            if not problems:
                notes = tuple(f"{text}; falling back to step {candidate}." for text in bad)
                return self._load(path, like)._replace(skipped=notes)
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            bad.append(f"checkpoint {path} is damaged: {problems[0]}{more}")
        if bad:
            raise Damaged(
                f"{'; '.join(bad)}; no checkpoint is left to fall back to: delete {self.directory} to begin anew."
            )
        return None

    def _write(self, step: int, final: Path, leaves: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        needed = sum(leaf.nbytes for leaf in leaves.values())
        working = self.directory / broadcast(temporary_name(str(step)))
        try:
            if jax.process_index() == 0:
                _remove(working)
                working.mkdir(parents=True)
            _barrier(f"begin {step}")
            storage.save(working, leaves)
            if jax.process_index() == 0:
                shapes = {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}
                write_json(working / "checkpoint.json", {"step": step, "leaves": shapes, "extra": dict(extra)})
                write_manifest(working, self._owner(step))
                _remove(final)
                os.rename(working, final)
                sync_directory(self.directory)
        except OSError as error:
            _remove(working)
            raise OSError(self._no_room(step, needed, error)) from error
        except Exception:
            _remove(working)
            raise
        _barrier(f"end {step}")

    def _load(self, path: Path, like: PyTree) -> Restored:
        described = _described(path)
        wanted = {name: storage.abstract(leaf) for name, leaf in named(like).items()}
        refuse_misfit(path, described["leaves"], {name: (str(x.dtype), x.shape) for name, x in wanted.items()})
        leaves = list(storage.load(path, wanted).values())
        return Restored(described["step"], jax.tree.unflatten(jax.tree.structure(like), leaves), described["extra"])

    def _same(self, path: Path, tree: PyTree, extra: Mapping[str, Any]) -> bool:
        try:
            saved = self._load(path, tree)
        except Refused:
            return False
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(saved.tree), strict=True)
        equal = all(_bytes(a) == _bytes(b) for a, b in pairs)
        return equal and canonical(saved.extra) == canonical(dict(extra))

    def _all(self) -> list[int]:
        """Every step that has a directory, complete or not; temporary names are not numbers."""
        if not self.directory.is_dir():
            return []
        # Not "07" nor "٣", which int() reads as well.
        numbers = (p.name for p in self.directory.iterdir() if p.name.isdecimal() and p.name == str(int(p.name)))
        return sorted(int(name) for name in numbers if (self.directory / name).is_dir())

    def _drop(self, steps: set[int]) -> None:
        if jax.process_index() == 0:
            for step in sorted(steps):
                _remove(self.directory / str(step))

    def _owner(self, step: int) -> dict[str, Any]:
        return {**self.owner, "step": step} if self.owner else {}

    def _refuse_foreign(self) -> None:
        """On every process or on none: what process 0 raises reaches all."""

        def work() -> None:
            for step in self._all():
                refuse_foreign(self.directory / str(step), self._owner(step))

        on_primary(work)

    def _agreed(self, values: list[Any]) -> list[Any]:
        """The values of process 0, so that all processes restore the same step."""
        return json.loads(broadcast(json.dumps(values)))

    def _no_room(self, step: int, needed: int, error: Exception) -> str:
        have = self.steps()
        left = f"the checkpoint of step {have[-1]} is intact" if have else "there is no earlier one"
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        room = f"needs {needed / 2**20:.1f} MiB"
        with contextlib.suppress(OSError):
            room += f", {shutil.disk_usage(self.directory).free / 2**20:.1f} MiB free there"
        return f"the checkpoint of step {step} could not be written to {self.directory} ({room}): {reason}; {left}."


def newest(directory: Path, owner: Mapping[str, Any]) -> int:
    """The step of the newest checkpoint that is complete by the sizes of its files, 0 for none; touches nothing."""
    steps = sorted((int(p.name) for p in directory.iterdir() if p.name.isdecimal()), reverse=True)
    complete = (s for s in steps if not verify_manifest(directory / str(s), {**owner, "step": s}, contents=False))
    return next(complete, 0)


def _described(path: Path) -> dict[str, Any]:
    """A checkpoint's own account of itself.

    Raises:
      Damaged: if it is not of the form that `Checkpoints` writes, or of another step than its directory's name.
    """
    described = read_json(path / "checkpoint.json")
    try:
        leaves = {name: (str(dtype), tuple(map(int, shape))) for name, (dtype, shape) in described["leaves"].items()}
        step, extra = int(described["step"]), dict(described["extra"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Damaged(
            f"{path / 'checkpoint.json'} does not describe a checkpoint; delete {path} to do without it."
        ) from error
    if str(step) != path.name:
        raise Damaged(f"{path} holds the checkpoint of step {step}; rename it, or delete it to fall back.")
    return {"step": step, "leaves": leaves, "extra": extra}


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, jax.Array):
        return b"".join(np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards)
    return np.asarray(leaf).tobytes()


def _remove(path: Path) -> None:
    """Removes a directory; a checkpoint loses its name first, so that no half of one is ever found under it."""
    if not path.exists():
        return
    if TEMPORARY not in path.name:
        path = path.rename(path.with_name(temporary_name(f"{path.name}-{time.monotonic_ns()}")))
    shutil.rmtree(path, ignore_errors=True)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"kdjax checkpoint {name}")

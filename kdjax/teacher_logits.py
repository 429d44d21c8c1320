"""Logits of a teacher by epoch, kept in a work directory for every student that sees the same inputs.

    teacher_logits/<key>/about.json       what the key stands for
    teacher_logits/<key>/<epoch>/         logits.npy [N, K] and manifest.json

The key is a hash of all that the logits depend on, so that nothing has to be told apart or thrown away; the whole
folder may be deleted at any time, and what is missing or damaged is computed again.
"""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from kdjax import checkpoints, files, manifests, models, objectives, outputs, provenance, recipe_text, transforms
from kdjax.stages import Stage, dataset
from kdjax.teachers import Teacher, remembered_by_epoch

FOLDER = "teacher_logits"
_LOGITS = "logits.npy"


def depends_on(stage: Stage) -> dict[str, Any]:
    """Everything that a teacher's logits on the inputs of a student depend on, as JSON."""
    recipe, teacher = stage.recipe, stage.teacher
    assert teacher is not None and recipe.distill is not None
    methods = {recipe.method: recipe.options, recipe.distill.method: recipe.distill.options}
    brought = {name: options for name, options in methods.items() if objectives.METHODS[name].transform is not None}
    outside = {name: version for name, version in recipe_text.versions(recipe) if version}
    return {
        "teacher": teacher.id,
        "data": dataset(recipe.data).fingerprint,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
        "transform": recipe_text.plain(recipe.transform),
        "methods": recipe_text.plain(brought),
        "code": {"kdjax": _source_hash(), **outside},
        "dtype": str(outputs.dtype(recipe.teacher_outputs)),
        "numerics": provenance.numerics(),
    }


def key_of(stage: Stage) -> str:
    """The key of a student's teacher logits, 16 hex digits."""
    return _hash(depends_on(stage))[:16]


def by_epoch(stage: Stage, live: Teacher, workdir: Path) -> Teacher:
    """The stage's teacher with logits out of the work directory, where `live` computes those that are not there.

    Raises:
      Refused: while training, if a folder holds those of another key or of a newer FORMAT.
    """
    about = depends_on(stage)
    folder, owner = _folder(about, workdir)
    examples, dtype = dataset(stage.recipe.data), outputs.dtype(stage.recipe.teacher_outputs)
    shape = len(examples.train.label), examples.num_classes

    def read(epoch: int) -> np.ndarray | None:
        directory = folder / str(epoch)
        if checkpoints.verify_manifest(directory, {**owner, "epoch": epoch}):
            manifests.refuse_foreign(directory, {**owner, "epoch": epoch})
            return None
        logits = np.load(directory / _LOGITS, mmap_mode="r", allow_pickle=False)
        return logits if (logits.shape, logits.dtype) == (shape, dtype) else None

    def write(epoch: int, logits: np.ndarray) -> None:
        directory = folder / str(epoch)
        directory.mkdir(parents=True, exist_ok=True)
        manifests.refuse_links(directory)
        files.write_json(folder / "about.json", about)
        stored = io.BytesIO()
        np.save(stored, logits)
        checkpoints.write_bytes(directory / _LOGITS, stored.getvalue())
        checkpoints.write_manifest(directory, {**owner, "epoch": epoch})

    return remembered_by_epoch(live, *shape, read, write, dtype=dtype)


def epochs_kept(stage: Stage, workdir: Path) -> int:
    """How many of the stage's epochs are there already, by the sizes of their files."""
    folder, owner = _folder(depends_on(stage), workdir)
    return sum(
        not checkpoints.verify_manifest(folder / str(epoch), {**owner, "epoch": epoch}, contents=False)
        for epoch in range(stage.recipe.epochs)
    )


def _folder(about: dict[str, Any], workdir: Path) -> tuple[Path, dict[str, Any]]:
    """(where these logits are, what their manifests name beside the epoch)."""
    return Path(workdir) / FOLDER / _hash(about)[:16], {FOLDER: _hash(about)}


def _hash(about: dict[str, Any]) -> str:
    return hashlib.sha256(files.canonical(about).encode()).hexdigest()


@functools.cache
def _source_hash() -> str:
    """SHA-256 over the sources of what makes a teacher's logits out of raw inputs."""
    folders = [Path(package.__file__ or "").parent for package in (transforms, models)]
    beside = [Path(__file__).with_name(name) for name in ("prepare.py", "step.py", "teacher_pass.py")]
    paths = [*beside, *(path for folder in folders for path in sorted(folder.glob("*.py")))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()

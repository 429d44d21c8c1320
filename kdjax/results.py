"""What a finished stage left behind, and how it is measured."""

from __future__ import annotations

import functools
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax import checkpoints, metrics, posthoc, provenance, starts, targets, teachers
from kdjax.checkpoints import Damaged
from kdjax.errors import Refused
from kdjax.layout import mesh, to_host
from kdjax.parts import Parts, parts
from kdjax.stages import Stage, abstract_variables, dataset
from kdjax.tasks import Start
from kdjax.types import PyTree

Pair = tuple[np.ndarray, np.ndarray]


class Result(NamedTuple):
    """What a finished stage left behind, read from its files.

    Attributes:
      metrics: split name -> metric name -> value (fractions, nats), of the selected epoch.
    """

    stage: Stage
    directory: Path
    metrics: Mapping[str, Mapping[str, float]]
    epoch: int
    reused: bool

    def other_numerics(self) -> str:
        """In what the settings of this process differ from those under which the stage was computed, or ""."""
        now = provenance.numerics()
        return next(filter(None, (provenance.difference(then, now) for then in numerics(self.directory))), "")

    def logits(self, split: str) -> Pair:
        """(logits [N, K], labels [N]) of "calibration" or "test"."""
        return stored_logits(self.directory, split)


def numerics(directory: Path) -> list[dict[str, Any]]:
    """The settings that may change a number, of each session that computed a finished stage; see `kdjax.provenance`.

    Raises:
      Damaged: they are not there.
    """
    sessions = _stored(directory, "environment.json", "sessions", list)
    if not all(isinstance(session, dict) and isinstance(session.get("numerics"), dict) for session in sessions):
        raise Damaged(f"{directory / 'environment.json'} holds sessions without settings; delete {directory}.")
    return [session["numerics"] for session in sessions]


def stored_logits(directory: Path, split: str) -> Pair:
    """(logits [N, K], labels [N]) that a stage's directory holds for "calibration" or "test"."""
    path = directory / "logits" / f"{split}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            logits, labels = file["logits"], file["label"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} does not hold logits and labels; delete {directory} to compute them again.") from error
    if logits.dtype != np.float32 or labels.dtype.kind not in "iu" or logits.shape[:-1] != labels.shape:
        raise Damaged(
            f"{path} holds logits {logits.dtype}{list(logits.shape)} and labels {labels.dtype}{list(labels.shape)}; "
            f"expected one float32 row a label: delete {directory} to compute them again."
        )
    return logits, labels


def _stored(directory: Path, name: str, key: str, kind: type) -> Any:
    """A field of one of a finished stage's JSON files.

    Raises:
      Damaged: if it is not there or of another kind.
    """
    content = checkpoints.read_json(directory / name)
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise Damaged(
            f"{directory / name} holds no {key!r} as this kdjax writes it; delete {directory} to compute it again."
        )
    return content[key]


def read(stage: Stage, workdir: Path, reused: bool = True) -> Result:
    """The result of a finished stage, from its files.

    Metrics are functions of the stored logits. Where the code that measures has changed since they were stored, they
    are measured again, so that one table never mixes two definitions.
    """
    directory = stage.directory(workdir)
    scores, source, epoch = (
        _stored(directory, "result.json", key, kind)
        for key, kind in (("metrics", dict), ("metrics_source", str), ("epoch", int))
    )
    if source != metrics_source_hash():
        scores = measure(stage, workdir, {split: stored_logits(directory, split) for split in ("calibration", "test")})
    return Result(stage, directory, scores, epoch, reused)


@functools.cache
def metrics_source_hash() -> str:
    """SHA-256 over the sources of the code that measures."""
    folders = [Path(package.__file__ or "").parent for package in (metrics, posthoc)]
    sources = (path.read_bytes() for folder in folders for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()


def measure(stage: Stage, workdir: Path, pairs: Mapping[str, Pair]) -> dict[str, dict[str, float]]:
    """Every metric of (logits, labels) by split; on the test split also what a temperature fitted on the calibration
    split leaves, and how closely a student follows its teacher."""
    scores = {split: metrics.evaluate(*pair) for split, pair in pairs.items()}
    scores["test"] |= posthoc.refitted(*pairs["calibration"], *pairs["test"])
    if stage.teacher is not None:
        teacher_logits, _ = stored_logits(stage.teacher.directory(workdir), "test")
        if teacher_logits.shape == pairs["test"][0].shape:
            scores["test"] |= metrics.teacher_fidelity(pairs["test"][0], teacher_logits)
    return scores


def selected(stage: Stage, workdir: Path) -> tuple[Parts, PyTree]:
    """(pure functions, variables) of a finished stage at its selected epoch.

    Raises:
      Refused: there is no selected checkpoint that verifies.
    """
    pieces = parts(stage.recipe, dataset(stage.recipe.data))
    store = checkpoints_of(stage, workdir, "selected", keep=1)
    restored = store.restore(abstract_variables(stage.recipe, mesh()))
    if restored is None:
        raise Refused(f"{stage.directory(workdir)} holds no selected checkpoint that verifies; run the stage again.")
    return pieces, restored.tree


def checkpoints_of(stage: Stage, workdir: Path, part: str, keep: int) -> checkpoints.Checkpoints:
    """The stage's checkpoints in its subdirectory `part`, which nobody else's are taken for."""
    return checkpoints.Checkpoints(stage.directory(workdir) / part, keep=keep, owner={**stage.owner, "part": part})


def start_of(stage: Stage, workdir: Path) -> Start | None:
    """Reads the parameters that a stage takes over from its finished teacher; None where it takes none."""
    teacher = stage.teacher
    if teacher is None or stage.recipe.init != starts.TEACHER:
        return None

    def start() -> PyTree:
        _, variables = selected(teacher, workdir)
        classes = dataset(stage.recipe.data).num_classes
        return starts.of_teacher(stage.recipe, teacher.recipe, to_host(variables), classes)

    return start


def teacher_of(stage: Stage, workdir: Path) -> teachers.Teacher | None:
    """The finished parent of a stage as a teacher, post-hoc calibrated on the calibration split if the recipe says so.

    Raises:
      Refused: if the parent is not finished, or its files no longer verify.
    """
    if stage.teacher is None or stage.recipe.distill is None:
        return None
    for parent in stage.parents:
        directory = parent.directory(workdir)
        if problems := checkpoints.verify_manifest(directory, parent.owner):
            what = "teacher" if parent is stage.teacher else "parent"
            raise Refused(
                f"the {what} of {stage.name!r} in {directory} is not finished or not intact ({problems[0]}); run it "
                "first."
            )
    directory = stage.teacher.directory(workdir)
    pieces, variables = selected(stage.teacher, workdir)
    teacher = teachers.frozen(pieces.model, variables)
    if stage.recipe.distill.posthoc:
        pair = posthoc.POSTHOC[stage.recipe.distill.posthoc]
        teacher = teachers.calibrated(teacher, pair.apply, pair.fit(*stored_logits(directory, "calibration")))
    if stage.as_soft_as is not None:
        teacher = teachers.scaled(teacher, matching_temperature(stage, workdir))
    return teacher


def matching_temperature(stage: Stage, workdir: Path) -> float:
    """T > 0 at which the teacher's softmax(z/T), after its post-hoc calibrator, has on the calibration split the mean
    entropy of the stage that it is to be as soft as; T ends at a clamp where no temperature reaches it."""
    assert stage.teacher is not None and stage.as_soft_as is not None and stage.recipe.distill is not None
    logits, labels = stored_logits(stage.teacher.directory(workdir), "calibration")
    if stage.recipe.distill.posthoc:
        pair = posthoc.POSTHOC[stage.recipe.distill.posthoc]
        logits = np.asarray(pair.apply(pair.fit(logits, labels), jnp.asarray(logits)))
    other, _ = stored_logits(stage.as_soft_as.directory(workdir), "calibration")
    _, T = targets.match_entropy(jnp.asarray(logits), jnp.asarray(metrics.entropy(other), jnp.float32))
    return float(T)

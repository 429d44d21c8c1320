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

from kdjax import (
    checkpoints,
    data,
    metrics,
    outputs,
    posthoc,
    provenance,
    starts,
    step,
    targets,
    teacher_logits,
    teachers,
)
from kdjax.checkpoints import Damaged
from kdjax.errors import Refused
from kdjax.layout import mesh, place, replicated, to_host
from kdjax.parts import Parts, parts
from kdjax.recipes import Data
from kdjax.source_code import remembered
from kdjax.stages import Stage, abstract_variables, dataset, folds
from kdjax.tasks import Start
from kdjax.teacher_pass import narrowed
from kdjax.trainer import predict
from kdjax.types import PyTree, Split
from kdjax.variables import refuse_not_finite

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
    if not all(_is_scores(scores.get(split)) for split in ("calibration", "test")):
        raise Damaged(
            f"{directory / 'result.json'} holds no numbers as metrics; delete {directory} to compute it again."
        )
    if source != metrics_source_hash():
        scores = measure(stage, workdir, {split: stored_logits(directory, split) for split in ("calibration", "test")})
    return Result(stage, directory, scores, epoch, reused)


def _is_scores(value: Any) -> bool:
    """Whether this is a split's metrics: numbers by name."""
    return isinstance(value, dict) and all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in value.values()
    )


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
      Refused: there is no selected checkpoint that verifies, or it holds NaN.
    """
    pieces = parts(stage.recipe, dataset(stage.recipe.data))
    store = checkpoints_of(stage, workdir, "selected", keep=1)
    restored = store.restore(abstract_variables(stage.recipe, mesh()))
    if restored is None:
        raise Refused(f"{stage.directory(workdir)} holds no selected checkpoint that verifies; run the stage again.")
    refuse_not_finite(store.directory, restored.tree)
    return pieces, restored.tree


def checkpoints_of(stage: Stage, workdir: Path, part: str, keep: int) -> checkpoints.Checkpoints:
    """The stage's checkpoints in its subdirectory `part`, which nobody else's are taken for."""
    return checkpoints.Checkpoints(stage.directory(workdir) / part, keep=keep, owner={**stage.owner, "part": part})


def start_of(stage: Stage, workdir: Path) -> Start | None:
    """Reads the variables that a stage takes over from its finished teacher; None where it takes none."""
    teacher = stage.teacher
    if teacher is None or stage.recipe.init != starts.TEACHER:
        return None

    def start() -> PyTree:
        _, variables = selected(teacher, workdir)
        classes = dataset(stage.recipe.data).num_classes
        return {"params": starts.of_teacher(stage.recipe, teacher.recipe, to_host(variables), classes)}

    return start


def teacher_of(stage: Stage, workdir: Path, devices: int = 0) -> teachers.Teacher | None:
    """What teaches a stage, out of its finished parents, as the recipe's `teacher_outputs` says; None for nothing.

    A post-hoc calibrator is fitted to the teacher on the calibration split; of cross-fitted teachers, to each its own.
    Then the logits are divided by the stage's `matching_temperature`, if it is to be as soft as another.

    Args:
      devices: on how many logits are computed beforehand; 0 means all.

    Raises:
      Refused: if a parent is not finished, or its files no longer verify.
    """
    parent, distill = stage.teacher, stage.recipe.distill
    if parent is None or distill is None:
        return None
    _refuse_unfinished(stage, workdir)
    which = stage.recipe.data
    how = outputs.how(stage.recipe, dataset(which))
    if how == outputs.CROSSFIT:
        teacher = teachers.remembered(_cross_fitted(folds(stage), which, distill.posthoc, workdir, devices))
    elif how == outputs.STORED:
        logits = _logits_of(parent, which, stage.recipe.batch_size, workdir, devices)
        teacher = teachers.remembered(narrowed(logits, outputs.dtype(stage.recipe.teacher_outputs)))
    else:
        pieces, variables = selected(parent, workdir)
        teacher = teachers.frozen(pieces.model, variables)
        if how == outputs.BY_EPOCH:
            teacher = teacher_logits.by_epoch(stage, teacher, workdir)
    if distill.posthoc and how != outputs.CROSSFIT:
        teacher = teachers.calibrated(teacher, *_calibrator(parent, distill.posthoc, workdir))
    if stage.as_soft_as is not None:
        teacher = teachers.scaled(teacher, matching_temperature(stage, workdir))
    return teacher


def _refuse_unfinished(stage: Stage, workdir: Path) -> None:
    for parent in stage.parents:
        directory = parent.directory(workdir)
        if problems := checkpoints.verify_manifest(directory, parent.owner):
            what = "parent" if parent is stage.as_soft_as else "teacher"
            raise Refused(
                f"the {what} of {stage.name!r} in {directory} is not finished or not intact ({problems[0]}); run it "
                "first."
            )


def _calibrator(stage: Stage, name: str, workdir: Path) -> tuple[Any, PyTree]:
    """(apply, params) of a post-hoc calibrator fitted to a finished stage."""
    pair = posthoc.POSTHOC[name]
    return pair.apply, pair.fit(*stored_logits(stage.directory(workdir), "calibration"))


# Students that share a teacher share the table, in one process; the next one computes the same bits again.
@remembered(4)
def _logits_of(teacher: Stage, which: Data, batch_size: int, workdir: Path, devices: int) -> np.ndarray:
    """Logits [N, K] of a finished teacher on the training split of a data set, in evaluation mode.

    Batches are as large as the student's: on one device its step would compute the same bits.
    """
    return _predicted(teacher, dataset(which).train, batch_size, workdir, devices)


@remembered(4)
def _cross_fitted(parts: tuple[Stage, ...], which: Data, calibrator: str, workdir: Path, devices: int) -> np.ndarray:
    """Logits [N, K], each row from the one teacher that was not trained on the example."""
    examples = dataset(which)
    _, count, seed = parts[0].recipe.data.fold
    logits = np.empty((len(examples.train.label), examples.num_classes), np.float32)
    for stage, rows in zip(parts, data.held_out(len(logits), count, seed), strict=True):
        logits[rows] = _predicted(stage, data.take(examples.train, rows), stage.recipe.batch_size, workdir, devices)
        if calibrator:
            apply, params = _calibrator(stage, calibrator, workdir)
            logits[rows] = np.asarray(apply(params, jnp.asarray(logits[rows])))
    return logits


def _predicted(stage: Stage, split: Split, batch_size: int, workdir: Path, devices: int) -> np.ndarray:
    pieces, variables = selected(stage, workdir)
    chosen = mesh(devices)
    size = -(-batch_size // chosen.devices.size) * chosen.devices.size
    program = step.predict_step(model=pieces.model, prepare=pieces.prepare, mesh=chosen)
    return predict(program, place(to_host(variables), replicated(chosen)), split, chosen, size)


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

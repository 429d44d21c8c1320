"""What a stage needs beyond its newest state: the log, the selected epoch, a directory of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from kdjax import checkpoints, claim, console, layout, planning, results, runs, settings, stage_run, stages, trainer
from kdjax.errors import Refused
from kdjax.stages import Stage
from tests import tiny
from tests.processes import slow


class Listener(console.Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def run(workdir: Path, recipe, **changes) -> tuple[results.Result, list[str]]:
    listener, stage = Listener(), Stage(recipe)
    how = settings.Settings(workdir=str(workdir), **{"checkpoint_epochs": 1, "devices": 1, **changes})
    return runs.run_all([stage], how, listener).results[stage.id], listener.said


@pytest.fixture
def npz(tmp_path) -> str:
    return tiny.npz(tmp_path)


def flip(path: Path, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(bytes(data))


def large(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("select", ["best", *slow("last")])
def test_a_finished_stage_with_a_damaged_selected_epoch_begins_anew_to_the_same_bits(tmp_path, npz, select):
    recipe = tiny.recipe(npz, method="adafocal", epochs=3, select=select)
    clean, _ = run(tmp_path, recipe)
    logits, log = clean.logits("test")[0], (clean.directory / "metrics.jsonl").read_bytes()
    flip(large(clean.directory / "selected"))
    mended, said = run(tmp_path, recipe)
    assert any("selected" in text and "damaged" in text and "begins anew" in text for text in said), said
    np.testing.assert_array_equal(mended.logits("test")[0], logits)
    assert (mended.directory / "metrics.jsonl").read_bytes() == log
    assert stages.status(Stage(recipe), tmp_path) == "done"


def test_an_older_improvement_never_stands_in_for_the_selected_epoch(tmp_path, npz, monkeypatch):
    """Killed before the manifest, with two improvements there: a damaged newer one must not give way to the older."""
    recipe = tiny.recipe(npz, epochs=4, optimizer=tiny.Optimizer(lr=0.2, schedule="constant"))
    clean, _ = run(tmp_path / "clean", recipe)
    lines = [json.loads(text) for text in (clean.directory / "metrics.jsonl").read_text().splitlines()]
    top1 = [line["calibration"]["top1"] for line in lines]
    assert top1.index(max(top1)) > 0, "the first epoch is best: this recipe tests nothing"

    def killed(self, began):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_run.StageRun, "_evaluate", killed)
        run(tmp_path / "hurt", recipe)
    kept = sorted((Stage(recipe).directory(tmp_path / "hurt") / "selected").iterdir(), key=lambda p: int(p.name))
    assert len(kept) > 1
    flip(large(kept[-1]))
    mended, _ = run(tmp_path / "hurt", recipe)
    assert mended.epoch == clean.epoch
    np.testing.assert_array_equal(mended.logits("test")[0], clean.logits("test")[0])


@pytest.mark.parametrize("damage", ["gone", "first line", "a digit"])
def test_the_log_is_in_the_checkpoint_too(tmp_path, npz, damage):
    """A lost line would lose its top-1, and with it the epoch that "best" means."""
    recipe = tiny.recipe(npz, epochs=3)
    result, _ = run(tmp_path, recipe)
    log = result.directory / "metrics.jsonl"
    before = log.read_bytes()
    (result.directory / "manifest.json").unlink()
    if damage == "gone":
        log.unlink()
    else:
        flip(log, 0 if damage == "first line" else before.index(b'"top1": 0.') + 10)
    again, _ = run(tmp_path, recipe)
    assert log.read_bytes() == before and again.epoch == result.epoch and again.metrics == result.metrics


def test_select_last_writes_the_last_epoch_only(tmp_path, npz, monkeypatch):
    saved = []
    original = checkpoints.Checkpoints.save

    def save(self, at, *rest, **more):
        saved.append((self.directory.name, at))
        return original(self, at, *rest, **more)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    run(tmp_path, tiny.recipe(npz, epochs=3, select="last"), checkpoint_epochs=10)
    assert saved == [("selected", 12), ("checkpoints", 12)]


def test_what_was_selected_after_the_state_that_is_resumed_is_dropped(tmp_path, npz, monkeypatch):
    """Killed between the two saves of an epoch; another device count may compute other bits the second time."""
    recipe = tiny.recipe(npz, epochs=3, select="last")
    clean, _ = run(tmp_path / "clean", recipe)
    original = checkpoints.Checkpoints.save

    def save(self, at, *rest, **more):
        if self.directory.name == "checkpoints" and at == 12:
            raise KeyboardInterrupt
        return original(self, at, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.Checkpoints, "save", save)
        run(tmp_path / "hurt", recipe)
    store = checkpoints.Checkpoints(Stage(recipe).directory(tmp_path / "hurt") / "selected")
    like = trainer.abstract(trainer.task(recipe, stages.dataset(recipe.data)), layout.mesh(1)).variables
    found = store.restore(like)
    assert found is not None and found.step == 12
    store.rewind(-1)
    store.save(12, jax.tree.map(lambda x: np.asarray(x) + 1, found.tree))
    again, _ = run(tmp_path / "hurt", recipe)
    np.testing.assert_array_equal(again.logits("test")[0], clean.logits("test")[0])


def test_a_damaged_recipe_file_is_written_anew(tmp_path, npz):
    recipe = tiny.recipe(npz)
    first, _ = run(tmp_path, recipe)
    (first.directory / "recipe.json").write_text("{")
    again, _ = run(tmp_path, recipe)
    assert again.metrics == first.metrics and stages.status(Stage(recipe), tmp_path) == "done"


def test_a_stage_finished_by_another_process_meanwhile_is_reused(tmp_path, npz, monkeypatch):
    recipe = tiny.recipe(npz)
    original = checkpoints.Lock.__enter__

    def later(self):
        monkeypatch.undo()
        run(tmp_path, recipe)  # the other process, between our look at the manifest and our lock
        return original(self)

    monkeypatch.setattr(checkpoints.Lock, "__enter__", later)
    result, said = run(tmp_path, recipe)
    assert result.reused and not any("resumed" in text for text in said)


def test_a_run_that_lost_its_lock_leaves_the_directory_to_the_other(tmp_path, npz, monkeypatch):
    """Another one took it over in the middle of the first epoch: nothing more is saved until that one is gone."""
    stage = Stage(tiny.recipe(npz, epochs=3))
    directory = stage.directory(tmp_path)
    original, saved = checkpoints.Checkpoints.save, []

    def save(self, step, *args, **kwargs):
        saved.append(((directory / ".lock").read_text() == "another's", step))
        original(self, step, *args, **kwargs)
        if len(saved) == 2:  # selected/4 and checkpoints/4
            (directory / ".lock").write_text("another's")

    def wait(asked, seconds):
        assert saved[2:] == [] or saved[2:] == [(True, 8)], "at most the selected epoch, which the next epoch writes"
        (directory / ".lock").unlink(missing_ok=True)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    monkeypatch.setattr(runs, "_wait", wait)
    how = settings.Settings(workdir=str(tmp_path), checkpoint_epochs=1, devices=1)
    outcome = runs.run_all([stage], how)
    assert not outcome.results[stage.id].reused and checkpoints.verify_manifest(directory, stage.owner) == []


@pytest.mark.parametrize("moment", ["rehearse", "evaluate", "read"])
def test_a_signal_outside_of_training_stops_at_once(tmp_path, npz, monkeypatch, moment):
    """SIGTERM while a stage is rehearsed, evaluated, and once it is finished: the next is not even begun."""
    teacher = Stage(tiny.recipe(npz), name="teacher")
    student = Stage(tiny.student(npz), teacher, name="student")
    owner, name = {
        "rehearse": (stages, "rehearse"),
        "evaluate": (stage_run.StageRun, "_evaluate"),
        "read": (results, "read"),
    }[moment]
    original = getattr(owner, name)

    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    how = settings.Settings(workdir=str(tmp_path), devices=1)
    with monkeypatch.context() as patch, pytest.raises(settings.Interrupted, match="what is saved stays, run the same"):
        patch.setattr(owner, name, stopped)
        runs.run_all([student], how)
    left = {"rehearse": "missing", "evaluate": "resumable", "read": "done"}[moment]
    assert [stages.status(s, tmp_path) for s in (teacher, student)] == [left, "missing"]
    if moment == "evaluate":
        assert len(runs.run_all([student], how).results) == 2


BAD = {
    "batch larger than the data": ({"batch_size": 100}, {}, "batch_size 100 is larger than the 64"),
    "features that no network has": ({}, {"method": "attention", "options": {}}, "attention compares features"),
    "labels that mixup has taken": (
        {"method": "mdca", "transform": (("mixup", (("alpha", 1.0),)),)},
        {},
        r"mdca.* needs batch\.label",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_student_that_cannot_be_trained_is_refused_before_its_teacher_is(tmp_path, npz, case):
    own, distill, sentence = BAD[case]
    recipe = tiny.student(npz)
    recipe = dataclasses.replace(recipe, **own, distill=dataclasses.replace(recipe.distill, **distill))
    pupil = Stage(recipe, Stage(tiny.recipe(npz)))
    workdir = tmp_path / "runs"
    with pytest.raises(Refused, match=sentence):
        runs.run_all([pupil], settings.Settings(workdir=str(workdir), devices=1))
    with pytest.raises(Refused, match=sentence):
        planning.plan([pupil], workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("devices", -1),
        ("steps_per_call", -1),
        ("checkpoint_epochs", 0),
        ("checkpoint_steps", -1),
        ("keep", 0),
        ("eval_batch_size", 0),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, npz, field, value):
    with pytest.raises(Refused, match=rf"run\.{field} is {value}; expected a number in \["):
        run(tmp_path / "runs", tiny.recipe(npz), **{field: value})
    assert not (tmp_path / "runs").exists()


def test_a_read_only_workdir_is_refused():
    """As somebody who may not write there: root, who may write everywhere, becomes nobody for the moment."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            with (
                pytest.raises(Refused, match="cannot be written .Permission denied.; choose another --workdir"),
                claim.locked(Path(folder)),
            ):
                raise AssertionError("a directory nobody may write to was taken")
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o755)

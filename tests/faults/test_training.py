"""Runs that are killed, stopped, corrupted or misdirected: what is lost is nothing, what is wrong is said."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdjax import checkpoints, console, objectives, results, runs, settings, stages
from kdjax.errors import Held, Refused
from kdjax.stages import Stage
from kdjax.trainer import Diverged
from tests import tiny
from tests.processes import ROOT, environment, slow

METHOD = "adafocal"  # stateful, with a refresh: the hardest to resume


def child(workdir: Path, npz: str, when: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.child", str(workdir), npz, METHOD, when],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def outcome(workdir: Path) -> dict[str, bytes]:
    """All that a finished stage says of itself except where and how long it ran, and how the bytes are laid out."""
    (directory,) = [p for p in workdir.iterdir() if p.is_dir()]
    assert checkpoints.verify_manifest(directory) == []
    files = {name: (directory / name).read_bytes() for name in ("metrics.jsonl", "result.json", "recipe.json")}
    for split in ("calibration", "test"):
        with np.load(directory / "logits" / f"{split}.npz") as stored:
            files[split] = stored["logits"].tobytes()
    return files


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    return tiny.npz(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, npz) -> dict[str, bytes]:
    workdir = tmp_path_factory.mktemp("whole")
    done = child(workdir, npz)
    assert done.returncode == 0, done.stderr
    return outcome(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["step:7", *slow("step:2", "save:1", "save:5", "end")])
def test_kill_9_then_the_same_command_gives_the_same_bytes(tmp_path, npz, whole, when):
    killed = child(tmp_path, npz, when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = child(tmp_path, npz)
    assert again.returncode == 0, again.stderr
    assert outcome(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("when", ["term:4", *slow("term:2")])
def test_sigterm_saves_says_so_and_resumes(tmp_path, npz, whole, when):
    """term:2 stops inside an epoch, term:4 at an epoch's last step, after which the objective is still refreshed."""
    stopped = child(tmp_path, npz, when)
    assert stopped.returncode == settings.EXIT_INTERRUPTED, stopped.stderr
    assert f"stopped at step {when[-1]} and saved; run the same command to go on" in stopped.stdout
    again = child(tmp_path, npz)
    assert again.returncode == 0 and f"resumed at step {when[-1]}" in again.stdout
    assert outcome(tmp_path) == whole


def run_here(workdir: Path, recipe, **changes) -> tuple[results.Result, list[str]]:
    said: list[str] = []

    class Listener(console.Silent):
        def message(self, text: str) -> None:
            said.append(text)

    run = settings.Settings(workdir=str(workdir), **{"checkpoint_epochs": 1, "devices": 1, **changes})
    stage = Stage(recipe)
    outcome = runs.run_all([stage], run, Listener())
    if outcome.failures:
        raise Diverged(outcome.failures[stage.id])
    return outcome.results[stage.id], said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage", [flip, *slow(lambda p: p.write_bytes(p.read_bytes()[:-7]))], ids=["flipped", "truncated"]
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path, npz, damage):
    recipe = tiny.recipe(npz, method=METHOD, epochs=3)
    clean, _ = run_here(tmp_path / "clean", recipe)
    result, _ = run_here(tmp_path / "hurt", recipe)
    directory = result.directory
    (directory / "manifest.json").unlink()
    newest = max((directory / "checkpoints").iterdir(), key=lambda p: int(p.name))
    damage(max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
    mended, said = run_here(tmp_path / "hurt", recipe)
    assert any(newest.name in text and "falling back to step 8" in text for text in said), said
    for split in ("calibration", "test"):
        np.testing.assert_array_equal(mended.logits(split)[0], clean.logits(split)[0])
    assert (mended.directory / "metrics.jsonl").read_bytes() == (clean.directory / "metrics.jsonl").read_bytes()


def test_a_torn_line_of_the_log_is_computed_again(tmp_path, npz):
    recipe = tiny.recipe(npz, epochs=3)
    result, _ = run_here(tmp_path, recipe)
    log = result.directory / "metrics.jsonl"
    before = log.read_bytes()
    (result.directory / "manifest.json").unlink()
    log.write_bytes(before + b'{"epoch": 4, "st')
    run_here(tmp_path, recipe)
    assert log.read_bytes() == before


def test_a_done_stage_is_reused_and_a_changed_file_is_not_trusted(tmp_path, npz):
    recipe = tiny.recipe(npz)
    first, _ = run_here(tmp_path, recipe)
    assert not first.reused
    again, _ = run_here(tmp_path, recipe)
    assert again.reused and again.metrics == first.metrics
    flip(first.directory / "logits" / "test.npz")
    assert stages.status(Stage(recipe), tmp_path) == "resumable"
    mended, _ = run_here(tmp_path, recipe)
    assert not mended.reused and mended.metrics == first.metrics


def test_a_diverged_run_stops_names_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path, npz):
    recipe = tiny.recipe(npz, epochs=4, optimizer=tiny.Optimizer(lr=1e30, schedule="constant"))
    with pytest.raises(Diverged, match=r"term '\w+' is (nan|inf) at step \d+ at learning rate 1e\+30"):
        run_here(tmp_path, recipe, checkpoint_steps=1)
    store = checkpoints.Checkpoints(Stage(recipe).directory(tmp_path) / "checkpoints")
    for number in store.steps():
        assert checkpoints.verify_manifest(store.directory / str(number)) == []


def test_an_update_that_breaks_the_network_at_an_epochs_last_step_is_a_divergence(tmp_path, npz):
    """Its loss was still finite; nothing of it may be selected or saved."""
    recipe = tiny.recipe(npz, epochs=2, batch_size=64, optimizer=tiny.Optimizer(lr=1e38, schedule="constant"))
    with pytest.raises(Diverged, match="logits of the calibration split are not finite after step 1; the last"):
        run_here(tmp_path, recipe)
    directory = Stage(recipe).directory(tmp_path)
    assert not (directory / "selected").exists() and not (directory / "checkpoints").exists()


def test_a_directory_of_another_recipe_is_refused(tmp_path, npz):
    recipe = tiny.recipe(npz)
    directory = Stage(recipe).directory(tmp_path)
    directory.mkdir(parents=True)
    other = {**recipe.resolved(), "epochs": 9}
    checkpoints.write_json(directory / "recipe.json", other)
    with pytest.raises(Refused, match="was computed with epochs = 9, and today's value is 2; set recipe.epochs to 9"):
        run_here(tmp_path, recipe)


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, npz):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refused, match="cannot be written .*choose another --workdir"):
        run_here(tmp_path / "file", tiny.recipe(npz))


def test_a_stage_that_another_run_holds_is_waited_for(tmp_path, npz, monkeypatch):
    """The other stage is trained meanwhile; once the lock is gone, so is the held one."""
    monkeypatch.setattr(runs, "WAIT_SECONDS", 0.01)
    held, free = (Stage(tiny.recipe(npz, seed=seed), name=f"seed {seed}") for seed in (0, 1))
    how = settings.Settings(workdir=str(tmp_path), devices=1)
    directory = held.directory(tmp_path)
    directory.mkdir(parents=True)
    said: list[str] = []
    lock = checkpoints.Lock(directory)

    class Listener(console.Silent):
        def message(self, text: str) -> None:
            said.append(text)
            assert stages.status(free, tmp_path) == "done", "what is free is done first"
            lock.__exit__(None, None, None)

    with lock:
        with pytest.raises(Held, match="is in use by process"):
            runs.run_stage(held, how, console.Silent())
        outcome = runs.run_all([held, free], how, Listener())
    assert set(outcome.results) == {held.id, free.id} and not outcome.failures
    assert len(said) == 1 and said[0].startswith("waiting for 1 stages that other processes hold")


def test_the_others_go_on_when_a_stage_diverges(tmp_path, npz):
    """Its students fail with it; a stage that has nothing to do with it is finished."""
    broken = Stage(tiny.recipe(npz, optimizer=tiny.Optimizer(lr=1e30, schedule="constant")), name="broken")
    student, other = Stage(tiny.student(npz), broken, name="student"), Stage(tiny.recipe(npz), name="other")
    outcome = runs.run_all([student, other], settings.Settings(workdir=str(tmp_path), devices=1))
    assert set(outcome.results) == {other.id}
    assert "not finite" in outcome.failures[broken.id] or " is nan" in outcome.failures[broken.id]
    assert outcome.failures[student.id] == "its teacher, 'broken', failed"


REFUSALS = {
    "method": (lambda: {"method": "mdcaa"}, "'mdcaa', which does not exist; did you mean mdca"),
    "option": (
        lambda: {"method": "mdca", "options": (("betta", 1.0),)},
        "mdca has no option 'betta'; did you mean beta",
    ),
    "model": (lambda: {"model": "conv_tinny"}, "'conv_tinny'.*did you mean conv_tiny"),
    "epochs": (lambda: {"epochs": 0}, "epochs is 0; expected an integer of at least 1"),
    "batch": (lambda: {"batch_size": 100}, "batch_size 100 is larger than the 64 training examples"),
    "lr": (lambda: {"optimizer": tiny.Optimizer(lr=-0.1)}, "lr is -0.1"),
    "precision": (lambda: {"precision": "float8"}, "precision is 'float8'"),
    "transform": (lambda: {"transform": ("pad_crp",)}, "'pad_crp'.*did you mean pad_crop"),
    "select": (lambda: {"select": "bst"}, "select is 'bst'.*best"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_recipes_are_refused_before_any_compile(tmp_path, npz, case):
    changes, sentence = REFUSALS[case]
    with pytest.raises(Refused, match=sentence):
        run_here(tmp_path, tiny.recipe(npz, **changes()))
    assert not any(tmp_path.iterdir()) or case == "batch"


@pytest.mark.parametrize(
    ("alpha", "T", "sentence"),
    [(1.5, 1.0, r"alpha is 1.5; expected a number in \[0, 1\]"), (0.5, 0.0, r"T is 0\.0; expected a number in \(0")],
)
def test_bad_distillation_is_refused(npz, alpha, T, sentence):
    with pytest.raises(Refused, match=sentence):
        recipe = tiny.student(npz, options={"T": T})
        dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, alpha=alpha))


def test_teacher_and_student_must_fit(tmp_path, npz):
    """Other classes, other data, a teacher that saw the calibration examples, or none where one is needed."""
    five = tiny.npz(tmp_path, "five.npz", classes=5)
    student = tiny.student(npz)
    data = student.data
    with pytest.raises(Refused, match="5 classes and the student's .* has 4"):
        stages.check(Stage(student, Stage(tiny.recipe(five, data=dataclasses.replace(data, path=five, num_classes=5)))))
    with pytest.raises(Refused, match=r"trained on \d+ of the student's 16 calibration examples"):
        stages.check(Stage(student, Stage(tiny.recipe(npz, data=dataclasses.replace(data, split_seed=1)))))
    with pytest.raises(Refused, match="has a distillation term and no teacher"):
        stages.check(Stage(student))
    with pytest.raises(Refused, match="has a teacher and no distillation term"):
        stages.check(Stage(tiny.recipe(npz), Stage(tiny.recipe(npz))))
    stages.check(Stage(student, Stage(tiny.recipe(npz, data=dataclasses.replace(data, train_examples=40)))))


def test_a_student_of_an_unfinished_teacher_is_refused(tmp_path, npz):
    stage = Stage(tiny.student(npz), Stage(tiny.recipe(npz)), name="pupil")
    with pytest.raises(
        Refused, match="teacher of 'pupil' .* is not finished or not intact .no manifest.; run it first"
    ):
        results.teacher_of(stage, tmp_path)


def test_missing_data_names_the_folder_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    recipe = tiny.recipe("", data=tiny.Data(name="cifar100"))
    with pytest.raises(Refused, match=rf"{tmp_path}.*kdjax prepare cifar100"):
        stages.check(Stage(recipe))


def test_state_bytes_of_every_method_are_known_before_training():
    for name, method in objectives.METHODS.items():
        assert isinstance(method.state, str), name

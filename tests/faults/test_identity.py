"""Files that verify and belong to another stage: refused by name, left as they are, never reported or resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from kdjax import files, planning, results, runs, stages
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny
from tests.faults.test_checkpoints import reseal


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[Stage]]:
    """Two finished teachers that differ in the seed, and the first one's student."""
    npz = tiny.npz(tmp_path_factory.mktemp("data"))
    first, second = (Stage(tiny.recipe(npz, seed=seed), name=f"teacher {seed}") for seed in (0, 1))
    chain = [first, second, Stage(tiny.student(npz), first, name="student")]
    workdir = tmp_path_factory.mktemp("runs")
    runs.run_all(chain, settings(workdir))
    return workdir, chain


@pytest.fixture
def workdir(tmp_path, trained) -> Path:
    return shutil.copytree(trained[0], tmp_path / "runs")


def settings(workdir: Path) -> Settings:
    return Settings(workdir=str(workdir), checkpoint_epochs=1, devices=1)


def contents(workdir: Path) -> dict[str, str]:
    return {
        path.relative_to(workdir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)


def copy(a: Path, b: Path) -> None:
    shutil.rmtree(b)
    shutil.copytree(a, b)


@pytest.mark.parametrize("act", [swap, copy])
@pytest.mark.parametrize("part", ["", "checkpoints", "selected"])
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", [1, 2], ids=["another seed", "its student"])
def test_files_of_another_stage_are_refused_and_left_alone(workdir, trained, act, part, finished, other):
    """Whole folders, their checkpoints or their selected epochs, of finished stages and of stages on their way."""
    first, second = trained[1][0], trained[1][other]
    if not finished:
        for stage in (first, second):
            (stage.directory(workdir) / "manifest.json").unlink()
    act(second.directory(workdir) / part, first.directory(workdir) / part)
    before = contents(workdir)
    with pytest.raises(Refused, match=rf"{first.id}.* is written for"):
        runs.run_all([first], settings(workdir))
    assert contents(workdir) == before
    if finished and not part:
        with pytest.raises(Refused, match=f"is written for stage {second.id}, and here is stage {first.id}; move it"):
            stages.status(first, workdir)
        with pytest.raises(Refused, match=f"not finished or not intact .written for stage {second.id}"):
            results.teacher_of(trained[1][2], workdir)


def test_a_copied_folder_with_a_recipe_made_to_fit_is_refused(workdir, trained):
    """The recipe's text says whose it is to people; the manifest's own name decides."""
    first, second = (stage.directory(workdir) for stage in trained[1][:2])
    recipe = (first / "recipe.json").read_bytes()
    copy(second, first)
    (first / "recipe.json").write_bytes(recipe)
    with pytest.raises(Refused, match=f"is written for stage {second.name}, and here is stage {first.name}"):
        runs.run_all(trained[1][:1], settings(workdir))


def test_a_finished_stage_of_a_newer_format_is_not_overwritten(workdir, trained):
    directory = trained[1][0].directory(workdir)
    reseal(directory / "manifest.json", format=files.FORMAT + 1)
    before = contents(workdir)
    for act in (
        lambda: runs.run_all(trained[1][:1], settings(workdir)),
        lambda: planning.plan(trained[1][:1], workdir),
    ):
        with pytest.raises(
            Refused, match=rf"{directory} is written in format 3, and this kdjax reads format 2; upgrade"
        ):
            act()
    assert contents(workdir) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.json", "logits/test.npz", "logits", "checkpoints"])
def test_a_symbolic_link_where_a_stages_file_should_be_is_refused(workdir, trained, tmp_path, name):
    """Nothing is written through it, whether it points at a file, a folder, or nowhere."""
    directory = trained[1][0].directory(workdir)
    (directory / "manifest.json").unlink()
    target = tmp_path / "elsewhere"
    (directory / name).rename(target)
    (directory / name).symlink_to(target)
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(Refused, match=f"{directory / name} is a symbolic link where {name} should be a file of"):
            runs.run_all(trained[1][:1], settings(workdir))
        assert contents(tmp_path) == before
        (directory / name).unlink()
        (directory / name).symlink_to(tmp_path / "nowhere")
        before = contents(tmp_path)


def test_a_folder_in_the_place_of_a_manifest_is_refused_before_anything_is_computed(workdir, trained):
    directory = trained[1][0].directory(workdir)
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").mkdir()
    with pytest.raises(Refused, match=f"{directory}/manifest.json is a directory where a stage writes its manifest"):
        runs.run_all(trained[1][:1], settings(workdir))


def test_a_stages_folder_that_is_a_link_is_refused(workdir, trained, tmp_path):
    """An unfinished stage never writes into the folder that a link points at."""
    directory = trained[1][0].directory(workdir)
    shutil.rmtree(directory)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    directory.symlink_to(outside)
    with pytest.raises(Refused, match=f"{directory} is a symbolic link where a stage writes its own folder"):
        runs.run_all(trained[1][:1], settings(workdir))
    assert os.listdir(outside) == ["kept"] and (outside / "kept").read_text() == "kept"


def test_writing_replaces_a_link_and_never_what_it_points_at(tmp_path):
    """Also under the temporary name, which anybody can guess."""
    secret = tmp_path / "secret"
    secret.write_text("kept")
    for name in ("result.json", "." + files.temporary_name("result.json")):
        (tmp_path / name).symlink_to(secret)
    files.write_json(tmp_path / "result.json", {"a": 1})
    assert secret.read_text() == "kept" and not (tmp_path / "result.json").is_symlink()
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == ["result.json", "secret"]


def test_temporary_files_of_a_killed_evaluation_are_removed_by_the_next_run(workdir, trained):
    """Of whatever machine: who holds the stage's lock is the only one who writes there."""
    directory = trained[1][0].directory(workdir)
    (directory / "manifest.json").unlink()
    left = [directory / ".result.json.tmp-elsewhere-1-7", directory / "logits" / ".test.npz.tmp-vm-4026531836-999999"]
    for path in left:
        path.write_text("half")
    result = runs.run_all(trained[1][:1], settings(workdir)).results[trained[1][0].id]
    assert not any(path.exists() for path in left) and not result.reused

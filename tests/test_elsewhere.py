"""A finished run in another folder as the teacher: the same student, and one sentence for everything that is none."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from experiments import common, distill, tables
from kdjax import elsewhere
from kdjax.cli.show import show
from kdjax.errors import Refused
from kdjax.manifests import write_manifest
from kdjax.runs import run_all
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny


@pytest.fixture(scope="module")
def lent(tmp_path_factory):
    """(teacher's stage, where it was copied to, the data set's file)."""
    data = tiny.npz(tmp_path_factory.mktemp("data"))
    teacher = Stage(tiny.recipe(data, method="focal", epochs=1))
    made = tmp_path_factory.mktemp("there")
    run_all([teacher], Settings(workdir=str(made)))
    folder = tmp_path_factory.mktemp("lent") / "a teacher"
    shutil.copytree(teacher.directory(made), folder)
    return teacher, folder, data


def test_a_student_is_the_same_whether_its_teacher_lies_here_or_elsewhere(lent, tmp_path):
    teacher, folder, data = lent
    recipe = tiny.student(data, epochs=1)
    student = Stage(recipe, elsewhere.finished(folder, recipe.data))
    assert student.id == Stage(recipe, teacher).id
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = run_all([student], Settings(workdir=str(tmp_path))).results[student.id]
    assert result.metrics["test"]["agreement"] > 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == [student.id]
    assert any(line.endswith(f"{teacher.id} (elsewhere)") for line in show(str(student.directory(tmp_path))))
    seeds = tables.grid({"teacher": tables.Row(student.teacher), "student": tables.Row(student)}, [0, 1])
    assert len(seeds["teacher"]) == 1 and len({stage.id for stage in seeds["student"]}) == 2


@pytest.mark.slow
def test_a_teacher_with_several_parents_is_named_as_it_was_made(tmp_path):
    """Softened to another run and taught by cross-fitted networks: its id tells whether all were found again."""
    data = tiny.npz(tmp_path)
    plain, doubting = (Stage(tiny.recipe(data, method=method, epochs=1)) for method in ("nll", "focal"))
    crossed = dataclasses.replace(tiny.student(data, epochs=1), teacher_outputs="crossfit:2")
    student = Stage(crossed, plain, as_soft_as=doubting)
    settings = Settings(workdir=str(tmp_path / "runs"))
    run_all([student], settings)
    folder = student.directory(tmp_path / "runs")
    again = elsewhere.finished(folder, tiny.student(data).data)
    assert again.id == student.id and [p.id for p in again.parents] == [p.id for p in student.parents]
    shutil.rmtree(doubting.directory(tmp_path / "runs"))
    with pytest.raises(Refused, match=f"was taught by {doubting.id}, which is not beside it"):
        elsewhere.finished(folder, tiny.student(data).data)


def changed(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def edited(name, edit):
    """Changes a JSON file and makes the manifest fit it again, as whoever can write the folder may."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))
        owner = json.loads((folder / "manifest.json").read_text())["owner"]
        write_manifest(folder, owner)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: shutil.rmtree(f), "is no folder; expected a finished run"),
        (lambda f: (f / "recipe.json").unlink(), "has no recipe.json; expected a finished run .it is no run"),
        (lambda f: (f / "manifest.json").unlink(), "is not finished or not intact"),
        (lambda f: (f / "result.json").write_text("{}"), "is not finished or not intact .result.json"),
        (edited("recipe.json", lambda r: r.update(model="absent_net")), "cannot be used here: .*'absent_net'"),
        (edited("recipe.json", lambda r: r.update(batch_size=8)), "is stage .* and its recipe on the data here"),
        (
            edited("recipe.json", lambda r: r.update(init="sha256:00")),
            "is stage .* and its recipe on the data here",
        ),
        (edited("parents.json", lambda p: p.append("copy")), "is said to have taught itself"),
        (
            edited("parents.json", lambda p: p.append("0123456789ab")),
            "was taught by 0123456789ab, which is not beside it",
        ),
        (edited("parents.json", lambda p: p.extend("abc")), "is said to have 3 parents"),
        (edited("recipe.json", lambda r: r.update(teacher_outputs="no")), "cannot be used here: teacher_outputs is"),
    ],
)
def test_refused(lent, tmp_path, change, sentence):
    _, folder, data = lent
    copy = changed(folder, tmp_path, change)
    with pytest.raises(Refused, match=sentence):
        elsewhere.finished(copy, tiny.student(data).data)


def test_other_data_and_a_folder_of_runs_are_refused(lent, tmp_path):
    _, folder, data = lent
    other = tiny.student(tiny.npz(tmp_path, seed=7)).data
    with pytest.raises(Refused, match="expected the data that it was trained on"):
        elsewhere.finished(folder, other)
    with pytest.raises(Refused, match="it holds the runs a teacher: give one of them"):
        elsewhere.finished(folder.parent, tiny.student(data).data)


def test_the_command_takes_the_folder_and_says_what_would_change_nothing(lent, tmp_path, capsys):
    _, folder, data = lent
    words = ["--config=configs/digits.py:mlp", "--config.recipe.data.name=arrays", f"--config.recipe.data.path={data}"]
    words += ["--config.recipe.data.num_classes=4", "--config.recipe.data.calibration_fraction=0.2", "--plan"]
    words += ["--config.recipe.student.batch_size=16", f"--workdir={tmp_path}", f"--teacher={folder}"]

    def call(*more, ignored=distill.IGNORED):
        return common.call(distill.run, ["x", *words, *more], "configs/digits.py", ignored=ignored), capsys.readouterr()

    code, printed = call()
    assert code == 0, printed.err
    assert "│ done" in printed.out and "7 stages, 6 to run" in printed.out
    code, printed = call("--config.recipe.teacher.epochs=5")
    assert code == 2 and "--config.recipe.teacher.epochs would change nothing here: --teacher=" in printed.err
    code, printed = call(ignored=common.ONLY)
    assert code == 2 and "--teacher would change nothing here: only experiments.distill" in printed.err

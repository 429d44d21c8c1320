"""Fields crossed over seeds: which stages there are, what is refused, and one table of them."""

from __future__ import annotations

import json
import re

import pytest

from experiments import common, sweep, tables
from tests import tiny


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tiny.npz(tmp_path_factory.mktemp("data"))
    fields = ("data.name=arrays", f"data.path={path}", "data.num_classes=4", "data.calibration_fraction=0.2")
    epochs = ("teacher.epochs=1", "student.epochs=1", "teacher.batch_size=16", "student.batch_size=16")
    return ["x", "--config=configs/digits.py:mlp", *(f"--config.recipe.{field}" for field in (*fields, *epochs))]


def read(*argv):
    return sweep.read(argv, default="configs/digits.py", workdir="runs", ignored=common.ONLY)


def test_every_combination_is_a_row_and_teachers_are_shared(words):
    given = read(
        *words,
        "--sweep.recipe.student.distill.options.T=1,2",
        "--sweep.recipe.teacher.method=nll,mdca",
        "--sweep.recipe.student.optimizer.milestones=(0.25,0.5),()",
        "--config.recipe.student.optimizer.schedule=multistep",
    )
    rows = sweep.rows(given)
    students = {name: row.stage for name, row in rows.items() if not name.startswith("teacher: ")}
    assert [*rows][:3] == ["teacher: method=nll", "teacher: method=mdca", "T=1, method=nll, milestones=(0.25,0.5)"]
    assert len(students) == 8 and len({stage.teacher.id for stage in students.values()}) == 2
    stage = students["T=2, method=mdca, milestones=()"]
    assert stage.recipe.distill.options["T"] == 2.0 and stage.recipe.optimizer.milestones == ()
    assert stage.teacher.recipe.options["gamma"] == 3.0, "a method brings what its name stands for"
    assert {len(members) for members in tables.grid(rows, [0, 1]).values()} == {2}


def test_a_sweep_of_teachers_alone(words):
    given = read(*words, "--config.recipe.student.distill.method=", "--sweep.recipe.teacher.optimizer.lr=0.1,0.2")
    assert [*sweep.rows(given)] == ["lr=0.1", "lr=0.2"]
    assert all(row.stage.recipe.distill is None for row in sweep.rows(given).values())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "nothing is crossed; type for instance --sweep.recipe"),
        (["--sweep.recipe.student.epochs=1,1"], "expected different values, separated by commas"),
        (["--sweep.recipe.student.epochs="], "expected different values"),
        (["--sweep.recipe.student.epochs=1", "--sweep.recipe.student.epochs=2"], "is typed 2 times"),
        (["--sweep.recipe.student.epocs=1,2"], "has no field 'epocs'; did you mean epochs"),
        (["--sweep.recipe.student.epochs=1,x"], "could not be read|epochs"),
        (["--sweep.seeds=1,2"], r"crosses no field of a recipe; seeds are --config.seeds=\(0,1,2\)"),
        (["--sweep.recipe.teacher.epochs=1,2"], "both set one field; leave one out"),
        (["--sweep.recipe.student.method=nll,ndca"], "did you mean"),
        (["--sweep.recipe.student.optimizer.lr=0.1,-1"], "lr=-1: optimizer.lr is -1.0"),
        (["--sweep.recipe.student.optimizer.lr=0.1,0.10"], "lr=0.10 is the same as lr=0.1"),
    ],
)
def test_refused(words, flags, sentence, capsys, tmp_path):
    code = common.call(
        sweep.run, [*words, "--plan", f"--workdir={tmp_path}", *flags], "configs/digits.py", read=sweep.read
    )
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and re.search(sentence, said), said
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_one_table_and_the_same_stages_again(words, capsys, tmp_path):
    argv = [*words, f"--workdir={tmp_path}", "--config.seeds=(0,1)", "--sweep.recipe.student.distill.options.T=1,4"]
    for _ in range(2):
        assert common.call(sweep.run, argv, "configs/digits.py", read=sweep.read) == 0
        printed = capsys.readouterr().out
    assert printed.count("done before, reused") == 6
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["teacher: mlp mdca", "T=1", "T=4"]
    assert content["crossed"] == {"recipe.student.distill.options.T": ["1", "4"]}
    assert "--sweep.recipe.student.distill.options.T=1,4" in content["command"]
    assert "Lowest NLL on the calibration split: T=" in printed and len(content["rows"][1]["metrics"]) == 2

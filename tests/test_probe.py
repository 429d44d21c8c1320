"""Hours of a plan, by steps that are timed: of every table, and where a stage is begun, or its teacher is not there."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from experiments import (
    ablation,
    common,
    correlation,
    drift,
    generations,
    pairs,
    penultimate,
    plans,
    table1,
    table2,
)
from kdjax import planning, results
from kdjax.options import Options
from kdjax.recipes import Distill
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.trainer import Trainer
from tests import test_images as of_images
from tests import tiny
from tests.test_tables import words as image_words
from tests.text import test_experiments as of_texts

TRANSFER = ("students=('mlp',)", "calibrators=('nll','mdca')", "teachers=('nll','mdca')")
IMAGES = {
    table1: TRANSFER,
    table2: TRANSFER,
    drift: ("students=('mlp',)", "shift.corruptions=('noise',)", "shift.ood="),
    generations: ("generations=2",),
    penultimate: ("calibrators=('nll','mdca')", "T=(4.0,)", "shown_classes=('a','b','d')"),
    ablation: ("T=(1.0,4.0)", "alpha=(0.5,)"),
    pairs: ("pairs=(('mlp','mlp'),)", "T_c=(1.0,1.5)"),
    correlation: (
        "teachers=(('mlp','nll',0,1.0),('mlp','mdca',0,1.0),('mlp','nll',0,'temperature'))",
        "control=()",
    ),
}
STUDENT = ("student.model",)
WITHOUT = {
    table1: STUDENT,
    table2: STUDENT,
    drift: STUDENT,
    correlation: ("teacher.model",),
    pairs: (".model=",),
}
HOURS = re.compile(r"About (\d+\.\d\d) hours of steps on this machine, .* of each of (\d+) kinds", re.DOTALL)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return tiny.npz(tmp_path_factory.mktemp("probe"))


images = pytest.fixture(scope="module")(of_images.arrays.__wrapped__)
texts_folder = pytest.fixture(scope="module")(of_texts.folder.__wrapped__)


def probed(module, name: str, given: list[str], capsys) -> tuple[float, int]:
    ignored = getattr(module, "IGNORED", common.ONLY)
    assert common.call(module.run, [*given, "--plan", "--probe"], f"configs/{name}.py", ignored=ignored) == 0
    hours, kinds = HOURS.search(capsys.readouterr().out).groups()
    return float(hours), int(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("module", IMAGES, ids=lambda module: module.__name__)
def test_every_table_of_images_is_probed(module, images, tmp_path, capsys):
    given = [w for w in image_words(tmp_path, images) if not any(part in w for part in WITHOUT.get(module, ()))]
    given += [f"--config.recipe.{field}" for field in IMAGES[module]]
    assert probed(module, module.__name__.rpartition(".")[2], given, capsys)[1] >= 2
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", of_texts.MODULES)
def test_every_table_of_texts_is_probed(name, texts_folder, tmp_path, capsys, monkeypatch):
    """Up to its tasks with their teachers: compiling the many kinds of four tables would take minutes."""
    monkeypatch.setattr(Trainer, "init", Trainer.abstract)
    monkeypatch.setattr(Trainer, "steps", lambda self, state: [(state, {"loss": np.zeros(1)})] * 6)
    given = of_texts.words(texts_folder, name, f"--workdir={tmp_path}", *of_texts.MORE[name], "--workers=2")
    assert probed(of_texts.MODULES[name], name, given, capsys)[1] >= 2


def planned(tmp_path, *targets: Stage) -> dict[str, planning.Planned]:
    return {row.stage.name: row for row in planning.plan(targets, tmp_path)}


def test_epochs_of_one_step_are_timed_too(npz, monkeypatch):
    """Without its teacher trained; what compiles is left out, and as many steps are timed as anywhere."""
    timed, steps = [], Trainer.steps

    def counted(self, state, **more):
        for state, logs in steps(self, state, **more):
            timed.append(logs)
            yield state, logs

    monkeypatch.setattr(Trainer, "steps", counted)
    student = Stage(tiny.student(npz, batch_size=64, epochs=1), Stage(tiny.recipe(npz)))
    assert plans._seconds(student, Settings(devices=1), True) > 0 and len(timed) == 1 + plans.PROBED


def test_stored_outputs_run_the_teacher_in_a_share_of_the_steps(npz, tmp_path, monkeypatch):
    """Of 8 epochs in one where inputs never change; of students that share what changes, in the first alone."""
    asked = []
    monkeypatch.setattr(
        plans, "_seconds", lambda stage, run, taught: asked.append((stage.name, taught)) or 1 + 8 * taught
    )
    teacher = Stage(tiny.recipe(npz, epochs=8), name="teacher")
    student = tiny.student(npz, epochs=8, teacher_outputs="stored")
    crossed = dataclasses.replace(student, teacher_outputs="crossfit:3")
    moved = dataclasses.replace(student, transform=("flip",))
    other = dataclasses.replace(moved, distill=Distill("kd", Options(T=5.0)))
    live = dataclasses.replace(student, teacher_outputs="live")
    named = {"stored": student, "crossed": crossed, "first": moved, "second": other, "live": live}
    rows = planned(tmp_path, *(Stage(recipe, teacher, name=name) for name, recipe in named.items()))
    seconds = plans.probe([*rows.values()], Settings())
    of = {name: seconds.seconds[row.stage.id] for name, row in rows.items()}
    expected = {"teacher": 1, "stored": 2, "crossed": 2, "first": 9, "second": 1, "live": 9}
    assert {name: of[name] for name in expected} == expected
    # Parts that are left out are one kind.
    assert len(asked) == seconds.kinds == len({*asked})
    assert sum(name.startswith("teacher without") for name, _ in asked) == 1
    assert plans._teacher(Stage(tiny.recipe(npz, init="teacher"), teacher), True) is None, "it begins there, no more"


def test_of_a_cohort_one_student_pays_for_the_teacher(npz, tmp_path, monkeypatch):
    """Finished ones belong to it; who reads the teacher's layers is counted as if alone."""
    monkeypatch.setattr(plans, "_seconds", lambda stage, run, runs_teacher: 1 + 12 * runs_teacher)
    teacher = Stage(tiny.recipe(npz), name="teacher")
    grid = {f"T = {T}": Distill("kd", Options(T=float(T))) for T in (1, 2, 4)} | {"layers": Distill("hidden_state")}
    student = tiny.student(npz)
    stages = [Stage(dataclasses.replace(student, distill=term), teacher, name=name) for name, term in grid.items()]
    rows = planned(tmp_path, *stages)
    rows["T = 1"] = rows["T = 1"]._replace(status="done", steps=0)
    for cohort, (paid, layers) in {1: (13, 13), 2: (7, 13), 4: (4, 13)}.items():
        seconds = plans.probe([*rows.values()], Settings(cohort=cohort)).seconds
        told = {name: seconds[row.stage.id] for name, row in rows.items()}
        assert told == {"teacher": 1, "T = 1": 0, "T = 2": paid, "T = 4": paid, "layers": layers}


def test_what_a_checkpoint_holds_is_not_counted_again(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "_seconds", lambda stage, run, taught: 3600.0)
    stage = Stage(tiny.recipe(npz), name="begun")
    store = results.checkpoints_of(stage, tmp_path, "checkpoints", 2)
    for step in (3, 4):
        store.save(step, {"x": np.zeros(1, np.float32)})
    row = planned(tmp_path, stage)["begun"]
    assert (row.status, row.steps, row.held) == ("resumable", 8, 4)
    plans.show([row], plans.probe([row], Settings()))
    assert "About 4.00 hours of steps" in capsys.readouterr().out
    (stage.directory(tmp_path) / "checkpoints" / "4" / "manifest.json").unlink()
    assert planned(tmp_path, stage)["begun"].held == 3 and store.steps() == [3]

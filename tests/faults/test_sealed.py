"""Run folders under manifests made anew, whose content makes no sense: one sentence, whoever reads them."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

import kdjax
from kdjax import manifests, results, runs
from kdjax.cli import main
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny
from tests.processes import slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    npz = tiny.npz(folder)
    teacher = Stage(tiny.recipe(npz, epochs=1), name="teacher")
    runs.run_all([teacher], Settings(workdir=str(folder / "runs"), checkpoint_epochs=1, devices=1))
    return teacher, Stage(tiny.student(npz, epochs=1), teacher, name="student"), folder / "runs"


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained[2], tmp_path / "runs")


def everything(stage: Stage, workdir) -> list[str]:
    """What each reader of a stage's folder says: "fine", or its sentence."""
    directory = stage.directory(workdir)
    acts = (
        lambda: kdjax.load(directory).predict(np.zeros((2, 8, 8, 1), np.float32)),
        lambda: results.read(stage, workdir).other_numerics(),
    )
    said = []
    for act in acts:
        try:
            act()
            said.append("fine")
        except (Refused, OSError) as error:
            assert "\n" not in str(error)
            said.append(str(error))
    assert main(["show", str(directory)]) in (0, 2, 74)
    return said


NONSENSE = ([], {}, None, -1, "x", [[1]], {"x": []}, 1e308)


@pytest.mark.parametrize("name", ["model.json", *slow("recipe.json", "result.json", "environment.json")])
def test_nonsense_in_any_field_is_one_sentence(workdir, trained, name, capsys):
    stage = trained[0]
    path = stage.directory(workdir) / name
    known = json.loads(path.read_text())
    variants = [*NONSENSE]
    for number, key in enumerate(known if isinstance(known, dict) else ()):
        variants.append({other: value for other, value in known.items() if other != key})
        variants.append({**known, key: NONSENSE[number % len(NONSENSE)]})
    for variant in variants:
        path.write_text(json.dumps(variant))
        manifests.write_manifest(path.parent, stage.owner)
        everything(stage, workdir)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out, variant


def test_parameters_that_are_nan_teach_and_predict_nothing(workdir, trained):
    """Every checksum is right: the network was broken before it was sealed, or by hand."""
    teacher, student, _ = trained
    directory = teacher.directory(workdir)
    _, variables = results.selected(teacher, workdir)
    (step,) = results.checkpoints_of(teacher, workdir, "selected", keep=1).steps()
    shutil.rmtree(directory / "selected" / str(step))
    broken = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), variables)
    results.checkpoints_of(teacher, workdir, "selected", keep=1).save(step, broken)
    manifests.write_manifest(directory, teacher.owner)
    sentence = r"selected holds \d+ NaN or infinite values in params/.*; delete it and run the stage again"
    with pytest.raises(Refused, match=sentence):
        kdjax.load(directory)
    with pytest.raises(Refused, match=sentence):
        runs.run_all([student], Settings(workdir=str(workdir), devices=1))

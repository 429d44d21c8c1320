"""Where a student's teacher outputs come from: stored for texts unless told, cross-fitted by stages of their own."""

import dataclasses
import json

import numpy as np
import pytest

from kdjax import outputs, results, runs, signals, stages
from kdjax.data import folds
from kdjax.errors import Refused
from kdjax.recipes import Data, Distill
from kdjax.settings import Interrupted, Settings
from kdjax.stages import Stage
from kdjax.trainer import cross_fitted
from tests import tiny
from tests.text.test_data import examples
from tests.text.test_distillation import RECIPE


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.csv"
    path.write_text("text,label\n" + "".join(f"{words},{name}\n" for words, name in examples(40, 1)))
    return Data(name="text", path=str(path), options={"vocab_size": 90})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.npz(tmp_path_factory.mktemp("tiny"))


def test_logits_are_stored_where_nothing_changes_the_inputs(texts, images):
    def how(which, **changes):
        recipe = dataclasses.replace(RECIPE, data=which, **changes)
        return outputs.how(recipe, stages.dataset(which))

    pixels = tiny.recipe(images).data
    assert how(texts) == "stored" and how(texts, teacher_outputs="live") == "live"
    assert how(texts, distill=Distill("pkd")) == "live", "features are not stored"
    assert how(pixels, model="mlp", model_options={}) == "live", "as it always was"
    assert how(pixels, model="mlp", model_options={}, teacher_outputs="stored") == "stored"
    for changes, says in (({"distill": Distill("hidden_state")}, "of which only logits are kept"),):
        with pytest.raises(Refused, match=rf"teacher_outputs is 'stored' and .*{says}.*; expected 'live'"):
            how(pixels, **{"model": "mlp", "model_options": {}, "teacher_outputs": "stored", **changes})
    with pytest.raises(Refused, match="teacher_outputs is 'crossfit:3' and mixup"):
        how(pixels, model="mlp", model_options={}, teacher_outputs="crossfit:3", transform=(("mixup", {"alpha": 1.0}),))
    for wrong in ("crossfit", "crossfit:1", "crossfit:-5", "twice"):
        with pytest.raises(Refused, match=f"teacher_outputs is '{wrong}'; expected 'auto'"):
            dataclasses.replace(RECIPE, teacher_outputs=wrong)
    assert dataclasses.replace(RECIPE, distill=None, teacher_outputs="crossfit:3").teacher_outputs == "auto"


def test_only_what_is_asked_for_goes_into_an_id():
    assert "teacher_outputs" not in json.loads(RECIPE.canonical()) and "fold" not in RECIPE.canonical()
    assert "crossfit:3" in dataclasses.replace(RECIPE, teacher_outputs="crossfit:3").canonical()


def pair(images, **changes):
    teacher = Stage(tiny.recipe(images, select="last"), name="teacher")
    return teacher, Stage(tiny.student(images, teacher_outputs="crossfit:2", **changes), teacher, name="student")


def test_each_fold_is_a_stage_of_its_own(images):
    teacher, student = pair(images)
    parts = stages.folds(student)
    assert student.parents == (teacher, *parts) and student.owner["parents"] == [s.id for s in student.parents]
    assert len({stage.id for stage in student.parents}) == 3 and stages.order([student])[-1] is student
    whole, *rest = (stages.dataset(stage.recipe.data) for stage in student.parents)
    left_out = [np.setdiff1d(whole.train.index, fold.train.index) for fold in rest]
    assert np.array_equal(np.sort(np.concatenate(left_out)), np.sort(whole.train.index))
    assert {fold.calibration_id for fold in rest} == {whole.calibration_id}
    assert "without part 2 of 2" in parts[1].name
    other = Stage(dataclasses.replace(student.recipe, teacher_outputs="crossfit:3"), teacher)
    assert other.id != student.id and not {s.id for s in stages.folds(other)} & {s.id for s in parts}


def test_what_cannot_be_cross_fitted_is_refused(images):
    teacher, student = pair(images)
    taught = Stage(dataclasses.replace(teacher.recipe, distill=Distill("kd")), teacher)
    with pytest.raises(Refused, match="is not trained on these examples alone"):
        stages.check(Stage(student.recipe, taught))
    fewer = dataclasses.replace(teacher.recipe, data=dataclasses.replace(teacher.recipe.data, train_examples=50))
    with pytest.raises(Refused, match="expected the same examples for both"):
        stages.check(Stage(student.recipe, Stage(fewer)))
    with pytest.raises(Refused, match=r"batch_size 40 is larger than the 32"):
        large = dataclasses.replace(teacher.recipe, batch_size=40)
        stages.check(Stage(student.recipe, Stage(large)))
    with pytest.raises(Refused, match="folds is 1; expected an integer between 2"):
        folds.held_out(10, 1, 0)
    with pytest.raises(Refused, match=r"data\.fold\[0\] is 2; expected an integer of at most 1"):
        Data(fold=(2, 2, 0))


@pytest.mark.slow
def test_cross_fitted_by_stages_is_cross_fitted_and_resumes_to_the_same_bits(images, tmp_path):
    teacher, student = pair(images)
    whole = runs.run_all([student], Settings(workdir=str(tmp_path / "whole"), devices=1)).results
    table = results.teacher_of(student, tmp_path / "whole", 1).variables
    wanted = cross_fitted(teacher.recipe, stages.dataset(teacher.recipe.data), folds=2, devices=1)
    np.testing.assert_allclose(table, wanted, rtol=1e-5, atol=1e-5)

    class Stop(signals.Asked):
        """A signal after so many questions: in the midst of a fold, and then of the student."""

        left = 6

        def __bool__(self):
            Stop.left -= 1
            return Stop.left < 0

    stopped = 0
    run = Settings(workdir=str(tmp_path / "parts"), checkpoint_steps=1, devices=1)
    for stage in stages.order([student]):
        Stop.left = 6
        while True:
            try:
                runs.run_stage(stage, run, runs.console.Silent(), asked=Stop())
                break
            except Interrupted:
                stopped, Stop.left = stopped + 1, 6
    assert stopped >= 3
    again = results.teacher_of(student, tmp_path / "parts", 1).variables
    assert np.array_equal(table, again)
    for split in ("calibration", "test"):
        one, two = (results.stored_logits(student.directory(tmp_path / p), split)[0] for p in ("whole", "parts"))
        assert np.array_equal(one, two)
    assert len(whole) == 4

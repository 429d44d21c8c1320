"""The run with files is the loop without them: same outcome, and a log that says what happened in each epoch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdjax import runs, settings, stages
from kdjax.tasks import task
from kdjax.trainer import Trainer
from tests import tiny


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_stage_is_the_trainers_loop_with_files(tmp_path, select):
    """AdaFocal needs its refresh, "best" the variables of the epoch it names; the log's means are of one epoch each."""
    recipe = tiny.recipe(tiny.npz(tmp_path), method="adafocal", epochs=4, select=select)
    stage = stages.Stage(recipe)
    result = runs.run_all([stage], settings.Settings(workdir=str(tmp_path / "runs"), devices=1)).results[stage.id]
    lines = [json.loads(text) for text in (result.directory / "metrics.jsonl").read_text().splitlines()]

    own = stages.dataset(recipe.data)
    trainer = Trainer(task(recipe, own), devices=1)
    state, losses, top1, outcomes = trainer.init(), [], [], []
    for _ in range(recipe.epochs):
        epoch = []
        for state, logs in trainer.steps(state):
            epoch.extend(np.asarray(logs["loss"], np.float64))
        state, logits = trainer.refreshed(state, evaluate=True)
        losses.append(np.mean(epoch))
        top1.append(float((logits.argmax(1) == own.calibration.label).mean()))
        outcomes.append(trainer.predict(state.variables, own.test))

    assert [line["train"]["loss"] for line in lines] == pytest.approx(losses, rel=1e-6)
    assert [line["calibration"]["top1"] for line in lines] == pytest.approx(top1)
    chosen = len(outcomes) if select == "last" else top1.index(max(top1)) + 1  # the first of ties
    assert result.epoch == chosen
    np.testing.assert_array_equal(result.logits("test")[0], outcomes[chosen - 1])
    np.testing.assert_array_equal(result.logits("test")[1], own.test.label)

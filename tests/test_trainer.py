"""Cross-fitting: out-of-fold logits, aligned with the training split, that let a teacher err."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, models, register, teachers, transforms
from kdjax.cohort import Cohort, Diverged
from kdjax.errors import Refused
from kdjax.parts import parts
from kdjax.recipes import Optimizer
from kdjax.runs import refuse_early, run_all
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.trainer import Trainer, cross_fitted, fit, task
from tests import tiny

RECIPE = tiny.recipe("", epochs=20, batch_size=16, optimizer=Optimizer(lr=0.1, schedule="constant", weight_decay=0.0))


def dataset(labels=None):
    x, y = tiny.arrays(60, 0)
    train = (x, y if labels is None else labels)
    return data.from_arrays(
        train=train, calibration=tiny.arrays(16, 1), test=tiny.arrays(16, 2), num_classes=tiny.CLASSES
    )


def accuracy(logits, own):
    return float((np.argmax(logits, axis=1) == own.train.label).mean())


def test_rows_are_aligned_and_from_the_other_folds():
    own = dataset()
    found = cross_fitted(RECIPE, own, folds=3, devices=1)
    assert found.shape == (60, tiny.CLASSES) and accuracy(found, own) > 0.8
    held = np.array_split(np.random.default_rng(RECIPE.seed).permutation(60), 3)[1]
    others = np.setdiff1d(np.arange(60), held)
    part = own._replace(
        train=own.train._replace(inputs=own.train.inputs[others], label=own.train.label[others], index=others)
    )
    trainer = Trainer(task(RECIPE, part), devices=1)
    everyone = trainer.predict(fit(trainer).variables, own.train)
    np.testing.assert_allclose(found[held], everyone[held], rtol=1e-5, atol=1e-5)
    assert np.abs(found[others] - everyone[others]).max() > 0.1


def test_a_cross_fitted_teacher_errs_and_wclip_fires():
    """On labels of pure chance a network is right by heart on its own examples, and by luck on others."""
    own = dataset(np.random.default_rng(3).integers(0, tiny.CLASSES, 60).astype(np.int32))
    by_heart = Trainer(task(dataclasses.replace(RECIPE, epochs=40), own), devices=1)
    learned = by_heart.predict(fit(by_heart).variables, own.train)
    honest = cross_fitted(dataclasses.replace(RECIPE, epochs=40), own, folds=3, devices=1)
    assert accuracy(learned, own) > 0.9 and accuracy(honest, own) < 0.5
    rates = []
    student = tiny.student("", method="cud", options=(), epochs=1)
    for logits in (learned, honest):
        trainer = Trainer(task(student, own, teachers.remembered(logits)), devices=1)
        rates.append(np.mean([float(np.mean(logs["firing_rate"])) for _, logs in trainer.steps(trainer.init())]))
    assert rates[0] < 0.1 and rates[1] > 0.5


@pytest.mark.parametrize(
    ("changes", "folds", "sentence"),
    [({}, 1, "folds is 1"), ({}, 61, "folds is 61"), ({"batch_size": 48}, 2, "batch_size 48 is larger than the 30")],
)
def test_refusals(changes, folds, sentence):
    with pytest.raises(Refused, match=sentence):
        cross_fitted(dataclasses.replace(RECIPE, **changes), dataset(), folds, devices=1)


def test_regions_are_refused_before_a_fold_is_trained():
    y = tiny.arrays(60, 0)[1]
    own = dataset()
    regions = own._replace(train=own.train._replace(label=np.stack([y, y], axis=1)))
    with pytest.raises(Refused, match=r"labels of shape \[60, 2\], of regions; expected one label for each example"):
        cross_fitted(RECIPE, regions, 3, devices=1)


class Masked(nn.Module):
    """Never offers class 0 to half of the examples, and knows nothing of those of the calibration split's weight 0."""

    @nn.compact
    def __call__(self, inputs, train):
        logits = nn.Dense(tiny.CLASSES)(inputs.reshape(inputs.shape[0], -1))
        masked = (inputs.sum(axis=tuple(range(1, inputs.ndim))) > 0)[:, None] & (jnp.arange(tiny.CLASSES) == 0)
        return jnp.where(masked, -jnp.inf, logits) * jnp.where(inputs.max() > 1e3, jnp.nan, 1.0)


def test_a_masked_class_and_rows_without_an_example_are_no_divergence():
    y = tiny.arrays(16, 1)[1]
    trainer = Trainer(task(RECIPE, dataset(), model=models.linen(Masked())), devices=1)
    state = trainer.init()
    kept, logits = trainer.refreshed(state, evaluate=True)
    assert kept is state and np.isneginf(logits).any() and np.isfinite(logits).any()
    split = trainer.task.dataset.calibration
    trainer.predict = lambda *_: np.where(np.arange(len(y))[:, None] == 3, np.nan, logits)
    with pytest.raises(Diverged, match="logits of the calibration split are not finite"):
        trainer.refreshed(state, evaluate=True)
    absent = split._replace(weight=(np.arange(len(y)) != 3).astype(np.float32))
    own = trainer.task.dataset._replace(calibration=absent)
    trainer.task = trainer.task._replace(dataset=own)
    assert np.isnan(trainer.refreshed(state, evaluate=True)[1][3]).all()


def test_a_distilling_recipe_is_refused():
    with pytest.raises(Refused, match="set distill=None"):
        cross_fitted(tiny.student(""), dataset(), 3)


def test_a_feed_that_does_not_exist_is_refused():
    with pytest.raises(Refused, match="feed is 'stream', which does not exist; did you mean streamed"):
        Trainer(task(RECIPE, dataset()), devices=1, feed="stream")


def test_what_is_no_argument_of_a_trainer_is_one_sentence():
    made = task(RECIPE, dataset())
    trainer = Trainer(made, devices=1)
    state = trainer.init()
    wrong = {
        "Trainer got a Recipe; expected a Task": lambda: Trainer(RECIPE),
        "run.devices is -1": lambda: Trainer(made, devices=-1),
        "every is -1": lambda: next(trainer.epochs(state, every=-1)),
        "got a State and a Split; .*state.variables": lambda: trainer.predict(state, made.dataset.test),
        "and a ndarray; .*a split": lambda: trainer.predict(state.variables, np.zeros((2, 8, 8, 1))),
        "a cohort has a Trainer as members; expected a list": lambda: Cohort(trainer),
        r"one Stage; .*run_all\(\[stage\]": lambda: run_all(Stage(RECIPE), Settings()),
    }
    for sentence, call in wrong.items():
        with pytest.raises(Refused, match=sentence):
            call()


def test_a_state_that_was_trained_on_is_used_up():
    trainer = Trainer(task(RECIPE, dataset()), devices=1)
    before = trainer.init()
    next(trainer.steps(before, stop=1))
    for call in (
        lambda: trainer.predict(before.variables, trainer.task.dataset.test),
        lambda: fit(trainer, before),
        lambda: next(trainer.steps(before)),
    ):
        with pytest.raises(Refused, match=r"given to a training step before, .*trainer.init\(\)"):
            call()


@pytest.mark.parametrize("outputs", [1, tiny.CLASSES - 1, tiny.CLASSES + 3])
def test_a_network_of_another_number_of_classes_is_refused(outputs):
    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(outputs)(inputs.reshape(inputs.shape[0], -1))

    with pytest.raises(Refused, match=rf"shape \[1, {outputs}\] .* has 4 classes; expected \[1, 4\]"):
        task(RECIPE, dataset(), model=models.linen(Narrow()))


def _shift(by):
    def anew():
        return lambda key, batch: batch._replace(inputs=batch.inputs + by)

    return anew


def _net(width):
    def anew(num_classes):
        return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(width), nn.Dense(num_classes)])

    return anew


def test_code_that_is_registered_anew_is_what_runs(tmp_path, monkeypatch):
    """As where a cell of a notebook is run again, also under a version that its author left as it was."""
    monkeypatch.setattr(transforms, "TRANSFORMS", dict(transforms.TRANSFORMS))
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    register.transform("anew", _shift(0.0), version="1")
    register.model("anew", _net(4), version="1")
    recipe = tiny.recipe(tiny.npz(tmp_path), transform=("anew",), model="anew")
    before, stage = parts(recipe, dataset()), Stage(recipe)
    assert parts(recipe, dataset()).model is before.model and stage.id == Stage(recipe).id
    register.transform("anew", _shift(50.0), version="2")
    register.model("anew", _net(100), version="1")
    after = parts(recipe, dataset())
    assert after.transform is not before.transform and after.model is not before.model
    assert stage.id != Stage(recipe).id
    with pytest.raises(Refused, match="made before code that its recipe names was registered anew; make it again"):
        refuse_early([stage], Settings(workdir=str(tmp_path)))
    refuse_early([Stage(recipe)], Settings(workdir=str(tmp_path)))
    for taken in (register.transform, register.model):
        with pytest.raises(Refused, match="'anew' exists already"):
            taken("anew", tiny.recipe, version="1")

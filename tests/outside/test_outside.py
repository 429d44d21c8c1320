"""A stranger's loss, network, tokens and regions: one module outside the package, the one step, exact resume."""

from __future__ import annotations

import dataclasses

import chex
import jax
import numpy as np
import pytest

from kdjax import data, layout, models, objectives, runs, stages, teachers
from kdjax.errors import Refused
from kdjax.recipes import Data, Distill, Optimizer, Recipe
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.tasks import Task, task
from kdjax.trainer import Trainer, fit
from tests.outside import toys

FAST = Optimizer(lr=0.1, schedule="constant", weight_decay=0.0)
COMMON = {"epochs": 3, "batch_size": 8, "optimizer": FAST}


@pytest.fixture(autouse=True)
def registered():
    """What the module registers is gone after each test."""
    before = [dict(registry) for registry in (objectives.METHODS, models.MODELS, data.SOURCES)]
    toys.register_all()
    yield
    for registry, kept in zip((objectives.METHODS, models.MODELS, data.SOURCES), before, strict=True):
        registry.clear()
        registry.update(kept)


@pytest.fixture
def tokens() -> Recipe:
    return Recipe(data=Data("toy_tokens"), model="toy_net", method="toy_loss", **COMMON)


@pytest.fixture
def regions() -> Recipe:
    return Recipe(data=Data("toy_regions"), model="toy_regions_net", method="adafocal", **COMMON)


def exact_resume(made: Task, stop: int) -> dict[str, np.ndarray]:
    """Trains to the end, and again with a stop in mid-epoch through the host; returns the logs of the first step."""
    trainer = Trainer(made, devices=1)
    _, logs = next(trainer.steps(trainer.init()))
    whole = jax.tree.map(np.asarray, fit(trainer))
    half = None
    for progress in trainer.epochs(every=stop):
        half = jax.tree.map(np.array, progress.state)
        break
    assert half is not None and int(half.step) == stop
    resumed = fit(trainer, jax.device_put(half, layout.replicated(trainer.mesh)))
    chex.assert_trees_all_equal(whole, jax.tree.map(np.asarray, resumed))
    return {name: np.asarray(values) for name, values in logs.items()}


def taught(recipe: Recipe) -> Task:
    """The same network taught by itself after training."""
    dataset = stages.dataset(recipe.data)
    trainer = Trainer(task(recipe, dataset), devices=1)
    variables = jax.tree.map(np.asarray, fit(trainer).variables)
    student = Recipe(data=recipe.data, model=recipe.model, distill=Distill("kd", {"T": 2.0}), **COMMON)
    return task(student, dataset, teachers.frozen(trainer.task.parts.model, variables))


def test_tokens_a_loss_and_a_network_from_outside(tokens):
    dataset = stages.dataset(tokens.data)
    assert dataset.kind == "text" and dataset.prepare.describe() == {"kind": "unchanged"}
    logs = exact_resume(task(tokens, dataset), stop=2)
    assert "toy_loss" in logs
    exact_resume(taught(tokens), stop=2)


def test_what_is_masked_changes_nothing(tokens):
    dataset = stages.dataset(tokens.data)
    rubbish = {
        **dataset.train.inputs,
        "ids": np.where(dataset.train.inputs["mask"] == 1, dataset.train.inputs["ids"], 7),
    }
    other = dataset._replace(train=dataset.train._replace(inputs=rubbish))
    states = [fit(Trainer(task(tokens, d), devices=1)) for d in (dataset, other)]
    chex.assert_trees_all_close(states[0].params, states[1].params, rtol=1e-6)


def test_regions_train_through_the_one_step(regions):
    """[B, R, K] logits, padding as weight 0, an auxiliary term, AdaFocal's refresh on the regions that exist."""
    logs = exact_resume(task(regions, stages.dataset(regions.data)), stop=2)
    np.testing.assert_allclose(logs["loss"], logs["adafocal"] + logs["box"], rtol=1e-5)
    exact_resume(taught(regions), stop=2)


def test_a_region_that_does_not_exist_teaches_nothing(regions):
    """Its features may be anything, and the accuracy counts the regions that exist."""
    dataset = stages.dataset(regions.data)
    recipe = Recipe(data=regions.data, model="toy_regions_net", **COMMON)
    features = np.where(dataset.train.label[..., None] < 0, 3.0, dataset.train.inputs["regions"])
    inputs = {"regions": features.astype(np.float32)}
    other = dataset._replace(train=dataset.train._replace(inputs=inputs))
    trainers = [Trainer(task(recipe, d), devices=1) for d in (dataset, other)]
    logs = [next(t.steps(t.init()))[1] for t in trainers]
    np.testing.assert_allclose(logs[0]["nll"], logs[1]["nll"], rtol=1e-5)
    np.testing.assert_allclose(logs[0]["accuracy"], logs[1]["accuracy"], rtol=1e-6)


def test_as_stages_with_files(tmp_path, monkeypatch, tokens, regions):
    """The same through directories; the student of the regions is loaded without its data."""
    from kdjax import predictor

    teacher = Stage(regions, name="teacher")
    student = Stage(
        Recipe(data=regions.data, model="toy_regions_net", method="toy_loss", distill=Distill("kd"), **COMMON), teacher
    )
    outcome = runs.run_all([student, Stage(tokens)], Settings(workdir=str(tmp_path), devices=1))
    assert len(outcome.results) == 3
    logits, labels = outcome.results[student.id].logits("test")
    assert labels.min() >= 0 and len(labels) == len(logits) == int((stages.dataset(regions.data).test.label >= 0).sum())
    loaded = predictor.load(student.directory(tmp_path))
    test = stages.dataset(regions.data).test
    np.testing.assert_allclose(loaded.logits(test.inputs)[test.label >= 0], logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(Refused, match="was trained on inputs float32"):
        loaded.predict({"regions": test.inputs["regions"][:, :, :2].astype(np.int32)})
    changed = dataclasses.replace(models.MODELS["toy_regions_net"], version="2")
    monkeypatch.setitem(models.MODELS, "toy_regions_net", changed)
    with pytest.raises(Refused, match="was trained with other code of the model 'toy_regions_net'"):
        predictor.load(student.directory(tmp_path))


def test_the_code_is_in_the_id(monkeypatch, tokens):
    from kdjax.objectives import METHODS

    before = tokens.canonical()
    assert '"code":' in before and "method toy_loss" in before and "model toy_net" in before
    monkeypatch.setitem(METHODS, "toy_loss", METHODS["toy_loss"]._replace(version="2"))
    assert tokens.canonical() != before
    assert '"code":' not in Recipe().canonical()


def test_an_optimizer_and_a_network_of_ones_own(tokens):
    import optax

    dataset = stages.dataset(tokens.data)
    made = task(tokens, dataset, model=models.linen(toys.ToyNet(num_classes=3)), optimizer=optax.adamw(1e-2))
    assert fit(Trainer(made, devices=1)).step == 12
    with pytest.raises(Refused, match="wrap yours by"):
        task(tokens, dataset, model=toys.ToyNet(num_classes=3))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="expected an optax optimizer"):
        task(tokens, dataset, optimizer="adamw")  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"(?s)model is .*expected str"):
        Recipe(model=toys.ToyNet(num_classes=3))  # type: ignore[arg-type]


def test_an_example_of_weight_zero_is_neither_trained_on_nor_measured():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3
    weight = (np.arange(40) % 4 > 0).astype(np.float32)
    given = {"train": (x[:24], y[:24]), "calibration": (x[24:32], y[24:32]), "test": (x[32:], y[32:])}
    weights = {"train_weight": weight[:24], "calibration_weight": weight[24:32], "test_weight": weight[32:]}
    dataset = data.from_arrays(**given, **weights, num_classes=3)
    logits, labels = data.existing_rows(np.arange(24.0).reshape(8, 3), dataset.test)
    np.testing.assert_array_equal(labels, y[32:][weight[32:] > 0])
    np.testing.assert_array_equal(logits[0], [3, 4, 5])
    np.testing.assert_array_equal(data.existing_index(dataset.test), dataset.test.index[weight[32:] > 0])
    recipe = Recipe(model="mlp", **{**COMMON, "batch_size": 24, "epochs": 1})
    broken = dataset._replace(train=dataset.train._replace(label=np.where(weight[:24] > 0, y[:24], 2)))
    logs = [next(t.steps(t.init()))[1] for t in (Trainer(task(recipe, d), devices=1) for d in (dataset, broken))]
    chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, values) for values in logs))
    with pytest.raises(Refused, match="test_weight of 'arrays' holds other numbers than 0 and 1"):
        task(recipe, data.from_arrays(**given, test_weight=np.full(8, 0.5, np.float32), num_classes=3))

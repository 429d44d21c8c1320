"""A text teacher and its student through the one step: resumed in mid-epoch, and taught by stored logits."""

import dataclasses

import jax
import numpy as np
import pytest

from kdjax import data, objectives, teachers
from kdjax.recipes import Distill, Optimizer, Recipe
from kdjax.tasks import task
from kdjax.trainer import Trainer
from tests.text.test_data import examples

pytestmark = pytest.mark.fused

OPTIONS = {
    "vocab_size": 90,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    # One site of dropout is enough to show that a resumed run draws the same; each costs a second of compiling.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
RECIPE = Recipe(
    model="bert_1l_8",
    model_options=OPTIONS,
    optimizer=Optimizer(schedule="constant"),
    epochs=2,
    batch_size=8,
    distill=Distill("kd", {"T": 2.0}),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.csv"
    path.write_text("text,label\n" + "".join(f"{words},{name}\n" for words, name in examples(40, 1)))
    return data.load("text", path=path, vocab_size=90)


@pytest.fixture(scope="module")
def teacher(dataset):
    """In evaluation: its logits are a function of the text; computed in batches as large as the student's."""
    teaching = task(Recipe(model="bert_1l_8", model_options=OPTIONS, batch_size=8, seed=5), dataset)
    trainer = Trainer(teaching, devices=1, eval_batch_size=RECIPE.batch_size)
    sharper = jax.tree.map(lambda leaf: 10 * np.asarray(leaf), trainer.init().variables)
    return teachers.frozen(teaching.parts.model, sharper), trainer.predict(sharper, dataset.train)


def trained(trainer, state=None, stop=None):
    """(state, losses) after the steps up to `stop`, on the host."""
    losses = []
    for progress in trainer.epochs(state, every=1):
        losses.append(float(progress.logs["loss"][0]))
        state = progress.state
        if progress.step == stop:
            break
    return jax.tree.map(np.asarray, state), losses


@pytest.mark.slow
def test_resumed_in_mid_epoch_bit_for_bit_and_stored_logits_teach_the_same(dataset, teacher):
    living, logits = teacher
    assert np.ptp(logits, axis=0).max() > 1e-3, "the teacher tells texts apart"
    trainer = Trainer(task(RECIPE, dataset, living), devices=1)
    whole, losses = trained(trainer)
    assert len(losses) == trainer.task.total_steps >= 6
    half, before = trained(trainer, stop=2)
    assert trainer.task.steps_per_epoch > 2, "step 2 is in mid-epoch"
    resumed, after = trained(trainer, state=half)
    assert before + after == losses
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, whole))
    taught, stored = trained(Trainer(task(RECIPE, dataset, teachers.remembered(logits)), devices=1))
    assert stored == losses and jax.tree.all(jax.tree.map(np.array_equal, taught, whole)), "the same bits"


@pytest.mark.slow
def test_layers_of_a_wider_and_deeper_teacher_teach_and_resume_bit_for_bit(dataset):
    """The learned matrix is part of the state; TinyBERT's second stage begins in mid-run."""
    wide = {**OPTIONS, "num_attention_heads": 4}
    teaching = task(Recipe(model="bert_2l_16", model_options=wide, batch_size=8, seed=5), dataset)
    living = teachers.frozen(teaching.parts.model, Trainer(teaching, devices=1).init().variables)
    distill = Distill("tinybert", weights=objectives.METHODS["tinybert"].weights)
    recipe = dataclasses.replace(RECIPE, model="bert_1l_8", distill=distill)
    trainer = Trainer(task(recipe, dataset, living), devices=1)
    initial = jax.tree.map(np.asarray, trainer.init())
    uninterrupted, losses = trained(trainer)
    half, before = trained(trainer, stop=2)
    resumed, after = trained(trainer, state=half)
    assert before + after == losses and jax.tree.all(jax.tree.map(np.array_equal, resumed, uninterrupted))
    first, last = (jax.tree.leaves(state.objective_params) for state in (initial, uninterrupted))
    assert (8, 16) in [matrix.shape for matrix in first], "8 and 16 differ, so a matrix is learned"
    assert all(np.any(a != b) for a, b in zip(first, last, strict=True))

"""Every method through the one train step: a recipe from a config, digits, a tiny network, two epochs."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np

from configs import digits
from experiments import common
from kdjax import data, objectives, teachers
from kdjax.recipes import Recipe
from kdjax.tasks import Task, task
from kdjax.trainer import Trainer, fit
from kdjax.types import Dataset

# Maps of features come from a convolutional network; all other methods train the quickest one.
NETWORKS = {"attention": "conv_tiny", "attention_transfer": "conv_tiny"}


@cache
def dataset() -> Dataset:
    """96 of the digits; three steps an epoch."""
    return data.load("digits", noise=0.5, calibration_fraction=0.1, train_examples=96)


def recipe(name: str) -> Recipe:
    """What `--config=configs/digits.py:...,name` selects, shortened."""
    network = NETWORKS.get(name, "mlp")
    if objectives.METHODS[name].role == "distiller":
        found = common.recipe(digits.get_config(f"{network},nll,{network},{name}"), "student", 3)
    else:
        found = common.recipe(digits.get_config(f"{network},{name}"), "teacher", 3, distill=None)
    return dataclasses.replace(found, epochs=2, batch_size=32)


@cache
def teacher(network: str) -> teachers.Teacher:
    """A network that has seen one epoch, so that it has an opinion."""
    alone = dataclasses.replace(recipe("nll"), model=network, epochs=1, seed=9)
    trained = fit(Trainer(task(alone, dataset()), devices=1))
    return teachers.frozen(task(alone, dataset()).parts.model, jax.tree.map(np.asarray, trained.variables))


def of(name: str) -> Task:
    """The task of a method, with a teacher if it distills."""
    wanted = recipe(name)
    return task(wanted, dataset(), None if wanted.distill is None else teacher(wanted.model))


def train(trainer: Trainer, state: Any = None, stop: int | None = None) -> tuple[Any, dict[str, np.ndarray]]:
    """(state, logs) after all epochs or at step `stop`, with the refresh at each epoch's end."""
    state = trainer.init() if state is None else state
    last = trainer.task.epochs * trainer.task.steps_per_epoch if stop is None else stop
    logs: dict[str, list] = {}
    while int(state.step) < last:
        for state, found in trainer.steps(state, stop=last):
            for key, value in found.items():
                logs.setdefault(key, []).extend(np.asarray(value))
        if int(state.step) % trainer.task.steps_per_epoch == 0:
            state, _ = trainer.refreshed(state)
    return state, {key: np.array(values) for key, values in logs.items()}

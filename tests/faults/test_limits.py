"""Runs that no machine can hold: refused with what they would take, before anything is computed."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from kdjax import limits, runs, stages
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny


@pytest.mark.parametrize("epochs", [10**9, 10**18, 10**30])
def test_more_steps_than_are_counted(tmp_path, epochs):
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), epochs=epochs))
    sentence = rf"epochs is {epochs:,}, which takes {4 * epochs:,} steps .*set it to at most 536,870,911"
    for act in (lambda: stages.plan([stage], tmp_path), lambda: runs.run_all([stage], Settings(workdir=str(tmp_path)))):
        with pytest.raises(Refused, match=sentence):
            act()
    limits.refuse_steps(536_870_911, 4)


def test_a_state_beyond_the_memory_is_refused_with_its_parts():
    """PSKD's memory of 800,000 examples and 4,000 classes, on 8 GB."""
    history = jax.ShapeDtypeStruct((800_000, 4_000), np.float32)
    with pytest.raises(Refused, match=re.escape("takes 12.80 GB (parameters 0.00 GB, objective 12.80 GB), and")):
        limits.refuse_bytes({"parameters": (), "objective": history}, available=8 * 10**9)
    limits.refuse_bytes({"objective": history}, available=13 * 10**9)


def test_a_plan_refuses_what_the_device_cannot_hold(tmp_path, monkeypatch):
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), method="pskd"))
    assert limits.memory() > 10**8
    monkeypatch.setattr(limits, "memory", lambda: 1000)
    with pytest.raises(Refused, match=r"the training state takes 0\.00 GB \(parameters .*and the device has 0\.00 GB"):
        stages.plan([stage], tmp_path)


@pytest.mark.parametrize("name", ["wrn_600004_1", "resnet900002_bottleneck"])
def test_a_network_too_deep_to_trace(tmp_path, name):
    with pytest.raises(Refused, match=rf"model is '{name}', a network of [69]00,00[24] layers; expected at most 2,002"):
        stages.plan([Stage(tiny.recipe(tiny.npz(tmp_path), model=name))], tmp_path)


@pytest.mark.parametrize("name", ["lr[0.1]", "a*b?", "with space", "\u00fc\u2192", "%s{}$x"])
def test_a_work_directory_of_any_name(tmp_path, name):
    """Also where the storage library below would read a pattern or a URL into it."""
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), epochs=1))
    settings = Settings(workdir=str(tmp_path / name), checkpoint_epochs=1, devices=1)
    assert not runs.run_all([stage], settings).results[stage.id].reused
    assert runs.run_all([stage], settings).results[stage.id].reused

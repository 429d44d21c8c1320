"""Runs that no machine can hold: refused with what they would take, before anything is computed."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import jax
import numpy as np
import pytest

from experiments import plans, tables
from kdjax import data, layout, limits, manifests, planning, runs, stages, tasks
from kdjax.errors import Refused, within
from kdjax.models import linen_adapter
from kdjax.recipes import Data, Recipe
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.trainer import Trainer
from tests import tiny


@pytest.mark.parametrize("epochs", [10**9, 10**18, 10**30])
def test_more_steps_than_are_counted(tmp_path, epochs):
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), epochs=epochs))
    sentence = rf"epochs is {epochs:,}, which takes {4 * epochs:,} steps .*set it to at most 536,870,911"
    for act in (
        lambda: planning.plan([stage], tmp_path),
        lambda: runs.run_all([stage], Settings(workdir=str(tmp_path))),
    ):
        with pytest.raises(Refused, match=sentence):
            act()
    limits.refuse_steps(536_870_911, 4)


def test_the_clock_is_exact_up_to_the_last_step_that_is_counted(tmp_path):
    """In float32 steps beyond 2^24 would run together, and an epoch would begin some steps early or late."""
    recipe = tiny.recipe(tiny.npz(tmp_path), epochs=536_870_911)  # of 4 steps
    made = tasks.task(recipe, stages.dataset(recipe.data), None)
    plain = made.parts.objective

    def apply(params, state, batch, output, clock):
        terms, state = plain.apply(params, state, batch, output, clock)
        told = {"epoch": clock.epoch % 1000, "step": clock.step % 1000, "progress": clock.progress}
        return terms._replace(logs={name: value.astype(np.float32) for name, value in told.items()}), state

    made = made._replace(parts=made.parts._replace(objective=plain._replace(apply=apply)))
    trainer = Trainer(made, devices=1)
    for first in (0, 10_000_003, 2**24 + 1, 2**31 - 9):
        state = trainer.init()._replace(step=np.int32(first))
        for step, (state, logs) in enumerate(trainer.steps(state), first):
            assert float(logs["epoch"][0]) == step // 4 % 1000 and float(logs["step"][0]) == step % 1000
            assert (
                float(logs["progress"][0]) == pytest.approx(step / (2**31 - 4), rel=1e-6)
                and int(state.step) == step + 1
            )


def test_a_state_beyond_the_memory_is_refused_with_its_parts():
    """PSKD's memory of 800,000 examples and 4,000 classes, on 8 GB."""
    history = jax.ShapeDtypeStruct((800_000, 4_000), np.float32)
    with pytest.raises(Refused, match=re.escape("takes 12.80 GB (parameters 0.00 GB, objective 12.80 GB), and")):
        limits.refuse_bytes({"parameters": (), "objective": history}, available=8 * 10**9)
    limits.refuse_bytes({"objective": history}, available=13 * 10**9)


def test_ulimit_is_a_limit(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4_000_000_000, 4_000_000_000))
    assert limits.memory() <= 4_000_000_000


def test_a_plan_refuses_what_the_device_cannot_hold(tmp_path, monkeypatch):
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), method="pskd"))
    assert limits.memory() > 10**8
    monkeypatch.setattr(limits, "memory", lambda: 1000)
    with pytest.raises(Refused, match=r"the training state takes 0\.00 GB \(parameters .*and the device has 0\.00 GB"):
        planning.plan([stage], tmp_path)


@pytest.mark.parametrize("classes", [2**31, 10**30])
def test_more_classes_than_labels_tell_apart(tmp_path, classes):
    data = Data(name="arrays", path=tiny.npz(tmp_path), num_classes=classes)
    sentence = rf"num_classes is {classes:,}, which takes {4 * classes // 10**9:,} GB for the logits of one example; "
    with pytest.raises(Refused, match=sentence):
        planning.plan([Stage(tiny.recipe("", data=data))], tmp_path)


def test_a_billion_classes_are_counted_and_refused(tmp_path):
    """Nothing is allocated for a class: 10^9 counters would take 8 GB."""
    data = Data(name="arrays", path=tiny.npz(tmp_path), num_classes=10**9)
    with pytest.raises(Refused, match=r"takes 1,032\.00 GB \(parameters 516\.00 GB, optimizer 516\.00 GB"):
        planning.plan([Stage(tiny.recipe("", data=data))], tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("wrn_100000_1", {}, "100,000"),
        ("resnet900002_bottleneck", {}, "900,002"),
        ("bert_100000l_256", {}, "100,000"),
        ("mlp", {"widths": (8,) * 100_000}, "100,000"),
    ],
)
def test_a_network_too_deep_to_trace(tmp_path, name, options, layers):
    with pytest.raises(Refused, match=rf"a network of {layers} layers, which takes some .* hours .* at most 2,002"):
        planning.plan([Stage(tiny.recipe(tiny.npz(tmp_path), model=name, model_options=options))], tmp_path)


@pytest.mark.parametrize("name", ["wrn_{}_1", "wrn_10_{}", "resnet{}_bottleneck", "bert_{}l_64"])
def test_a_network_of_five_thousand_digits(tmp_path, name):
    with pytest.raises(Refused, match="does not exist"):
        tiny.recipe(tiny.npz(tmp_path), model=name.format("9" * 5000))


def test_numbers_of_hundreds_of_digits():
    with pytest.raises(Refused, match=r"run\.devices is 10+, and \d+ exist"):
        layout.mesh(Settings(devices=10**400).check().devices)
    with pytest.raises(Refused, match="set to zero is -1"):
        within("set to zero", -(10**400), 0)


def test_a_million_seeds_and_a_billion_generations(tmp_path):
    npz = tiny.npz(tmp_path)
    student = Stage(tiny.student(npz), Stage(tiny.recipe(npz)))
    sentence = r"these are 2,000,000 stages, which take 16,000,000 steps \(4 hours at .*at most 100,000 are planned"
    with pytest.raises(Refused, match=sentence):
        tables.grid({"student": tables.Row(student)}, range(10**6))
    with pytest.raises(Refused, match=r"these are 1,000,000,001 stages, which take 8,000,000,008 steps"):
        stages.generations(student, 10**9)


def test_a_plan_computes_once_what_seeds_share(tmp_path, monkeypatch):
    """So that ten thousand stages take seconds: per stage a manifest is looked for, and no file is hashed."""
    npz, counted = tiny.npz(tmp_path), Counter()
    rows = {"student": tables.Row(Stage(tiny.student(npz), Stage(tiny.recipe(npz))))}
    targets = tables.grid(rows, range(300))["student"]
    for owner, name in (
        (planning, "_cost"),
        (stages, "parts"),
        (manifests, "read_json"),
        (manifests, "_entry"),
        (Recipe, "__post_init__"),
    ):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name), name, counted))
    planned = planning.plan(targets, tmp_path)
    assert len(planned) == 600 and {row.status for row in planned} == {"missing"}
    assert counted["_cost"] == 2 and counted["parts"] < 20 and not counted["__post_init__"], counted
    assert counted["read_json"] <= 2 * len(planned) and not counted["_entry"], counted


def test_a_plan_traces_a_network_once_for_all_that_is_trained_with_it(tmp_path, monkeypatch):
    npz, counted, network = tiny.npz(tmp_path), Counter(), {"model_options": {"widths": (5,)}}
    teacher = Stage(tiny.recipe(npz, **network))
    pupils = [Stage(tiny.student(npz, **network, options={"T": T}), teacher) for T in (1.0, 3.0)]
    alone = [Stage(tiny.recipe(npz, method=method, **network)) for method in ("focal", "brier", "mdca")]
    output = linen_adapter.as_output
    monkeypatch.setattr(linen_adapter, "as_output", counting(output, "outputs", counted))
    assert len(planning.plan([*pupils, *alone], tmp_path)) == 6
    # In training; as a teacher, of one example for what its variables alone decide, and of a batch; for its operations.
    assert counted["outputs"] == 4
    # What a step computes once of a teacher's variables, such as casts, is rehearsed as it will be.
    narrow = tiny.recipe(npz, precision="bfloat16", **network)
    rehearsed = stages._abstract_task(pupils[0].recipe, narrow).teacher
    assert "bfloat16" in {str(x.dtype) for x in jax.tree.leaves(rehearsed.variables)}


def test_parts_that_are_left_out_do_not_crowd_out_the_data_set(tmp_path, monkeypatch):
    recipe, counted = tiny.recipe(tiny.npz(tmp_path)), Counter()
    monkeypatch.setattr(data, "assemble", counting(data.assemble, "loads", counted))
    without = [dataclasses.replace(recipe.data, fold=(part, 12, 0)) for part in range(12)]
    sizes = {len(stages.dataset(which).train.label) for which in (recipe.data, *without, recipe.data)}
    assert sizes == {64, 59, 58} and counted["loads"] == 1


def counting(function, name, counted):
    def called(*args, **kwargs):
        counted[name] += 1
        return function(*args, **kwargs)

    return called


def test_a_plan_of_many_stages_shares_rows(tmp_path, capsys):
    npz = tiny.npz(tmp_path)
    planned = [
        planning.Planned(Stage(tiny.recipe(npz).with_seed(n), name=f"seed {n}"), "missing", 8, 1e6, 0)
        for n in range(201)
    ]
    plans.show([*planned[:200], planned[200]._replace(status="done")])
    printed = capsys.readouterr().out
    assert "seed 0 and 199 of other seeds" in printed and "seed 200" in printed and "seed 7" not in printed
    assert "201 stages, 200 to run" in printed
    plans.show(planned[:3])
    assert "of other seeds" not in capsys.readouterr().out


def test_a_chain_of_thousands_of_generations(tmp_path):
    npz = tiny.npz(tmp_path)
    chain = stages.generations(Stage(tiny.student(npz), Stage(tiny.recipe(npz))), 3000)
    planned = planning.plan(chain[-1:], tmp_path)
    assert [row.stage for row in planned[:2]] == chain[:2] and len({row.stage.id for row in planned}) == 3001


def test_a_plan_sees_missing_files_by_their_sizes(tmp_path):
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), epochs=1))
    runs.run_all([stage], Settings(workdir=str(tmp_path), checkpoint_epochs=1, devices=1))
    assert planning.plan([stage], tmp_path)[0].status == "done"
    for name in ("result.json", "logits/test.npz"):
        path = stage.directory(tmp_path) / name
        kept = path.read_bytes()
        path.write_bytes(kept[:-1])
        assert planning.plan([stage], tmp_path)[0].status == "resumable"
        path.unlink()
        path.symlink_to(tmp_path / "tiny.npz")
        assert planning.plan([stage], tmp_path)[0].status == "resumable"
        path.unlink()
        path.write_bytes(kept)


@pytest.mark.parametrize("name", ["lr[0.1]", "a*b?", "with space", "\u00fc\u2192", "%s{}$x"])
def test_a_work_directory_of_any_name(tmp_path, name):
    """Also where the storage library below would read a pattern or a URL into it."""
    stage = Stage(tiny.recipe(tiny.npz(tmp_path), epochs=1))
    settings = Settings(workdir=str(tmp_path / name), checkpoint_epochs=1, devices=1)
    assert not runs.run_all([stage], settings).results[stage.id].reused
    assert runs.run_all([stage], settings).results[stage.id].reused

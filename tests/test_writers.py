"""Curves written to TensorBoard are read back from its files; W&B gets the same numbers through a stub."""

from __future__ import annotations

import json
import struct
import sys
from types import SimpleNamespace

import pytest

from kdjax import writers
from kdjax.errors import Refused
from kdjax.runs import run_all
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tiny.recipe(tiny.npz(tmp_path_factory.mktemp("data")), epochs=2), name="a/b <c>")


def events(folder):
    """Every event of a folder's TFRecord files: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_holds_the_numbers_of_the_log(stage, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    result = run_all([stage], Settings(workdir=str(tmp_path), writer="tensorboard")).results[stage.id]
    folder = tmp_path / "tensorboard" / f"a_b_c_-{stage.id}"
    scalars = {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value}
    for line in map(json.loads, (stage.directory(tmp_path) / "metrics.jsonl").read_text().splitlines()):
        assert scalars["train/loss", line["step"]] == pytest.approx(line["train"]["loss"], rel=1e-6)
        assert scalars["calibration/ece", line["step"]] == pytest.approx(line["calibration"]["ece"], rel=1e-6)
        assert ("lr", line["step"]) in scalars
    assert scalars["test/nll", 8] == pytest.approx(result.metrics["test"]["nll"], rel=1e-6)


def test_what_a_killed_run_wrote_too_much_is_hidden(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    for begin, values in ((0, (1.0, 2.0, 3.0)), (1, (5.0,))):
        with writers.opened("tensorboard", tmp_path, run="id", title="t", config={}, step=begin) as writer:
            for i, value in enumerate(values, begin + 1):
                writer.write(i, {"loss": value})
    marks = [(e.step, e.session_log.status) for e in events(tmp_path / "tensorboard" / "t-id")]
    assert (2, 1) in marks, "a session that starts at step 2 voids what stood there before"


def test_wandb_gets_a_run_that_is_gone_on_with(stage, tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda numbers: calls.append(("log", numbers)),
        finish=lambda: calls.append(("finish", {})),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
    )
    stub = SimpleNamespace(init=lambda **settings: calls.append(("init", settings)) or run)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    with writers.opened("wandb", tmp_path, run="id", title="t", config={"epochs": 2}, step=0) as writer:
        writer.write(4, {"train": {"loss": 0.5, "bad": float("nan")}, "lr": 1})
    wanted = {"id": "id", "name": "t", "config": {"epochs": 2}, "dir": str(tmp_path)}
    assert calls[0] == ("init", {**wanted, "project": "kdjax", "resume": "allow"})
    assert calls[1:] == [("*", "step"), ("log", {"train/loss": 0.5, "lr": 1.0, "step": 4}), ("finish", {})]


@pytest.mark.parametrize("stub", [None, SimpleNamespace()], ids=["absent", "a folder of its logs"])
def test_a_writer_that_is_not_installed_is_refused_before_anything_runs(stub, stage, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", stub)
    with pytest.raises(Refused, match=r"wandb is not installed; type pip install 'kdjax\[wandb\]'"):
        run_all([stage], Settings(workdir=str(tmp_path), writer="wandb"))
    with pytest.raises(Refused, match="run.writer is 'tensorbord', which does not exist; did you mean tensorboard"):
        run_all([stage], Settings(workdir=str(tmp_path), writer="tensorbord"))
    assert not any(tmp_path.iterdir())

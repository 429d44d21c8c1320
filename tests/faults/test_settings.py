"""Settings from outside that change numbers: pinned where a program can, recorded and told apart where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import common
from kdjax import checkpoints, console, manifests, provenance, results, runs
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny
from tests.processes import ROOT, environment, slow

pytestmark = pytest.mark.fused

NUMBERS = """
import sys, jax
from kdjax import runs
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny
stage = Stage(tiny.recipe(sys.argv[1], epochs=1, transform=("pad_crop",)))
outcome = runs.run_all([stage], Settings(workdir=sys.argv[2], devices=1))
"""


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    return tiny.npz(tmp_path_factory.mktemp("data"))


def logits(npz: str, workdir: Path, **variables: str) -> bytes:
    """The test logits of a recipe with random augmentation, trained in a process with those variables."""
    command = [sys.executable, "-c", NUMBERS, npz, str(workdir)]
    done = subprocess.run(command, cwd=ROOT, env={**environment(), **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = workdir.glob("*/logits/test.npz")
    with np.load(path) as file:
        return file["logits"].tobytes()


@pytest.fixture(scope="module")
def expected(npz, tmp_path_factory) -> bytes:
    return logits(npz, tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "variable",
    ["JAX_DEFAULT_PRNG_IMPL=rbg", *slow("JAX_THREEFRY_PARTITIONABLE=0", "JAX_DEFAULT_MATMUL_PRECISION=bfloat16")],
)
def test_what_can_be_pinned_changes_no_bit(npz, tmp_path, expected, variable):
    name, _, value = variable.partition("=")
    assert logits(npz, tmp_path, **{name: value}) == expected


def test_flags_are_told_apart_from_what_changes_no_number(monkeypatch):
    jax.jit(lambda x: x + 1)(1)  # the backend reads its flags once, and ends the process over one that it does not know
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_force_host_platform_device_count=8 --xla_a=2 --xla_dump_to=/x")
    assert provenance.numerics()["xla_flags"] == ["--xla_a=2", "--xla_b=1"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_a='")
    assert provenance.numerics()["xla_flags"] == ["--xla_a='"]


@pytest.mark.slow
def test_what_cannot_be_pinned_is_recorded(npz, tmp_path):
    logits(npz, tmp_path, XLA_FLAGS="--xla_cpu_enable_fast_math=true --xla_force_host_platform_device_count=1")
    (path,) = tmp_path.glob("*/environment.json")
    (session,) = json.loads(path.read_text())["sessions"]
    assert session["step"] == 0 and session["numerics"]["xla_flags"] == ["--xla_cpu_enable_fast_math=true"]
    assert session["numerics"]["jax"] and session["numerics"]["device"]


@pytest.mark.slow
@pytest.mark.skipif((provenance.cpus() or 1) < 2 or not hasattr(os, "sched_setaffinity"), reason="needs two processors")
def test_another_number_of_threads_is_recorded(npz, tmp_path):
    everywhere = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everywhere)})  # which a child inherits
        logits(npz, tmp_path)
    finally:
        os.sched_setaffinity(0, everywhere)
    (path,) = tmp_path.glob("*/environment.json")
    (session,) = json.loads(path.read_text())["sessions"]
    assert session["numerics"]["threads"] == 1
    assert "threads 1 then and" in provenance.difference(session["numerics"], provenance.numerics())


def test_without_git_the_commit_is_empty(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.environment()["commit"] == ""


class Listener(console.Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def trained(npz, tmp_path_factory) -> tuple[Path, list[Stage]]:
    chain = [Stage(tiny.recipe(npz, seed=seed, select="last"), name=f"seed {seed}") for seed in (0, 1)]
    workdir = tmp_path_factory.mktemp("runs")
    runs.run_all(chain, Settings(workdir=str(workdir), checkpoint_epochs=1, devices=1))
    return workdir, chain


@pytest.fixture
def elsewhere(monkeypatch):
    """A process under another flag."""
    here = provenance.numerics()
    monkeypatch.setattr(provenance, "numerics", lambda: {**here, "xla_flags": ["--xla_cpu_enable_fast_math=true"]})


def test_reuse_under_other_settings_says_so_and_tables_are_not_mixed(tmp_path, trained, elsewhere):
    workdir = shutil.copytree(trained[0], tmp_path / "runs")
    listener = Listener()
    runs.run_all(trained[1], Settings(workdir=str(workdir), devices=1), listener)
    sentence = 'xla_flags [] then and ["--xla_cpu_enable_fast_math=true"] now; its numbers stay as they are.'
    assert [text.endswith(sentence) for text in listener.said] == [True, True]
    common.refuse_mixed(trained[1], workdir)  # both were computed alike, whatever is set today
    shutil.rmtree(trained[1][1].directory(workdir))
    with pytest.raises(Refused, match=r"seed 0 and seed 1 were computed under different settings .xla"):
        common.refuse_mixed(trained[1], workdir)


def test_a_resume_under_other_settings_says_so_and_is_recorded(tmp_path, trained, elsewhere):
    workdir, stage = shutil.copytree(trained[0], tmp_path / "runs"), trained[1][0]
    directory = stage.directory(workdir)
    (directory / checkpoints.MANIFEST).unlink()
    results.checkpoints_of(stage, workdir, "checkpoints", keep=2).rewind(4)
    listener = Listener()
    runs.run_all([stage], Settings(workdir=str(workdir), checkpoint_epochs=1, devices=1), listener)
    assert any("resumed under other settings: xla_flags [] then" in text for text in listener.said)
    sessions = json.loads((directory / "environment.json").read_text())["sessions"]
    assert [(s["step"], len(s["numerics"]["xla_flags"])) for s in sessions] == [(0, 0), (4, 1)]
    with pytest.raises(Refused, match="seed 0 and seed 0 were computed under different settings"):
        common.refuse_mixed([stage], workdir)


@pytest.mark.parametrize("extra", [{}, {"lines": 3, "window": {}, "sessions": []}, {"lines": [{}], "window": []}, None])
def test_a_checkpoint_with_a_log_that_makes_no_sense_begins_the_stage_anew(tmp_path, trained, extra):
    workdir, stage = shutil.copytree(trained[0], tmp_path / "runs"), trained[1][0]
    before = (stage.directory(workdir) / "metrics.jsonl").read_bytes()
    (stage.directory(workdir) / checkpoints.MANIFEST).unlink()
    for path in (stage.directory(workdir) / "checkpoints").iterdir():
        described = json.loads((path / "checkpoint.json").read_text())
        (path / "checkpoint.json").write_text(json.dumps({**described, "extra": extra}))
        manifests.write_manifest(path, {**stage.owner, "part": "checkpoints", "step": int(path.name)})
    listener = Listener()
    settings = Settings(workdir=str(workdir), checkpoint_epochs=1, devices=1)
    if extra is None:
        with pytest.raises(checkpoints.Damaged, match="does not describe a checkpoint; delete"):
            runs.run_all([stage], settings, listener)
        return
    outcome = runs.run_all([stage], settings, listener)
    assert any("is not readable" in text and text.endswith("begins anew.") for text in listener.said)
    assert (outcome.results[stage.id].directory / "metrics.jsonl").read_bytes() == before


def test_a_finished_stage_with_arrays_of_another_kind_is_one_sentence(tmp_path, trained):
    workdir, stage = shutil.copytree(trained[0], tmp_path / "runs"), trained[1][0]
    path = stage.directory(workdir) / "logits" / "test.npz"
    for arrays, sentence in (
        ({"logits": np.ones((3, 4)), "label": np.zeros(3, int)}, r"holds logits float64\[3, 4\] and labels int64\[3\]"),
        ({"logits": np.array([object()])}, "does not hold logits and labels"),
        ({"label": np.zeros(3, int)}, "does not hold logits and labels"),
    ):
        np.savez(path, **arrays)
        manifests.write_manifest(stage.directory(workdir), stage.owner)
        result = runs.run_all([stage], Settings(workdir=str(workdir), devices=1)).results[stage.id]
        with pytest.raises(checkpoints.Damaged, match=sentence):
            result.logits("test")

"""A whole stage in two processes: one writes, both agree, and the numbers are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdjax import checkpoints, results, runs, settings, stages
from tests import tiny
from tests.processes import both

CHILD = """
import sys, jax
port, rank, workdir, npz = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
from kdjax import errors, runs, settings, stages
from tests import tiny
stage = stages.Stage(tiny.recipe(npz, method="adafocal"))
student = stages.Stage(tiny.student(npz), stage)
try:
    outcome = runs.run_all([student], settings.Settings(workdir=workdir, checkpoint_epochs=1)).results
    print("ECE", outcome[student.id].metrics["test"]["ece"], outcome[student.id].reused)
except errors.Refused as error:
    print("REFUSED", error)
"""


def run(workdir: Path, npz: str) -> list[str]:
    """The last line of each process."""
    return [lines[-1] for lines in both(lambda port, rank: ["-c", CHILD, port, str(rank), str(workdir), npz])]


@pytest.mark.slow
def test_two_processes_train_and_save_as_one(tmp_path):
    npz = tiny.npz(tmp_path)
    lines = run(tmp_path / "two", npz)
    assert lines[0] == lines[1] and lines[0].startswith("ECE") and lines[0].endswith("False")
    teacher = stages.Stage(tiny.recipe(npz, method="adafocal"))
    student = stages.Stage(tiny.student(npz), teacher)
    alone = runs.run_all([student], settings.Settings(workdir=str(tmp_path / "one"), checkpoint_epochs=1, devices=1))
    for stage in (teacher, student):
        directory = stage.directory(tmp_path / "two")
        assert checkpoints.verify_manifest(directory) == []
        logits = results.read(stage, tmp_path / "two").logits("test")[0]
        np.testing.assert_allclose(logits, alone.results[stage.id].logits("test")[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_reuse_what_one_has_finished(tmp_path):
    npz = tiny.npz(tmp_path)
    student = stages.Stage(tiny.student(npz), stages.Stage(tiny.recipe(npz, method="adafocal")))
    runs.run_all([student], settings.Settings(workdir=str(tmp_path / "two"), checkpoint_epochs=1, devices=1))
    lines = run(tmp_path / "two", npz)
    assert lines[0] == lines[1] and lines[0].endswith("True")


@pytest.mark.slow
def test_a_refusal_on_the_writing_process_reaches_both(tmp_path):
    npz = tiny.npz(tmp_path)
    directory = stages.Stage(tiny.recipe(npz, method="adafocal")).directory(tmp_path / "two")
    directory.mkdir(parents=True)
    (directory / "recipe.json").write_text(json.dumps({"model": "another"}))
    lines = run(tmp_path / "two", npz)
    assert lines[0] == lines[1] and "was computed with" in lines[0]


@pytest.mark.slow
def test_a_checkpoint_of_two_devices_resumes_on_one(tmp_path):
    """Same numbers to the order of reductions; the log says nothing was lost."""
    npz = tiny.npz(tmp_path)
    stage = stages.Stage(tiny.recipe(npz, method="adafocal", epochs=3))

    def train(folder: str, devices: int) -> results.Result:
        how = settings.Settings(workdir=str(tmp_path / folder), checkpoint_epochs=1, devices=devices)
        return runs.run_all([stage], how).results[stage.id]

    whole = train("a", devices=1)
    half = train("b", devices=2)
    (half.directory / "manifest.json").unlink()
    store = checkpoints.Checkpoints(half.directory / "checkpoints")
    store.rewind(8)
    assert store.steps() == [8]
    mended = train("b", devices=1)
    assert mended.metrics["test"]["nll"] == pytest.approx(whole.metrics["test"]["nll"], rel=1e-4)

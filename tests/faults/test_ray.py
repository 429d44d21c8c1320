"""A local Ray cluster of two nodes computes the stages of a command; one node is killed in mid-stage."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import time
from pathlib import Path

import pytest

from kdjax import console, ray_cluster, runs
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny

STAGE = Stage(tiny.Recipe(), name="a stage")


def wait_for_both(workdir: Path, teachers: list[Stage]) -> None:
    """Until each has a checkpoint, and so is in its middle."""
    end = time.monotonic() + 60
    while not all([*(stage.directory(workdir) / "checkpoints").glob("*/manifest.json")] for stage in teachers):
        assert time.monotonic() < end, "no stage began"
        time.sleep(0.05)


def sessions(directory: Path) -> list[int]:
    """The steps from which a stage was computed."""
    return [session["step"] for session in json.loads((directory / "environment.json").read_text())["sessions"]]


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        Refused, match=r"--executor=ray needs Ray, which is not installed; type pip install 'kdjax\[ray\]'"
    ):
        ray_cluster.run_all([STAGE], Settings(workdir=str(tmp_path)), console.Silent())


def test_a_cluster_out_of_reach_is_one_sentence(monkeypatch, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'kdjax[ray]'")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # which does not listen
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(Refused, match=r"no Ray cluster answers at 127.0.0.1:\d+; start one with ray start --head"):
            ray_cluster.run_all([STAGE], Settings(workdir=str(tmp_path)), console.Silent())


def test_what_no_node_has_is_refused():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 4e9}},
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 1e12}},
    ]
    ray_cluster._refuse_lacking(nodes, {"CPU": 1, "GPU": 1, "memory": 1e9}, STAGE)
    sentence = "a stage asks for 1 CPU and 2 GPU and 2.0 GB, and no node .*at most 4 CPU and 1 GPU and 4.0 GB"
    with pytest.raises(Refused, match=sentence):
        ray_cluster._refuse_lacking(nodes, {"CPU": 1, "GPU": 2, "memory": 2e9}, STAGE)
    with pytest.raises(Refused, match="batch_size 128 is not a multiple of run.devices = 3"):
        ray_cluster._check_batch(STAGE, 3)


@pytest.mark.slow
def test_a_stage_of_a_killed_node_resumes_elsewhere(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'kdjax[ray]'")
    from ray.cluster_utils import Cluster

    npz = tiny.npz(tmp_path)
    how = Settings(workdir=str(tmp_path / "ray"), checkpoint_epochs=1, devices=1)
    diverges = tiny.Optimizer(lr=1e30, schedule="constant")
    teachers = [Stage(tiny.recipe(npz, seed=s, epochs=30, select="last"), name=f"teacher {s}") for s in (0, 1)]
    targets = [
        *teachers,
        Stage(tiny.student(npz), Stage(tiny.recipe(npz, optimizer=diverges), name="broken"), name="student"),
    ]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        resumed: list[str] = []

        class Listener(console.Silent):
            def message(self, text: str) -> None:
                if "tasks of the Ray cluster" in text:
                    wait_for_both(tmp_path / "ray", teachers)
                    cluster.remove_node(lost, allow_graceful=False)
                resumed.append(text)

        outcome = ray_cluster.run_all(targets, how, Listener())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert outcome.results.keys() == {stage.id for stage in teachers} and len(outcome.failures) == 2
    assert outcome.failures[targets[-1].id] == "its teacher, 'broken', failed"
    assert any("finished" in text for text in resumed)
    begun = {stage.id: sessions(outcome.results[stage.id].directory) for stage in teachers}
    (again,) = (stage for stage in teachers if len(begun[stage.id]) == 2)
    assert begun[again.id][0] == 0 < begun[again.id][1], "it went on from a checkpoint"
    there = dataclasses.replace(how, workdir=str(tmp_path / "alone"), checkpoint_epochs=30)
    alone = runs.run_all([again], there).results[again.id].directory / "metrics.jsonl"
    assert alone.read_bytes() == (outcome.results[again.id].directory / "metrics.jsonl").read_bytes()

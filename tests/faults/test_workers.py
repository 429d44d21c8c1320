"""Several local processes that share the stages of one command: the same bits, whatever happens to them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments import command, common
from kdjax import console, limits, planning, provenance, runs, stage_text, worker, worker_count, workers
from kdjax.errors import Refused
from kdjax.files import LOCK
from kdjax.recipes import Distill
from kdjax.settings import Interrupted, Settings
from kdjax.stages import Stage, order
from tests import tiny


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    return tiny.npz(tmp_path_factory.mktemp("data"))


def table(npz: str, epochs: int = 2) -> list[Stage]:
    """Teachers and students of two seeds, and a stage that diverges, with its student."""
    diverges = tiny.Optimizer(lr=1e30, schedule="constant")
    teachers = [
        Stage(tiny.recipe(npz, seed=seed, epochs=epochs, select="last"), name=f"teacher {seed}") for seed in (0, 1)
    ]
    students = [
        Stage(tiny.student(npz, seed=n, epochs=epochs, select="last"), t, name=f"student {n}")
        for n, t in enumerate(teachers)
    ]
    broken = Stage(tiny.recipe(npz, optimizer=diverges), name="broken")
    return [*students, Stage(tiny.student(npz), broken, name="student of broken")]


class Listener(console.Silent):
    """Does something once, at the first epoch that a worker tells of."""

    def __init__(self, act) -> None:
        self.act, self.said = act, list[str]()

    def epoch(self, epoch: int, loss: float, text: str) -> None:
        act, self.act = self.act, lambda: None
        act()

    def message(self, text: str) -> None:
        self.said.append(text)


def holders(workdir: Path) -> list[int]:
    """Processes that hold a stage."""
    return [json.loads(path.read_text())["pid"] for path in workdir.glob(f"*/{LOCK}")]


@pytest.mark.slow
def test_workers_that_are_stopped_and_killed_compute_the_same_bits(npz, tmp_path):
    targets, how = table(npz, epochs=9), Settings(workdir=str(tmp_path / "two"), checkpoint_epochs=3, devices=1)
    processes: list[int] = []

    def stop() -> None:
        processes.extend(holders(tmp_path / "two"))
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="every worker has saved what it computed; run the same"):
        workers.run_all(targets, how, Listener(stop), 2)
    assert processes and not holders(tmp_path / "two"), "every worker gives its stage back"
    assert all(not Path(f"/proc/{pid}").exists() for pid in processes)
    listener = Listener(lambda: os.kill(holders(tmp_path / "two")[0], signal.SIGKILL))
    shared = workers.run_all(targets, how, listener, 2)
    assert [text for text in listener.said if "was ended by SIGKILL" in text and "the others go on" in text]
    alone = runs.run_all(targets, dataclasses.replace(how, workdir=str(tmp_path / "one")))
    assert shared.results.keys() == alone.results.keys() and len(alone.results) == 4
    assert shared.failures == alone.failures and len(alone.failures) == 2
    for stage in alone.results:
        one, two = alone.results[stage].directory, shared.results[stage].directory
        assert (one / "result.json").read_bytes() == (two / "result.json").read_bytes()
        assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
        for split in ("calibration", "test"):
            np.testing.assert_array_equal(
                alone.results[stage].logits(split)[0], shared.results[stage].logits(split)[0], strict=True
            )


class Killer(console.Silent):
    """Kills the process that holds a student, with SIGKILL, once a cohort is on its way."""

    def __init__(self, students: list[Stage], workdir: Path) -> None:
        self.students, self.workdir, self.begun, self.killed = students, workdir, list[str](), list[int]()

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        if "in one step" in f"{name} {note}":
            self.begun.append(f"{name} {note}")

    def epoch(self, epoch: int, loss: float, text: str) -> None:
        locks = [student.directory(self.workdir) / LOCK for student in self.students]
        held = [json.loads(lock.read_text())["pid"] for lock in locks if lock.exists()]
        if self.begun and held and not self.killed:
            self.killed.append(held[0])
            os.kill(held[0], signal.SIGKILL)


@pytest.mark.slow
def test_workers_share_cohorts_and_one_that_is_killed_loses_nothing(npz, tmp_path):
    """A cohort for each teacher; all end with the bits of cohorts that one process trained undisturbed."""
    teachers = [Stage(tiny.recipe(npz, seed=seed, select="last"), name=f"teacher {seed}") for seed in (0, 1)]
    student = tiny.student(npz, epochs=9, select="last")
    students = [
        Stage(
            dataclasses.replace(student, seed=seed, distill=Distill("kd", alpha=alpha)),
            teachers[seed],
            name=f"student {seed} {alpha}",
        )
        for seed in (0, 1)
        for alpha in (0.3, 0.6)
    ]
    how = Settings(workdir=str(tmp_path / "two"), checkpoint_epochs=1, devices=1, cohort=2)
    killer = Killer(students, tmp_path / "two")
    shared = workers.run_all(students, how, killer, 2)
    assert killer.killed and any("2 in one step" in text for text in killer.begun)
    undisturbed = runs.run_all(students, dataclasses.replace(how, workdir=str(tmp_path / "one")))
    assert not shared.failures and len(shared.results) == len(undisturbed.results) == 6
    for stage in students:
        one, two = undisturbed.results[stage.id].directory, shared.results[stage.id].directory
        assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes(), stage.name
        assert (one / "result.json").read_bytes() == (two / "result.json").read_bytes(), stage.name
        sessions = json.loads((two / "environment.json").read_text())["sessions"]
        assert all(len(session["cohort"]) == 2 for session in sessions)


@pytest.mark.slow
def test_what_a_worker_refuses_is_refused_and_all_lost_is_an_interruption(npz, tmp_path):
    how = Settings(workdir=str(tmp_path), devices=1)
    directory = table(npz)[0].directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / "owner.json").write_text('{"stage": "another"}')
    with pytest.raises(Refused, match="is written for stage another, and here is stage"):
        workers.run_all(table(npz), how, console.Silent(), 1)
    listener = Listener(lambda: os.kill(holders(tmp_path / "lost")[0], signal.SIGKILL))
    lone = [Stage(tiny.recipe(npz, epochs=30, select="last"))]
    with pytest.raises(Interrupted, match="worker 1 of 1 was ended by SIGKILL .* and no other is left; what is saved"):
        workers.run_all(lone, dataclasses.replace(how, workdir=str(tmp_path / "lost")), listener, 2)


def test_stages_travel_as_plain_values(npz, tmp_path):
    targets = table(npz)
    soft = Stage(targets[0].recipe, targets[0].teacher, as_soft_as=targets[1].teacher, name="control")
    away = dataclasses.replace(targets[0].teacher, place=tmp_path / "run")
    folded = Stage(tiny.student(npz, teacher_outputs="crossfit:2"), targets[1].teacher, name="\u202e cross-fitted")
    queue = order([*targets, soft, folded, Stage(tiny.student(npz, seed=5), away)])
    copies = stage_text.parse(json.loads(json.dumps(stage_text.plain(queue))))
    assert [(s.id, s.name, s.recipe, s.place) for s in copies] == [(s.id, s.name, s.recipe, s.place) for s in queue]
    assert [[p.id for p in s.parents] for s in copies] == [[p.id for p in s.parents] for s in queue]
    rows = stage_text.plain(targets)
    with pytest.raises(
        Refused, match="stage 'teacher 0' is 0123 in the command and .* in its worker; expected the same"
    ):
        stage_text.parse([{**rows[0], "id": "0123"}])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers=0"], "--workers is '0'; expected auto, or a number of processes: 1"),
        (["--workers=two"], "--workers is 'two'; expected auto, or a number"),
        (["--workers=1000000000"], "--workers is '1000000000'; expected auto"),
        (["--workers="], "--workers is ''; expected auto"),
        (["--workers=-1"], "--workers is '-1'; expected auto"),
        (["--workers=2", "--distributed=auto"], "--workers=2 and --distributed both say which processes compute"),
        (["--workers=2", "--executor=ray"], "--workers=2 and --executor=ray both say which processes compute"),
        (["--executor=ray", "--distributed=auto"], "--executor=ray and --distributed both say which processes compute"),
        (["--executor=dask"], "--executor is 'dask', which does not exist; known: local, ray."),
    ],
)
def test_a_number_of_workers_that_cannot_be(monkeypatch, words, sentence):
    monkeypatch.setattr(provenance, "cpus", lambda: 2)
    with pytest.raises(Refused) as refused:
        command.read(["x", *words], default="configs/digits.py")
    assert str(refused.value).startswith(sentence)


def test_workers_are_no_part_of_a_commands_text():
    given = command.read(["x", "--workers=1", "--config.seeds=(1,)"], default="configs/digits.py")
    assert given.workers == "1" and "workers" not in given.text and "--config.seeds=(1,)" in given.text


def test_an_experiment_asks_for_workers_or_computes_itself(tmp_path, monkeypatch):
    calls: list[tuple] = []
    monkeypatch.setattr(common.workers, "run_all", lambda *words: calls.append(("workers", *words[3:])))
    monkeypatch.setattr(common.runs, "run_all", lambda *words: calls.append(("here",)))
    monkeypatch.setattr(common.ray_cluster, "run_all", lambda *words: calls.append(("ray",)))
    monkeypatch.setattr(common.planning, "plan", lambda *words: [])
    monkeypatch.setattr(worker_count, "choose", lambda typed, planned, cohort: (2, ""))
    monkeypatch.setattr(provenance, "cpus", lambda: 2)
    for word in ("--workers=2", "--workers=1", "--workers=auto", "--executor=ray"):
        given = command.read(["x", word], default="configs/digits.py")
        common.computed(given, [], Settings(), console.Silent())
    assert calls == [("workers", 2, []), ("here",), ("here",), ("ray",)], "auto: the tests' two devices are one stage's"


def test_as_many_workers_as_pay(npz, tmp_path, monkeypatch):
    planned = planning.plan(table(npz), tmp_path)
    monkeypatch.setattr(provenance, "cpus", lambda: 8)
    assert worker_count.independent(planned) == 3
    assert worker_count.choose("auto", planned) == (1, ""), "seconds of work"
    large = [row._replace(steps=100_000) for row in planned]
    assert worker_count.choose("auto", large) == (3, "") and worker_count.choose("2", planned) == (2, "")
    assert worker_count.choose("auto", [row._replace(status="done") for row in large]) == (1, "")
    monkeypatch.setattr(limits, "available", lambda: 17 * 10**8)
    count, sentence = worker_count.choose("auto", large)
    assert count == 2 and sentence == "3 workers would take about 2.4 GB, and 1.7 GB are free; 2 compute."
    assert not worker_count.possible("auto", Settings()), "one stage takes the two devices that tests force"
    assert worker_count.possible("2", Settings()) and not worker_count.possible("1", Settings())


def test_each_worker_has_processors_and_kinds_of_its_own(npz):
    assert workers.shares([0, 1, 2, 5], 3) == [[0], [1], [2, 5]]
    assert workers.shares([3], 2) == [[3], [3]] and workers.shares([0, 1], 1) == [[0, 1]] and not workers.shares([0], 0)
    queue = order(table(npz))
    left = [worker.later(queue, n, 2) for n in range(2)]
    assert left[0] | left[1] == {stage.id for stage in queue} and not left[0] & left[1]
    # Students of calibrated and uncalibrated teachers have one program, and so one worker.
    of_mdca = Stage(tiny.recipe(npz, method="mdca"), name="calibrated")
    alike = [Stage(tiny.student(npz), teacher) for teacher in (Stage(tiny.recipe(npz)), of_mdca)]
    other = Stage(tiny.student(npz), Stage(tiny.recipe(npz, model_options={"widths": (7,)})))
    assert worker.program_of(alike[0]) == worker.program_of(alike[1]) != worker.program_of(other)


def test_a_stage_that_failed_elsewhere_is_not_tried(npz, tmp_path):
    """Nor its student; what a worker says of it is what it heard."""
    from kdjax import signals

    targets = table(npz)[2:]
    known = {targets[0].teacher.id: "loss is nan"}
    how = Settings(workdir=str(tmp_path), devices=1)
    outcome = runs.work(order(targets), how, console.Silent(), signals.Asked(), failures=known)
    assert not outcome.results and outcome.failures[targets[0].id] == "its teacher, 'broken', failed"
    assert not [*tmp_path.iterdir()]

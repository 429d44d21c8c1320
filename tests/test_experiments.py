"""The experiment modules as a user runs them: exit codes, last line, files, reuse, plan, refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.processes import ROOT, both, environment

FAST = (
    "--config.recipe.teacher.epochs=2",
    "--config.recipe.student.epochs=2",
    "--config.seeds=(0,1)",
    "--config.recipe.temperatures=(1.0,)",
)


def run(module: str, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"experiments.{module}", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def test_quickstart_end_to_end_and_again(tmp_path):
    done = run("quickstart", f"--workdir={tmp_path}", *FAST)
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    found = re.fullmatch(r"quickstart: KD\(C\) ECE (\d+\.\d+)% vs KD\(UC\) ECE (\d+\.\d+)% over 2 seeds", last)
    assert found, last
    stored = json.loads((tmp_path / "results.json").read_text())
    for name, percent in (("student KD(C), T=1", found[1]), ("student KD(UC), T=1", found[2])):
        values = []
        for stage in stored["stages"][name]:
            values.append(json.loads((tmp_path / stage / "result.json").read_text())["metrics"]["test"]["ece"])
        assert f"{100 * sum(values) / 2:.2f}" == percent
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64" in page and not re.search(r"https?://", re.sub(r"xmlns=\S+", "", page))
    assert (tmp_path / "results.csv").exists() and "| student KD(C), T=1" in (tmp_path / "results.md").read_text()
    again = run("quickstart", f"--workdir={tmp_path}", *FAST)
    assert again.returncode == 0 and again.stdout.strip().splitlines()[-1] == last
    assert again.stdout.count("done before, reused") == 12 and "epoch 1/" not in again.stdout
    plan = run("quickstart", f"--workdir={tmp_path}", "--plan", *FAST)
    assert "12 stages, 0 to run" in plan.stdout


def test_plan_prints_the_dag_and_computes_nothing(tmp_path):
    planned = run("generations", f"--workdir={tmp_path}", "--plan", "--config.seeds=(0,)")
    assert planned.returncode == 0, planned.stderr
    assert "6 stages, 6 to run" in planned.stdout and "missing" in planned.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--config.recipe.student.epoch=3"], "epoch"),
        (["--config=configs/digits.py:mdcaa"], "did you mean mdca"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config.recipe.student.distill.alpha=1.5"], r"alpha is 1.5; expected a number in \[0, 1\]"),
        (["--config.recipe.student.distill.options.T=0.0"], r"T is 0.0"),
        (["--config.recipe.student.epochs=many"], "many"),
        (["--confg=x"], "confg"),
        (["extra"], "'extra' is no flag"),
    ],
)
def test_refusals_are_one_sentence_and_exit_code_2(tmp_path, flags, sentence):
    refused = run("distill", f"--workdir={tmp_path}", "--plan", *flags)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert re.search(sentence, refused.stderr) and "Traceback" not in refused.stderr
    lines = [line for line in refused.stderr.strip().splitlines() if line.startswith("refused: ")]
    assert len(lines) == 1


def test_an_experiment_in_two_processes(tmp_path):
    """The same command twice: both train, one reports."""
    small = [f"--config.recipe.{who}.{field}" for who in ("teacher", "student") for field in ("epochs=1", "model=mlp")]
    printed = both(
        lambda port, rank: [
            *("-m", "experiments.distill", f"--workdir={tmp_path}", "--config.seeds=(0,)", *small),
            f"--distributed=127.0.0.1:{port},2,{rank}",
        ]
    )
    assert any("student: mlp kd" in line for line in printed[0]) and not any("mlp kd" in line for line in printed[1])
    stored = json.loads((tmp_path / "distill.json").read_text())
    assert stored["environment"]["processes"] == 2 and len(stored["rows"]) == 3
    assert "distributed" not in stored["command"]


@pytest.mark.parametrize("how", ["host", "host:1,2", "host:1,2,2"])
def test_a_wrong_way_to_join_is_refused(tmp_path, how):
    refused = run("distill", f"--workdir={tmp_path}", f"--distributed={how}")
    assert refused.returncode == 2 and "expected auto, or the coordinator's HOST:PORT" in refused.stderr

"""The experiment modules as a user runs them: exit codes, last line, files, reuse, plan, help."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments import calibrate, common, distill, generations, plans, quickstart
from kdjax import posthoc
from tests import tiny
from tests.processes import ROOT, both, environment

FAST = (
    "--config=configs/digits.py:mlp",
    "--config.recipe.teacher.epochs=2",
    "--config.recipe.student.epochs=2",
    "--config.seeds=(0,1)",
    "--config.recipe.temperatures=(1.0,)",
)


def call(module, *words: str) -> int:
    ignored = getattr(module, "IGNORED", common.ONLY)
    return common.call(module.run, ["x", *words], "configs/digits.py", ignored=ignored)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a quickstart on two seeds; its students alone are its teachers, one network being both."""
    folder = tmp_path_factory.mktemp("quickstart")
    assert call(quickstart, f"--workdir={folder}", *FAST) == 0
    return folder


@pytest.mark.slow
def test_quickstart_ends_with_what_its_files_say(finished, capsys):
    assert call(quickstart, f"--workdir={finished}", *FAST) == 0
    printed = capsys.readouterr().out
    assert printed.count("done before, reused") == 8 and "epoch 1/" not in printed
    last = printed.strip().splitlines()[-1]
    match = re.fullmatch(r"quickstart: KD\(C\) ECE (\d+\.\d+)% vs KD\(UC\) ECE (\d+\.\d+)% over 2 seeds", last)
    assert match, last
    stored = json.loads((finished / "results.json").read_text())
    for name, percent in (("student KD(C), T=1", match[1]), ("student KD(UC), T=1", match[2])):
        values = []
        for stage in stored["stages"][name]:
            values.append(json.loads((finished / stage / "result.json").read_text())["metrics"]["test"]["ece"])
        assert f"{100 * sum(values) / 2:.2f}" == percent


@pytest.mark.slow
def test_quickstart_writes_its_report(finished):
    page = (finished / "report.html").read_text()
    assert "data:image/png;base64" in page and not re.search(r"https?://", re.sub(r"xmlns=\S+", "", page))
    assert (finished / "results.csv").exists() and "| student KD(C), T=1" in (finished / "results.md").read_text()
    assert "digits, 10 classes, with additive noise of sd 0.5" in page and "800 training examples" in page


def test_rows_that_were_not_asked_for_have_not_failed(finished, capsys):
    rows = "--config.rows=('teacher, NLL','student KD(C), T=1')"
    assert call(quickstart, f"--workdir={finished}", *FAST, rows) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "quickstart: KD(C) and KD(UC) are not compared, student KD(UC), T=1 not asked for in config.rows"
    assert call(quickstart, f"--workdir={finished}", *FAST) == 0  # the files of the whole table, for other tests


@pytest.mark.parametrize(
    ("ece", "sentence"),
    [
        ({"KD(C)": [0.1, 0.3], "KD(UC)": [0.5, 0.5]}, "KD(C) ECE 20.00% vs KD(UC) ECE 50.00% over 2 seeds"),
        ({"KD(C)": [], "KD(UC)": [0.5]}, "no seed of both students at T=4 finished"),
        ({}, "not compared, student KD(C), T=4 and student KD(UC), T=4 not asked for in config.rows"),
    ],
)
def test_the_last_line_of_the_quickstart(ece, sentence):
    seeds = {f"student {kind}, T=4": [{"ece": one} for one in values] for kind, values in ece.items()}
    assert quickstart.closing({"teacher, NLL": [{"ece": 0.2}], **seeds}, 4.0).endswith(sentence)


def test_every_figure_is_called_after_its_table():
    """`tables.publish` refuses another name, but only when everything is trained."""
    told = 0
    for path in (ROOT / "experiments").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if published := re.findall(r'tables\.publish\(\s*given,\s*("\w+"|name),', text):
            tables = {"{name}" if name == "name" else name.strip('"') for name in published}
            figures = re.findall(r'"([^"\s]+)\.png"|file_name\("(\w+)"', text)
            figures = [one or other for one, other in figures]
            assert all(any(f == t or f.startswith(f"{t}_") for t in tables) for f in figures), (path.name, figures)
            told += len(figures)
    assert told > 15


def test_plan_of_what_is_done(finished, capsys):
    assert call(quickstart, f"--workdir={finished}", "--plan", *FAST) == 0
    assert "8 stages, 0 to run" in capsys.readouterr().out


def test_quickstart_describes_the_data_it_used(tmp_path):
    path = tiny.npz(tmp_path)
    with np.load(path) as arrays:
        np.savez(path, **arrays, num_classes=4)
    words = ["x", "--config.recipe.data.name=arrays", f"--config.recipe.data.path={path}"]
    config = common.command.read(words, default="configs/digits.py").config
    sentence = common.data_sentence(common.recipe(config, "teacher", 0).data)
    assert sentence.startswith("Data: tiny.npz, 4 classes; 72 training examples, 8 held out for calibration, 40 for")
    assert "noise" not in sentence


def test_a_file_of_ones_own_needs_its_name_and_path_alone(tmp_path, capsys):
    path = tiny.npz(tmp_path)
    with np.load(path) as arrays:
        np.savez(path, **arrays, num_classes=4)
    words = [f"--config.recipe.data.{field}" for field in ("name=arrays", f"path={path}")]
    assert call(distill, "--plan", f"--workdir={tmp_path / 'runs'}", "--config.seeds=(0,)", *words) == 0
    assert "3 stages, 3 to run" in capsys.readouterr().out


def test_plan_prints_the_dag_and_computes_nothing(tmp_path, capsys):
    assert call(generations, f"--workdir={tmp_path}", "--plan", "--config.seeds=(0,)") == 0
    printed = capsys.readouterr().out
    assert "6 stages, 6 to run" in printed and "missing" in printed
    # Networks and whose they are, every option of every method, and what an epoch leaves out.
    assert re.search(r"conv_tiny: [\d,]+ parameters; kdjax's own", printed)
    assert (
        "conv_small mdca: mdca(alpha=0.0, beta=1.0, gamma=3.0)" in printed
        and "0.1 * nll + 0.9 * kd(T=4.0, T_c=1.0" in printed
    )
    assert "800 training examples in batches of 64: 12 steps an epoch, and the 32 examples left over" in printed
    assert not any(tmp_path.iterdir())


def test_a_probe_counts_the_hours_of_every_kind_of_step(tmp_path, capsys, monkeypatch):
    """The sum over stages of steps times seconds; stages that differ in loss and seed alone are one kind."""
    kinds = []
    monkeypatch.setattr(plans, "_seconds", lambda stage, run, runs_teacher: kinds.append(stage.name) or 3.6)
    words = ["--plan", "--probe", f"--workdir={tmp_path}", "--config=configs/digits.py:mlp", "--config.seeds=(0,1)"]
    assert call(distill, *words) == 0
    # Four stages of 480 steps (the network alone, with two losses) and two of the student, twice 480.
    assert "About 2.88 hours of steps on this machine" in capsys.readouterr().out and len(kinds) == 2
    assert call(distill, "--probe") == 2


def test_plan_says_when_the_teacher_is_the_smaller_network(tmp_path, capsys):
    words = ["--plan", f"--workdir={tmp_path}", "--config.seeds=(0,)"]
    assert call(distill, *words, "--config=configs/digits.py:conv_tiny,mdca,conv_small,kd") == 0
    assert re.search(r"teacher conv_tiny \([\d,]+ .* is smaller than its student conv_small", capsys.readouterr().out)
    assert call(distill, *words, "--config=configs/digits.py:conv_small,mdca,conv_tiny,kd") == 0
    assert "exchange the two networks" not in capsys.readouterr().out


@pytest.mark.parametrize("module", [calibrate, distill, generations, quickstart])
def test_help_lists_flags_and_fields(module, capsys):
    assert call(module, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith((module.__doc__ or "").strip().splitlines()[0])
    for flag in ("--config=", "--workdir", "--plan", "--distributed", "--import", "--config.seeds=(0, 1, 2)"):
        assert flag in printed
    assert "--config.recipe.student.distill.options.T=4.0" in printed and "--config.recipe.teacher.epochs=40" in printed


def test_calibrate_fits_a_temperature(tmp_path, capsys):
    words = [f"--workdir={tmp_path}", "--config=configs/digits.py:mlp", "--config.recipe.teacher.epochs=1"]
    assert call(calibrate, *words, "--config.seeds=(0,)") == 0
    stored = json.loads((tmp_path / "calibrate.json").read_text())
    (stage,) = stored["stages"]["mlp mdca"]
    with np.load(tmp_path / stage / "logits" / "calibration.npz") as split:
        (fitted,) = stored["temperatures"]
        assert fitted == pytest.approx(float(posthoc.POSTHOC["temperature"].fit(split["logits"], split["label"])["T"]))
    assert [row["name"] for row in stored["rows"]] == ["mlp mdca", "mlp mdca + temperature"]


def test_make_and_the_module_share_a_work_directory(capsys):
    """`make quickstart` and the command find each other's stages."""
    command = (ROOT / "Makefile").read_text().partition("quickstart: ")[2].splitlines()[1].split("-m ")[1]
    assert command == "experiments.quickstart $(ARGS)"
    plan = [sys.executable, "-m", "experiments.quickstart", "--help"]
    done = subprocess.run(plan, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "runs/quickstart" in done.stdout


@pytest.mark.slow
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

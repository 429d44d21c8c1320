"""Tables over seeds: what is declared, what is printed beside it, and that what failed is shown as failed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from configs import ablation as ablation_config
from configs import base
from configs import correlation as correlation_config
from configs import pairs as pairs_config
from configs import table1 as table1_config
from experiments import ablation, command, common, pairs, published, table1, tables, transfer
from experiments import all as everything
from experiments.sheets import Line, Sheet, printed
from kdjax import metrics, objectives, posthoc
from kdjax.errors import Refused
from tests import tiny

SEED = {"top1": 0.5, "nll": 1.25, "ece": 0.125}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.npz(tmp_path_factory.mktemp("tables"))


def words(folder, path) -> list[str]:
    """Every network an MLP, one epoch of four steps, two seeds, on the tiny data set."""
    both = [f"--config.recipe.{who}.{f}" for who in ("teacher", "student") for f in ("epochs=1", "batch_size=16")]
    shapes = [f"--config.recipe.{who}.{f}" for who in ("teacher", "student") for f in ("model=mlp", "transform=()")]
    late = [f"--config.recipe.{who}.optimizer.milestones=()" for who in ("teacher", "student")]
    data = [f"--config.recipe.data.{f}" for f in ("name=arrays", f"path={path}", "num_classes=4")]
    return ["x", f"--workdir={folder}", "--config.seeds=(0,1)", *both, *shapes, *late, *data]


def test_a_sheet_says_the_same_in_every_form():
    lines = [
        Line("a_b & c", [SEED, {**SEED, "top1": 0.6}], "74.39 / 1.57"),
        Line("gone", [], "", "loss is nan at step 3"),
        Line("half", [SEED], "", "interrupted"),
    ]
    sheet = Sheet(lines, ("top1", "nll", "ece"), "top-1 / ECE %", "a paper, table 1")
    assert sheet.cells() == [
        ["a_b & c", "55.00 ± 7.07", "1.250 ± 0.000", "12.50 ± 0.00", "2", "74.39 / 1.57"],
        ["gone (failed: loss is nan at step 3)", "-", "-", "-", "0", "-"],
        ["half (a seed failed: interrupted)", "50.00", "1.250", "12.50", "1", "-"],
    ]
    assert sheet.markdown().splitlines()[0] == "|  | top-1 % ↑ | NLL ↓ | ECE % ↓ | n | published: top-1 / ECE % |"
    assert sheet.markdown().endswith("\nPublished: a paper, table 1.\n")
    rows = [*csv.DictReader(io.StringIO(sheet.csv()))]
    assert [float(rows[0]["top1_mean"]), rows[1]["top1_mean"], rows[2]["ece_sd"]] == [0.55, "", ""]
    assert [row["failed"] for row in rows] == ["", "loss is nan at step 3", "interrupted"]
    latex = sheet.latex()
    assert r"a\_b \& c & 55.00 $\pm$ 7.07 & 1.250" in latex and latex.count(r"\\") == 4
    assert latex.startswith(r"\begin{tabular}{lrrrrr}") and "% Published: a paper, table 1." in latex
    assert Sheet(lines, ("top1",)).heads() == ["", "top-1 % ↑", "n"]


def test_rows_without_a_number_or_a_set_say_so():
    """A column that a row has no number for is a dash; a set that is not at hand is named; parts share their lines."""
    lines = [
        Line("linear", [SEED]),
        Line("taught", [{**SEED, "firing_rate": 0.25}] * 2),
        Line("massive", [], "87.22", absent="not at hand"),
    ]
    sheet = Sheet(lines, ("top1", "firing_rate"))
    assert sheet.cells() == [
        ["linear", "50.00", "-", "1"],
        ["taught", "50.00 ± 0.00", "25.00 ± 0.00", "2"],
        ["massive (not at hand)", "-", "-", "0"],
    ]
    rows = [*csv.DictReader(io.StringIO(sheet.csv()))]
    assert rows[0]["firing_rate_mean"] == "" and rows[1]["firing_rate_mean"] == "0.25"
    # Where every row that would have it failed, the column stays; one that does not exist is refused.
    assert Sheet(lines, ("aurc",)).cells()[1] == ["taught", "-", "2"]
    with pytest.raises(Refused, match="firing_rate"):
        Sheet(lines, ("fireing_rate",)).cells()
    part = tables.Part("one", {"massive": "87.22 ± 0.07", "taught": ""}, ("top1",), "accuracy %", "a paper")
    # In the order of all lines: a part that was read from its JSON has its rows sorted by name.
    assert [cells[-1] for cells in part.sheet(lines).cells()] == ["-", "87.22 ± 0.07"]


def test_a_figure_that_another_table_could_overwrite_is_refused():
    for name in ("bars.png", "table10_bars.png", "table1.bars.png"):
        with pytest.raises(ValueError, match="expected table1.png or table1_"):
            tables.publish(None, "table1", None, None, title="", summary=[], figures=[("one", Path("runs") / name)])


@pytest.mark.parametrize("config", [pairs_config, correlation_config])
def test_mdistillers_recipe_normalizes_as_mdistiller_and_the_small_size_as_table1(config):
    assert {config.get_config(size).recipe.data.normalization for size in ("", "paper", "short")} == {"mdistiller"}
    assert config.get_config("cpu").recipe.data.to_dict() == table1_config.get_config("cpu").recipe.data.to_dict()


def test_a_table_says_that_its_temperature_is_not_that_of_the_papers_code():
    config = table1_config.get_config()
    (note,) = transfer.temperature(config)
    assert note.startswith("Students are distilled at T = 4; the default of the paper's code is 20")
    assert "T = 4" in (table1_config.__doc__ or "") and "20" in (table1_config.__doc__ or "")
    with config.unlocked():
        base.choose(config.recipe.student.distill, "hidden_state")
    assert transfer.temperature(config) == []


def test_latex_has_no_letter_that_it_cannot_set():
    latex = Sheet([Line("γ = 3, λ_H, η, ρ = 50, α, β → ± 1 %", [SEED])], ("top1",)).latex()
    assert latex.isascii() and r"$\gamma$ = 3, $\lambda$\_H, $\eta$, $\rho$ = 50, $\alpha$, $\beta$ $\to$" in latex


def test_published_figures_are_those_of_the_rows_they_stand_beside():
    config = table1_config.get_config()
    rows = transfer.rows(config, published.TABLE1)
    assert len(published.TABLE1) == 3 * 12 + 2 * 6 == len(rows)
    assert all(row.published for row in rows.values())
    assert rows["wrn_40_1 KD(C) from wrn_40_2 mdca"].published == "71.07 / 0.98 / 0.20 / 1.10"
    assert rows["wrn_40_2 nll + temperature"].published == printed((74.39, 2.68, 0.20, 2.60))
    assert pairs.expected(published.PAIRS["vgg13", "mobilenet_v2_half"], "kd", 1.5) == "69.54"
    assert pairs.expected(published.PAIRS["wrn_40_2", "wrn_16_2"], "mlld", 1.5) == "76.84 to 77.08"
    assert pairs.expected({}, "kd", 1.5) == "" and printed(None) == ""


@pytest.mark.parametrize("size", ["", "short"])
def test_table1_shares_teachers_and_methods_mean_what_their_names_say(size):
    config = table1_config.get_config(size)
    rows = transfer.rows(config, {})
    student = rows["mobilenet_v2 KD(C) from wrn_40_2 mdca"].stage
    assert student.teacher == rows["wrn_40_2 mdca"].stage and student.recipe.model == "mobilenet_v2"
    assert student.teacher.recipe.options["gamma"] == 3.0 and student.recipe.distill.options["T"] == 4.0
    for name, row in rows.items():
        if "from" not in name and row.stage.recipe.method != "mdca":
            assert dict(row.stage.recipe.options) == dict(objectives.checked(row.stage.recipe.method, {}, "calibrator"))


def test_rows_get_their_seeds_with_all_that_teach_them():
    config = pairs_config.get_config("short")
    with config.unlocked():
        base.choose_data(config, "digits")  # the grid counts steps, and so loads its data
    rows = pairs.rows(config)
    groups = tables.grid(rows, (3, 5))
    assert {*groups} == {*rows}
    for name, members in groups.items():
        assert [stage.recipe.seed for stage in members] == [3, 5]
        assert all(stage.teacher is None or stage.teacher.recipe.seed == stage.recipe.seed for stage in members)
        assert members[0].name == f"{rows[name].stage.name} seed 3"


def test_pairs_temper_the_teacher_alone_with_published_weights():
    config = pairs_config.get_config()
    rows = pairs.rows(config)
    stage = rows["vgg13 → mobilenet_v2_half: mlld T_c=1.5"].stage
    assert stage.recipe.distill.options["T_c"] == 1.5 and stage.recipe.distill.weights == (0.2, 0.9)
    assert stage.recipe.optimizer.lr == 0.01 and stage.teacher.recipe.optimizer.lr == 0.05
    assert rows["vgg13 → vgg8: kd"].stage.recipe.optimizer.lr == 0.05
    assert rows["vgg13 → vgg8: kd"].stage.teacher == rows["vgg13 → mobilenet_v2_half: kd"].stage.teacher


@pytest.mark.parametrize(
    ("module", "default", "flag", "sentence"),
    [
        (table1, "table1", "--config.recipe.calibrators=('nll','nll')", "one or more different names"),
        (table1, "table1", "--config.recipe.teachers=('ndca',)", "did you mean dca or mdca"),
        (table1, "table1", "--config=configs/table1.py:cpuu", "did you mean cpu"),
        (ablation, "ablation", "--config.recipe.T=()", "config.recipe.T is ()"),
        (ablation, "ablation", "--config.recipe.student.distill.method=hidden_state", "varies T of the distillation"),
        (ablation, "ablation", "--config.recipe.student.distill.alpha=0.5", "compares --config.recipe.alpha"),
        (pairs, "pairs", "--config.recipe.methods=('hidden_state',)", "cannot temper its teacher alone"),
        (pairs, "pairs", "--config.recipe.pairs=()", "expected like (('resnet20', 'resnet8'),)"),
        (pairs, "pairs", "--config.recipe.pairs=(1,2)", "expected like (('resnet20', 'resnet8'),)"),
        (pairs, "pairs", "--config.recipe.pairs=((1,2),)", "expected like (('resnet20', 'resnet8'),)"),
        (pairs, "pairs", "--config.recipe.small_lr_networks=(1,)", "config.recipe.small_lr_networks is (1,); expected"),
        (table1, "table1", "--config.recipe.stands_for=foo", "stands_for is ('foo',); expected pairs like"),
        (table1, "table1", "--config.recipe.stands_for=(1,)", "stands_for is (1,); expected pairs like"),
        (
            table1,
            "table1",
            "--config.recipe.stands_for=(('resnet8',),)",
            "stands_for is (('resnet8',),); expected",
        ),
        (table1, "table1", "--config.recipe.uncalibrated=nlll", "recipe.uncalibrated is 'nlll', which does not exist"),
        (table1, "table1", "--config.recipe.uncalibrated=kd", "config.recipe.uncalibrated is 'kd', which does not exi"),
        (table1, "table1", "--config.recipe.teachers=('nll','nll + ')", "the + of 'nll + ' in config.recipe.teachers"),
        (table1, "table1", "--config.recipe.teachers=('nll + temprature',)", "did you mean temperature"),
        (
            ablation,
            "ablation",
            "--config.recipe.T=(1.0,1.0000001)",
            "config.recipe.T is (1.0, 1.0000001)",
        ),
        (pairs, "pairs", "--config.recipe.student.model=resnet8", "the networks are --config.recipe.pairs"),
    ],
)
def test_tables_refuse_in_a_sentence(module, default, flag, sentence, capsys, tmp_path):
    ignored = getattr(module, "IGNORED", common.ONLY)
    given = ["x", "--plan", f"--workdir={tmp_path}", flag]
    assert common.call(module.run, given, f"configs/{default}.py", ignored=ignored) == 2
    assert sentence in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_table1_from_training_to_page(tmp_path, path, capsys):
    lists = ("students=('mlp',)", "calibrators=('nll','mdca')", "teachers=('nll','mdca')")
    given = [*words(tmp_path, path), *(f"--config.recipe.{field}" for field in lists)]
    assert common.call(table1.run, given, "configs/table1.py") == 0
    content = json.loads((tmp_path / "table1.json").read_text())
    names = ["mlp nll", "mlp nll + temperature", "mlp mdca", "mlp KD(UC) from mlp nll", "mlp KD(C) from mlp mdca"]
    assert [row["name"] for row in content["rows"]] == names and {*content["stages"]} == {*names} - {names[1]}
    # The post-hoc row is measured on the stage's logits after a temperature fitted to its calibration split.
    stage = tmp_path / content["stages"]["mlp nll"][1]
    with np.load(stage / "logits" / "calibration.npz") as held, np.load(stage / "logits" / "test.npz") as test:
        scale = posthoc.POSTHOC["temperature"]
        after = scale.apply(scale.fit(held["logits"], held["label"]), test["logits"])
        expected = metrics.evaluate(np.asarray(after), test["label"])
    assert content["rows"][1]["metrics"][1]["ece"] == pytest.approx(expected["ece"], abs=1e-6)
    sides = [[seed["ece"] for seed in content["rows"][i]["metrics"]] for i in (4, 3)]
    difference = content["kdc_minus_kduc"]["mlp, mdca teacher"]["ece"]
    assert difference["mean"] == pytest.approx(np.mean(np.subtract(*sides)))
    page = (tmp_path / "report.html").read_text()
    assert "Students are distilled at T = 4; the default" in page
    assert page.count("data:image/png;base64") == 3 and "mlp KD(C) from mlp mdca" in page
    assert {"table1.md", "table1.csv", "table1.tex", "table1_bars_mlp.pdf"} <= {
        file.name for file in tmp_path.iterdir()
    }
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_ablation_draws_its_grid_and_shows_what_failed(tmp_path, path, monkeypatch):
    given = [*words(tmp_path, path), "--config.recipe.T=(1.0,4.0)", "--config.recipe.alpha=(0.5,)"]
    run_all = common.runs.run_all

    def broken(targets, *rest):
        """Students at T = 4 diverge."""
        kept = [stage for stage in targets if "T = 4" not in stage.name]
        lost = {stage.id: "loss is nan at step 2" for stage in targets if "T = 4" in stage.name}
        outcome = run_all(kept, *rest)
        return outcome._replace(failures=lost)

    monkeypatch.setattr(common.runs, "run_all", broken)
    code = common.call(ablation.run, given, "configs/ablation.py", ignored=ablation.IGNORED)
    assert code == 70
    table = (tmp_path / "ablation.md").read_text()
    assert "| T = 4, α = 0.5 (failed: loss is nan at step 2) | - |" in table and "| T = 1, α = 0.5 | " in table
    assert (tmp_path / "ablation.png").exists() and "failed" in (tmp_path / "report.html").read_text()


def test_all_tables_share_a_work_directory_and_go_on_after_one_fails(tmp_path, monkeypatch, capsys):
    calls = []

    def call(run, words, default, *, ignored):
        calls.append((run.__module__, words, default))
        return 70 if "table1" in default else 0

    monkeypatch.setattr(common, "call", call)
    assert everything.run(["x", "--size=short", f"--workdir={tmp_path}", "--plan"]) == 70
    assert [module for module, _, _ in calls] == [f"experiments.{name}" for name in everything.TABLES]
    for _, words, default in calls:
        given = command.read(words, default=default)
        assert (
            given.plan
            and given.config.run.workdir == str(tmp_path)
            and given.config.size.startswith(("30 epochs", "short: "))
        )
    assert everything.run(["x", "--size=cpuu"]) == 2 and "did you mean cpu" in capsys.readouterr().err
    assert everything.commands(["x"])[0][1] == [
        "experiments.table1",
        "--config=configs/table1.py:cpu",
        "--workdir=runs/cpu",
    ]


def test_sizes_change_the_size_and_say_so():
    rows_of = {
        table1_config: lambda config: transfer.rows(config, {}),
        ablation_config: ablation.rows,
        pairs_config: pairs.rows,
    }
    for config, rows in rows_of.items():
        full, short = config.get_config(), config.get_config("short")
        assert full.size == "" and short.size.startswith("30 epochs")
        assert {short.recipe[who].epochs for who in ("teacher", "student")} == {30}
        assert len(rows(short)) > 4

"""The image experiments: what their rows are, and that what they measure beyond `metrics.evaluate` is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

import kdjax
from configs import base
from configs import correlation as correlation_config
from configs import drift as drift_config
from configs import generations as generations_config
from configs import penultimate as penultimate_config
from configs import table2 as table2_config
from experiments import (
    associations,
    common,
    correlation,
    corruptions,
    drift,
    generations,
    penultimate,
    projection,
    published,
    table1,
    table2,
    tables,
    transfer,
)
from experiments.sheets import Line
from kdjax.errors import Refused
from tests import tiny
from tests.test_tables import words


def on_digits(config):
    """The configuration on data that is always there: a chain of generations counts the steps of its data."""
    with config.unlocked():
        base.choose_data(config, "digits")
    return config


# What is declared.

# 240 epochs are those of the configuration: one stage under two names.
TWICE = "(('resnet8','nll',0,1.0),('resnet8','nll',240,1.0),('resnet14','nll',0,1.0))"


def test_table_two_has_every_published_row():
    config = table2_config.get_config()
    rows = transfer.rows(config, published.TABLE2)
    assert {name for name, row in rows.items() if not row.published} == {
        *(f"{network} {method}" for network, method in ()),
    } and len(rows) == len(published.TABLE2)
    small_to_big = rows["resnet50 KD(C) from mobilenet_v2 nll + temperature"]
    assert small_to_big.stage.recipe.distill.posthoc == "temperature" and small_to_big.published.startswith("88.91")
    assert small_to_big.stage.teacher == rows["mobilenet_v2 nll"].stage
    small = transfer.rows(table2_config.get_config("cpu"), published.TABLE2)
    assert small["resnet14 KD(C) from resnet8 mdca"].published == "88.12 / 0.66 / 0.45 / 0.77 (resnet50)"
    # Self-distillation: the network alone is the teacher.
    assert rows["mobilenet_v2 KD(UC) from mobilenet_v2 nll"].stage.teacher == rows["mobilenet_v2 nll"].stage


def test_generations_are_two_chains_of_equal_recipes():
    rows = generations.rows(on_digits(generations_config.get_config()))
    assert len(rows) == 14 and rows["KD(C) generation 0"].stage.recipe.method == "mdca"
    assert rows["KD(UC) generation 0"].stage.recipe.method == "nll"
    for chain in generations.CHAINS:
        for k in range(1, 7):
            stage = rows[f"{chain} generation {k}"].stage
            assert stage.teacher == rows[f"{chain} generation {k - 1}"].stage
            assert stage.recipe == rows["KD(C) generation 1"].stage.recipe
    assert stage.recipe.model == "resnet56_bottleneck"


def test_the_cpu_sizes_share_their_stages():
    """In one work directory the students of table 1 are also those of the others."""
    from configs import table1 as table1_config

    named = {row.stage for row in transfer.rows(on_digits(table1_config.get_config("cpu")), {}).values()}
    for module, config in ((drift, drift_config), (generations, generations_config), (correlation, correlation_config)):
        shared = named & {row.stage for row in module.rows(on_digits(config.get_config("cpu"))).values()}
        assert len(shared) >= 4, module.__name__


def test_every_size_declares_its_rows():
    for config, rows in (
        (table2_config, lambda c: transfer.rows(c, {})),
        (generations_config, generations.rows),
        (penultimate_config, penultimate.rows),
        (drift_config, drift.rows),
        (correlation_config, correlation.rows),
    ):
        for size in ("", "paper", "short", "cpu"):
            given = on_digits(config.get_config(size))
            assert len(rows(given)) >= 5 and bool(given.size) == (size in ("short", "cpu"))


def test_the_study_has_the_papers_seventeen_teachers_and_a_control_of_one():
    config = correlation_config.get_config()
    assert len({teacher.network for teacher in correlation.listed(config)}) == 17
    rows = correlation.rows(config)
    swept = correlation.control(config)
    stages = {rows[f"teacher {teacher.label}"].stage for teacher in swept}
    assert len(stages) == 1 and len(swept) == 6
    assert rows["student of wrn_40_2 nll T_c = 3"].stage.recipe.distill.options["T_c"] == 3.0
    assert rows["teacher wrn_40_2 nll T_c = 3"].T == 3.0
    cpu = correlation.rows(correlation_config.get_config("cpu"))
    short = cpu["teacher resnet8 nll 15 epochs"].stage.recipe
    assert short.optimizer.milestones == (7.5, 11.25) and short.epochs == 15
    assert cpu["student of resnet8 nll + temperature"].stage.recipe.distill.posthoc == "temperature"


@pytest.mark.parametrize(
    ("module", "flag", "sentence"),
    [
        (table1, "--config.rows=('wrn_40_1 mdcaa',)", "did you mean wrn_40_1 mdca"),
        (table1, "--config.recipe.students=('resnet9',)", "did you mean resnet"),
        (table1, "--config.recipe.student.model=resnet8", "the students are --config.recipe.students"),
        (table2, "--config=configs/table2.py:chort", "did you mean short"),
        (table2, "--config.recipe.teacher.method=mmce", "the teachers are --config.recipe.teachers"),
        (penultimate, "--config.recipe.shown_classes=('0','1','22')", "shown_classes is '22', which does not exist"),
        (penultimate, "--config.recipe.shown_classes=('0','1')", "names 2 classes; expected three"),
        (penultimate, "--config.recipe.teacher.method=nll", "the teachers are --config.recipe.calibrators"),
        (correlation, "--config.recipe.teachers=(('resnet8','nll'),)", "expected (network, calibrator, epochs or 0"),
        (correlation, "--config.recipe.control=('resnet8','nll')", "config.recipe.control holds"),
        (correlation, f"--config.recipe.teachers={TWICE}", "names 2 different teachers; expected 3 or more, each once"),
        (correlation, "--config.recipe.teachers=(('resnet8','nll',0,'tempe'),)", "did you mean temperature"),
        (
            generations,
            "--config.recipe.generations=5000",
            "config.recipe.generations is 5000; expected",
        ),
        (
            generations,
            "--config.recipe.generations=0",
            "config.recipe.generations is 0; expected",
        ),
        (drift, "--config.recipe.shift.corruptions=('nois',)", "did you mean noise"),
        (drift, "--config.recipe.shift.folder=nowhere", "nowhere holds no labels.npy; expected the unpacked"),
        (drift, "--config.recipe.data.name=cifar100", "prepare cifar100"),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence_before_anything_is_trained(
    module, flag, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    ignored = getattr(module, "IGNORED", common.ONLY)
    name = module.__name__.removeprefix("experiments.")
    data = "--config.recipe.data.name=digits"
    given = ["x", "--plan", f"--workdir={tmp_path}", *(() if "data.name" in flag else (data,)), flag]
    assert common.call(module.run, given, f"configs/{name}.py", ignored=ignored) == 2
    assert sentence in capsys.readouterr().err and not any(tmp_path.iterdir())


# The plane of three classes.


def test_the_projection_needs_no_features():
    """Coordinates by logits are those of the features on an orthonormal basis of the plane."""
    rng = np.random.default_rng(0)
    kernel, bias, x = rng.normal(size=(12, 5)), rng.normal(size=5), rng.normal(size=(40, 12))
    plane = projection.plane({"kernel": kernel, "bias": bias}, (3, 0, 4))
    found = projection.projected(x @ kernel + bias, plane)
    w = kernel[:, [3, 0, 4]]
    first = (w[:, 1] - w[:, 0]) / np.linalg.norm(w[:, 1] - w[:, 0])
    rest = w[:, 2] - w[:, 0] - first * (first @ (w[:, 2] - w[:, 0]))
    np.testing.assert_allclose(found, x @ np.stack([first, rest / np.linalg.norm(rest)], 1), atol=1e-12)
    # Distances within the plane are kept: the templates themselves are in it.
    templates = projection.projected(w.T @ kernel + bias, plane)
    np.testing.assert_allclose(np.linalg.norm(templates[0] - templates[2]), np.linalg.norm(w[:, 0] - w[:, 2]))
    # A 1x1 convolution after pooling is such a layer too.
    conv = projection.plane({"kernel": kernel[None, None], "bias": bias}, (3, 0, 4))
    np.testing.assert_allclose(conv.differences, plane.differences)


def test_spread_and_distances_by_hand():
    points = np.array([[0, 1], [0, -1], [4, 1], [4, -1], [2, 11], [2, 9]], float)
    label = np.array([0, 0, 1, 1, 2, 2])
    made = projection.shape(points, label, (0, 1, 2))
    far = np.hypot(2, 10)
    assert made["plane_spread"] == pytest.approx(1.0) and made["plane_near"] == pytest.approx(4.0)
    assert made["plane_far"] == pytest.approx(far) and made["plane_alike"] == pytest.approx(4 / far)
    assert made["plane_ratio"] == pytest.approx(3 / (4 + 2 * far))


def test_no_plane_is_refused():
    line = {"kernel": np.outer(np.arange(1.0, 5), [1.0, 2, 3, 4]), "bias": np.zeros(4)}
    with pytest.raises(Refused, match="lie on one line"):
        projection.plane(line, (0, 1, 2))
    with pytest.raises(Refused, match="three different"):
        projection.plane(line, (0, 1, 1))
    with pytest.raises(Refused, match="no example of class 2"):
        projection.shape(np.zeros((2, 2)), np.array([0, 1]), (0, 1, 2))


# Associations.


def test_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(1)
    z = rng.normal(size=30)
    x, y = z + rng.normal(size=30), -z + 0.5 * rng.normal(size=30)
    left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert associations.partial(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    assert associations.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert associations.spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert associations.partial(x, 2 * x + 1, x) == 0.0 and associations.pearson(x, np.full(30, 0.1)) == 0.0
    interval = associations.with_interval(associations.pearson, x, y)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    with pytest.raises(Refused, match="at least 3"):
        associations.pearson([1, 2], [1, 2])


def test_the_study_tells_accuracy_from_calibration():
    """Students that follow calibration alone: the partial correlations say so, and the control agrees."""
    rng = np.random.default_rng(0)
    ece, top1 = rng.uniform(5, 20, 12), rng.uniform(30, 50, 12)
    study = {
        str(i): correlation.Point(60 - ece[i], {"top1": top1[i], "ece": ece[i], "ace_classwise": ece[i] / 9})
        for i in range(12)
    }
    found = correlation.correlations(study)
    assert found["ece"]["pearson"]["value"] == pytest.approx(-1) and abs(found["top1"]["partial"]["value"]) < 1e-6
    assert "given the teacher's accuracy -1.00 [-1.00, -1.00]" in correlation.sentences(found, 12)[0]
    grid = correlation.table_of(correlation_config.get_config(), found)
    assert [row[3] for row in grid.cells()] == ["0.6751", "-", "0.9229"]
    swept = {f"T_c = {t}": correlation.Point(50 - t, {"top1": 40.0, "ece": 10.0 + t}) for t in (1, 2, 3)}
    assert "is 47.00 to 49.00 %, best taught by T_c = 1" in correlation.control_sentence(swept)
    assert correlation.control_sentence(swept).endswith("ECE -1.00.")


# Corruptions.


@pytest.mark.parametrize("kind", corruptions.KINDS)
@pytest.mark.parametrize("shape", [(6, 16, 16, 3), (2, 24, 16, 1)])
def test_a_corruption_is_the_same_twice_and_grows_with_its_severity(kind, shape):
    rng = np.random.default_rng(0)
    images = corruptions._bytes(corruptions._stretched(rng.uniform(0, 1, (shape[0], 6, 6)), *shape[1:3])[..., None])
    images = np.repeat(images, shape[-1], axis=-1) // 2 + rng.integers(0, 100, shape).astype(np.uint8)
    before = images.copy()
    distance = []
    for severity in corruptions.SEVERITIES:
        after = corruptions.corrupted(images, kind, severity)
        assert after.shape == images.shape and after.dtype == np.uint8
        np.testing.assert_array_equal(after, corruptions.corrupted(images, kind, severity))
        distance.append(np.abs(after.astype(float) - images).mean())
    assert distance[0] > 0 and (np.diff(distance) > 0).all(), distance
    np.testing.assert_array_equal(images, before)


def test_corruptions_by_hand():
    gray = np.full((1, 8, 8, 3), 100, np.uint8)
    assert (corruptions.corrupted(gray, "brightness", 4) == 151).all()
    assert (corruptions.corrupted(gray, "contrast", 5) == 100).all()
    for kind in ("pixelate", "blur"):
        assert (corruptions.corrupted(gray, kind, 5) == 100).all()
    noise = corruptions.corrupted(np.full((64, 8, 8, 3), 128, np.uint8), "noise", 1).astype(float) - 128
    assert noise.std() == pytest.approx(0.04 * 255, rel=0.05)
    assert not np.array_equal(corruptions.corrupted(gray, "noise", 1, seed=1), corruptions.corrupted(gray, "noise", 1))
    halves = np.zeros((1, 8, 8, 1), np.uint8)
    halves[:, 3:] = 250  # blocks of 8 / 4 rows: the second of four holds one black row and one white
    np.testing.assert_allclose(corruptions._block_means(8, 4)[2:4] @ halves[0, :, 0, 0], 125)
    for wrong in (gray.astype(np.float32), gray[..., :2], gray[0]):
        with pytest.raises(Refused, match="expected uint8"):
            corruptions.corrupted(wrong, "noise", 1)
    with pytest.raises(Refused, match="did you mean noise"):
        corruptions.corrupted(gray, "noize", 1)
    with pytest.raises(Refused, match="expected 1, 2, 3, 4 or 5"):
        corruptions.corrupted(gray, "noise", 0)


# Runs, of networks that take a second.


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """uint8 images, so that they can be corrupted, with names of classes."""
    folder = tmp_path_factory.mktemp("images")
    (x, y), (xt, yt) = tiny.arrays(80, 0), tiny.arrays(40, 1)
    x, xt = (np.round(255 * side).astype(np.uint8) for side in (x, xt))
    path = folder / "images.npz"
    np.savez(path, train_inputs=x, train_label=y, test_inputs=xt, test_label=yt, label_names=[*"abcd"])
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One work directory: the four networks of two seeds that the tables share are trained once."""
    return tmp_path_factory.mktemp("runs")


def written(module, folder, arrays, *fields, without=()):
    """What a table writes as JSON, after its run ended well."""
    given = [word for word in words(folder, arrays) if not any(part in word for part in without)]
    given += [f"--config.recipe.{field}" for field in fields]
    name = module.__name__.removeprefix("experiments.")
    ignored = getattr(module, "IGNORED", common.ONLY)
    assert common.call(module.run, given, f"configs/{name}.py", ignored=ignored) == 0
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_drift_from_training_to_page(folder, arrays, monkeypatch):
    fields = ("students=('mlp',)", "shift.corruptions=('noise','contrast')", "shift.ood=")
    content = written(drift, folder, arrays, *fields, without=("student.model",))
    row = next(row for row in content["rows"] if row["name"] == "mlp nll + temperature")
    seed = row["metrics"][0]
    assert seed["ece_shifted"] == pytest.approx((seed["ece_noise"] + seed["ece_contrast"]) / 2)
    assert seed["ece_shifted"] == pytest.approx(np.mean([seed[f"ece_severity_{n}"] for n in range(1, 6)]))
    assert [row["name"] for row in content["rows"]] == [line[0] for line in content["grids"][0]["rows"]]
    sides = [[m["ece_shifted"] for m in row["metrics"]] for row in content["rows"][:2:-1]]
    gap = 100 * np.mean(np.subtract(*sides))
    assert f"KD(C) - KD(UC) at mlp, mdca teacher, shifted: {gap:+.2f} points" in content["summary"][2]
    assert "ECE under shift" in (folder / "report.html").read_text() and (folder / "drift.pdf").exists()
    # The second time nothing is predicted again.
    monkeypatch.setattr(drift.kdjax, "load", None)
    assert written(drift, folder, arrays, *fields, without=("student.model",))["rows"] == content["rows"]


@pytest.mark.slow
def test_generations_show_the_gap(folder, arrays, capsys):
    content = written(generations, folder, arrays, "generations=1")
    rows = {row["name"]: [seed["ece"] for seed in row["metrics"]] for row in content["rows"]}
    sides = [rows[f"{chain} generation 1"] for chain in ("KD(C)", "KD(UC)")]
    gap = content["differences"]["generation 1"]["ece"]
    assert gap["mean"] == pytest.approx(np.mean(np.subtract(*sides))) and gap["low"] <= gap["mean"] <= gap["high"]
    assert "of what it was after 1 generations" in capsys.readouterr().out
    assert (folder / "generations_gap.png").exists() and (folder / "generations_gap.pdf").exists()


def test_the_penultimate_layer_from_training_to_page(folder, arrays):
    """Against the network itself: features of the selected epoch, projected on templates by hand."""
    fields = ("calibrators=('nll','mdca')", "T=(4.0,)", "shown_classes=('a','c','d')")
    content = written(penultimate, folder, arrays, *fields)
    stage = content["stages"]["student of mdca, T = 4"][1]
    network = kdjax.load(folder / stage)
    with np.load(arrays) as file:
        x, label = file["test_inputs"], file["test_label"]
    output, _ = network.model.apply(network.variables, network.prepare(x), train=False)
    kernel = np.asarray(network.variables["params"]["head"]["kernel"], float)[:, [0, 2, 3]]
    basis, _ = np.linalg.qr(kernel[:, 1:] - kernel[:, :1])
    points = np.asarray(output.features["penultimate"], float) @ basis
    expected = projection.shape(points, label, (0, 2, 3))
    row = next(row for row in content["rows"] if row["name"] == "student of mdca, T = 4")
    assert row["metrics"][1]["plane_ratio"] == pytest.approx(expected["plane_ratio"], rel=1e-4)
    assert (folder / "penultimate.pdf").exists() and (folder / "penultimate_ratio.png").exists()


@pytest.mark.slow
def test_the_correlation_study_from_training_to_page(folder, arrays):
    fields = (
        "teachers=(('mlp','nll',0,1.0),('mlp','mdca',0,1.0),('mlp','nll',0,'temperature'))",
        "control=('mlp','nll',0)",
        "T_c=(1.0,2.0)",
    )
    nesterov = [f"{who}.optimizer.{field}" for who in ("teacher", "student") for field in ("lr=0.1", "nesterov=True")]
    content = written(correlation, folder, arrays, *fields, *nesterov, without=("teacher.model",))
    rows = {row["name"]: row["metrics"] for row in content["rows"]}
    cold, warm = (rows[f"teacher mlp nll{after}"] for after in ("", " T_c = 2"))
    assert [m["top1"] for m in cold] == [m["top1"] for m in warm] and cold[0]["nll"] != warm[0]["nll"]
    assert {grid["caption"] for grid in content["grids"]} == {
        "Student's top-1 against its teacher's, n = 3 teachers",
        "One teacher, its temperature changed",
    }
    assert (folder / "correlation_ece.pdf").exists()


def test_rows_that_are_named_are_run_alone_and_the_page_holds_every_table(folder, arrays):
    lists = ("students=('mlp',)", "calibrators=('nll','mdca')", "teachers=('nll','mdca')")
    given = [*words(folder, arrays), *(f"--config.recipe.{field}" for field in lists)]
    written(generations, folder, arrays, "generations=1")
    assert common.call(table1.run, [*given, "--config.rows=('mlp mdca',)"], "configs/table1.py") == 0
    assert [row["name"] for row in json.loads((folder / "table1.json").read_text())["rows"]] == ["mlp mdca"]
    page = (folder / "report.html").read_text()
    assert "KD(C), figure 4" in page and "KD(C), table 1" in page and "KD(C) generation 1" in page
    assert page.index("KD(C), table 1") < page.index("KD(C), figure 4")
    # A file that was changed by hand is left out, and the page says so.
    path = folder / "generations.json"
    path.write_text(path.read_text().replace('"n": 2', '"n": 3'))
    assert common.call(table1.run, [*given, "--config.rows=('mlp mdca',)"], "configs/table1.py") == 0
    page = (folder / "report.html").read_text()
    assert "KD(C) generation 1" not in page and "was changed after the experiment wrote it" in page


def test_a_phone_sees_ece_first_beside_what_was_published():
    from experiments import pages
    from experiments.sheets import Sheet

    line = Line("a", [{"top1": 0.5, "ece": 0.125, "nll": 1.0}], "74.39 / 1.57")
    narrow = pages.shortened(Sheet([line], ("top1", "nll", "ece"), "top-1 / ECE %", "a paper"))
    assert narrow.heads() == ["", "ECE % ↓", "top-1 % ↑", "published: top-1 / ECE %"]
    assert narrow.cells() == [["a", "12.50", "50.00", "74.39 / 1.57"]]


def test_a_tempered_row_is_measured_at_its_temperature():
    change = tables.adjusted(tables.Row(None, T=2.0), None)
    np.testing.assert_allclose(change(np.array([[2.0, 4.0]], np.float32)), [[1.0, 2.0]])

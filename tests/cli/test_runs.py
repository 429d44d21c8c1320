"""`kdjax show` and `kdjax export`, on a teacher and a student trained for one epoch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import kdjax
from kdjax import models
from kdjax.cli import export_formats, main
from kdjax.errors import Refused
from kdjax.models.entry import Entry
from kdjax.models.small import MLP
from kdjax.predictor import Predictor
from kdjax.prepare import Normalize
from kdjax.runs import run_all
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.variables import load_variables
from tests import tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(workdir, teacher's directory, student's directory, the data set's file)."""
    workdir = tmp_path_factory.mktemp("runs")
    data = tiny.npz(tmp_path_factory.mktemp("data"))
    teacher = Stage(tiny.recipe(data, method="focal", epochs=1), name="teacher")
    student = Stage(tiny.student(data, epochs=1), teacher, name="student")
    run_all([student], Settings(workdir=str(workdir)))
    return workdir, teacher.directory(workdir), student.directory(workdir), data


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_show_a_run(runs, capsys):
    _, teacher, student, _ = runs
    assert main(["show", str(student)]) == 0
    out = capsys.readouterr().out
    top1 = json.loads((student / "result.json").read_text())["metrics"]["test"]["top1"]
    assert "finished; every file verified; epoch 1 selected" in out and "nll + kd(T=2.0), alpha 0.9" in out
    assert re.search(rf"top-1 % +[\d.]+ +{100 * top1:.2f}\n", out)
    lineage = out.partition("lineage (test split):\n")[2].splitlines()
    assert lineage[0].startswith(f"{teacher.name}  mlp, focal: top-1 ")
    assert lineage[1].startswith(f"└─ {student.name}  mlp, nll + kd") and lineage[1].endswith("<- this run")


def test_show_a_workdir_and_what_is_wrong_with_a_run(runs, tmp_path, capsys):
    workdir, _, student, _ = runs
    assert main(["show", str(workdir)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"└─ {student.name}")
    copy = tmp_path / "copy" / student.name
    shutil.copytree(student, copy)
    (copy / "metrics.jsonl").write_text("changed")
    (copy / "parents.json").write_text(json.dumps([student.name]))
    assert main(["show", str(copy)]) == 0, "a circle ends"
    assert "not finished, or damaged: metrics.jsonl" in capsys.readouterr().out
    (copy / "recipe.json").write_text("{")
    for bad, sentence in (
        (copy, "recipe.json is damaged"),
        (tmp_path, "no recipe.json and no runs"),
        ("no", "is no dir"),
    ):
        assert main(["show", str(bad)]) == 2
        assert re.search(sentence, capsys.readouterr().err)


def test_stablehlo_reproduces_the_logits_without_kdjax(runs, capsys):
    _, _, student, data = runs
    assert main(["export", str(student), f"--data={data}", "--out=net.stablehlo"]) == 0
    out = capsys.readouterr().out
    difference = re.search(r"largest difference from the run's stored logits: (\S+) \(logits of 40 examples\)", out)
    assert difference and float(difference[1]) < 1e-5
    images = tiny.arrays(40, 1)[0]
    np.save("images.npy", images)
    lines = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    assert len(lines) <= 5
    code = "\n".join(lines).replace("inputs = ...", "import numpy; inputs = numpy.load('images.npy')")
    code += "\nimport sys; assert 'kdjax' not in sys.modules; numpy.save('out.npy', outputs['probabilities'])"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    np.testing.assert_allclose(np.load("out.npy"), kdjax.load(student).predict(images), atol=1e-5)
    about = json.loads(Path("net.json").read_text())
    assert about["num_classes"] == 4 and about["prepare"]["kind"] == "normalize" and about["temperature"] > 0


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_a_batch_of_no_examples_is_refused(size):
    with pytest.raises(Refused, match=f"batch_size is {size}; expected an integer of at least 1"):
        Predictor.predict(object.__new__(Predictor), np.zeros((3, 4)), batch_size=size)


def test_inputs_that_are_no_finite_array_are_refused(runs):
    predictor, images = kdjax.load(runs[2]), tiny.arrays(4, 1)[0]
    with pytest.raises(Refused, match=r"predict got a list; .*np.asarray\(inputs\)"):
        predictor.predict(images.tolist())
    images[2, 0, 0] = np.nan
    with pytest.raises(Refused, match="what predict got has 1 NaN or infinite values .* at position 2"):
        predictor.predict(images)


def test_a_run_is_loaded_with_the_defaults_of_its_day(runs, monkeypatch):
    _, _, student, _ = runs
    images = tiny.arrays(4, 1)[0]
    expected = kdjax.load(student).predict(images)

    class Narrow(MLP):
        widths: tuple[int, ...] = (8,)

    monkeypatch.setitem(models.MODELS, "mlp", Entry(Narrow, "of a later day"))
    np.testing.assert_array_equal(kdjax.load(student).predict(images), expected)


def test_a_forgotten_import_is_named(runs, monkeypatch, capsys):
    _, _, student, _ = runs
    monkeypatch.delitem(models.MODELS, "mlp")
    assert main(["export", str(student)]) == 2
    assert re.search(r"model is 'mlp', which does not exist; .*Type --import MODULE", capsys.readouterr().err)


def test_safetensors_holds_the_variables_and_what_they_mean(runs, capsys):
    _, _, student, _ = runs
    assert main(["export", str(student), "--format=safetensors"]) == 0
    assert "on noise (give --data to compare the stored logits)" in capsys.readouterr().out
    expected, loaded = kdjax.load(student).variables, load_variables("model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], dict(expected["params"]))
    from safetensors import safe_open

    with safe_open("model.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["kdjax"])["model"] == "mlp"


def test_export_refuses(runs, tmp_path, monkeypatch, capsys):
    _, _, student, data = runs
    other = tiny.npz(tmp_path, "other.npz", seed=5)
    for arguments, sentence in (
        ([str(tmp_path)], "holds no model.json"),
        ([str(student), f"--data={other}"], "has other labels than"),
        ([str(student), "--data=absent.npz"], "is not the data set of"),
        ([str(student), "--format=onx"], "--format is 'onx', which does not exist"),
        ([str(student), "--out=x.onnx"], "ends in .stablehlo"),
    ):
        assert main(["export", *arguments]) == 2, arguments
        assert re.search(sentence, capsys.readouterr().err), arguments
    whole = export_formats.FORMATS["safetensors"]
    wrong = whole._replace(make=lambda *_: export_formats.Exported({"": b""}, lambda inputs: np.ones((40, 4))))
    monkeypatch.setitem(export_formats.FORMATS, "safetensors", wrong)
    assert main(["export", str(student), f"--data={data}", "--format=safetensors"]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other.npz"]


def test_export_leaves_other_files_alone(runs, tmp_path, capsys):
    """The JSON of a calibrator, and whatever is no export's own."""
    _, _, student, data = runs
    for content in ('{"kind": "kdjax calibrator", "method": "temperature"}', "[]", "{"):
        (tmp_path / "c1.json").write_text(content)
        assert main(["export", str(student), f"--data={data}", "--out=c1.safetensors", "--format=safetensors"]) == 2
        assert "c1.json would be written, and that is a file of another kind" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["c1.json"]
        assert (tmp_path / "c1.json").read_text() == content
    for _ in range(2):
        assert main(["export", str(student), f"--data={data}", "--out=c2.safetensors", "--format=safetensors"]) == 0


def test_a_convolution_with_statistics_is_exported_for_any_batch():
    model = models.build("conv_tiny", num_classes=3)
    prepare, shape = Normalize((0.5,), (0.2,), 255.0), jax.ShapeDtypeStruct((1, 8, 8, 1), np.uint8)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), prepare(x)), shape)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(x.dtype), shapes)
    described = {"label_names": ["gnu", "elk", "emu"], "temperature": 2.0, "num_classes": 3}
    predictor = Predictor(model, variables, prepare, described, shape)
    files, check = export_formats.FORMATS["stablehlo"].make(predictor, lambda logits: True, None)
    exported = jax.export.deserialize(bytearray(files[""]))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    images = rng.integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    expected = predictor.logits(images)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(check(images), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(check(images[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    outputs = exported.call(images)
    np.testing.assert_allclose(outputs["probabilities"], predictor.predict(images), atol=1e-4)
    assert bytes(np.asarray(outputs["label_names"])).decode().split("\n") == ["gnu", "elk", "emu"]

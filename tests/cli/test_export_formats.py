"""`kdjax export` of the quickstart's student, of a network in ONNX's second way, and of a text network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

import kdjax
from configs import digits
from experiments import quickstart
from kdjax import huggingface, models, stages, teachers
from kdjax.cli import export_formats, export_onnx, main
from kdjax.errors import Refused
from kdjax.predictor import Predictor
from kdjax.prepare import Normalize
from kdjax.recipes import Data, Optimizer, Recipe
from kdjax.runs import run_all
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests.text.test_data import examples

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(directory, stored logits, raw test inputs) of a student of the quickstart, after one epoch."""
    config = digits.get_config()
    with config.unlocked():
        config.recipe.teacher.epochs = config.recipe.student.epochs = 1
    stage = quickstart.rows(config)["student KD(C), T=4"].stage
    workdir = tmp_path_factory.mktemp("runs")
    result = run_all([stage], Settings(workdir=str(workdir))).results[stage.id]
    return stage.directory(workdir), result.logits("test")[0], stages.dataset(stage.recipe.data).test.inputs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_the_documented_lines_reproduce_the_quickstarts_student_without_kdjax(student, kind, capsys):
    directory, stored, inputs = student
    assert main(["export", str(directory), f"--format={kind}", f"--out=student.{kind}"]) == 0
    said = re.search(r"largest difference from the run's stored logits: (\S+) \(logits of", capsys.readouterr().out)
    assert said and float(said[1]) < 1e-4
    block = next(
        code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if f"student.{kind}" in code
    )
    assert len(block.splitlines()) <= 5
    np.save("images.npy", inputs)
    after = "\nimport sys; assert 'kdjax' not in sys.modules; numpy.savez('out.npz', z=logits, p=probabilities)"
    subprocess.run([sys.executable, "-c", block + after], check=True, timeout=120)
    out = np.load("out.npz")
    np.testing.assert_allclose(out["z"], stored, atol=1e-4)
    np.testing.assert_allclose(out["p"], kdjax.load(directory).predict(inputs), atol=1e-5)


class Grouped(nn.Module):
    """A convolution in groups, which jax2onnx's own layer for Flax gets wrong."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), feature_group_count=2, use_bias=False)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class OfOneSize(nn.Module):
    """A network that asks for the size of its batch as a Python number."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def test_a_network_of_one_batch_size_is_refused_in_a_sentence():
    model, shape = models.linen(OfOneSize(3)), jax.ShapeDtypeStruct((1, 4, 4, 2), np.uint8)
    prepare = Normalize((0.5,), (0.2,), 255.0)
    variables = model.init(jax.random.key(0), prepare(np.ones((1, 4, 4, 2), np.uint8)))
    described = {"model": "one_size", "label_names": [], "temperature": 2.0, "num_classes": 3}
    predictor = Predictor(model, variables, prepare, described, shape)
    with pytest.raises(
        Refused, match=r"'one_size' cannot be .*\(\w+: .*x.shape\[0\] .*--format safetensors"
    ) as refusal:
        export_formats.FORMATS["stablehlo"].make(predictor, lambda z: True, None)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_onnx_is_taken_where_its_logits_are_right_and_refused_where_they_are_not():
    model, shape = models.linen(Grouped(3)), jax.ShapeDtypeStruct((1, 4, 4, 2), np.uint8)
    prepare = Normalize((0.5,), (0.2,), 255.0)
    variables = model.init(jax.random.key(0), prepare(np.ones((1, 4, 4, 2), np.uint8)))
    described = {"model": "grouped", "label_names": [], "temperature": 2.0, "num_classes": 3}
    predictor = Predictor(model, variables, prepare, described, shape)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 2)).astype(np.uint8)
    expected = predictor.logits(images)
    content = export_onnx.convert(predictor, lambda z: np.allclose(z, expected, atol=1e-4), images, {"a": "b"})
    logits, probabilities = export_onnx.run(content, images[:2])
    np.testing.assert_allclose(logits, expected[:2], atol=1e-4)
    np.testing.assert_allclose(probabilities, predictor.predict(images[:2]), atol=1e-5)
    with pytest.raises(Refused, match=r"'grouped' cannot be written as ONNX by jax2onnx \(other logits"):
        export_onnx.convert(predictor, lambda z: False, images, {})


def test_onnx_says_what_to_install(monkeypatch):
    monkeypatch.setattr(export_onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"jax2onnx, which is not installed; type pip install 'kdjax\[onnx\]'"):
        export_onnx.convert(None, lambda z: True, None, {})


@pytest.mark.slow
def test_a_text_network_becomes_a_hugging_face_folder_and_predicts_texts(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "".join(f"{words},{name}\n" for words, name in examples(40, 1)))
    data = Data(name="text", path=str(path), options={"vocab_size": 90})
    small = {"vocab_size": 90, "num_attention_heads": 2, "max_position_embeddings": 32}
    recipe = Recipe(
        data=data, model="bert_1l_8", model_options=small, optimizer=Optimizer(schedule="constant"), batch_size=8
    )
    stage = Stage(recipe)
    result = run_all([stage], Settings(workdir="runs")).results[stage.id]
    directory = stage.directory(Path("runs"))
    assert main(["export", str(directory), "--format=huggingface", f"--data={path}", "--out=student"]) == 0
    out = capsys.readouterr().out
    said = re.search(r"largest difference from the run's stored logits: (\S+) \(logits of", out)
    assert said and float(said[1]) < 1e-4 and "model.config.calibration_temperature" in out
    predictor, folder = kdjax.load(directory), Path("student")
    config = json.loads((folder / "config.json").read_text())
    assert config["calibration_temperature"] == predictor.temperature
    assert tuple(config["id2label"].values()) == predictor.label_names == stages.dataset(data).label_names
    said = json.loads((folder / "tokenizer_config.json").read_text())
    assert said["model_max_length"] == stages.dataset(data).prepare.max_length < small["max_position_embeddings"]
    loaded = huggingface.load(folder)
    assert loaded.vocabulary.digest == predictor.vocabulary.digest
    test = stages.dataset(data).test
    again = teachers.frozen(loaded.model, loaded.variables)
    logits = loaded.model.apply(again.variables, test.inputs, train=False)[0].logits
    np.testing.assert_allclose(logits, result.logits("test")[0], atol=1e-4)
    texts = ["where is my card", "a refund"]
    encoded = huggingface.Tokenizer(loaded.vocabulary).encode(texts, stages.dataset(data).prepare.max_length)
    rows = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"].astype(np.int8)}
    np.testing.assert_array_equal(predictor.predict(texts), predictor.predict(rows))
    with pytest.raises(Refused, match="got one text; expected a list"):
        predictor.predict("where is my card")
    (Path("full")).mkdir()
    Path("full/notes.txt").write_text("mine")
    assert main(["export", str(directory), "--format=huggingface", "--out=full"]) == 2
    assert "holds files already; give the name of a new folder" in capsys.readouterr().err
    (directory / "tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nx\n")
    with pytest.raises(Refused, match="is not finished or not intact"):
        kdjax.load(directory)


def test_a_folder_of_hugging_face_holds_text_networks_only():
    predictor = Predictor.__new__(Predictor)
    predictor.described = {"model": "conv_tiny"}
    with pytest.raises(Refused, match="'conv_tiny', and Hugging Face folders hold BERT"):
        export_formats.FORMATS["huggingface"].make(predictor, lambda z: True, None)

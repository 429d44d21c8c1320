"""A published PyTorch state_dict gives the published network's logits, and is taken whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import calibrate, common
from kdjax import data, models, starts, state_dict
from kdjax.errors import Refused
from kdjax.recipes import Data, Recipe
from kdjax.runs import run_all
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests.models import published

pytestmark = pytest.mark.fused

K = 3
QUICK = ("resnet8", "wrn_10_2")
IMAGES = np.random.default_rng(0).normal(0, 1, (2, 8, 8, 3)).astype(np.float32)
CHEAP = {"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "fusion,cpu-instruction-fusion"}


def drawn(name):
    """(state_dict, logits of IMAGES) of the published network."""
    draw = published.Draw()

    def network(x):
        return published.NETWORKS[name](draw, x, K)

    logits = jax.jit(network, compiler_options=CHEAP)(IMAGES.transpose(0, 3, 1, 2))
    return draw.made, np.asarray(logits)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in published.NETWORKS]
)
def test_the_logits_are_those_of_the_published_network(name, tmp_path):
    tensors, expected = drawn(name)
    save_file(tensors, tmp_path / "net.safetensors")
    model = models.build(name, num_classes=K)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    variables = state_dict.read(tmp_path / "net.safetensors", name, shapes)
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def network(variables, x):
        return model.apply(variables, x, train=False)[0].logits

    logits = jax.jit(network, compiler_options=CHEAP)(variables, IMAGES)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def resnet8():
    return drawn("resnet8")


def renamed(tensors, old, new):
    return {name.replace(old, new): array for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: {k: v for k, v in t.items() if not k.startswith("fc.")},
            r"lacks fc\.bias, fc\.weight; expected",
        ),
        (lambda t: {**t, "aux.w": t["fc.bias"], "b": t["fc.bias"]}, r"holds aux\.w, b; expected the tensors of mdist"),
        (lambda t: renamed(t, "fc.w", "last.w"), r"lacks fc\.weight and holds last\.weight; expected"),
        (
            lambda t: {**t, "fc.weight": t["fc.weight"][:2], "fc.bias": t["fc.bias"][:2]},
            r"holds fc\.bias in shape \[2\] \(expected \[3\]\), fc\.weight in shape \[2, 64\] \(expected \[3, 64\]\)",
        ),
        (lambda t: {**t, "bn1.bias": t["bn1.bias"] * np.nan}, r"has 16 NaN or infinite values in bn1\.bias"),
        (lambda t: {**t, "bn1.bias": t["bn1.bias"].astype(np.int32)}, r"holds bn1\.bias as I32"),
    ],
    ids=["missing", "unknown", "renamed", "shapes", "nan", "integers"],
)
def test_every_wrong_tensor_is_named(resnet8, tmp_path, change, sentence):
    save_file(change(resnet8[0]), tmp_path / "net.safetensors")
    shapes = jax.eval_shape(models.build("resnet8", num_classes=K).init, jax.random.key(0), IMAGES)
    with pytest.raises(Refused, match=sentence):
        state_dict.read(tmp_path / "net.safetensors", "resnet8", shapes)


@pytest.fixture(scope="module")
def teacher(resnet8, tmp_path_factory):
    """(recipe of a network as it is, from a file wrapped by DataParallel; its logits of IMAGES)."""
    folder = tmp_path_factory.mktemp("torch")
    save_file({f"module.{name}": array for name, array in resnet8[0].items()}, folder / "net.safetensors")
    labels = np.arange(30) % K
    inputs = np.concatenate([IMAGES, np.random.default_rng(1).normal(0, 1, (58, 8, 8, 3)).astype(np.float32)])
    arrays = {"test_inputs": inputs[:30], "test_label": labels, "train_inputs": inputs[30:], "train_label": labels}
    np.savez(folder / "mine.npz", num_classes=K, **arrays)
    own = Data(name="arrays", path=str(folder / "mine.npz"), normalization="none")
    init = str(folder / "net.safetensors")
    return Recipe(data=own, model="resnet8", init=init, epochs=0, batch_size=8), resnet8[1]


@pytest.mark.slow
def test_a_network_from_outside_is_a_finished_stage_without_training(teacher, tmp_path):
    recipe, expected = teacher
    stage = Stage(recipe)
    result = run_all([stage], Settings(workdir=str(tmp_path))).results[stage.id]
    np.testing.assert_allclose(result.logits("test")[0][:2], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert run_all([stage], Settings(workdir=str(tmp_path))).results[stage.id].reused


def test_the_file_is_in_the_id_and_its_place_is_not(teacher, tmp_path):
    recipe, _ = teacher
    copy = tmp_path / "other.safetensors"
    copy.write_bytes(Path(recipe.init).read_bytes())
    same = Recipe(**{**vars(recipe), "init": str(copy)})
    assert same.canonical() == recipe.canonical() and recipe.resolved()["init"].startswith("sha256:")
    tensors, _ = drawn("resnet8")
    save_file({**tensors, "fc.bias": tensors["fc.bias"] + 1}, copy)
    assert Recipe(**{**vars(recipe), "init": str(copy)}).canonical() != recipe.canonical()
    dataset = data.load("arrays", **{k: v for k, v in recipe.data.given().items()})
    begun = starts.variables(recipe, dataset)
    assert begun["batch_stats"]["stem_norm"]["mean"].shape == (16,)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["init=absent.safetensors", "model=resnet8"],
            "absent.safetensors is no file; expected tensors in safetensors",
        ),
        (["init=net.pth", "model=resnet8"], "a pickle, and those are never opened"),
        (["init=net.safetensors", "model=conv_tiny"], "the model 'conv_tiny' has no published names; expected one of"),
        (["init=net.safetensors", "model=resnet8", "init_head=new"], "which is read whole; expected no init_layers"),
        (["init=net.safetensors", "model=resnet14"], r"lacks layer1.1.bn1.bias, .*layer3.1.conv2.weight; exp"),
    ],
)
def test_the_command_refuses_in_a_sentence(teacher, flags, sentence, tmp_path, monkeypatch, capsys):
    recipe, _ = teacher
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.safetensors").write_bytes(Path(recipe.init).read_bytes())
    words = ["x", "--plan", "--config.recipe.data.name=arrays", f"--config.recipe.data.path={recipe.data.path}"]
    words += [f"--config.recipe.teacher.{flag}" for flag in (*flags, "batch_size=8")]
    assert common.call(calibrate.run, words, "configs/digits.py", ignored=calibrate.IGNORED) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(sentence, said), said

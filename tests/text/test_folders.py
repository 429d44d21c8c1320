"""Hugging Face folders: the golden ones accepted or refused as their list says; written and read back; other faults."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from kdjax import huggingface
from kdjax.errors import Refused
from kdjax.huggingface.tokenizer import Tokenizer, train_vocabulary
from tests.text import golden, networks

pytestmark = pytest.mark.fused

LOADING = golden.read(golden.index()["loading"])
FOLDERS = {case["folder"]: case for case in LOADING["cases"]}
ACCEPT = [folder for folder, case in FOLDERS.items() if case["verdict"] == "accept"]
REFUSE = [folder for folder, case in FOLDERS.items() if case["verdict"] == "refuse"]
EXACT = {"rtol": 1e-9, "atol": 1e-10}
STARTED = [entry for entry in golden.index()["models"] if "initialised_from" in golden.read(entry["case"])]


@pytest.fixture(scope="module")
def predict():
    """(params in float32, inputs) -> Output of the base folder's network in float64, compiled once."""
    with jax.enable_x64(True):
        model, _ = networks.network(LOADING["base"], "float64")
    program = networks.compiled(lambda params, inputs: model.apply({"params": params}, inputs, train=False)[0])

    def run(params, inputs):
        with jax.enable_x64(True):
            return program(jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, jax.numpy.float64), params), inputs)

    return run


@pytest.mark.parametrize("folder", ACCEPT)
def test_accepted(folder, predict):
    case, base = FOLDERS[folder], golden.arrays(LOADING["arrays"])
    new_head = "the head is new" in case["expect"]
    options = {"new_head": True, "num_classes": base["out/logits"].shape[1]} if new_head else {}
    if new_head:
        with pytest.raises(Refused, match=r"lacks classifier\.weight: it has no classifier"):
            huggingface.load(golden.ROOT / folder)
    loaded = huggingface.load(golden.ROOT / folder, **options)
    if "K = 2" in case["expect"]:
        assert loaded.num_classes == 2
    else:
        output = predict(loaded.variables["params"], networks.inputs(base))
        if new_head:
            assert set(loaded.fresh) == {"classifier.weight", "classifier.bias"}
            golden.close(output.features["penultimate"], base["out/pooled"], "pooled", **EXACT)
            last = output.features[f"layer{loaded.architecture.num_hidden_layers}"]
            golden.close(last, base["out/last_hidden"], "hidden", **EXACT)
        else:
            name = next((n for n in ("float16", "bfloat16") if folder.endswith(f"/{n}")), None)
            wanted = golden.arrays(f"loading/{name}.npz") if name else base
            golden.close(output.logits, wanted["out/logits"], "logits", **EXACT)
            assert not loaded.fresh
    golden.compared("text folders", folder)


@pytest.mark.parametrize("folder", REFUSE)
def test_refused(folder, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("something was computed before the refusal")

    monkeypatch.setattr(jax.numpy, "asarray", compiled)
    with pytest.raises(Refused) as refusal:
        huggingface.load(golden.ROOT / folder)
    sentence = str(refusal.value)
    assert "\n" not in sentence and sentence.endswith(".") and folder.split("/")[-1] in sentence
    golden.compared("text folders", folder)


SAYS = {
    "missing_tensor": ".weight",
    "missing_bias": ".bias",
    "extra_layer": "a layer beyond",
    "unknown_tensor": "no part of the network",
    "vocabulary_size": "word_embeddings.weight in shape",
    "positions": "position_embeddings.weight in shape",
    "transposed": ".weight in shape",
    "labels": "classifier",
    "nan": "NaN",
    "integer_weights": "expected float32",
    "both_spellings": "two spellings",
    "pickle_only": "pytorch_model.bin, a pickle",
    "shard_outside": "expected the plain name",
    "vocabulary_file": "vocabulary of",
    "wrong_family": "config.json says 'distilbert'",
}


@pytest.mark.parametrize("name", [name for name in SAYS if f"loading/refuse/{name}" in FOLDERS])
def test_the_sentence_names_the_cause(name):
    with pytest.raises(Refused) as refusal:
        huggingface.load(golden.ROOT / "loading/refuse" / name)
    assert SAYS[name] in str(refusal.value)


@pytest.mark.parametrize("entry", golden.index()["models"], ids=lambda entry: entry["name"])
def test_written_and_read_back(entry, tmp_path):
    """The same tensors under the same names; written again, the same bytes."""
    source = golden.ROOT / golden.read(entry["case"])["model"]
    loaded = huggingface.load(source)
    huggingface.save(tmp_path / "one", loaded)
    again = huggingface.load(tmp_path / "one")
    assert (again.architecture, again.num_classes) == (loaded.architecture, loaded.num_classes)
    assert again.model is loaded.model, "equal networks are one object"
    huggingface.save(tmp_path / "two", again)
    assert huggingface.load(tmp_path / "two").fingerprint == again.fingerprint
    written, first = (safetensors.load_file(f / "model.safetensors") for f in (tmp_path / "one", source))
    assert written.keys() == first.keys()
    assert all(np.array_equal(written[name], first[name]) for name in first)
    said, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "one", source))
    changed = {key for key in said.keys() & theirs.keys() if said[key] != theirs[key]}
    assert changed <= {"classifier_dropout"}, "what transformers wrote and what we write of the same network"


@pytest.mark.parametrize("entry", STARTED, ids=lambda entry: entry["name"])
def test_a_student_begins_with_layers_of_its_teacher(entry):
    case = golden.read(entry["case"])
    teacher = huggingface.load(golden.ROOT / case["initialised_from"])
    wanted = networks.load(case["model"])
    student = huggingface.from_layers(teacher, case["layers"], num_classes=case["num_labels"])
    assert student.architecture == wanted.architecture and student.model is wanted.model
    ours, theirs = (networks.in_file_layout(wanted, s.variables["params"]) for s in (student, wanted))
    for name, array in theirs.items():
        assert (name in student.fresh) == name.startswith(("pre_classifier", "classifier"))
        assert np.array_equal(ours[name], array) or name in student.fresh, name


@pytest.fixture
def base(tmp_path):
    """A copy of the base folder that a test may spoil, its fields and its tensors."""
    shutil.copytree(golden.ROOT / LOADING["base"], tmp_path / "net")
    return tmp_path / "net"


def rewrite(folder, **fields):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **fields}))


def test_layers_of_a_teacher_are_named_exactly(base):
    teacher = huggingface.load(base)
    depth = teacher.architecture.num_hidden_layers
    for layers in ([], [0, 0], [depth], [-1], [0.0]):
        with pytest.raises(Refused, match="expected different numbers from 0"):
            huggingface.from_layers(teacher, layers)
    student = huggingface.from_layers(teacher, [0], keep_segment=True)
    segment = teacher.variables["params"]["embed"]["segment"]["embedding"][0]
    shift = np.subtract(*(net.variables["params"]["embed"]["position"]["embedding"] for net in (student, teacher)))
    golden.close(shift, np.broadcast_to(segment, shift.shape), "segment", atol=1e-6)
    smaller = huggingface.from_layers(teacher, [1], family="bert")
    assert smaller.architecture.family == "bert" and set(smaller.fresh) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(Refused, match="of a bert"):
        huggingface.from_layers(student, [0])


def test_classes_in_another_order_are_refused(base):
    names = [f"class{i}" for i in range(huggingface.load(base).num_classes)]
    rewrite(base, id2label={str(i): name for i, name in enumerate(names)})
    assert huggingface.load(base, label_names=names).label_names == tuple(names)
    with pytest.raises(Refused, match="in another order than the data: class 0 is 'class0' there and 'class1' here"):
        huggingface.load(base, label_names=[names[1], names[0], *names[2:]])
    with pytest.raises(Refused, match="other names than the data"):
        huggingface.load(base, label_names=["x", *names[1:]])
    with pytest.raises(Refused, match="and the data has 9 classes"):
        huggingface.load(base, num_classes=9)
    rewrite(base, id2label={"1": "a", "2": "b"})
    with pytest.raises(Refused, match="expected the numbers 0 to K-1"):
        huggingface.load(base)


def test_a_new_head_takes_the_place_of_another(base):
    loaded = huggingface.load(base, new_head=True, num_classes=3, seed=1)
    other = huggingface.load(base, new_head=True, num_classes=3, seed=2)
    kernel, another = (network.variables["params"]["head"]["kernel"] for network in (loaded, other))
    assert kernel.shape[1] == 3 and "classifier.weight" in loaded.passed_over
    assert not np.array_equal(kernel, another)
    with pytest.raises(Refused, match="expected the number of classes of the new head"):
        huggingface.load(base, new_head=True)


def test_half_a_pooling_layer_is_no_pooling_layer(base):
    tensors = safetensors.load_file(base / "model.safetensors")
    tensors.pop("bert.pooler.dense.bias")
    safetensors.save_file(tensors, base / "model.safetensors")
    with pytest.raises(Refused, match=r"lacks bert\.pooler\.dense\.bias"):
        huggingface.load(base, new_head=True, num_classes=3)


def test_what_is_saved_must_be_the_networks_own(base, tmp_path):
    loaded = huggingface.load(base)
    params = dict(loaded.variables["params"])
    head = params.pop("head")
    with pytest.raises(Refused, match=r"parameter head/bias is missing"):
        huggingface.save(tmp_path / "x", loaded._replace(variables={"params": params}))
    turned = {**params, "head": {**head, "kernel": head["kernel"].T}}
    with pytest.raises(Refused, match=r"parameter head/kernel has shape"):
        huggingface.save(tmp_path / "x", loaded._replace(variables={"params": turned}))
    tokenizer = Tokenizer(train_vocabulary(["one two three four five six seven eight nine ten eleven"], 45))
    if tokenizer.vocabulary.size > loaded.architecture.vocab_size:
        with pytest.raises(Refused, match="no more entries than rows"):
            huggingface.save(tmp_path / "x", loaded, tokenizer=tokenizer)
    small = Tokenizer(train_vocabulary(["a b ab ba"], 12))
    huggingface.save(tmp_path / "y", loaded, tokenizer=small)
    assert huggingface.load(tmp_path / "y").vocabulary.digest == small.vocabulary.digest


def test_a_shard_that_is_missing_or_disagrees_is_refused(tmp_path):
    folder = tmp_path / "net"
    shutil.copytree(golden.ROOT / "loading/accept/sharded", folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name, file = next(iter(index["weight_map"].items()))
    index["weight_map"].pop(name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match="disagree on"):
        huggingface.load(folder)
    (folder / file).unlink()
    with pytest.raises(Refused, match="names the shard .* which is missing"):
        huggingface.load(folder)

"""Recipes that begin with a folder of weights: as they are, trained on, by layers; what does not fit is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import command, common
from kdjax import data, huggingface, models, results, runs, stages, starts
from kdjax.data import text
from kdjax.errors import Refused
from kdjax.recipes import Data, Distill, Optimizer, Recipe, from_dict
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.tasks import task
from kdjax.trainer import Trainer
from tests.text import golden
from tests.text.test_data import CLASSES, examples

SHAPE = {"num_attention_heads": 2, "max_position_embeddings": 32}
RATES = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "mine.csv"
    file.write_text("text,label\n" + "".join(f"{words},{name}\n" for words, name in examples(40, 1)))
    return str(file)


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    """A classifier of the data's classes with its tokenizer: 3 layers of 8."""
    raw = text.user_texts(path=path)
    rows = text.kept_rows(raw, 0, 0.1, None)[0]
    encoder = text.tokenizer_of(raw, rows, tokenizer="", vocab_size=90, lowercase=True)
    options = {**SHAPE, **RATES, "vocab_size": encoder.vocabulary.size}
    model = models.build("bert_3l_8", num_classes=3, **options)
    ids = np.ones((1, 4), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"input_ids": ids, "attention_mask": ids})
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    net = models.transformer_names.Architecture(**{**models.transformer_names.named("bert_3l_8"), **options})
    place = tmp_path_factory.mktemp("net")
    network = huggingface.Pretrained(model, net, 3, variables, label_names=CLASSES)
    huggingface.save(place, network, tokenizer=encoder)
    return place


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "net")


def rewrite(folder, **fields):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **fields}))


def recipe(path, folder, **changes):
    fields = {
        "data": Data(name="text", path=path, options={"tokenizer": str(folder)}),
        "optimizer": Optimizer(schedule="constant", lr=0.01),
        "batch_size": 8,
        "init": str(folder),
    }
    return Recipe(**{**fields, **changes})


def test_a_folder_brings_its_network_and_goes_into_the_id_by_what_it_holds(path, folder, copy):
    one, two = recipe(path, folder), recipe(path, copy, model="bert_3l_8")
    assert (one.model, one.model_options["num_attention_heads"]) == ("bert_3l_8", 2)
    assert one.canonical() == two.canonical() and Stage(one).id == Stage(two).id
    assert str(folder) not in json.dumps(one.resolved()) and one.resolved()["init"].startswith("sha256:")
    assert from_dict(Recipe, json.loads(json.dumps(one.resolved()))).canonical() == one.canonical()
    prints = {starts.identity(str(copy))}
    rewrite(copy, id2label={"0": "a", "1": "b", "2": "c"})
    prints.add(starts.identity(str(copy)))
    tokens = (copy / "vocab.txt").read_text().split("\n")
    (copy / "vocab.txt").write_text("\n".join([*tokens[:-2], "zebra", ""]))
    prints.add(starts.identity(str(copy)))
    network = huggingface.load(folder)
    huggingface.save(copy, network._replace(variables=jax.tree.map(lambda leaf: leaf + 1, network.variables)))
    prints.add(starts.identity(str(copy)))
    assert len(prints) == 4, "classes, vocabulary and weights each count"
    assert recipe(path, folder, model_options={"hidden_dropout_prob": 0.2}).model_options["hidden_dropout_prob"] == 0.2


@pytest.mark.slow
def test_a_classifier_teaches_as_it_is_and_a_student_begins_with_its_layers(path, folder, tmp_path):
    teacher = Stage(recipe(path, folder, epochs=0), name="teacher")
    distill = Distill("kd", {"T": 2.0})
    of_folder = recipe(path, folder, model="bert_2l_8", init_layers=(0, 2), distill=distill)
    options = dict(teacher.recipe.model_options)
    of_stage = recipe(
        path, folder, model="bert_2l_8", model_options=options, init="teacher", init_layers=(0, 2), distill=distill
    )
    students = [Stage(of_folder, teacher, name="folder"), Stage(of_stage, teacher, name="stage")]
    assert len({stage.id for stage in students}) == 2
    outcome = runs.run_all(students, Settings(workdir=str(tmp_path), devices=1))
    dataset = stages.dataset(teacher.recipe.data)
    network = huggingface.load(folder)
    wanted = network.model.apply(network.variables, dataset.test.inputs, train=False)[0].logits
    result = outcome.results[teacher.id]
    np.testing.assert_allclose(result.logits("test")[0], wanted, rtol=1e-5, atol=1e-5)
    assert result.epoch == 0 and (result.directory / "metrics.jsonl").read_text() == ""
    one, two = (outcome.results[stage.id].logits("test")[0] for stage in students)
    assert np.array_equal(one, two), "the teacher's layers are the folder's"
    taught = results.teacher_of(students[0], tmp_path, 1)
    assert taught.variables.shape == (len(dataset.train.label), 3), "logits are stored for texts"
    living = network.model.apply(network.variables, dataset.train.inputs, train=False)[0].logits
    np.testing.assert_allclose(taught.variables, living, rtol=1e-5, atol=1e-5)
    again = runs.run_all(students, Settings(workdir=str(tmp_path), devices=1))
    assert all(result.reused for result in again.results.values())


def test_training_begins_with_the_folders_weights(path, folder):
    dataset = stages.dataset(recipe(path, folder).data)
    begun = Trainer(task(recipe(path, folder), dataset)).init().params
    stored = huggingface.load(folder).variables["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, begun, stored))
    heads = [starts.params(recipe(path, folder, init_head="new", seed=seed), dataset)["head"] for seed in (1, 2)]
    assert not np.array_equal(heads[0]["kernel"], heads[1]["kernel"])
    layers = starts.params(recipe(path, folder, init_layers=(2, 0)), dataset)
    assert recipe(path, folder, init_layers=(2, 0)).model == "distilbert_2l_8"
    assert jax.tree.all(jax.tree.map(np.array_equal, layers["layer1"], stored["layer3"]))
    assert "segment" not in layers["embed"] and not np.array_equal(layers["pool"]["kernel"], stored["pool"]["kernel"])


def test_the_head_is_kept_for_the_same_classes_alone(path, copy):
    dataset = stages.dataset(recipe(path, copy).data)
    stored = huggingface.load(copy).variables["params"]["head"]["kernel"]

    def kept(**changes):
        return np.array_equal(starts.params(recipe(path, copy, **changes), dataset)["head"]["kernel"], stored)

    assert kept() and kept(epochs=0) and not kept(init_head="new")
    rewrite(copy, id2label={str(i): f"LABEL_{i}" for i in range(3)})
    assert not kept() and kept(init_head="keep", epochs=0)
    with pytest.raises(Refused, match=r"the folder has no names of classes .*\(init_head='keep' takes a head"):
        starts.check(recipe(path, copy, epochs=0), dataset)
    rewrite(copy, id2label={"0": "a", "1": "b", "2": "c"})
    assert not kept()
    with pytest.raises(Refused, match="its classes have other names; expected epochs of training"):
        starts.check(recipe(path, copy, epochs=0), dataset)
    with pytest.raises(Refused, match="other names than the data"):
        starts.check(recipe(path, copy, init_head="keep"), dataset)
    rewrite(copy, id2label=dict(zip("012", (CLASSES[1], CLASSES[0], CLASSES[2]), strict=True)))
    with pytest.raises(Refused, match=r"in another order than the data: class 0 is 'card' there and 'billing' here"):
        starts.check(recipe(path, copy), dataset)


def spoilt(folder, fault):
    """Spoils a folder."""
    if fault == "tokenizer":
        for name in ("vocab.txt", "tokenizer_config.json"):
            (folder / name).unlink()
    elif fault == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif fault == "special":
        tokens = (folder / "vocab.txt").read_text().replace("[CLS]", "[START]")
        (folder / "vocab.txt").write_text(tokens)
    elif fault == "other":
        tokens = (folder / "vocab.txt").read_text().split("\n")
        (folder / "vocab.txt").write_text("\n".join([*tokens[:-2], "zebra", ""]))
    elif fault == "config":
        rewrite(folder, hidden_size=16)


@pytest.mark.parametrize(
    "fault, says",
    [
        ("tokenizer", r"has no tokenizer; expected vocab\.txt or tokenizer\.json"),
        ("pickle", r"its weights in pytorch_model\.bin, a pickle, and those are never opened"),
        ("special", r"lacks the special token \[CLS\]"),
        ("other", r"reads ids of a vocabulary of .* set data\.options\.tokenizer="),
        ("config", r"LayerNorm\.bias in shape \[8\]; expected \[16\]"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_before_anything_is_compiled(path, folder, copy, fault, says):
    spoilt(copy, fault)
    stage = Stage(recipe(path, folder, init=str(copy), epochs=0))
    with pytest.raises(Refused, match=says):
        stages.check(stage)


@pytest.mark.parametrize("name", ["missing_tensor", "nan", "pickle_only", "transposed", "vocabulary_file"])
def test_golden_folders_are_refused_by_a_stage(path, folder, name):
    own = recipe(path, folder)
    with pytest.raises(Refused, match=name):
        stages.check(Stage(recipe(path, folder, init=str(golden.ROOT / "loading/refuse" / name), data=own.data)))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"init": "nowhere"}, "there is no such folder"),
        ({"model": "bert_2l_8"}, "model is 'bert_2l_8' and .* gives bert_3l_8"),
        ({"model": "mlp"}, "model is 'mlp' and init the folder"),
        ({"model_options": {"vocab_size": 40}}, r"model_options\.vocab_size is 40 and .* remove the option"),
        ({"init_layers": (0, 3)}, "expected different numbers from 0 to 2"),
        ({"init_layers": (0, 0)}, "expected different numbers"),
        ({"init": "", "init_layers": (0,)}, r"init_layers is \(0,\) and init ''"),
        ({"init": "", "epochs": 0}, "epochs is 0; expected an integer of at least 1"),
        ({"epochs": 0, "init_layers": (0,)}, "epochs is 0; expected an integer of at least 1"),
        ({"epochs": 0, "distill": Distill("kd")}, "epochs is 0; expected an integer of at least 1"),
        ({"init_head": "old"}, "init_head is 'old'"),
    ],
)
def test_impossible_starts_are_refused_when_the_recipe_is_made(path, folder, changes, says):
    with pytest.raises(Refused, match=says):
        recipe(path, folder, **changes)


def test_layers_of_a_teacher_that_do_not_fit_are_refused(path, folder):
    teacher = Stage(recipe(path, folder, epochs=0), name="teacher")
    student = {"init": "teacher", "distill": Distill("kd")}
    with pytest.raises(Refused, match=r"expected the teacher's: type model='bert_3l_8'"):
        stages.check(Stage(recipe(path, folder, model="bert_2l_8", **student), teacher))
    with pytest.raises(Refused, match="model_options.vocab_size of the student gives vocab_size 30522"):
        heads = {"num_attention_heads": 2}
        fields = {**student, "model": "bert_2l_8", "model_options": heads, "init_layers": (0, 1)}
        stages.check(Stage(recipe(path, folder, **fields), teacher))
    with pytest.raises(Refused, match="begins with init='teacher' and has none"):
        stages.check(Stage(recipe(path, folder, model="bert_2l_8", init="teacher")))
    alone = recipe(path, folder, model="bert_2l_8", init="teacher", model_options={**SHAPE, "vocab_size": 90})
    with pytest.raises(Refused, match="in a task without stages"):
        Trainer(task(alone, data.load("text", path=path, tokenizer=str(folder)))).init()


def test_a_typed_folder_brings_network_and_tokenizer(path, folder):
    words = ["--config=configs/text.py:text,dus,cud", f"--config.recipe.data.path={path}"]
    words += [f"--config.recipe.teacher.init={folder}", "--config.recipe.teacher.epochs=0"]
    config = command.read(["distill", *words], default="configs/text.py").config
    teacher, student = common.pair(config, 0)
    assert (teacher.recipe.model, teacher.recipe.epochs) == ("bert_3l_8", 0)
    assert student.recipe.data.options["tokenizer"] == str(folder) and student.recipe.model == "bert_4l_256"
    words[0] = "--config=configs/text.py:text,bert_base,dus,cud"
    with pytest.raises(Refused, match="model is 'bert_base'"):
        common.pair(command.read(["distill", *words], default="configs/text.py").config, 0)

"""Configurations: locked, every method selectable, typos answered with the nearest names."""

from __future__ import annotations

import dataclasses
import json

import pytest

from configs import base, cifar10, cifar100, digits, text
from experiments import command, common, usage
from kdjax import stages
from kdjax.errors import Refused
from kdjax.objectives import METHODS, options
from kdjax.recipes import Recipe, from_dict
from kdjax.settings import Settings
from tests import tiny

FAMILIES = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100, "text": text}


@pytest.mark.parametrize("family", FAMILIES)
def test_locked_and_valid(family):
    config = FAMILIES[family].get_config()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.recipe.student.lrr = 1.0
    for who in ("teacher", "student"):
        common.recipe(config, who, 0)
    assert common.run_settings(config) == dataclasses.replace(
        Settings(), checkpoint_epochs=config.run.checkpoint_epochs
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_selectable_by_its_name(name):
    config = digits.get_config(name)
    part = config.recipe.teacher if METHODS[name].role == "calibrator" else config.recipe.student.distill
    assert part.method == name
    teacher, _student = common.pair(config, seed=3)
    assert teacher.recipe.seed == 3


def test_the_string_names_teacher_calibrator_student_and_distiller():
    config = cifar100.get_config("wrn_40_2,mdca,wrn_40_1,kd,temperature")
    teacher, student = common.recipe(config, "teacher", 0), common.recipe(config, "student", 0)
    assert (teacher.model, teacher.method, teacher.distill) == ("wrn_40_2", "mdca", None)
    assert dict(teacher.options) == {"beta": 1.0, "gamma": 3.0} | dict(teacher.options)
    assert (student.model, student.method) == ("wrn_40_1", "nll")
    assert (student.distill.method, student.distill.posthoc, student.distill.alpha) == ("kd", "temperature", 0.9)
    swapped = cifar100.get_config("wrn_16_1,adafocal,wrn_16_1,focal,cpu")
    assert (swapped.recipe.teacher.method, swapped.recipe.student.method) == ("adafocal", "focal")
    # A preset sets sizes and networks where none is named.
    assert (swapped.recipe.teacher.model, swapped.recipe.teacher.epochs) == ("wrn_16_1", 60)
    # The family's options of another method do not leak into the chosen one.
    assert "beta" not in swapped.recipe.teacher.options


def test_the_string_names_a_data_set_of_texts():
    config = text.get_config("banking77,bert_base,dus,bert_4l_256,cud")
    teacher, student = common.recipe(config, "teacher", 0), common.recipe(config, "student", 0)
    assert (teacher.data.name, teacher.model, teacher.method) == ("banking77", "bert_base", "dus")
    assert (student.model, student.distill.method, student.distill.weights) == ("bert_4l_256", "cud", (0.2, 0.8))
    for recipe, rate in ((teacher, 5e-5), (student, 3e-4)):
        o = recipe.optimizer
        assert (o.name, o.lr, o.weight_decay, o.decay_mask) == ("adamw", rate, 0.01, "kernels")
        assert (o.schedule, o.warmup_epochs, o.clip_norm, recipe.epochs) == ("linear", 2.0, 1.0, 20)
    small = common.recipe(text.get_config("newsgroups20,cpu"), "student", 0)
    assert (small.model, dict(small.data.options)) == ("bert_1l_64", {"max_length": 128})
    assert dict(small.model_options) == {"vocab_size": 8000, "max_position_embeddings": 128}
    with pytest.raises(Refused, match="two data sets"):
        text.get_config("trec,hwu64")


def read(*words):
    """The configuration as `python -m experiments.distill` reads it of these words."""
    return command.read(["distill", *words], default="configs/digits.py").config


def typed(names, *overrides):
    """The student's recipe of a config string and further fields of the student."""
    given = [f"--config.recipe.student.{o}" for o in overrides]
    return common.recipe(read(f"--config=configs/digits.py:conv_small,mdca,conv_tiny,{names}", *given), "student", 0)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_can_be_set_on_the_command_line(name):
    # ml_collections overrides no field whose default is None.
    assert {type(default) for default in options(name).values()} <= {bool, int, float, str, tuple}


def test_nested_and_named_options_on_the_command_line():
    near = tuple(tuple(int(i // 2 == j // 2) for j in range(10)) for i in range(10))
    recipe = typed("kd", f"distill.options.target=project(near={near}, far_mass=0.1)")
    assert dict(recipe.distill.options)["target"] == f"project(near={near})", "a default is left out"
    again = from_dict(Recipe, json.loads(recipe.canonical()))
    assert again.canonical() == recipe.canonical() and hash(again) is not None
    assert dict(typed("hidden_state", "distill.options.layers=('stage1:stage2',)").distill.options)["layers"] == (
        "stage1:stage2",
    )
    crl = typed("crl", "options.confidence=entropy", "options.normalizer=2.302585")
    assert dict(crl.options)["normalizer"] == 2.302585


def test_a_distiller_brings_its_published_weights():
    assert typed("lskd").distill.weights == (0.1, 9.0)
    assert typed("cud").distill.weights == (0.2, 0.8)
    assert typed("lskd,kd").distill.weights == () and typed("kd").distill.alpha == 0.9
    assert typed("lskd", "distill.weights=(1.0,2.0)").distill.weights == (1.0, 2.0)
    recipe = typed("lskd", "distill.weights=()", "distill.alpha=0.5")
    assert recipe.distill == dataclasses.replace(recipe.distill, alpha=0.5, weights=())
    for method in METHODS.values():
        assert len(method.weights) in ((0, 2) if method.role == "distiller" else (0,))


def test_the_stored_command_names_no_work_directory():
    for place in (["--workdir", "runs/a"], ["--workdir=runs/a"]):
        words = ["x", *place, "--config=configs/digits.py:mdca"]
        given = command.read(words, default="configs/digits.py")
        assert given.text.endswith(" --config=configs/digits.py:mdca") and "runs" not in given.text
        assert given.config.run.workdir == "runs/a"


def test_alpha_beside_weights_is_refused():
    with pytest.raises(Refused, match=r"alpha=0.5 and weights=\(0.1, 9.0\).* set weights=\(\) to use alpha"):
        typed("lskd", "distill.alpha=0.5")


@pytest.mark.parametrize(
    ("arg", "sentence"),
    [
        ("mdcaa", r"'mdcaa' .* did you mean mdca.*\? One of your own\? Type --import MODULE"),
        ("wrn_40_2,kdd", "'kdd'"),
        ("conv,conv,conv", "three networks"),
        (
            "conv_tiny,kd,conv,mdca",
            "'kd' stands before the network 'conv'.* conv_tiny,conv,mdca,kd, and exchange",
        ),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(arg, sentence):
    with pytest.raises(Refused, match=sentence):
        digits.get_config(arg)


def test_a_recipe_survives_its_own_json():
    recipe = common.recipe(digits.get_config("adafocal"), "student", 5)
    again = from_dict(Recipe, json.loads(json.dumps(recipe.resolved())))
    assert again.canonical() == recipe.canonical() and again.optimizer == recipe.optimizer


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"epoch": 3}, "no field 'epoch'; did you mean epochs"),
        ({"epochs": "3"}, "recipe.epochs is '3'; expected int"),
        ({"epochs": 2.5}, "recipe.epochs is 2.5; expected int"),
        ({"optimizer": {"lr": "fast"}}, "recipe.optimizer.lr is 'fast'; expected float"),
        ({"transform": "flip"}, "expected a list"),
        ({"optimizer": {"nesterov": 1}}, "nesterov is 1; expected bool"),
    ],
)
def test_wrong_fields_and_types_are_refused(given, sentence):
    with pytest.raises(Refused, match=sentence):
        from_dict(Recipe, given)


OTHER = {
    "model": "conv",
    "method": "focal",
    "transform": "('flip',)",
    "precision": "bfloat16",
    "select": "best",
    "optimizer.schedule": "linear",
    "optimizer.decay_mask": "kernels",
    "distill.method": "ttm",
    "distill.posthoc": "temperature",
    "distill.weights": "(1.0, 2.0)",
}
TOGETHER = {
    "optimizer.name": ("optimizer.name=adamw", "optimizer.nesterov=False"),
    "optimizer.milestones": ("optimizer.schedule=multistep", "optimizer.milestones=(3.0,)"),
}


@pytest.mark.parametrize(("changed", "other"), [("student", "teacher"), ("teacher", "student")])
def test_a_field_of_one_leaves_the_other_alone(changed, other):
    """Over every field: the other network's recipe, and so its id, stays; what was changed moves."""
    before = read()
    for field, value in usage.flat(before.recipe[changed]):
        if "options" in field and field not in ("options.beta", "distill.options.T"):
            continue  # every method has others
        now = OTHER.get(field, not value if isinstance(value, bool) else value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            now = value / 2 if isinstance(value, float) and value else value + 1
        words = TOGETHER.get(field, (f"{field}={now}",))
        after = read(*(f"--config.recipe.{changed}.{word}" for word in words))
        if now != value or field in TOGETHER:
            assert common.recipe(after, changed, 0) != common.recipe(before, changed, 0), field
        assert common.recipe(after, other, 0) == common.recipe(before, other, 0), field
    teacher, student = common.pair(before, 0)
    moved = common.pair(read(f"--config.recipe.{changed}.optimizer.lr=0.01"), 0)
    assert (moved[0].id == teacher.id) == (changed == "student") and moved[1].id != student.id


def test_every_part_of_a_configuration_is_its_own():
    for family in FAMILIES.values():
        recipe = family.get_config().recipe
        assert recipe.teacher.optimizer is not recipe.student.optimizer
    short = cifar100.get_config("wrn_40_2,mdca,wrn_40_1,kd,short").recipe
    assert [short[who].optimizer.lr for who in ("teacher", "student")] == [0.4, 0.4]


def test_a_name_means_one_thing_in_every_place():
    config = cifar100.get_config("wrn_40_2,mdca,wrn_40_1,mdca,kd").recipe
    flag = read("--config=configs/digits.py:conv,nll", "--config.recipe.teacher.method=mdca").recipe
    assert config.teacher.options == config.student.options == flag.teacher.options
    assert config.teacher.options.gamma == base.OPTIONS["mdca"]["gamma"] == 3.0
    assert cifar100.get_config().recipe.teacher.options == config.teacher.options
    for family in FAMILIES.values():
        assert family.get_config().recipe.student.distill.options.T == options("kd")["T"] == 4.0


def test_a_method_changed_by_flag_brings_its_own_options():
    teacher = read("--config.recipe.teacher.method=focal").recipe.teacher
    assert teacher.options.to_dict() == options("focal")
    words = ("--config.recipe.teacher.options.alpha=0.2", "--config.recipe.teacher.method", "label_smoothing")
    assert common.recipe(read(*words), "teacher", 0).method == "label_smoothing"
    assert read(*words).recipe.teacher.options.alpha == 0.2
    distilled = read("--config.recipe.student.distill.method=lskd").recipe.student.distill
    assert (distilled.weights, distilled.options.T) == ((0.1, 9.0), options("lskd")["T"])
    with pytest.raises(Refused, match="'focal' has no option 'beta'"):
        read("--config.recipe.teacher.method=focal", "--config.recipe.teacher.options.beta=2.0")


def test_options_of_a_network_are_typed_like_any_field():
    config = read("--config=configs/digits.py:mlp", "--config.recipe.teacher.model_options.widths=(8, 4)")
    teacher, student = (common.recipe(config, who, 0) for who in ("teacher", "student"))
    assert dict(teacher.model_options) == {"widths": (8, 4)} and not student.model_options
    dropout = read("--config=configs/digits.py:mlp", "--config.recipe.teacher.model_options.dropout=0.5")
    assert common.recipe(dropout, "teacher", 0).model_options["dropout"] == 0.5
    with pytest.raises(Refused, match="'mlp' has no option 'width'; did you mean widths"):
        common.recipe(
            read("--config=configs/digits.py:mlp", "--config.recipe.teacher.model_options.width=3"), "teacher", 0
        )


def test_another_data_set_keeps_nothing_of_the_defaults(tmp_path):
    """A file of one's own needs its path alone: noise and sizes of the default belong to the default."""
    path = tiny.npz(tmp_path)
    config = read(
        "--config.recipe.data.name=arrays", f"--config.recipe.data.path={path}", "--config.recipe.data.num_classes=4"
    )
    assert (config.recipe.data.noise, config.recipe.data.train_examples) == (0.0, 0)
    assert len(stages.dataset(common.recipe(config, "teacher", 0).data).train.label) == 72
    typed_too = read("--config.recipe.data.train_examples=30", "--config.recipe.data.name=arrays")
    assert typed_too.recipe.data.train_examples == 30
    assert read("--config=configs/cifar100.py", "--config.recipe.data.name=digits").recipe.data.noise == 0.5
    assert read("--config.recipe.data.name=digits").recipe.data == read().recipe.data


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config.recipe.studnt.epochs=2"], "no field 'studnt'; did you mean student"),
        (["--config.recipe.teacher.options.gama=2"], "the method 'mdca' has no option 'gama'; did you mean gamma"),
        (["--config.recipe.student.epochs.x=2"], "holds no further fields"),
        (["--config.recipe.teacher.method=fokal"], "'fokal'.* did you mean focal"),
        (["--import=no_such_module"], "there is no module of that name"),
        (["--import=a-b"], "expected the name of a module"),
    ],
)
def test_words_are_refused_in_a_sentence(words, sentence):
    with pytest.raises(Refused, match=sentence):
        read(*words)


def test_modules_of_ones_own_are_imported_before_the_configuration_is_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    lines = "from kdjax.objectives import METHODS", "METHODS['outside_focal'] = METHODS['focal']"
    (tmp_path / "outside_methods.py").write_text("\n".join(lines))
    (tmp_path / "outside_broken.py").write_text("x = 1\nraise RuntimeError('no luck')\n")
    (tmp_path / "outside_needs.py").write_text("import absent_package\n")
    monkeypatch.setitem(METHODS, "outside_focal", METHODS["nll"])  # removed again after the test
    config = read("--config=configs/digits.py:conv_small,outside_focal,conv_tiny,kd", "--import=outside_methods")
    assert config.recipe.teacher.method == "outside_focal" and "gamma" in config.recipe.teacher.options
    with pytest.raises(Refused, match="--import=outside_broken failed in outside_broken.py, line 2, with RuntimeError"):
        read("--import=outside_methods,outside_broken")
    with pytest.raises(Refused, match="needs 'absent_package', which is not installed"):
        read("--import", "outside_needs")

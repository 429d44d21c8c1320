"""Configurations: locked, every method selectable, typos answered with the nearest names."""

from __future__ import annotations

import dataclasses
import json

import pytest
from absl import flags
from ml_collections import config_flags

from configs import cifar10, cifar100, digits
from experiments import common
from kdjax import train
from kdjax.errors import Refused
from kdjax.objectives import METHODS, options
from kdjax.recipes import Recipe, from_dict

FAMILIES = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100}


@pytest.mark.parametrize("family", FAMILIES)
def test_locked_and_valid(family):
    config = FAMILIES[family].get_config()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.recipe.student.lrr = 1.0
    for who in ("teacher", "student"):
        common.recipe(config, who, 0).check()
    assert common.settings(config) == dataclasses.replace(train.Run(), checkpoint_epochs=config.run.checkpoint_epochs)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_selectable_by_its_name(name):
    config = digits.get_config(name)
    part = config.recipe.teacher if METHODS[name].role == "calibrator" else config.recipe.student.distill
    assert part.method == name
    teacher, student = common.pair(config, seed=3)
    teacher.recipe.check()
    student.recipe.check()
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
    # The family's options of another method do not leak into the chosen one.
    assert "beta" not in swapped.recipe.teacher.options


def typed(names, *overrides):
    """The student's recipe as `python -m experiments.distill` makes it of these words."""
    given = [f"--config.recipe.student.{o}" for o in overrides]
    words = ["distill", f"--config=configs/digits.py:conv_small,mdca,conv_tiny,{names}", *given]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=words)
    values(words)
    return common.recipe(values.config, "student", 0)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_can_be_set_on_the_command_line(name):
    # ml_collections overrides no field whose default is None.
    assert {type(default) for default in options(name).values()} <= {bool, int, float, str, tuple}


def test_nested_and_named_options_on_the_command_line():
    near = tuple(tuple(int(i // 2 == j // 2) for j in range(10)) for i in range(10))
    recipe = typed("cud", "distill.options.target=project", f"distill.options.near={near}").check()
    assert dict(recipe.distill.options)["near"] == near
    again = from_dict(Recipe, json.loads(recipe.canonical()))
    assert again.canonical() == recipe.canonical() and hash(again) is not None
    assert dict(typed("hidden_state", "distill.options.layers=('stage1:stage2',)").distill.options)["layers"] == (
        "stage1:stage2",
    )
    crl = typed("crl", "options.confidence=entropy", "options.normalizer=2.302585")
    assert dict(crl.check().options)["normalizer"] == 2.302585


def test_a_distiller_brings_its_published_weights():
    assert typed("lskd").distill.weights == (0.1, 9.0)
    assert typed("cud").distill.weights == (0.2, 0.8)
    assert typed("lskd,kd").distill.weights == () and typed("kd").distill.alpha == 0.9
    assert typed("lskd", "distill.weights=(1.0,2.0)").check().distill.weights == (1.0, 2.0)
    own = typed("lskd", "distill.weights=()", "distill.alpha=0.5").check()
    assert own.distill == dataclasses.replace(own.distill, alpha=0.5, weights=())
    for method in METHODS.values():
        assert len(method.weights) in ((0, 2) if method.role == "distiller" else (0,))


def test_the_stored_command_names_no_work_directory(monkeypatch):
    for place in (["--workdir", "runs/a"], ["--workdir=runs/a"]):
        monkeypatch.setattr("sys.argv", ["x", *place, "--config=configs/digits.py:mdca"])
        assert common.command().endswith(" --config=configs/digits.py:mdca") and "runs" not in common.command()


def test_alpha_beside_weights_is_refused():
    with pytest.raises(Refused, match=r"alpha=0.5 and weights=\(0.1, 9.0\).* set weights=\(\) to use alpha"):
        typed("lskd", "distill.alpha=0.5").check()


@pytest.mark.parametrize(
    ("arg", "sentence"),
    [("mdcaa", "'mdcaa' .* did you mean mdca"), ("wrn_40_2,kdd", "'kdd'"), ("conv,conv,conv", "three models")],
)
def test_unknown_names_are_answered_with_the_nearest(arg, sentence):
    with pytest.raises(Refused, match=sentence):
        digits.get_config(arg)


def test_a_recipe_survives_its_own_json():
    recipe = common.recipe(digits.get_config("adafocal"), "student", 5)
    again = from_dict(Recipe, json.loads(recipe.canonical()))
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

"""Configurations: locked, every method selectable, typos answered with the nearest names."""

from __future__ import annotations

import dataclasses
import json

import pytest

from configs import cifar10, cifar100, digits
from experiments import common
from kdjax import train
from kdjax.errors import Refused
from kdjax.objectives import METHODS
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

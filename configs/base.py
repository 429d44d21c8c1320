"""The shared base of every configuration.

`config.recipe` is what is computed (hashed into the stages' ids), `config.run` is how, `config.seeds` the replicates.

The string after the colon of `--config=configs/FAMILY.py:...` is a comma-separated list of names: a preset of the
family (`cpu`), a data set (`banking77`), the teacher's network, the teacher's calibrator, the student's network, the
student's calibrator (its hard-label term), a distillation method, a post-hoc calibrator of the teacher. Any of them may
be left out; a student without a network of its own has the teacher's. So `wrn_40_2,mdca,wrn_40_1,kd` is KD(C) with an
MDCA teacher.

A method's name stands for the same options wherever it is written, in either role or in a flag such as
`--config.recipe.teacher.method=focal`: the library's defaults (docs/methods.md), except for `OPTIONS` below. Likewise a
data set's name brings the sizes in `DATA`. Fields that are typed count last. A distillation method also brings the
weights of label and soft term that its source publishes; `distill.weights=()` goes back to alpha.

An epoch has floor(N / batch_size) steps: the examples of an incomplete last batch are left out, others in each epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kdjax import data, models, objectives, posthoc
from kdjax.errors import OUTSIDE, Refused, nearest
from kdjax.recipes import Data, Distill, Recipe
from kdjax.settings import Settings

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    # FL + MDCA, as KD(C) and the MDCA paper train it; the library's own default is NLL + MDCA.
    "mdca": {"gamma": 3.0},
}
"""What a method's name stands for in a configuration, beside the library's defaults."""

DATA: Mapping[str, Mapping[str, Any]] = {
    # Additive Gaussian noise in units of the pixel range: it makes the posterior soft, so that confidence matters.
    "digits": {"noise": 0.5, "train_examples": 800, "calibration_fraction": 0.2},
}
"""What a data set's name stands for, beside the library's defaults (which mean all of its examples)."""

DATA_NAME = "recipe.data.name"


def base(data_set: str) -> ConfigDict:
    """Every field with the library's defaults on that data set, unlocked, for a family to fill in."""
    config = ConfigDict(
        {
            "recipe": {
                "data": {},
                # Teacher and student are two recipes on one data set; each has its own optimizer and length.
                "teacher": _training(),
                "student": {**_training(), "distill": {**dataclasses.asdict(Distill()), "options": {}}},
                # How many times the student's recipe is taught by its own outcome (experiments.generations).
                "generations": 2,
                # Distillation temperatures that are compared (experiments.quickstart).
                "temperatures": (1.0, 4.0),
            },
            # The rows of a table that are run, by their full names; () is all of them.
            "rows": (),
            # One replicate a seed; the split is shared, initialization, order and augmentation are not.
            "seeds": (0,),
            "run": dataclasses.asdict(Settings()),
            # What a preset cut from the recipe it stands in for; printed in the report.
            "size": "",
        }
    )
    choose_data(config, data_set)
    choose(config.recipe.student.distill, "kd")
    return config


def _training() -> dict[str, Any]:
    """The fields of one recipe, made anew at each call: teacher and student must share no dictionary."""
    shared = dataclasses.asdict(Recipe())
    fields = {name: value for name, value in shared.items() if name not in ("data", "distill", "seed")}
    return {**fields, "options": {}, "model_options": {}}


def choose(part: ConfigDict, method: str) -> None:
    """Sets the method of a teacher, a student or a distillation term, and all the options that its name stands for.

    Raises:
      Refused: an unknown method, with the nearest names.
    """
    part.method, part.options = method, ConfigDict(meant(method))
    if "weights" in part:
        part.weights = objectives.METHODS[method].weights


def meant(method: str) -> dict[str, Any]:
    """All the options that a method's name stands for in a configuration."""
    return {**objectives.options(method), **OPTIONS.get(method, {})}


def choose_data(config: ConfigDict, name: str) -> None:
    """Sets the data set: every field is that set's own, none of another set's sizes or noise stays."""
    fields = {**dataclasses.asdict(Data()), "options": {}}
    config.recipe.data = ConfigDict({**fields, "name": name, **DATA.get(name, {})})


def finish(config: ConfigDict, arg: str, presets: Mapping[str, Mapping[str, Any]] = {}) -> ConfigDict:
    """Applies the names after the colon, presets first, and locks.

    Args:
      config: from `base`, with the family's values.
      arg: comma-separated names.
      presets: name -> {dotted field: value}.

    Raises:
      Refused: an unknown name, with the nearest known ones; or names in another order than the module says.
    """
    named = roles(arg, presets)
    for name in (name for name, field in named if field == DATA_NAME):
        if name != config.recipe.data.name:
            choose_data(config, name)
    for name in (name for name, field in named if not field):
        config.update_from_flattened_dict(dict(presets[name]))
    for name, field in ((name, field) for name, field in named if field not in ("", DATA_NAME)):
        path, _, leaf = field.rpartition(".")
        part = config[path]
        if leaf == "method":
            choose(part, name)
        else:
            part[leaf] = name
        if field == "recipe.teacher.model":
            config.recipe.student.model = name
    return config.lock()


def roles(arg: str, presets: Mapping[str, Mapping[str, Any]] = {}) -> list[tuple[str, str]]:
    """Every name of a config string with the dotted field that it sets, "" for a preset.

    Raises:
      Refused: an unknown name; three networks or two data sets; a distillation method before the student's network.
    """
    named: list[tuple[str, str]] = []
    words = [word.strip() for word in arg.split(",") if word.strip()]
    for name in words:
        fields = [field for _, field in named]
        if name in presets:
            field = ""
        elif name in data.SOURCES:
            field = DATA_NAME
            if field in fields:
                raise Refused(f"two data sets in {arg!r}; expected at most one.")
        elif _is_model(name):
            if "recipe.student.model" in fields:
                raise Refused(f"three networks in {arg!r}; expected at most a teacher's and a student's.")
            field = f"recipe.{'student' if 'recipe.teacher.model' in fields else 'teacher'}.model"
        elif name in objectives.METHODS and objectives.METHODS[name].role == "calibrator":
            field = f"recipe.{'student' if 'recipe.student.model' in fields else 'teacher'}.method"
        elif name in objectives.METHODS:
            field = "recipe.student.distill.method"
        elif name in posthoc.POSTHOC:
            field = "recipe.student.distill.posthoc"
        else:
            known = [*presets, *objectives.METHODS, *posthoc.POSTHOC, *models.MODELS, *data.SOURCES]
            raise Refused(f"{name!r} in the config string {arg!r} is no known name; {nearest(name, known)} {OUTSIDE}")
        early = [other for other, taken in named if taken.startswith("recipe.student.distill")]
        if field.endswith(".model") and early:
            rest = [word for word in words if word not in early]
            exchanged = f", and exchange the networks if {name} is the teacher" * field.startswith("recipe.student")
            raise Refused(
                f"{early[0]!r} stands before the network {name!r} in the config string {arg!r}; the order is teacher, "
                f"its calibrator, student, distillation method: type {','.join([*rest, *early])}{exchanged}."
            )
        named.append((name, field))
    return named


def _is_model(name: str) -> bool:
    try:
        models.build(name, num_classes=2)
    except Refused:
        return False
    return True

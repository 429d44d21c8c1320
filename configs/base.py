"""The shared base of every configuration.

`config.recipe` is what is computed (hashed into the stages' ids), `config.run` is how, `config.seeds` the replicates.

The string after the colon of `--config=configs/FAMILY.py:...` is a comma-separated list of names in any of these roles:
a preset of the family (`cpu`), a model, a calibrator, a distillation method, a post-hoc calibrator of the teacher. The
first model is the teacher's, the second the student's; a calibrator named before the second model is the teacher's,
after it the student's hard-label term. So `wrn_40_2,mdca,wrn_40_1,kd` is KD(C) with an MDCA teacher. A distillation
method brings the weights of label and soft term that its source publishes; `distill.weights=()` goes back to alpha.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kdjax import models, objectives, posthoc
from kdjax.errors import Refused, nearest
from kdjax.recipes import Data, Distill, Recipe
from kdjax.train import Run


def base() -> ConfigDict:
    """Every field with the library's defaults, unlocked, for a family to fill in."""
    shared = dataclasses.asdict(Recipe())
    training = {k: v for k, v in shared.items() if k not in ("data", "distill", "seed")}
    return ConfigDict(
        {
            "recipe": {
                "data": dataclasses.asdict(Data()),
                # Teacher and student are two recipes on one data set; each has its own optimizer and length.
                "teacher": {**training, "options": {}},
                "student": {**training, "options": {}, "distill": {**dataclasses.asdict(Distill()), "options": {}}},
                # How many times the student's recipe is taught by its own outcome (experiments.generations).
                "generations": 2,
                # Distillation temperatures that are compared (experiments.quickstart).
                "temperatures": (1.0, 4.0),
            },
            # One replicate a seed; the split is shared, initialization, order and augmentation are not.
            "seeds": (0,),
            "run": dataclasses.asdict(Run()),
        }
    )


def finish(config: ConfigDict, arg: str, presets: Mapping[str, Mapping[str, Any]] = {}) -> ConfigDict:
    """Applies the names after the colon, fills in each chosen method's options, and locks.

    Args:
      config: from `base`, with the family's values.
      arg: comma-separated names.
      presets: name -> {dotted field: value}, applied in the order named.

    Raises:
      Refused: an unknown name, with the nearest known ones.
    """
    chosen: list[str] = []
    for token in filter(None, (t.strip() for t in arg.split(","))):
        if token in presets:
            config.update_from_flattened_dict(dict(presets[token]))
        elif _is_model(token):
            if len(chosen) == 2:
                raise Refused(f"three models in {arg!r}; expected at most a teacher and a student.")
            chosen.append(token)
            if len(chosen) == 1:
                config.recipe.teacher.model = token
            config.recipe.student.model = token
        elif token in objectives.METHODS and objectives.METHODS[token].role == "calibrator":
            _choose(config.recipe.student if len(chosen) == 2 else config.recipe.teacher, token)
        elif token in objectives.METHODS:
            _choose(config.recipe.student.distill, token)
            config.recipe.student.distill.weights = objectives.METHODS[token].weights
        elif token in posthoc.POSTHOC:
            config.recipe.student.distill.posthoc = token
        else:
            known = [*presets, *objectives.METHODS, *posthoc.POSTHOC, *models.MODELS]
            raise Refused(f"{token!r} in the config string {arg!r} is no known name; {nearest(token, known)}")
    for part in (config.recipe.teacher, config.recipe.student, config.recipe.student.distill):
        part.options = ConfigDict({**objectives.options(part.method), **part.options.to_dict()})
    return config.lock()


def _is_model(token: str) -> bool:
    try:
        models.build(token, num_classes=2)
    except Refused:
        return False
    return True


def _choose(part: ConfigDict, method: str) -> None:
    """Another method starts from its own defaults: a gamma of one is not the gamma of another."""
    if part.method != method:
        part.method, part.options = method, ConfigDict()

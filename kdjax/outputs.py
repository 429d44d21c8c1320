"""Where a teacher's outputs come from: the step, a table made beforehand, or networks that did not see the example.

`Recipe.teacher_outputs` is

    live         the teacher runs in every step, on what the student sees
    stored       its logits are computed once, which is exact where nothing changes the inputs
    crossfit:5   each example's logits come from one of 5 networks that was not trained on it
    auto         stored for texts where that is exact and enough, else live
"""

from __future__ import annotations

import re
from typing import Any

from kdjax import objectives, transforms
from kdjax.errors import Refused
from kdjax.types import Dataset

AUTO, LIVE, STORED, CROSSFIT = "auto", "live", "stored", "crossfit"


def folds(given: str) -> int:
    """How many parts "crossfit:5" asks for; 0 of every other value.

    Raises:
      Refused: a value that is none of the four.
    """
    if given in (AUTO, LIVE, STORED):
        return 0
    match = re.fullmatch(rf"{CROSSFIT}:(\d{{1,3}})", given)
    if match is None or int(match[1]) < 2:
        raise Refused(
            f"teacher_outputs is {given!r}; expected 'auto', 'live', 'stored', or 'crossfit:5' with at least 2 folds."
        )
    return int(match[1])


def how(recipe: Any, dataset: Dataset) -> str:
    """ "live", "stored" or "crossfit" for a recipe that distills, on that data set.

    Raises:
      Refused: a table of logits is asked for where it would not be the teacher's output: augmented inputs ("stored"),
        mixed ones ("crossfit"), a method that reads features, logits of regions.
    """
    given, parts = recipe.teacher_outputs, folds(recipe.teacher_outputs)
    if given == LIVE:
        return LIVE
    methods = [objectives.METHODS[name] for name in (recipe.method, recipe.distill.method)]
    names = transforms.names(recipe.transform)
    obstacles = {
        "the method reads the teacher's features, of which only logits are kept": any(m.features for m in methods),
        "the labels are of regions": dataset.train.label.ndim != 1,
        "mixup changes whose logits a row would be": "mixup" in names
        or any(method.transform is transforms.mixup for method in methods),
        "the inputs are changed in every epoch": not parts and bool(names or any(m.transform for m in methods)),
    }
    reason = next((text for text, holds in obstacles.items() if holds), "")
    if given == AUTO:
        return STORED if dataset.kind == "text" and not reason else LIVE
    if reason:
        raise Refused(f"teacher_outputs is {given!r} and {reason}; expected 'live'.")
    return CROSSFIT if parts else STORED

"""Where a teacher's outputs come from: the step, a table made beforehand, or networks that did not see the example.

`Recipe.teacher_outputs` is

    live              the teacher runs in every step, on what the student sees
    stored            its logits are computed once: for the whole run where nothing changes the inputs, and else for
                      each epoch, on the inputs of that epoch, for all students that see the same
    stored:float16    the same in half the room; a logit z is rounded by at most |z| / 2048
    crossfit:5        each example's logits come from one of 5 networks that was not trained on it
    auto              stored for texts where that is exact and enough, else live
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from kdjax import objectives, transforms
from kdjax.errors import Refused
from kdjax.types import Dataset

AUTO, LIVE, STORED, HALF, CROSSFIT = "auto", "live", "stored", "stored:float16", "crossfit"
BY_EPOCH = "by epoch"
"""How logits are stored of inputs that change in every epoch."""


def folds(given: str) -> int:
    """How many parts "crossfit:5" asks for; 0 of every other value.

    Raises:
      Refused: a value that is none of the five.
    """
    if given in (AUTO, LIVE, STORED, HALF):
        return 0
    match = re.fullmatch(rf"{CROSSFIT}:(\d{{1,3}})", given)
    if match is None or int(match[1]) < 2:
        raise Refused(
            f"teacher_outputs is {given!r}; expected 'auto', 'live', 'stored', 'stored:float16', or 'crossfit:5' with "
            "at least 2 folds."
        )
    return int(match[1])


def dtype(given: str) -> np.dtype:
    """Of the logits that are stored."""
    return np.dtype(np.float16 if given == HALF else np.float32)


def how(recipe: Any, dataset: Dataset) -> str:
    """ "live", "stored", "by epoch" or "crossfit" for a recipe that distills, on that data set.

    Raises:
      Refused: a table of logits is asked for where it would not be the teacher's output: mixed inputs ("crossfit"), a
        method that reads features, logits of regions.
    """
    given, parts = recipe.teacher_outputs, folds(recipe.teacher_outputs)
    if given == LIVE:
        return LIVE
    methods = [objectives.METHODS[name] for name in (recipe.method, recipe.distill.method)]
    names = transforms.names(recipe.transform)
    brought = [method.transform for method in methods if method.transform is not None]
    changed = bool(names or brought)
    obstacles = {
        "the method reads the teacher's features, of which only logits are kept": any(m.features for m in methods),
        "the labels are of regions": dataset.train.label.ndim != 1,
        "mixup changes whose logits a row would be": bool(parts)
        and ("mixup" in names or any(make is transforms.mixup for make in brought)),
    }
    reason = next((text for text, holds in obstacles.items() if holds), "")
    if given == AUTO:
        return STORED if dataset.kind == "text" and not reason and not changed else LIVE
    if reason:
        raise Refused(f"teacher_outputs is {given!r} and {reason}; expected 'live'.")
    if parts:
        return CROSSFIT
    return BY_EPOCH if changed else STORED

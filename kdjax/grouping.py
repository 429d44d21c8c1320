"""Which students may be trained in one step, and which of a queue are."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from kdjax import cohort, limits, outputs, stages
from kdjax.errors import Refused
from kdjax.parts import parts
from kdjax.stages import Stage


def shared(stage: Stage) -> cohort.Shared:
    """What students of one cohort must have in common, from their stages alone; nothing is loaded but the data.

    Networks, methods, temperatures, alpha, optimizers and `norm_group` may differ.
    """
    recipe, distill = stage.recipe, stage.recipe.distill
    teacher, control = stage.teacher, stage.as_soft_as
    examples = stages.dataset(recipe.data)
    how, given = "" if distill is None else outputs.how(recipe, examples), recipe.teacher_outputs
    plain = {
        "data": recipe.data,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "teacher_outputs": f"{how}, {outputs.dtype(given)}, {outputs.folds(given)} folds",
        "distill.posthoc": "" if distill is None else distill.posthoc,
    }
    return {
        "teacher": (None if teacher is None else teacher.id, "none" if teacher is None else repr(teacher.name)),
        "as_soft_as": (None if control is None else control.id, "none" if control is None else repr(control.name)),
        **{name: (value, str(value) if name != "data" else examples.name) for name, value in plain.items()},
        "transform": (parts(recipe, examples).transform, ""),
    }


def groups(queue: Sequence[Stage], most: int) -> list[tuple[Stage, ...]]:
    """The stages in cohorts of at most so many, each stage in one: taught students that are alike in what is `shared`,
    as they come; all others alone.

    Only the queue decides, and not what is finished: a command that is run again forms the same cohorts.
    """
    formed: list[list[Stage]] = []
    open_ones: dict[tuple, list[Stage]] = {}
    for stage in queue:
        if most == 1 or stage.recipe.distill is None or not stage.recipe.epochs or stage.place is not None:
            formed.append([stage])
            continue
        key = tuple(value for value, _ in shared(stage).values())
        group = open_ones.get(key)
        if group is None or len(group) == most:
            group = open_ones[key] = []
            formed.append(group)
        group.append(stage)
    return [tuple(group) for group in formed]


def refuse_large(group: Sequence[Stage]) -> None:
    """Refuses a cohort whose states are larger than the memory of a device.

    Raises:
      Refused: with the number of students that would fit.
    """
    room = limits.memory() if len(group) > 1 else None
    if room is None:
        return
    sizes = [_bytes(stages.abstract_state(stage.recipe.kind(), stages.taught_by(stage))) for stage in group]
    teacher = group[0].teacher
    shared_bytes = 0 if teacher is None else _bytes(stages.abstract_variables(teacher.recipe))
    fits = int(np.searchsorted(shared_bytes + np.cumsum(sizes), room, side="right"))
    if fits < len(group):
        raise Refused(
            f"the training states of a cohort of {len(group)} students and their teacher take "
            f"{(shared_bytes + sum(sizes)) / 1e9:,.2f} GB, and the device has {room / 1e9:,.2f} GB; set run.cohort to "
            f"at most {max(fits, 1)}."
        )


def _bytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

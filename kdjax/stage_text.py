"""Stages as plain values, for another process: unlike a recipe.json, with where data and weights lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax import recipe_text
from kdjax.errors import Refused
from kdjax.recipes import Recipe, from_dict
from kdjax.stages import Stage, order


def plain(targets: Iterable[Stage]) -> list[dict[str, Any]]:
    """JSON values of the stages and all their ancestors, parents first; parents are named by their position."""
    queue = order(targets)
    position = {stage.id: n for n, stage in enumerate(queue)}
    return [
        {
            "id": stage.id,
            "name": stage.name,
            "recipe": recipe_text.plain(stage.recipe),
            "teacher": None if stage.teacher is None else position[stage.teacher.id],
            "as_soft_as": None if stage.as_soft_as is None else position[stage.as_soft_as.id],
            "place": None if stage.place is None else str(Path(stage.place).absolute()),
        }
        for stage in queue
    ]


def parse(rows: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The stages that `plain` wrote down, in the same order.

    Raises:
      Refused: a recipe that cannot be made here, or a stage whose id is another one here: other data, or other code.
    """
    stages: list[Stage] = []
    for row in rows:
        teacher, as_soft_as = (None if row[name] is None else stages[row[name]] for name in ("teacher", "as_soft_as"))
        place = None if row["place"] is None else Path(row["place"])
        recipe = from_dict(Recipe, row["recipe"])
        stage = Stage(recipe, teacher, name=row["name"], as_soft_as=as_soft_as, place=place)
        if stage.id != row["id"]:
            raise Refused(
                f"stage {stage.name!r} is {row['id']} in the command and {stage.id} in its worker; expected the same "
                "data and the same code in both, code of your own named by --import."
            )
        stages.append(stage)
    return stages

"""Fields of the text tables that name sets and networks: what is unknown or would change nothing is refused."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs.text import EPOCHS, learning_rate
from experiments import common, published_text
from kdjax.data.text import READERS
from kdjax.errors import Refused, nearest, one_of


def at_hand(config: ConfigDict) -> tuple[list[str], list[str]]:
    """(sets that can be loaded, sets that the source used and that cannot), as `config.recipe.sets` orders them."""
    common.named("config.recipe.sets", config.recipe.sets)
    for name in config.recipe.sets:
        one_of("config.recipe.sets", name, [*READERS, *published_text.NOT_AT_HAND])
    refuse_unused(config)
    missing = [name for name in config.recipe.sets if name in published_text.NOT_AT_HAND]
    return [name for name in config.recipe.sets if name not in missing], missing


def refuse_unused(config: ConfigDict) -> None:
    """Refuses sizes, epochs and learning rates of names that no row has; the defaults of others may stay."""
    sets = (*config.recipe.sets, "newsgroups20")
    for name in config.recipe.sizes:
        one_of("a name in config.recipe.sizes", name, READERS)
    for field, asked, defaults in (
        ("epochs_of", sets, EPOCHS.get),
        ("lr_of", config.recipe.students, learning_rate),
    ):
        for name, value in config.recipe[field].items():
            if name not in asked and value != defaults(name):
                raise Refused(
                    f"config.recipe.{field} has {name!r}, which is not among {', '.join(asked)}; {nearest(name, asked)}"
                )


def refuse_unknown(config: ConfigDict, field: str, known: Sequence[str]) -> None:
    """Refuses entries of a list field that are none of the known ones."""
    for name in config.recipe[field]:
        if name not in known:
            raise Refused(f"config.recipe.{field} has {name!r}; expected some of {', '.join(known)}.")

"""Outside the training classes: CLINC150's out-of-scope queries, held-out classes, and 20 Newsgroups as 15 and 5.

    python -m experiments.ood --plan
    python -m experiments.ood --config=configs/ood.py:cpu

Sizes: `paper` or none (BERT-base to 4 layers of 256), `short` (6 layers of 512 to 4 of 256, from scratch, for one GPU),
`cpu` (2 layers of 64 to 1 of 64 on 3,000 queries of CLINC150, all of its classes or three of four, 5 seeds).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.text_tables import fine_tuned, from_scratch, short

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "short": short(),
    "cpu": from_scratch(
        {"clinc150": {"train_examples": 3000, "options": {"max_length": 16, "vocab_size": 2000}}},
        teacher=14,
        student=10,
        seeds=range(5),
        text="3,000 queries of CLINC150;",
        held_out_shares=(0.25,),
        newsgroups=False,
        folds=0,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    config = fine_tuned(("clinc150", "banking77", "hwu64"))
    config.recipe.students = ("bert_4l_256",)
    # Sets whose classes are held out, by share, drawn with a seed of their own; CLINC150 also has queries of no class.
    config.recipe.held_out_shares = (0.25, 0.5, 0.75)
    config.recipe.held_out_seed = 0
    # 20 Newsgroups, 15 groups inside and 5 outside, whole messages of 150 tokens.
    config.recipe.newsgroups = True
    config.recipe.sizes = ConfigDict({"newsgroups20": {"options": {"policy": "as_is", "max_length": 150}}})
    return finish(config, arg, PRESETS)

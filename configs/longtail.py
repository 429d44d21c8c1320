"""A long tail in the training classes: what calibration and distillation do for the rare ones.

    python -m experiments.longtail --plan
    python -m experiments.longtail --config=configs/longtail.py:cpu

Sizes: `paper` or none (BERT-base to 4 layers of 256, imbalance 10, 50 and 100, on CLINC150 and Banking77), `short` (6
layers of 512 to 4 of 256, from scratch, for one GPU), `cpu` (2 layers of 64 to 1 of 64 on CLINC150 at imbalance 50,
5 seeds).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.text_tables import fine_tuned, from_scratch, short

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "short": short(),
    "cpu": from_scratch(
        {"clinc150": {"options": {"max_length": 16, "vocab_size": 2000}}},
        teacher=14,
        student=12,
        seeds=range(5),
        text="CLINC150 at imbalance 50;",
        imbalances=(50.0,),
        folds=0,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    config = fine_tuned(("clinc150", "banking77"))
    config.recipe.students = ("bert_4l_256",)
    # Size of the largest class over that of the smallest; which classes are rare is drawn with a seed of its own.
    config.recipe.imbalances = (10.0, 50.0, 100.0)
    config.recipe.imbalance_seed = 0
    return finish(config, arg, PRESETS)

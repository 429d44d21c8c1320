"""Temperature and weight of distillation: T from 1 to 20, alpha 0.5, 0.9 and 1, an MDCA teacher on CIFAR-100.

    python -m experiments.ablation --plan
    python -m experiments.ablation --config=configs/ablation.py:cpu

Sizes: `paper` or none (WRN-40-2 to WRN-40-1, 200 epochs), `short` (30 epochs, for one GPU), `cpu` (ResNet-8 to ResNet-8
on 1,280 images of the first 20 classes at 16x16, 60 epochs, four temperatures).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {**small(), "recipe.T": (1.0, 2.0, 4.0, 10.0), "recipe.alpha": (0.5, 0.9, 1.0)},
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "wrn_40_2"
    config.recipe.student.model = "wrn_40_1"
    # KD(C)'s grid.
    config.recipe.T = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
    config.recipe.alpha = (0.5, 0.9, 1.0)
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

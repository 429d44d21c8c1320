"""KD(C), figure 5: CIFAR-100, KD(C)'s ResNet-56 teaching ResNet-8 over T, the teacher trained with LS and with MDCA.

    python -m experiments.penultimate --plan
    python -m experiments.penultimate --config=configs/penultimate.py:cpu

Sizes: `paper` or none (160 epochs), `short` (30 epochs of a one-cycle schedule, for one GPU), `cpu` (ResNet-20 teaching
ResNet-8 on 1,280 images of the first 20 classes at 16x16, 60 epochs, three temperatures, three of those classes).

The paper shows pictures and does not say which temperatures; these are the ends and the middle of its grid.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {
        **small(),
        "recipe.teacher.model": "resnet20",
        "recipe.T": (1.0, 4.0, 20.0),
        "recipe.shown_classes": ("bowl", "can", "caterpillar"),
    },
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=160, milestones=(80.0, 120.0), weight_decay=5e-4)
    config.recipe.teacher.model = "resnet56_bottleneck"
    config.recipe.student.model = "resnet8"
    config.recipe.calibrators = ("label_smoothing", "mdca")
    config.recipe.T = (1.0, 2.0, 4.0, 10.0, 20.0)
    # Two that look alike, and a third that does not.
    config.recipe.shown_classes = ("bowl", "plate", "willow_tree")
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

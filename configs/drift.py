"""Calibration under shift: NLL and MDCA, trained alone, temperature-scaled and distilled, on CIFAR-100.

    python -m experiments.drift --plan
    python -m experiments.drift --config=configs/drift.py:cpu
    python -m experiments.drift --config=configs/drift.py --config.recipe.shift.folder=CIFAR-100-C

Sizes: `paper` or none (WRN-40-2 to WRN-40-1, 200 epochs), `short` (30 epochs of a one-cycle schedule, for one GPU),
`cpu` (ResNet-8 to ResNet-8 on 1,280 images of the first 20 classes at 16x16, 60 epochs). The stages are those of
table 1: in one work directory nothing is trained twice.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {**small(), "recipe.students": ("resnet8",)},
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "wrn_40_2"
    config.recipe.students = ("wrn_40_1",)
    config.recipe.calibrators = ("nll", "mdca")
    config.recipe.uncalibrated = "nll"
    config.recipe.teachers = ("nll", "mdca")
    config.recipe.shift = {
        # The unpacked CIFAR-10-C or CIFAR-100-C; "" for kdjax's own corruptions.
        "folder": "",
        # Names of corruptions; () is all of ours, or the fifteen of the paper.
        "corruptions": (),
        # Of our own corruptions.
        "seed": 0,
        # The data set whose test images are the unknown ones; "" for none.
        "ood": "cifar10",
    }
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

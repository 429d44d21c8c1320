"""KD(C), table 1: CIFAR-100, teacher WRN-40-2, students WRN-40-1 and MobileNetV2, every calibrator.

    python -m experiments.table1 --plan
    python -m experiments.table1 --config=configs/table1.py:cpu

Students are distilled at T = 4, the library's default: that of the paper's code is 20, and the paper found its students
best calibrated at T = 1, which is `--config.recipe.student.distill.options.T=1.0`.

Sizes: `paper` or none (the paper's recipe but for T, 200 epochs), `short` (30 epochs of a one-cycle schedule, for one
GPU), `cpu` (ResNet-8 teaching ResNet-8 on 1,280 images of the first 20 classes at 16x16, 60 epochs).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {**small(), "recipe.students": ("resnet8",), "recipe.stands_for": (("resnet8", "wrn_40_1"),)},
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "wrn_40_2"
    # The student networks, trained alone and distilled.
    config.recipe.students = ("wrn_40_1", "mobilenet_v2")
    config.recipe.calibrators = (
        *("nll", "label_smoothing", "mmce", "mixup", "crl", "pskd", "mdca", "adafocal", "cpc", "mbls", "acls"),
    )
    # The calibrators whose teachers teach, and the one of them that counts as none: KD(UC) instead of KD(C).
    config.recipe.uncalibrated = "nll"
    config.recipe.teachers = ("nll", "mixup", "adafocal", "cpc", "mdca", "mmce")
    # Of a small size, (network, the network of the paper whose figures stand beside it).
    config.recipe.stands_for = ()
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

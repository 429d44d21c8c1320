"""KD(C), table 2: CIFAR-10, MobileNetV2 teaching (a) ResNet-50 and (b) itself.

    python -m experiments.table2 --plan
    python -m experiments.table2 --config=configs/table2.py:cpu

Students are distilled at T = 4, the library's default: that of the paper's code is 20, and the paper found its students
best calibrated at T = 1, which is `--config.recipe.student.distill.options.T=1.0`.

Sizes: `paper` or none (the paper's recipe but for T, 200 epochs), `short` (30 epochs of a one-cycle schedule, for one
GPU), `cpu` (ResNet-8 teaching ResNet-14 and itself on 1,280 images at 16x16, 60 epochs, four calibrators).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {
        **small("cifar10"),
        "recipe.students": ("resnet14", "resnet8"),
        "recipe.stands_for": (("resnet14", "resnet50"), ("resnet8", "mobilenet_v2")),
        "recipe.calibrators": ("nll", "mmce", "mdca", "adafocal"),
        "recipe.teachers": ("nll", "nll + temperature", "mdca", "adafocal"),
    },
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar10", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "mobilenet_v2"
    # The student networks, trained alone and distilled: (a), (b).
    config.recipe.students = ("resnet50", "mobilenet_v2")
    config.recipe.calibrators = (
        *("nll", "label_smoothing", "mmce", "mixup", "crl", "pskd", "mdca", "adafocal", "cpc", "mbls", "acls"),
    )
    # The teachers, and the one of them that counts as uncalibrated: KD(UC) instead of KD(C).
    config.recipe.uncalibrated = "nll"
    config.recipe.teachers = ("nll", "nll + temperature", "mmce", "mdca", "adafocal")
    # Of a small size, (network, the network of the paper whose figures stand beside it).
    config.recipe.stands_for = ()
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

"""CIFAR-10. The default is KD(C)'s self-distillation of MobileNetV2, 200 epochs.

    python -m experiments.distill --config=configs/cifar10.py:mobilenet_v2,mdca,mobilenet_v2,kd
    python -m experiments.distill --config=configs/cifar10.py:cpu

Presets: `cpu` (ResNet-8 to ResNet-8, 60 epochs on 1,280 images at 16x16, a minute a run on two cores), `short` (the
chosen networks on all of the data for 30 epochs of a one-cycle schedule, batch 512, lr 0.4, bfloat16).
"""

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS = {
    "cpu": small("cifar10"),
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar10", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "mobilenet_v2"
    config.recipe.student.model = "mobilenet_v2"
    return finish(config, arg, PRESETS)

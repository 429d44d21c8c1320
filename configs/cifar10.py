"""CIFAR-10. The default is KD(C)'s self-distillation of MobileNetV2, 200 epochs.

python -m experiments.distill --config=configs/cifar10.py:mobilenet_v2,mdca,mobilenet_v2,kd
python -m experiments.distill --config=configs/cifar10.py:cpu
"""

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short

PRESETS = {
    "cpu": {
        **short(5),
        "recipe.teacher.model": "resnet8",
        "recipe.student.model": "resnet8",
        "recipe.data.train_examples": 10000,
        "run.checkpoint_epochs": 1,
    },
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar10", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "mobilenet_v2"
    config.recipe.student.model = "mobilenet_v2"
    return finish(config, arg, PRESETS)

"""KD(C), figure 4: ResNet-56 on CIFAR-100 teaching itself for six generations, from NLL and from an MDCA generation 0.

    python -m experiments.generations --plan
    python -m experiments.generations --config=configs/generations.py:cpu

Sizes: `paper` or none (KD(C)'s bottleneck ResNet-56, 160 epochs), `short` (three generations of 30 epochs, for one
GPU), `cpu` (ResNet-8 on 1,280 images of the first 20 classes at 16x16, 60 epochs, six generations).

The paper's README and its script disagree on the weight decay, 5e-4 and 1e-4; this is the README's, as in the other
tables. It does not print T either: this is the library's, T = 4.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": small(),
    "short": {**short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}), "recipe.generations": 3},
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=160, milestones=(80.0, 120.0), weight_decay=5e-4)
    config.recipe.teacher.model = "resnet56_bottleneck"
    config.recipe.student.model = "resnet56_bottleneck"
    config.recipe.generations = 6
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

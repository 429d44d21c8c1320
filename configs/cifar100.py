"""CIFAR-100. The default is the KD(C) recipe, WRN-40-2 to WRN-40-1, 200 epochs (hours on a GPU, days on a CPU).

    python -m experiments.distill --config=configs/cifar100.py:wrn_40_2,mdca,wrn_40_1,kd
    python -m experiments.distill --config=configs/cifar100.py:cpu

Presets: `cpu` (ResNet-8 to ResNet-8, 60 epochs on 1,280 images of the first 20 classes at 16x16, a minute a run on two
cores: small enough to over-fit, so that calibration has something to mend), `short` (the chosen networks on
all of the data for 30 epochs of a one-cycle schedule, batch 512, lr 0.4, bfloat16).

`kd` is T = 4, here as everywhere; KD(C) compares T from 1 to 20 and reports its best calibrated students at
`--config.recipe.student.distill.options.T=1.0`.
"""

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import kdc, short, small

PRESETS = {
    "cpu": small(),
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=200, milestones=(100.0, 150.0), weight_decay=5e-4)
    config.recipe.teacher.model = "wrn_40_2"
    config.recipe.student.model = "wrn_40_1"
    return finish(config, arg, PRESETS)

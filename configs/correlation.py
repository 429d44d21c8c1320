"""RTC's correlation study: 17 teachers of one student on CIFAR-100, mdistiller's recipe; and one teacher, T_c swept.

    python -m experiments.correlation --plan
    python -m experiments.correlation --config=configs/correlation.py:cpu

Sizes: `paper` or none (240 epochs), `short` (30 epochs of a one-cycle schedule, for one GPU), `cpu` (twelve small
teachers of ResNet-8 on 1,280 images of the first 20 classes at 16x16, 60 epochs). Pixels are normalized by mdistiller's
constants; `cpu` keeps KD(C)'s, as table 1 does at that size, so that what both need is trained once.

The paper does not list its 17 teachers; these are mdistiller's CIFAR-100 networks. Its students are WRN-16-2, which is
the default here, and ShuffleNetV2: `--config.recipe.student.model=shufflenet_v2` with
`--config.recipe.student.optimizer.lr=0.01`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import KDC_PIXELS, kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {
        # Table 1's schedule, so that what both need is trained once.
        **small("cifar100", **{"optimizer.lr": 0.1, "optimizer.nesterov": True}),
        **KDC_PIXELS,
        "recipe.teachers": (
            ("resnet8", "nll", 0, 1.0),
            ("resnet8", "nll", 15, 1.0),
            ("resnet8", "nll", 0, 2.0),
            ("resnet8", "nll", 0, "temperature"),
            ("resnet8", "mdca", 0, 1.0),
            ("resnet8", "label_smoothing", 0, 1.0),
            ("resnet20", "nll", 0, 1.0),
            ("resnet20", "nll", 0, 2.0),
            ("resnet8", "nll", 30, 1.0),
            ("wrn_10_1", "nll", 0, 1.0),
            ("conv_small", "nll", 0, 1.0),
            ("conv_tiny", "nll", 0, 1.0),
        ),
        "recipe.control": ("resnet8", "nll", 0),
        "recipe.T_c": (0.5, 1.0, 2.0, 4.0),
    },
    "short": short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=240, milestones=(150.0, 180.0, 210.0), weight_decay=5e-4)
    for part in (config.recipe.teacher, config.recipe.student):
        part.batch_size = 64
        part.optimizer.lr = 0.05
        part.optimizer.nesterov = False
    config.recipe.data.normalization = "mdistiller"
    config.recipe.student.model = "wrn_16_2"
    # (network, calibrator, epochs or 0 for the configuration's, its own temperature or a post-hoc calibrator).
    config.recipe.teachers = tuple(
        (network, "nll", 0, 1.0)
        for network in (
            *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4"),
            *("resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8", "vgg11", "vgg13", "vgg16"),
        )
    )
    # The teacher whose temperature alone is changed: its accuracy stays, its calibration does not.
    config.recipe.control = ("wrn_40_2", "nll", 0)
    config.recipe.T_c = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

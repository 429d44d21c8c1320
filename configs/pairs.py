"""RTC's pairs on CIFAR-100 with mdistiller's recipe: KD and MLLD, the teacher's own temperature T_c from 1 up.

    python -m experiments.pairs --plan
    python -m experiments.pairs --config=configs/pairs.py:cpu

Sizes: `paper` or none (240 epochs, eleven pairs), `short` (30 epochs, two pairs, for one GPU), `cpu` (ResNet-20 to
ResNet-8 on 1,280 images of the first 20 classes at 16x16, 60 epochs).

mdistiller trains on all 50,000 images and reads its best epoch on the test set. Here a tenth is held out, the best
epoch is chosen on it, and the test split is read once: expect lower numbers. Its ResNet-56 and -110 are `resnet56` and
`resnet110` here (basic blocks), its MobileNetV2 is `mobilenet_v2_half`; `resnet50` is KD(C)'s. Pixels are normalized by
mdistiller's constants; `cpu` keeps KD(C)'s, as the other tables of that size do, so that its stored stages stay theirs.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.cifar import KDC_PIXELS, kdc, short, small

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "cpu": {**small(), **KDC_PIXELS, "recipe.pairs": (("resnet20", "resnet8"),), "recipe.T_c": (1.0, 1.5, 3.0)},
    "short": {
        **short(30, precision="bfloat16", batch_size=512, **{"optimizer.lr": 0.4}),
        "recipe.pairs": (("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4")),
    },
}


def get_config(arg: str = "") -> ConfigDict:
    config = kdc("cifar100", epochs=240, milestones=(150.0, 180.0, 210.0), weight_decay=5e-4)
    for part in (config.recipe.teacher, config.recipe.student):
        part.batch_size = 64
        part.optimizer.lr = 0.05
        part.optimizer.nesterov = False
    config.recipe.data.normalization = "mdistiller"
    config.recipe.teacher.method, config.recipe.teacher.options = "nll", ConfigDict()
    # (teacher, student).
    config.recipe.pairs = (
        ("resnet56", "resnet20"),
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("vgg13", "vgg8"),
        ("vgg13", "mobilenet_v2_half"),
        ("resnet50", "mobilenet_v2_half"),
        ("resnet32x4", "shufflenet_v1"),
        ("wrn_40_2", "shufflenet_v1"),
        ("resnet32x4", "shufflenet_v2"),
    )
    config.recipe.methods = ("kd", "mlld")
    # The teacher alone is tempered by T_c; 1 is the method as it was published, 1.5 is RTC.
    config.recipe.T_c = (1.0, 1.5, 2.0, 3.0)
    # mdistiller's learning rate for students whose name begins so.
    config.recipe.small_lr = 0.01
    config.recipe.small_lr_networks = ("mobilenet", "shufflenet")
    config.seeds = (0, 1, 2)
    return finish(config, arg, PRESETS)

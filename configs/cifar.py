"""What CIFAR-10 and CIFAR-100 share: the KD(C) recipe and its sizes."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.base import base, choose

KDC_PIXELS: dict[str, Any] = {"recipe.data.normalization": ""}
"""Of a preset: pixels are normalized as KD(C) does, which is the default of both data sets."""


def kdc(name: str, *, epochs: int, milestones: tuple[float, ...], weight_decay: float) -> ConfigDict:
    """KD(C): SGD with Nesterov momentum, lr 0.1, batch 128, pad-crop and flip, best epoch by calibration top-1.

    With batch 128 an epoch of 45,000 images has 351 steps: the 72 left over are other ones in every epoch.
    """
    config = base(name)
    for part in (config.recipe.teacher, config.recipe.student):
        part.transform = ("pad_crop", "flip")
        part.epochs = epochs
        part.batch_size = 128
        part.optimizer.lr = 0.1
        part.optimizer.schedule = "multistep"
        part.optimizer.milestones = milestones
        part.optimizer.weight_decay = weight_decay
    choose(config.recipe.teacher, "mdca")
    config.run.checkpoint_epochs = 5
    return config


def short(epochs: int, **extra: Any) -> dict[str, Any]:
    """A preset: a one-cycle schedule of so many epochs, and the extra fields, for teacher and student alike."""
    fields = {"epochs": epochs, "optimizer.schedule": "onecycle", "optimizer.milestones": (), "select": "last", **extra}
    size = f"{epochs} epochs of a one-cycle schedule instead of the full recipe."
    both = {f"recipe.{who}.{field}": value for who in ("teacher", "student") for field, value in fields.items()}
    return {"size": size, **both}


def small(name: str = "cifar100", **extra: Any) -> dict[str, Any]:
    """A preset for two cores: ResNet-8, 60 epochs on 1,280 images at 16x16, 3 seeds; 2,000 images are the test.

    Of CIFAR-100 the first 20 classes, of CIFAR-10 all. 800 images are held out for calibration. At this size networks
    trained with NLL are over-confident, as those of the paper are, and a run takes less than a minute.
    """
    fields = {
        "model": "resnet8",
        "epochs": 60,
        "batch_size": 64,
        "transform": (("pad_crop", (("padding", 2),)), "flip"),
        "optimizer.schedule": "multistep",
        "optimizer.milestones": (30.0, 45.0),
        **extra,
    }
    hundred = name == "cifar100"
    what = "CIFAR-100's first 20 classes" if hundred else "CIFAR-10"
    data: dict[str, Any] = {"classes": 20} if hundred else {"test_examples": 2000}
    return {
        **{f"recipe.data.{field}": value for field, value in data.items()},
        "recipe.data.resolution": 16,
        "recipe.data.calibration_fraction": 0.08 if hundred else 0.016,
        "recipe.data.train_examples": 1280,
        "size": (
            f"cpu: 1,280 training images of {what} at 16x16, small networks, 60 epochs instead of the paper's recipe; "
            "not comparable with the published column, which is shown for its order."
        ),
        "seeds": (0, 1, 2),
        "run.checkpoint_epochs": 20,
        **{f"recipe.{who}.{field}": value for who in ("teacher", "student") for field, value in fields.items()},
    }

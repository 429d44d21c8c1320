"""What CIFAR-10 and CIFAR-100 share: the KD(C) recipe and its sizes."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.base import base, choose


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
    return {f"recipe.{who}.{field}": value for who in ("teacher", "student") for field, value in fields.items()}

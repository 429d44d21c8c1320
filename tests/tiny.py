"""A data set and recipes so small that a whole stage takes a second: 4 classes of 8x8 images, 64 for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdjax.options import Options
from kdjax.recipes import Data, Distill, Optimizer, Recipe

CLASSES = 4


def arrays(n: int, seed: int, *, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images whose class is the bright quadrant (classes above 4 wrap round): learnable, never perfectly."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n).astype(np.int32)
    x = rng.normal(0.3, 0.2, (n, 8, 8, 1))
    for i, y in enumerate(label):
        row, column = divmod(y % 4, 2)
        x[i, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.3
    return np.clip(x, 0, 1).astype(np.float32), label


def npz(folder: Path, name: str = "tiny.npz", *, seed: int = 0, classes: int = CLASSES) -> str:
    """The data set as a file of one's own, 80 training and 40 test images."""
    path = Path(folder) / name
    (x, y), (xt, yt) = arrays(80, seed, classes=classes), arrays(40, seed + 1, classes=classes)
    np.savez(path, train_inputs=x, train_label=y, test_inputs=xt, test_label=yt)
    return str(path)


def recipe(path: str, **changes: Any) -> Recipe:
    """Two epochs of a tiny network on the file at `path`, 4 steps each."""
    fields: dict[str, Any] = {
        "data": Data(name="arrays", path=path, num_classes=CLASSES, calibration_fraction=0.2),
        "model": "mlp",
        "epochs": 2,
        "batch_size": 16,
        "optimizer": Optimizer(lr=0.05, schedule="constant", weight_decay=1e-4),
    }
    return Recipe(**{**fields, **changes})


KD = Options(T=2.0)


def student(path: str, *, method: str = "kd", options: Any = KD, **changes: Any) -> Recipe:
    """The same, with a distillation term."""
    return recipe(path, distill=Distill(method=method, options=options, alpha=0.9), **changes)

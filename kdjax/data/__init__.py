"""Named sources of data -> `Dataset`: checked, split for good, fingerprinted (floor 4: this package reads files).

    data = load("cifar100", split_seed=0, calibration_fraction=0.1)      # a prepared tfds set
    data = load("digits", noise=0.5, train_examples=800)                 # shipped with scikit-learn
    data = load("arrays", path="mine.npz", num_classes=10)               # your own
    data = from_arrays(train=(x, y), test=(x_test, y_test), num_classes=10)

tfds, array_record and grain are imported here and nowhere else, inside functions; TensorFlow never, except to prepare.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from kdjax.data import digits, prepared
from kdjax.data.arrays import from_arrays, npz_source
from kdjax.data.order import epoch_order, eval_batches
from kdjax.data.prepared import prepare
from kdjax.data.splits import (
    Normalization,
    Source,
    assemble,
    existing_rows,
    is_lazy,
    overlap,
    take,
    verify_splits,
)
from kdjax.data.streaming import prediction_batches, streamed
from kdjax.errors import Refused
from kdjax.types import Dataset

__all__ = [
    "SOURCES",
    "epoch_order",
    "eval_batches",
    "existing_rows",
    "from_arrays",
    "is_lazy",
    "load",
    "overlap",
    "prediction_batches",
    "prepare",
    "streamed",
    "take",
    "verify_splits",
]

# A source's keyword arguments are the options it understands; any other name is a prepared tfds set.
SOURCES: dict[str, Callable[..., Source]] = {"digits": digits.source, "arrays": npz_source}


def load(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    num_classes: int | None = None,
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    train_examples: int | None = None,
    test_examples: int | None = None,
    normalization: Normalization = None,
    noise: float = 0.0,
    noise_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """A data set by name. The options are a recipe's `data` section; all but the two folders decide what is computed.

    Args:
      name: "digits", "arrays", or a prepared tfds set (`cifar10`, `cifar100`, `name/config`, `name:version`).
      path, num_classes: the `.npz` of "arrays" and its class count.
      split_seed, calibration_fraction: the hold-out, see `splits.assemble`.
      train_examples: keep only that many of what the hold-out left; subsets are nested and share the calibration split.
      test_examples: "digits" and one-pool "arrays": size of the test split. Else: a fixed random subset of that size.
      normalization: "own" (per channel, from train), "kdc" (default of CIFAR-10 and CIFAR-100), "none", or (mean, std).
      noise, noise_seed: of "digits".
      data_dir, cache_dir: where prepared sets are, and where decoded ones are kept.

    Raises:
      Refused: one sentence for whatever is wrong: an unknown name, an option the source does not have, or its content.
    """
    options: dict[str, Any] = {
        "path": path,
        "num_classes": num_classes,
        "noise": noise,
        "noise_seed": noise_seed,
        "data_dir": data_dir,
        "cache_dir": cache_dir,
        "test_examples": test_examples,
    }
    build = SOURCES.get(name) or (lambda **known: prepared.source(name, **known))
    takes = inspect.signature(SOURCES.get(name, prepared.source)).parameters
    defaults = inspect.signature(load).parameters
    for key in ("path", "num_classes", "noise", "noise_seed"):
        if key not in takes and options[key] != defaults[key].default:
            raise Refused(
                f"data.{key} is {options[key]!r}, and data set {name!r} has no such option; expected "
                f"{defaults[key].default!r}: remove it."
            )
    known = {key: value for key, value in options.items() if key in takes}
    source = build(**known)
    return assemble(
        source,
        split_seed=split_seed,
        calibration_fraction=calibration_fraction,
        train_examples=train_examples,
        # A source that takes the option has carved its test split by it already.
        test_examples=None if "test_examples" in takes else test_examples,
        normalization=normalization,
    )

"""Named sources of data -> `Dataset`: checked, split for good, fingerprinted.

    data = load("cifar100", split_seed=0, calibration_fraction=0.1)      # a prepared tfds set
    data = load("digits", noise=0.5, train_examples=800)                 # shipped with scikit-learn
    data = load("arrays", path="mine.npz", num_classes=10)               # your own arrays
    data = load("folder", path="my_images", image_size=64)               # your own images, by class
    data = load("files", path="mine.csv", image_size=64)                 # your own images, listed with their labels
    data = load("tiny_imagenet", path="tiny-imagenet-200")               # its archive, unpacked
    data = load("trec", max_length=32)                                   # public texts, or your own: `kdjax.data.text`
    data = from_arrays(train=(x, y), test=(x_test, y_test), num_classes=10)

tfds, array_record and grain are imported here and nowhere else, inside functions; TensorFlow never, except to prepare.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from kdjax.data import digits, folders, listing, prepared, text, tiny_imagenet
from kdjax.data.arrays import as_source, from_arrays, npz_source
from kdjax.data.folds import held_out, without
from kdjax.data.lazy import Lazy, in_memory, is_lazy, one_example, take
from kdjax.data.normalization import Normalization
from kdjax.data.order import epoch_order, eval_batches
from kdjax.data.prepared import prepare
from kdjax.data.source import Source, select_classes
from kdjax.data.splits import ClassWeight, assemble, existing_index, existing_rows, overlap, verify_splits
from kdjax.data.streaming import prediction_batches, streamed
from kdjax.errors import Refused, nearest, one_of
from kdjax.feeds import FEEDS
from kdjax.source_code import identity, replaces, source_version
from kdjax.types import Dataset

__all__ = [
    "SOURCES",
    "Lazy",
    "Source",
    "as_source",
    "assemble",
    "epoch_order",
    "eval_batches",
    "existing_index",
    "existing_rows",
    "from_arrays",
    "held_out",
    "in_memory",
    "is_lazy",
    "load",
    "one_example",
    "options_of",
    "overlap",
    "prediction_batches",
    "prepare",
    "register",
    "streamed",
    "take",
    "verify_splits",
    "version",
    "without",
]

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits.source,
    "arrays": npz_source,
    "folder": folders.source,
    "files": listing.source,
    "tiny_imagenet": tiny_imagenet.source,
    **text.SOURCES,
}
"""Every source by name; its keyword arguments are the options that it understands. Another name is a prepared set."""

_VERSIONS: dict[str, str] = {}


def register(name: str, source: Callable[..., Source], version: str = "") -> None:
    """Makes a source of your own loadable by name, with the options that its keyword arguments name.

        def source(*, path=None):
            return data.as_source("mine", {"train": (x, y), "test": (x2, y2)}, num_classes=10)

        data.register("mine", source)
        data.load("mine", path="there")

    Args:
      source: keyword arguments -> `Source`.
      version: goes into every fingerprint; by default the SHA-256 of the source code of the function's module, so that
        changed code is never taken for the same data.

    Raises:
      Refused: a name that is taken; something that cannot be called; code that cannot be found, without a version.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise Refused(f"a data set is registered as {name!r}; expected a name such as 'my_set'.")
    known = SOURCES.get(name, source)
    if known is not source and (name not in _VERSIONS or identity(known) != identity(source)):
        raise Refused(f"data set {name!r} exists already; register another name.")
    if not callable(source):
        raise Refused(f"data set {name!r} is registered with {source!r}; expected a function that returns a Source.")
    _VERSIONS[name] = source_version(f"data set {name!r}", source, version)
    replaces(known, source)
    SOURCES[name] = source


def version(name: str) -> str:
    """The version of a registered source, "" for those of kdjax and for prepared sets."""
    return _VERSIONS.get(name, "")


def options_of(name: str) -> frozenset[str]:
    """The options that a data set of this name understands beyond those that all share."""
    return frozenset(inspect.signature(SOURCES.get(name, prepared.source)).parameters) - {"name"}


def load(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    num_classes: int | None = None,
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    calibration_split: str | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    normalization: Normalization = None,
    class_weight: ClassWeight = None,
    allow_overlap: bool = False,
    classes: int | Sequence[int | str] | None = None,
    resolution: int | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    noise: float = 0.0,
    noise_seed: int = 0,
    feed: str = "auto",
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    imbalance: float = 1.0,
    imbalance_seed: int = 0,
    **options: Any,
) -> Dataset:
    """A data set by name. The options are a recipe's `data` section; `feed` and the two folders change no number.

    Args:
      name: "digits", "arrays", "folder", "files", a set of texts (`text.READERS`), a registered name, or a
        prepared tfds set (`cifar10`, `name/config`, `name:version`).
      path, num_classes: the `.npz` of "arrays", the root of "folder", the table of "files"; and the class count.
      split_seed, calibration_fraction: the hold-out, see `splits.assemble`.
      calibration_split: "stratified" (default of own data) or "random" (KD(C)'s protocol; default of
        digits and prepared sets).
      train_examples: keep only that many of what the hold-out left; subsets are nested and share the calibration split.
      test_examples: size of the test split carved out of digits, one pool or one tree; else a fixed random subset.
      normalization: "own" (per channel, from train), "kdc" (default of CIFAR-10 and CIFAR-100), "none", or (mean, std).
      class_weight: "balanced" or one number per class, see `splits.assemble`.
      allow_overlap: accept splits of which more than 1 % of the examples are the same.
      classes: the first that many classes, or a sequence of numbers or names, numbered anew in that order.
      resolution: images of that side by exact means over equal rectangles, rounded half up.
      image_size: images resized so that the shorter side is that long, and cut to the center square.
      skip_bad: of "folder" and "files": leave out files that cannot be decoded, and say how many.
      noise, noise_seed: of "digits".
      feed: "resident", "streamed" or "auto" (streamed above 1 GiB of decoded images): whether images stay on disk.
      data_dir, cache_dir: where prepared sets are, and where decoded ones are kept.
      imbalance, imbalance_seed: cuts the training split to a long tail, see `long_tail.long_tail`.
      options: those of a registered source, and of sets of texts (`kdjax.data.text.tokenized`).

    Raises:
      Refused: one sentence for whatever is wrong: an unknown name, an option the source does not have, or its content.
    """
    given = {
        "path": path,
        "num_classes": num_classes,
        "resolution": resolution,
        "image_size": image_size,
        "skip_bad": skip_bad,
        "noise": noise,
        "noise_seed": noise_seed,
        "feed": feed,
        "data_dir": data_dir,
        "cache_dir": cache_dir,
        "test_examples": test_examples,
    }
    if not isinstance(name, str):
        raise Refused(f"data.name is {name!r}; expected the name of a data set, such as 'digits'.")
    if name not in SOURCES:
        prepared.check_name(name, data_dir, SOURCES)
    one_of("feed", feed, FEEDS)
    takes = options_of(name)
    defaults = inspect.signature(load).parameters
    for key in given:
        where_it_lies = key in ("feed", "data_dir", "cache_dir", "test_examples")
        if key not in takes and not where_it_lies and given[key] != defaults[key].default:
            raise Refused(
                f"data.{key} is {given[key]!r}, and data set {name!r} has no such option; expected "
                f"{defaults[key].default!r}: remove it."
            )
    for key in options:
        if key not in takes:
            raise Refused(f"data set {name!r} has no option {key!r}; {nearest(key, {*takes, *defaults} - {'options'})}")
    split = {
        "split_seed": split_seed,
        "calibration_fraction": calibration_fraction,
        "calibration_split": calibration_split,
        "classes": classes,
    }
    known = {key: value for key, value in (given | split).items() if key in takes} | options
    source = SOURCES[name](**known) if name in SOURCES else prepared.source(name, **known)
    if not isinstance(source, Source):
        raise Refused(
            f"the source of data set {name!r} returned a {type(source).__name__}; expected a kdjax.data.Source, as "
            "kdjax.data.as_source makes it."
        )
    if name in _VERSIONS:
        source = source._replace(about={**source.about, "version": _VERSIONS[name]})
    if test_examples == len(source.test.label):
        test_examples = None  # the source has carved its test split by it; some classes of that may be wanted
    if classes is not None:
        source = select_classes(source, classes)
    return assemble(
        source,
        split_seed=split_seed,
        calibration_fraction=calibration_fraction,
        calibration_split=calibration_split,
        train_examples=train_examples,
        test_examples=test_examples,
        normalize=normalization,
        class_weight=class_weight,
        allow_overlap=allow_overlap,
        imbalance=imbalance,
        imbalance_seed=imbalance_seed,
    )

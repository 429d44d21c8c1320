"""What every source of data hands over, before anything is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from kdjax.data.lazy import Lazy, take
from kdjax.errors import Refused, nearest, one_of
from kdjax.feeds import FEEDS
from kdjax.types import Prepare, PyTree, Split

STREAM_ABOVE = 1 << 30
"""Bytes of decoded images above which `feed="auto"` leaves them on disk."""

KINDS = ("image", "text", "features")


class Classes(Protocol):
    """Has a name and classes: a `Source`, or the texts that one is made of."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...


class Source(NamedTuple):
    """Splits as they come.

    Attributes:
      train, test: checked splits (`checks.as_split`); `calibration` is given only when the user has a split of their
        own.
      normalization: what applies when the caller asks for nothing.
      calibration_split: "stratified" or "random": how a hold-out is drawn when the caller asks for nothing.
      kind: "image", "text" or "features"; None tells it from the inputs.
      contents: split name -> the hash of each of its examples, where the source knows better than the arrays do.
      about: JSON that, beside contents and labels, decides what the inputs are; part of the fingerprint.
      measured: positions in train over which normalization "own" is computed; None means all.
      prepare: what the set does to its inputs; None leaves it to `normalization`.
      public: published as it is: examples that its splits share are counted in a warning, and not refused.
      numbered: as in `Dataset`, where some of its classes were left away; else `counted` tells.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    calibration: Split | None = None
    label_names: tuple[str, ...] = ()
    normalization: str = "own"
    calibration_split: str = "stratified"
    kind: str | None = None
    contents: Mapping[str, np.ndarray] = {}
    about: Mapping[str, Any] = {}
    measured: np.ndarray | None = None
    prepare: Prepare | None = None
    public: bool = False
    numbered: int | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        named = {"train": self.train, "calibration": self.calibration, "test": self.test}
        return {what: split for what, split in named.items() if split is not None}


def streams(feed: str, size: int) -> bool:
    """Whether inputs of that many bytes stay on disk."""
    one_of("feed", feed, FEEDS)
    return feed == "streamed" or (feed == "auto" and size > STREAM_ABOVE)


def kind_of(inputs: PyTree) -> str:
    """ "image" where a leaf has the rank of images, "text" where one holds integers, else "features"."""
    leaves = jax.tree.leaves(inputs.shape_of_one if isinstance(inputs, Lazy) else inputs)
    batch_axis = 0 if isinstance(inputs, Lazy) else 1
    if any(len(leaf.shape) - batch_axis >= 3 for leaf in leaves):
        return "image"
    return "text" if any(np.issubdtype(leaf.dtype, np.integer) for leaf in leaves) else "features"


def counted(source: Source) -> int | None:
    """The number of examples that the indices of train count through: all of train, or, where the test split was drawn
    from the same pool, the whole pool. None where the user gave the indices."""
    if source.numbered is not None:
        return source.numbered
    train = source.train.index
    for index in (train, np.concatenate([train, source.test.index])):
        if np.array_equal(np.sort(index), np.arange(len(index))):
            return len(index)
    return None


def select_classes(source: Source, classes: Any) -> Source:
    """The examples of some classes, numbered anew from 0 in the order given.

    Args:
      classes: how many of the first classes, or a sequence of their numbers or names.

    Raises:
      Refused: fewer than two, a class that does not exist or is named twice, a split without any of them; labels of
        regions.
    """
    numbers = class_numbers(source, classes)
    if source.train.label.ndim == 2:
        raise Refused(f"classes selects among labels [N], and {source.name} has labels of regions; remove classes.")
    table = np.full(source.num_classes, -1)
    table[numbers] = np.arange(len(numbers))
    splits: dict[str, Split] = {}
    hashes, measured = dict(source.contents), source.measured
    for what, split in source.splits.items():
        positions = np.flatnonzero(table[split.label] >= 0)
        if not positions.size:
            raise Refused(f"{source.name} {what} has no example of the classes {classes!r}; name others.")
        kept = take(split, positions)
        splits[what] = kept._replace(label=table[kept.label].astype(np.int32))
        if what in hashes:
            hashes[what] = hashes[what][positions]
        if what == "train" and measured is not None:
            measured = np.flatnonzero(np.isin(positions, measured))
    names = tuple(source.label_names[i] for i in numbers) if source.label_names else ()
    return source._replace(
        train=splits["train"],
        calibration=splits.get("calibration"),
        test=splits["test"],
        num_classes=len(numbers),
        label_names=names,
        contents=hashes,
        measured=measured,
        numbered=counted(source),
    )


def class_numbers(source: Classes, classes: Any) -> list[int]:
    """The numbers of the classes that `select_classes` keeps, in the order given.

    Raises:
      Refused: as `select_classes`.
    """
    k = source.num_classes
    if isinstance(classes, int | np.integer) and not isinstance(classes, bool):
        if not 2 <= classes <= k:
            raise Refused(f"classes is {classes}; expected between 2 and the {k} classes of {source.name}.")
        return list(range(int(classes)))
    if isinstance(classes, str) or not np.iterable(classes):
        raise Refused(
            f"classes is {classes!r}; expected how many of the first classes, or their numbers or names: (0, 3, 7)."
        )
    numbers = []
    for value in classes:
        if isinstance(value, str) and source.label_names:
            if value not in source.label_names:
                raise Refused(f"{source.name} has no class {value!r}; {nearest(value, source.label_names)}")
            numbers.append(source.label_names.index(value))
        elif isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < k:
            numbers.append(int(value))
        else:
            raise Refused(f"{source.name} has no class {value!r}; expected numbers in [0, {k}) or names of classes.")
    if len(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise Refused(f"classes is {classes!r}; expected two or more different classes.")
    return numbers

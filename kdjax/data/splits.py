"""From a source to a `Dataset`: hold out, normalize, fingerprint; and what makes two data sets fit together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.data import checks
from kdjax.data.order import permutation
from kdjax.errors import Refused, one_of, within
from kdjax.prepare import Normalize, Unchanged
from kdjax.types import Dataset, Split

Normalization = str | tuple[Sequence[float], Sequence[float]] | None

# One pair for CIFAR-10 and CIFAR-100 alike, as in the code of KD(C); CIFAR-100's own constants are mean (0.507, 0.487,
# 0.441) and deviation (0.267, 0.256, 0.276).
KDC = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
NORMALISATIONS = ("kdc", "own", "none")


class Source(NamedTuple):
    """Arrays as they come, before anything is held out.

    Attributes:
      train, test: checked splits; `calibration` is given only when the user has a split of their own.
      digests: `digest` of a split's one input array, where a verified cache knows it: no byte is hashed twice.
      normalization: what applies when the caller asks for nothing.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    calibration: Split | None = None
    label_names: tuple[str, ...] = ()
    normalization: str = "own"
    digests: dict[str, str] = {}  # noqa: RUF012 (never written to)


def assemble(
    source: Source,
    *,
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    train_examples: int | None = None,
    test_examples: int | None = None,
    normalization: Normalization = None,
) -> Dataset:
    """Checks the source, holds the calibration split out of train, and takes fingerprints.

    The hold-out is round(calibration_fraction * N) examples of a permutation by `split_seed`, not stratified (as in
    KD(C)). It does not depend on `train_examples`, which afterwards keeps a prefix of what is left in an order by
    `split_seed`: smaller subsets are contained in larger ones and all share one calibration split, one set of
    normalization constants, and so their teachers. Within a split examples are in source order.

    Raises:
      Refused: the sentences of `checks`; a fraction outside (0, 1) or one that leaves a split empty; more examples
        asked for than there are.
    """
    named = {"train": source.train, "calibration": source.calibration, "test": source.test}
    given = {what: split for what, split in named.items() if split is not None}
    check_num_classes(source.num_classes, source.label_names)
    for what, split in given.items():
        checks.check_same_form(source.train, split, what)
        checks.check_split(f"{source.name} {what}", split, source.num_classes)
    digests = {what: split_digest(split, source.digests.get(what)) for what, split in given.items()}

    if source.calibration is None:
        chosen, rest = hold_out(len(source.train.label), split_seed, calibration_fraction)
        calibration = take(source.train, chosen)
    else:
        rest = permutation(len(source.train.label), "train", split_seed)
        calibration = source.calibration
        if set(_contents(calibration)) <= set(_contents(source.train)):
            raise Refused(
                f"every one of the {len(calibration.label)} calibration examples also occurs in train; expected a "
                "held-out split: remove them from train, or leave calibration out to have it split off."
            )
    mean, std, scale = normalize(source.train, rest, normalization or source.normalization)
    rest = rest[: _at_most("train_examples", train_examples, len(rest))]
    train = take(source.train, np.sort(rest))
    test, size = source.test, _at_most("test_examples", test_examples, len(source.test.label))
    if size < len(test.label):
        test = take(test, np.sort(permutation(len(test.label), "test", 0)[:size]))

    described = {
        "sources": digests,
        "splits": [digest(split.index) for split in (train, calibration, test)],
        "num_classes": source.num_classes,
        "normalization": [list(mean), list(std), scale],
    }
    return Dataset(
        name=source.name,
        num_classes=source.num_classes,
        train=train,
        calibration=calibration,
        test=test,
        prepare=_prepare(source.train, mean, std, scale),
        kind=kind(source.train),
        fingerprint=hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        calibration_id=split_digest(calibration),
        label_names=source.label_names,
    )


def kind(split: Split) -> str:
    """What the inputs are: "image" [N, H, W, C], "text" (integers, or several arrays), or "features" (other floats)."""
    leaves = jax.tree.leaves(split.inputs)
    if len(leaves) > 1 or (np.issubdtype(leaves[0].dtype, np.integer) and leaves[0].ndim != 4):
        return "text"
    return "image" if leaves[0].ndim == 4 else "features"


def _prepare(train: Split, mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> Normalize | Unchanged:
    return Unchanged() if kind(train) == "text" else Normalize(mean, std, scale)


def is_lazy(split: Split) -> bool:
    """Whether the inputs are read when they are needed (`gather`), instead of being arrays in memory."""
    return hasattr(split.inputs, "gather")


def existing_rows(logits: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(logits [M, K], labels [M]) of a split without the regions that do not exist."""
    label = np.asarray(split.label, np.int32)
    if label.ndim == 1:
        return logits, label
    exists = label >= 0
    return logits[exists], label[exists]


def hold_out(n: int, seed: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(positions held out, ascending; the other positions, shuffled). A function of (n, seed, fraction).

    Raises:
      Refused: fraction outside (0, 1), or a side that would be empty.
    """
    within("calibration_fraction", fraction, 0.0, 1.0, open_low=True, open_high=True)
    size = round(n * fraction)
    if not 0 < size < n:
        raise Refused(
            f"calibration_fraction {fraction} of {n} training examples holds out {size}, which leaves a split empty; "
            f"expected a fraction of at least {1 / n:.2g} that leaves one example to train on."
        )
    order = permutation(n, "calibration", seed)
    return np.sort(order[:size]), order[size:]


def overlap(teacher: Dataset, student: Dataset) -> int:
    """How many of the student's calibration examples the teacher was trained on.

    Examples are compared by content (inputs and label), so that it also holds for sets that were split by hand. A
    teacher that held out the very same calibration split has seen none of it; what still coincides then are the
    source's own duplicates (CIFAR-100 has 14 groups of them within train).
    """
    if teacher.calibration_id == student.calibration_id:
        return 0
    seen = set(_contents(teacher.train))
    return sum(content in seen for content in _contents(student.calibration))


def verify_splits(teacher: Dataset, student: Dataset) -> None:
    """Refuses a pair of data sets that a teacher and its student must not have.

    A teacher that saw the student's calibration examples is over-confident exactly where the student's temperature,
    AdaFocal bins and best epoch are fitted. Subsets (`train_examples`) of one source and one split pass.

    Raises:
      Refused: class counts differ; the teacher saw calibration examples of the student; calibration splits differ;
        inputs would be normalized differently from what the teacher learned on.
    """
    if teacher.num_classes != student.num_classes:
        raise Refused(
            f"the teacher's data set {teacher.name!r} has {teacher.num_classes} classes and the student's "
            f"{student.name!r} has {student.num_classes}; expected the same classes."
        )
    if leaked := overlap(teacher, student):
        raise Refused(
            f"the teacher was trained on {leaked} of the student's {len(student.calibration.label)} calibration "
            f"examples (calibration splits {teacher.calibration_id[:12]} and {student.calibration_id[:12]}); expected "
            "none: give both stages the same split_seed and calibration_fraction."
        )
    if teacher.calibration_id != student.calibration_id:
        raise Refused(
            f"the calibration splits of teacher ({teacher.name}, {teacher.calibration_id[:12]}) and student "
            f"({student.name}, {student.calibration_id[:12]}) differ; expected one data set and one split for both: "
            "give them the same data section."
        )
    if teacher.prepare != student.prepare:
        raise Refused(
            f"the teacher learned on inputs prepared by {teacher.prepare.describe()}, the student's are prepared by "
            f"{student.prepare.describe()}; expected the same: give both stages the same normalization."
        )


def check_num_classes(num_classes: Any, label_names: Sequence[str] = ()) -> None:
    """Refuses K that is not an integer of at least 2, or not the number of names."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise Refused(f"num_classes is {num_classes!r}; expected an integer of at least 2.")
    if label_names and len(label_names) != num_classes:
        raise Refused(f"there are {len(label_names)} label names for {num_classes} classes; expected one for each.")


def take(split: Split, positions: np.ndarray) -> Split:
    """The examples at these positions, in memory."""
    inputs = jax.tree.map(lambda leaf: np.asarray(leaf)[positions], split.inputs)
    return Split(inputs, split.label[positions], split.index[positions])


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over type, shape and bytes of arrays."""
    h = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        h.update(f"{array.dtype.str}{array.shape};".encode())
        h.update(array.reshape(-1).view(np.uint8).data)
    return h.hexdigest()


def split_digest(split: Split, inputs: str | None = None) -> str:
    """SHA-256 over the inputs (each with its place in the pytree), labels and indices of a split.

    Args:
      inputs: the `digest` of the single input array, when it is known already.
    """
    h = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(split.inputs):
        h.update(f"{jax.tree_util.keystr(path)}:{inputs or digest(leaf)};".encode())
    h.update(digest(split.label, split.index).encode())
    return h.hexdigest()


def normalize(
    train: Split, positions: np.ndarray, how: Normalization
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """(mean, std, scale): inputs become (inputs / scale - mean) / std, per channel (last axis).

    Args:
      train: the source's training split.
      positions: what is left of it after the hold-out; "own" constants are computed from these, before
        `train_examples`, so that subsets share them. They are rounded to six digits: sums of floats differ in the last
        bits between processors, and these constants are part of the fingerprint.
      how: "own"; "kdc", the CIFAR constants of the KD(C) code; "none"; or a pair (mean, std), units of inputs / scale.

    Raises:
      Refused: an unknown name; constants that do not fit the channels; a std that is not positive.
    """
    leaves = jax.tree.leaves(train.inputs)
    array = leaves[0]
    scale = 255.0 if array.dtype == np.uint8 and array.ndim == 4 else 1.0
    if isinstance(how, str):
        one_of("normalization", how, NORMALISATIONS)
        if how == "none" or len(leaves) > 1 or not (scale == 255.0 or array.dtype == np.float32):
            return (0.0,), (1.0,), scale  # token ids have no mean
        pair: Sequence[Any] = KDC if how == "kdc" else channel_statistics(array, np.sort(positions), scale)
    else:
        pair = tuple(how) if how is not None else ()
    if len(pair) != 2 or any(isinstance(side, str) or not np.iterable(side) for side in pair):
        raise Refused(f"normalization is {how!r}; expected 'kdc', 'own', 'none' or a pair (mean, std) of sequences.")
    mean, std = (tuple(float(value) for value in side) for side in pair)
    channels = array.shape[-1]
    if {len(mean), len(std)} - {1, channels} or not np.isfinite(mean + std).all() or min(std) <= 0:
        raise Refused(
            f"normalization {how!r} is mean {mean} and std {std} for inputs of {channels} channels; expected one "
            "finite mean and one positive std per channel (or one for all)."
        )
    return mean, std, scale


def channel_statistics(array: np.ndarray, positions: np.ndarray, scale: float) -> tuple[list[float], list[float]]:
    """Mean and population deviation of each channel of array[positions] / scale; a constant channel has std 1."""

    channels = array.shape[-1]
    blocks = [positions[start : start + checks.CHUNK] for start in range(0, len(positions), checks.CHUNK)]
    if array.dtype == np.uint8:  # exact, and ten times as fast as sums of floats
        counts = np.zeros((channels, 256), np.int64)
        for block in blocks:
            for c, values in enumerate(array[block].reshape(-1, channels).T):
                counts[c] += np.bincount(values, minlength=256)
        values = np.arange(256) / scale
        mean = counts @ values / counts.sum(1)
        variance = ((values - mean[:, None]) ** 2 * counts).sum(1) / counts.sum(1)
    else:
        n = len(positions) * int(np.prod(array.shape[1:-1]))
        rows = lambda block: array[block].reshape(-1, channels).astype(np.float64) / scale  # noqa: E731
        mean = sum((rows(block).sum(0) for block in blocks), np.zeros(channels)) / n
        variance = sum((((rows(block) - mean) ** 2).sum(0) for block in blocks), np.zeros(channels)) / n
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return [float(f"{v:.6g}") for v in mean], [float(f"{v:.6g}") for v in std]


def _at_most(what: str, asked: int | None, available: int) -> int:
    if asked is None:
        return available
    if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or not 1 <= asked <= available:
        raise Refused(
            f"{what} is {asked!r}; expected an integer in [1, {available}], which is what the source has left for that "
            "split, or nothing for all of them."
        )
    return int(asked)


def _contents(split: Split):
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(split.inputs)]
    for i, label in enumerate(split.label):
        h = hashlib.blake2b(int(label).to_bytes(4, "little"), digest_size=16)
        for leaf in leaves:
            h.update(leaf[i].tobytes())
        yield h.digest()

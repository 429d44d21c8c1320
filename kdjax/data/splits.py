"""From a source to a `Dataset`: hold out, weigh, normalize, fingerprint; and what makes two data sets fit together."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from kdjax.data import checks
from kdjax.data.contents import check_overlap, contents, digest, keys, split_digest
from kdjax.data.hold_out import hold_out
from kdjax.data.labels import check_names, check_num_classes
from kdjax.data.lazy import in_memory, is_lazy, take
from kdjax.data.long_tail import long_tail
from kdjax.data.normalization import Normalization, normalization
from kdjax.data.order import permutation
from kdjax.data.source import KINDS, Source, counted, kind_of
from kdjax.errors import Refused, one_of
from kdjax.prepare import Tokens
from kdjax.types import Dataset, Split

ClassWeight = str | Sequence[float] | None


def assemble(
    source: Source,
    *,
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    calibration_split: str | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    normalize: Normalization = None,
    class_weight: ClassWeight = None,
    allow_overlap: bool = False,
    imbalance: float = 1.0,
    imbalance_seed: int = 0,
) -> Dataset:
    """Checks the source, holds the calibration split out of train, and takes fingerprints.

    The hold-out (`hold_out.hold_out`) does not depend on `train_examples`, which afterwards keeps a prefix of what is
    left in an order by `split_seed`: smaller subsets are contained in larger ones and all share one calibration split,
    one set of normalization constants, and so their teachers. Within a split examples are in source order. Arrays are
    copied into memory; what happens to a mapped file afterwards changes nothing.

    Args:
      calibration_split: "stratified" or "random"; the source's own default when not given.
      class_weight: multiplies the weights of the training examples: "balanced" (N / (K n_c), n_c the weight of class c
        in train and K the classes there; mean 1) or one number per class. Evaluation is not reweighted.
      allow_overlap: accept splits that share examples, see `contents.check_overlap`.
      imbalance, imbalance_seed: above 1, what the hold-out left is cut to a long tail (`long_tail.long_tail`);
        calibration and test stay as they are.

    Raises:
      Refused: the sentences of `checks`; a fraction outside (0, 1) or one that leaves a split empty; more examples
        asked for than there are; splits that share examples.
    """
    check_num_classes(source.num_classes, check_names(source.label_names))
    for what, split in source.splits.items():
        checks.check_same_form(source.train, split, what)
        checks.check_split(f"{source.name} {what}", split, source.num_classes)
    hashes = {
        what: source.contents[what] if what in source.contents else contents(split.inputs)
        for what, split in source.splits.items()
    }
    digests = {what: split_digest(split, hashes[what], source.about) for what, split in source.splits.items()}

    if source.calibration is None:
        how = calibration_split or source.calibration_split
        chosen, rest = hold_out(source.train.label, split_seed, calibration_fraction, how)
        calibration, hashes["calibration"] = take(source.train, chosen), hashes["train"][chosen]
    else:
        rest = permutation(len(source.train.label), "train", split_seed)
        calibration = _unmapped(source.calibration)
    check_overlap(source.name, {**hashes, "train": hashes["train"][rest]}, allow_overlap or source.public)
    measured = rest if source.measured is None else rest[np.isin(rest, source.measured)]
    constants = normalize if normalize is not None else source.normalization
    prepare = source.prepare or normalization(source.train, measured, constants)
    if imbalance != 1:
        rest = rest[long_tail(source.train.label[rest], source.num_classes, imbalance, imbalance_seed)]
    rest = rest[: _at_most("train_examples", train_examples, len(rest))]
    train = _weigh(take(source.train, np.sort(rest)), class_weight, source.num_classes)
    size = _at_most("test_examples", test_examples, len(source.test.label))
    if size < len(source.test.label):
        test = take(source.test, np.sort(permutation(len(source.test.label), "test", 0)[:size]))
    else:
        test = _unmapped(source.test)
    _warn_of_missing_classes(source, train, calibration, test)

    described = {
        "sources": digests,
        "splits": [digest(split.index) for split in (train, calibration, test)],
        "num_classes": source.num_classes,
        "prepare": prepare.describe(),
        "class_weight": class_weight if isinstance(class_weight, str | None) else [float(w) for w in class_weight],
    }
    return Dataset(
        name=source.name,
        num_classes=source.num_classes,
        train=train,
        calibration=calibration,
        test=test,
        prepare=prepare,
        kind=one_of("kind", source.kind or kind_of(source.train.inputs), KINDS),
        fingerprint=hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        calibration_id=split_digest(calibration, hashes["calibration"], source.about),
        label_names=source.label_names,
        numbered=counted(source),
    )


def overlap(teacher: Dataset, student: Dataset) -> int:
    """How many of the student's calibration examples the teacher was trained on.

    Inputs are compared bit for bit, so that it also holds for sets that were split by hand. A teacher that held out the
    very same calibration split has seen none of it; what still coincides then are the source's own duplicates
    (CIFAR-100 has 14 groups of them within train).
    """
    if teacher.calibration_id == student.calibration_id:
        return 0
    seen = keys(contents(teacher.train.inputs))
    return int(np.isin(keys(contents(student.calibration.inputs)), seen).sum())


def verify_splits(teacher: Dataset, student: Dataset) -> None:
    """Refuses a pair of data sets that a teacher and its student must not have.

    A teacher that saw the student's calibration examples is over-confident exactly where the student's temperature,
    AdaFocal bins and best epoch are fitted. Subsets (`train_examples`) of one source and one split pass.

    Raises:
      Refused: class counts, names of classes or vocabularies differ; the teacher saw calibration examples of the
        student; calibration splits differ; inputs would be normalized differently from what the teacher learned on.
    """
    if teacher.num_classes != student.num_classes:
        raise Refused(
            f"the teacher's data set {teacher.name!r} has {teacher.num_classes} classes and the student's "
            f"{student.name!r} has {student.num_classes}; expected the same classes."
        )
    _check_same_texts(teacher, student)
    if leaked := overlap(teacher, student):
        raise Refused(
            f"the teacher was trained on {leaked} of the student's {len(student.calibration.label)} calibration "
            f"examples (calibration splits {teacher.calibration_id[:12]} and {student.calibration_id[:12]}); expected "
            "none: give both stages the same split_seed, calibration_fraction and calibration_split."
        )
    if teacher.calibration_id != student.calibration_id:
        raise Refused(
            f"the calibration splits of teacher ({teacher.name}, {teacher.calibration_id[:12]}) and student "
            f"({student.name}, {student.calibration_id[:12]}) differ; expected one data set and one split for both: "
            "give them the same data section."
        )
    if teacher.prepare != student.prepare:
        raise Refused(
            f"the teacher learned on inputs normalized by {teacher.prepare}, the student's are by {student.prepare}; "
            "expected the same: give both stages the same normalization."
        )


def _check_same_texts(teacher: Dataset, student: Dataset) -> None:
    """Before contents are compared: other ids make every text another example."""
    if teacher.label_names and student.label_names and teacher.label_names != student.label_names:
        pairs = enumerate(zip(teacher.label_names, student.label_names, strict=True))
        i, names = next((i, names) for i, names in pairs if names[0] != names[1])
        raise Refused(
            f"class {i} is {names[0]!r} in the teacher's data set {teacher.name!r} and {names[1]!r} in the student's "
            f"{student.name!r}; expected the same names in the same order: renumber the labels of one."
        )
    ours, others = (dataset.prepare for dataset in (student, teacher))
    if not isinstance(ours, Tokens) or not isinstance(others, Tokens) or ours == others:
        return
    if ours.vocabulary != others.vocabulary:
        raise Refused(
            f"the teacher reads ids of a vocabulary of {others.size} entries ({others.vocabulary[:12]}) and the "
            "student "
            f"of one of {ours.size} ({ours.vocabulary[:12]}); expected one for both: give both stages the same "
            "tokenizer, "
            "vocab_size and lowercase."
        )
    raise Refused(
        f"the teacher reads texts of {others.max_length} tokens and the student of {ours.max_length}; expected the "
        "same: "
        "give both stages the same max_length."
    )


def existing_rows(logits: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(logits [M, K], labels [M]) of what counts in a split: its examples, or its regions whose label is not -1, those
    of weight 0 left out.

    Args:
      logits: [N, K], or [N, R, K] for labels [N, R].
    """
    exists = split.label >= 0
    if split.weight is not None:
        weight = np.asarray(split.weight)
        exists &= (weight > 0).reshape(weight.shape + (1,) * (exists.ndim - weight.ndim))
    return logits[exists], split.label[exists]


def existing_index(split: Split) -> np.ndarray:
    """[M], the example's number of each row of `existing_rows`."""
    shape = (len(split.index), *split.label.shape[1:])
    index = np.broadcast_to(split.index.reshape(-1, *[1] * (split.label.ndim - 1)), shape)
    return existing_rows(index, split)[0]


def _unmapped(split: Split) -> Split:
    """The split with mapped arrays copied, so that later changes of their files are not seen."""
    return split if is_lazy(split) else in_memory(split)


def _weigh(train: Split, class_weight: ClassWeight, num_classes: int) -> Split:
    if class_weight is None:
        return train
    exists = train.label >= 0
    weight = np.ones(train.label.shape, np.float32) if train.weight is None else train.weight
    if isinstance(class_weight, str):
        one_of("class_weight", class_weight, ("balanced",))
        total = np.bincount(train.label[exists], weight[exists], num_classes)
        per_class = np.where(total > 0, total.sum() / (np.count_nonzero(total) * np.where(total > 0, total, 1)), 0.0)
    else:
        per_class = np.asarray(class_weight)
        if per_class.shape != (num_classes,) or per_class.dtype.kind not in "iuf":
            raise Refused(
                f"class_weight is {class_weight!r}; expected 'balanced' or {num_classes} numbers, one for each class."
            )
        if not (np.isfinite(per_class).all() and (per_class >= 0).all() and per_class.any()):
            raise Refused(f"class_weight is {class_weight!r}; expected finite numbers of at least 0, not all 0.")
    factor = np.where(exists, per_class[np.where(exists, train.label, 0)], 0.0)
    return train._replace(weight=(weight * factor).astype(np.float32))


def _warn_of_missing_classes(source: Source, train: Split, calibration: Split, test: Split) -> None:
    occurring = {what: _classes(split) for what, split in source.splits.items()}
    anywhere = set().union(*occurring.values())

    def note(what: str, number: int, missing: Iterable[int]) -> str:
        listed = [source.label_names[c] if source.label_names else str(c) for c in itertools.islice(missing, 6)]
        named = ", ".join([*listed[:5], *(["..."] if len(listed) > 5 else [])])
        return f"{number} of {source.num_classes} classes have no {what}example ({named})"

    notes = []
    # Where classes have names, as those of folders do, their number is no typing error.
    if not source.label_names and (nowhere := source.num_classes - len(anywhere)):
        notes.append(note("", nowhere, (c for c in range(source.num_classes) if c not in anywhere)))
    for what, split in (("train", train), ("calibration", calibration)):
        if missing := anywhere - _classes(split):
            notes.append(note(f"{what} ", len(missing), sorted(missing)))
    if source.calibration is None:
        label = source.train.label
        counts = np.unique(label[label >= 0], return_counts=True)[1]
        if single := int((counts == 1).sum()):
            notes.append(f"{single} classes have one training example in all, which cannot be on both sides")
    if notes:
        warnings.warn(f"{source.name}: {'; '.join(notes)}.", stacklevel=4)


def _classes(split: Split) -> set[int]:
    return set(np.unique(split.label[split.label >= 0]).tolist())


def _at_most(what: str, asked: int | None, available: int) -> int:
    if asked is None:
        return available
    if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or not 1 <= asked <= available:
        raise Refused(
            f"{what} is {asked!r}; expected an integer in [1, {available}], which is what the source has left for that "
            "split, or nothing for all of them."
        )
    return int(asked)

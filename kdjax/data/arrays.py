"""The user's own arrays, from Python or from an `.npz` file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data import checks, labels
from kdjax.data.hold_out import carve
from kdjax.data.lazy import take
from kdjax.data.normalization import Normalization
from kdjax.data.npz import Archive
from kdjax.data.paths import CALIBRATION
from kdjax.data.source import KINDS, Source
from kdjax.data.splits import ClassWeight, assemble
from kdjax.errors import Refused, one_of
from kdjax.types import Dataset, Split

TOKENS = {"ids": "input_ids", "mask": "attention_mask"}
"""The names of a text's arrays in a file, and those by which networks take them."""


def from_arrays(
    train: Split | Sequence,
    test: Split | Sequence,
    calibration: Split | Sequence | None = None,
    *,
    num_classes: int | None = None,
    name: str = "arrays",
    label_names: Sequence[str] = (),
    kind: str | None = None,
    train_weight: Any = None,
    calibration_weight: Any = None,
    test_weight: Any = None,
    class_weight: ClassWeight = None,
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    calibration_split: str = "stratified",
    train_examples: int | None = None,
    test_examples: int | None = None,
    normalization: Normalization = None,
    allow_overlap: bool = False,
) -> Dataset:
    """A `Dataset` from arrays in memory (or memory maps).

        data = from_arrays(train=(x, y), test=(x_test, y_test), num_classes=10)

    Args:
      train, test: pairs (inputs, label), or triples (inputs, label, index) with numbers of your own. Inputs are images
        [N, H, W, C], uint8 (0 to 255) or floats, features [N, D], token ids [N, L] (integers), or a pytree of arrays
        with one leading axis, such as {"input_ids": ids, "attention_mask": mask}. Labels are integers [N] in [0, K), or
        [N, R] for R regions of each example with -1 where one does not exist, or names (text), which are numbered in
        sorted order.
      calibration: a split of your own; by default `calibration_fraction` of train is held out by `split_seed`.
      num_classes: K. Never guessed from integers: a class may be missing from a split. Names need none.
      label_names: in the order of their numbers.
      kind: "image", "text" or "features", which decides what transforms apply; told from the inputs when not given.
      train_weight, calibration_weight, test_weight: how much each example counts, [N] or the shape of the labels, >= 0.
      class_weight: "balanced" or one number per class; multiplies the weights of train.
      calibration_split: "stratified" keeps the share of every class, "random" does not look at labels.
      train_examples, test_examples: keep only that many.
      normalization: "own" (default; per channel, from train), "none", "kdc" or a pair (mean, std).
      allow_overlap: accept splits of which more than 1 % of the examples are the same.

    Raises:
      Refused: one sentence for whatever is wrong with the arrays; see `kdjax.data.checks` and `kdjax.data.labels`.
    """
    parts = {"train": train, "calibration": calibration, "test": test}
    weights = {"train": train_weight, "calibration": calibration_weight, "test": test_weight}
    source = as_source(name, parts, num_classes, label_names, weights)
    return assemble(
        source._replace(kind=kind if kind is None else one_of("kind", kind, KINDS)),
        split_seed=split_seed,
        calibration_fraction=calibration_fraction,
        calibration_split=calibration_split,
        train_examples=train_examples,
        test_examples=test_examples,
        normalize=normalization,
        class_weight=class_weight,
        allow_overlap=allow_overlap,
    )


def as_source(
    name: str,
    parts: Mapping[str, Split | Sequence | None],
    num_classes: int | None,
    label_names: Sequence[str] = (),
    weights: Mapping[str, Any] = {},
) -> Source:
    """A `Source` from (inputs, label) of train, test and, if wanted, calibration.

    Raises:
      Refused: as `from_arrays`.
    """
    given = {what: part for what, part in parts.items() if part is not None}
    for what, weight in weights.items():
        if weight is not None and what not in given:
            raise Refused(f"{what}_weight was given without a {what} split; pass {what}=(inputs, label) too.")
    for what, part in given.items():
        if not isinstance(part, Split) and not (isinstance(part, tuple | list) and len(part) in (2, 3)):
            raise Refused(
                f"{name} {what} is {type(part).__name__}; expected a pair (inputs, label) or a triple (inputs, label, "
                "index)."
            )
    encoded, num_classes, names = labels.encode(
        name, {what: part[1] for what, part in given.items()}, num_classes, label_names
    )
    splits: dict[str, Split] = {}
    for what, part in given.items():
        weight = weights.get(what)
        if weight is None and isinstance(part, Split):
            weight = part.weight
        splits[what] = checks.as_split(
            f"{name} {what}",
            (part[0], encoded[what], *part[2:3]),
            # Numbers of train and calibration must differ where the user gives none.
            first_index=len(splits["train"].label) if what == "calibration" else 0,
            weight=weight,
            num_classes=num_classes,
        )
    return Source(
        name=name,
        num_classes=num_classes,
        label_names=names,
        train=splits["train"],
        calibration=splits.get("calibration"),
        test=splits["test"],
    )


def npz_source(
    *, path: str | os.PathLike | None = None, num_classes: int | None = None, test_examples: int | None = None
) -> Source:
    """An `.npz` of the user's own.

    Keys: `train_inputs`, `train_label`, `test_inputs`, `test_label`, and if wanted a calibration split under one of
    `calibration_`, `val_`, `valid_`, `validation_`; or one pool `inputs`, `label`, of which a fixed fifth of every
    class (or `test_examples` in all) becomes the test split. Texts have `train_ids` and `train_mask` (integers [N, L],
    1 on real tokens) in place of `train_inputs`; networks take them as `input_ids` and `attention_mask`. `train_weight`
    and the like are weights. `num_classes` is a number in the file or the option; `label_names` in the file is used
    when there.

        np.savez("mine.npz", train_inputs=x, train_label=y, test_inputs=x2, test_label=y2, num_classes=10)

    Names, sizes and headers are checked before anything is unpacked (`kdjax.data.npz`).

    Raises:
      Refused: no such file; not an `.npz`; missing keys; pickled objects (never unpickled: they can run code).
    """
    if path is None:
        raise Refused("data set 'arrays' needs a file; expected the path of an .npz: set data.path=mine.npz.")
    archive = Archive(path)
    pool = any(key in archive for key in ("inputs", "ids", "label"))
    prefixes = {"train": ""} if pool else {"train": "train_", **_calibration_prefix(archive), "test": "test_"}
    members = {what: _members(archive, prefix) for what, prefix in prefixes.items()}
    names = _label_names(archive)
    texts = any(archive[f"{prefix}label"].dtype.kind in "USO" for prefix in prefixes.values())
    if num_classes is None and "num_classes" in archive:
        number = archive.read("num_classes")
        num_classes = number.item() if number.ndim == 0 else number.tolist()
        labels.check_num_classes(num_classes, names)
    if num_classes is None and not names and not texts:
        raise Refused(
            f"{archive.path} does not say how many classes it has; expected an entry num_classes: add num_classes=K to "
            "the arguments of np.savez."
        )
    used = {key for keys in members.values() for key in keys} | {"num_classes", "label_names"}
    if unused := sorted(set(archive) - used):
        warnings.warn(f"{archive.path} also holds {', '.join(unused)}, which nothing uses.", stacklevel=4)
    parts, weights = {}, {}
    for what, prefix in prefixes.items():
        arrays = {key.removeprefix(prefix): archive.read(key) for key in members[what]}
        inputs = arrays["inputs"] if "inputs" in arrays else {name: arrays[key] for key, name in TOKENS.items()}
        parts[what] = (inputs, arrays["label"], *([arrays["index"]] if "index" in arrays else []))
        weights[what] = arrays.get("weight")
    if not pool:
        return as_source("arrays", parts, num_classes, names, weights)
    pooled = as_source("arrays", {"train": parts["train"]} | {"test": parts["train"]}, num_classes, names, weights)
    test, train = carve(str(archive.path), pooled.train.label, test_examples)
    return pooled._replace(train=take(pooled.train, train), test=take(pooled.train, test))


def _calibration_prefix(archive: Archive) -> dict[str, str]:
    used = [name for name in CALIBRATION if any(key.startswith(f"{name}_") for key in archive)]
    if len(used) > 1:
        raise Refused(
            f"{archive.path} has arrays named {' and '.join(f'{name}_*' for name in used)}; expected one calibration "
            "split: save only one of them."
        )
    return {"calibration": f"{used[0]}_"} if used else {}


def _members(archive: Archive, prefix: str) -> list[str]:
    """The keys of one split; what their headers say is checked before anything is unpacked."""
    inputs = [prefix + key for key in TOKENS] if f"{prefix}ids" in archive else [f"{prefix}inputs"]
    needed = [*inputs, f"{prefix}label"]
    if missing := [key for key in needed if key not in archive]:
        raise Refused(
            f"{archive.path} has the arrays {', '.join(sorted(archive)) or 'none'} and lacks {' and '.join(missing)}; "
            "expected train_inputs, train_label, test_inputs, test_label, or one pool inputs, label; of texts "
            "train_ids and train_mask in place of train_inputs."
        )
    optional = [f"{prefix}weight", f"{prefix}index"]
    members = [*needed, *(key for key in optional if key in archive)]
    lengths = {key: archive[key].shape[0] if archive[key].shape else None for key in members}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        shown = ", ".join(f"{key} {archive[key].shape}" for key in members)
        raise Refused(f"{archive.path} has {shown}; expected one leading axis: as many labels as inputs.")
    if len(archive[needed[0]].shape) not in (2, 4):
        checks.refuse_rank(f"{archive.path} {prefix}inputs", archive[needed[0]].shape)
    return members


def _label_names(archive: Archive) -> tuple[str, ...]:
    if "label_names" not in archive:
        return ()
    shape, dtype = archive["label_names"]
    if len(shape) != 1 or dtype.kind not in "US":
        raise Refused(
            f"{archive.path} has label_names of shape {shape} and type {dtype}; expected a list of one text for each "
            "class: label_names=['cat', 'dog']."
        )
    names = archive.read("label_names")
    try:
        return tuple(str(name) for name in (np.char.decode(names, "utf-8") if dtype.kind == "S" else names))
    except UnicodeDecodeError as error:
        raise Refused(
            f"{archive.path} has label_names in bytes that are not UTF-8; expected text: label_names=['cat', 'dog']."
        ) from error

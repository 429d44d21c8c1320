"""Texts and labels of classification sets as they lie on disk: JSON lines, tables, and prepared tfds sets of texts."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.paths import CALIBRATION
from kdjax.data.text_tables import ENDS, read_table
from kdjax.errors import Refused, nearest


class Texts(NamedTuple):
    """One split: a text and a label for each example."""

    text: list[str]
    label: np.ndarray


class Raw(NamedTuple):
    """A set before it is tokenized.

    Attributes:
      splits: "train", "test", perhaps "calibration", and others that are not trained on ("out_of_scope").
      public: published as it is, repeated texts included.
    """

    name: str
    splits: Mapping[str, Texts]
    num_classes: int
    label_names: tuple[str, ...]
    public: bool = True


def text_dir(path: str | os.PathLike | None) -> Path:
    """`path`, else `$KDJAX_TEXT_DIR`.

    Raises:
      Refused: neither is given, or no such folder.
    """
    folder = path or os.environ.get("KDJAX_TEXT_DIR")
    if not folder:
        raise Refused(
            "no folder of text sets is named; expected one that holds banking77, hwu64, ...: set data.path=FOLDER, or "
            "the "
            "environment variable KDJAX_TEXT_DIR."
        )
    if not (result := Path(folder).expanduser()).is_dir():
        raise Refused(f"there is no folder {result}; expected one that holds text sets: correct data.path.")
    return result


def read_folder(
    name: str, path: str | os.PathLike | None, *, folder: str = "", text_columns: Sequence[str] = ("text",)
) -> Raw:
    """A set of JSON lines: FOLDER/{train,validation,test}.jsonl with `text` and `label`, and labels.txt in label
    order."""
    root = text_dir(path) / (folder or name)
    if not root.is_dir():
        near = sorted(p.name for p in root.parent.iterdir() if p.is_dir())
        raise Refused(f"there is no folder {root}; {nearest(root.name, near) if near else 'that folder is empty.'}")
    names = root / "labels.txt"
    if not names.is_file():
        raise Refused(f"{root} has no labels.txt; expected the names of the classes, one a line.")
    label_names = tuple(names.read_text(encoding="utf-8").splitlines())
    splits = {}
    for what, stem in (("train", "train"), ("calibration", "validation"), ("test", "test")):
        if file := find(root, what, [stem]):
            texts, labels = read_table(file, text_columns=text_columns)
            splits[what] = Texts(texts, numbered(file, labels, label_names))
    return Raw(name, splits, len(label_names), label_names)


def find(folder: Path, what: str, stems: Sequence[str]) -> Path | None:
    """The file of a split, FOLDER/stem with any suffix, packed or not.

    Raises:
      Refused: two of them.
    """
    files = [file for stem in stems for end in ENDS if (file := folder / (stem + end)).is_file()]
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise Refused(f"{folder} has {names}; expected one file for {what}: keep one of them.")
    return files[0] if files else None


def numbered(where: object, labels: Sequence[Any], names: Sequence[str]) -> np.ndarray:
    """Labels as integers: names by their place in `names`, integers (also in a table's text) as they are.

    Raises:
      Refused: a name that is not among them, a number outside [0, K).
    """
    table = {name: i for i, name in enumerate(names)}
    result = np.empty(len(labels), np.int32)
    for i, label in enumerate(labels):
        number = table.get(label, label) if isinstance(label, str) else label
        if isinstance(number, str) and re.fullmatch(r"\d{1,9}", number):
            number = int(number)
        if isinstance(number, str):
            raise Refused(f"{where} has the label {label!r} in example {i}; {nearest(label, names)}")
        if not 0 <= number < len(names):
            raise Refused(f"{where} has the label {label!r} in example {i}; expected 0 to {len(names) - 1}.")
        result[i] = number
    return result


def read_own(
    path: str | os.PathLike | None,
    *,
    num_classes: int | None,
    text_column: str,
    label_column: str,
) -> Raw:
    """A file, or a folder with train, test and perhaps val (also calibration, valid, validation, dev), in the formats
    of `read_table`. Other tables of the folder are named in a warning.

    Labels are names, numbered in sorted order, or integers in [0, num_classes). A single file is one pool, under
    "train".
    """
    if path is None:
        raise Refused("data set 'text' needs a file or a folder; set data.path=FILE.csv (columns text and label).")
    if not isinstance(path, str | os.PathLike):
        raise Refused(f"data.path is {path!r}; expected the path of a file or a folder: set data.path=FILE.csv.")
    for option, column in (("text_column", text_column), ("label_column", label_column)):
        if not isinstance(column, str):
            raise Refused(
                f"data.options.{option} is {column!r}; expected the name of one column: set data.options.{option}=NAME."
            )
    if text_column == label_column:
        raise Refused(
            f"data.options.text_column and label_column are both {text_column!r}; expected two columns: set "
            "data.options.label_column=NAME."
        )
    root = Path(path).expanduser()
    files = {"train": root} if root.is_file() else {}
    for what, stems in (("train", ["train"]), ("calibration", [*CALIBRATION, "dev"]), ("test", ["test"])):
        if root.is_dir() and (file := find(root, what, stems)):
            files[what] = file
    if "train" not in files or (root.is_dir() and "test" not in files):
        raise Refused(
            f"{root} is no file, and has no train and test in it; expected train.csv and test.csv (or .tsv, .jsonl), "
            "or one file: correct data.path."
        )
    if root.is_dir():
        _name_others(root, {file.name for file in files.values()})
    read = {
        what: read_table(file, text_columns=[text_column], label_column=label_column, by_option=True, pool=file == root)
        for what, file in files.items()
    }
    every = [label for _, labels in read.values() for label in labels]
    integers = all(isinstance(label, int) or re.fullmatch(r"\d{1,9}", label) for label in every)
    if integers and num_classes is None:
        raise Refused(
            f"{root} has numbers as labels and does not say how many classes there are; expected num_classes, which is "
            "never guessed from the labels: set data.num_classes=K."
        )
    names = tuple(str(i) for i in range(num_classes or 0)) if integers else tuple(sorted({str(v) for v in every}))
    if num_classes is not None and num_classes != len(names):
        raise Refused(f"{root} has {len(names)} different names as labels and num_classes is {num_classes}; remove it.")
    splits = {
        what: Texts(texts, numbered(files[what], [v if integers else str(v) for v in labels], names))
        for what, (texts, labels) in read.items()
    }
    return Raw("text", splits, len(names), () if integers else names, public=False)


def _name_others(folder: Path, used: Set[str]) -> None:
    """Warns of tables that nothing reads."""
    there = sorted(file.name for file in folder.iterdir() if file.name.endswith(ENDS) and file.name[0] != ".")
    if others := [name for name in there if name not in used]:
        warnings.warn(f"{folder} also holds {', '.join(others)}, which nothing reads.", stacklevel=5)

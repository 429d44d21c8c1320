"""Texts and labels of classification sets as they lie on disk: JSON lines, tables, and prepared tfds sets of texts."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import lzma
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from kdjax.data.paths import CALIBRATION
from kdjax.errors import Refused, nearest

SUFFIXES = (".jsonl", ".csv", ".tsv")
PACKED: Mapping[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]


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
    """A set of JSON lines: FOLDER/{train,validation,test}.jsonl with `text` and `label`, and labels.txt in label "
    "order."""
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
        if file := find(root, stem):
            texts, labels = read_table(file, text_columns=text_columns)
            splits[what] = Texts(texts, numbered(file, labels, label_names))
    return Raw(name, splits, len(label_names), label_names)


def find(folder: Path, stem: str) -> Path | None:
    """FOLDER/stem with the first suffix that exists, packed or not."""
    ends = [suffix + packed for suffix in SUFFIXES for packed in ("", *PACKED)]
    return next((file for end in ends if (file := folder / (stem + end)).is_file()), None)


def read_table(
    path: Path,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    by_option: bool = False,
    pool: bool = False,
) -> tuple[list[str], list[Any]]:
    """(texts, labels) of a `.jsonl`, `.csv` or `.tsv`, UTF-8, packed by gzip or xz or not; tables have a header.

    Several text columns are joined by a full stop.

    Args:
      by_option: the columns were named by options of the data set `text`, and the sentence of a missing one says so.
      pool: splits are drawn from the file, so that a column `split`, in whatever case, is refused. Elsewhere the file
        is one split, and refused where such a column names several.

    Raises:
      Refused: another suffix; a file that cannot be read, by line; a column that is missing; a text that is no text.
    """
    plain = path.with_suffix("") if path.suffix in PACKED else path
    if plain.suffix not in SUFFIXES:
        raise Refused(
            f"{path} ends in {plain.suffix or 'nothing'}; expected {', '.join(SUFFIXES)}, or one of them packed."
        )
    texts: list[str] = []
    labels: list[Any] = []
    splits: dict[str, int] = {}
    line = 0
    try:
        with PACKED.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = _json_rows(file) if plain.suffix == ".jsonl" else _table_rows(file, plain.suffix)
            for line, row in rows:
                for column in _split_columns({*row} - {*text_columns, label_column}):
                    splits.setdefault(str(row[column]), line)
                    _refuse_splits(path, column, splits, pool)
                for column in (*text_columns, label_column):
                    if row.get(column) is None:
                        option = "label_column" if column == label_column else "text_column"
                        hint = _hint(row, column, {*text_columns, label_column}, option if by_option else "")
                        raise Refused(f"{path} has no {column!r} in line {line}; {hint}")
                parts, label = [row[column] for column in text_columns], row[label_column]
                if (
                    not all(isinstance(part, str) for part in parts)
                    or not isinstance(label, str | int)
                    or isinstance(label, bool)
                ):
                    raise Refused(
                        f"{path} holds {parts} with the label {label!r} in line {line}; expected a text, and a name or "
                        "an "
                        "integer as label."
                    )
                texts.append(". ".join(parts))
                labels.append(label)
    except (OSError, EOFError, lzma.LZMAError, csv.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Refused(
            f"{path} cannot be read after line {line} ({error}); expected UTF-8 {plain.suffix[1:]}."
        ) from error
    if not texts:
        raise Refused(f"{path} has no rows; expected a text and a label in each.")
    return texts, labels


def _split_columns(columns: Set[Any]) -> list[Any]:
    return [column for column in columns if str(column).strip().lower() == "split"]


def _refuse_splits(path: Path, column: str, splits: Mapping[str, int], pool: bool) -> None:
    """Refuses a column of splits whose test rows would be trained on.

    Args:
      splits: the line in which each of its values stood first.
    """
    if pool:
        raise Refused(
            f"{path} has a column {column!r}, and the test split of a single file is drawn from all its rows; "
            "expected a folder with train.csv, test.csv and, if wanted, val.csv: write the rows of each split to "
            f"a file of its own and set data.path=FOLDER, or remove the column {column!r}."
        )
    if len(splits) > 1:
        (first, _), (other, line) = splits.items()
        raise Refused(
            f"{path} has {first!r} and, in line {line}, {other!r} in its column {column!r}, and all its rows would be "
            "one split; expected the rows of one split in each file of a folder: write the others to a file of their "
            f"own, or remove the column {column!r}."
        )


def _hint(row: Mapping[Any, Any], column: str, named: Set[str], option: str) -> str:
    """What to type where a row has no such column, or an empty place in it."""
    if column in row:
        return "expected a value in every row: fill it in, or remove the row."
    there = [str(name) for name in row if name is not None]
    hint = nearest(column, there) if there else "expected a row of named values."
    if not option or not (others := [name for name in there if name not in named]):
        return hint
    # The label mostly stands last, and the text is the longest.
    likely = others[-1] if option == "label_column" else max(others, key=lambda name: len(str(row[name])))
    close = difflib.get_close_matches(column, others, n=1, cutoff=0.5)
    return f"{hint} Rename it, or set data.options.{option}={(close or [likely])[0]}."


def _json_rows(file: IO[str]):
    for line, text in enumerate(file, 1):
        if text.strip():
            row = json.loads(text)
            yield line, row if isinstance(row, dict) else {}


def _table_rows(file: IO[str], suffix: str):
    # Tab-separated files have no quoting by convention: a text may begin with a quotation mark.
    quoting = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if suffix == ".tsv" else ","
    reader: Any = csv.DictReader(file, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[call-overload]
    for row in reader:
        yield reader.line_num, row


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
    """A file, or a folder with train, test and perhaps val (also calibration, valid, validation), in the formats of
    `read_table`.

    Labels are names, numbered in sorted order, or integers in [0, num_classes). A single file is one pool, under
    "train".
    """
    if path is None:
        raise Refused("data set 'text' needs a file or a folder; set data.path=FILE.csv (columns text and label).")
    root = Path(path).expanduser()
    files = {"train": root} if root.is_file() else {}
    for what, stems in (("train", ["train"]), ("calibration", CALIBRATION), ("test", ["test"])):
        found = [file for stem in stems if root.is_dir() and (file := find(root, stem))]
        if len(found) > 1:
            listed = " and ".join(file.name for file in found)
            raise Refused(f"{root} has {listed}; expected one file for {what}: keep one of them.")
        if found:
            files[what] = found[0]
    if "train" not in files or (root.is_dir() and "test" not in files):
        raise Refused(
            f"{root} is no file, and has no train and test in it; expected train.csv and test.csv (or .tsv, .jsonl), "
            "or one file: correct data.path."
        )
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

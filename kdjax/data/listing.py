"""Images listed in a table: a CSV or Parquet file of paths and labels."""

from __future__ import annotations

import csv
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdjax.data import labels
from kdjax.data.hold_out import carve
from kdjax.data.image_files import Listed, files_source
from kdjax.data.paths import existing
from kdjax.data.source import Source
from kdjax.errors import Refused, nearest

SPLITS = {
    "train": "train",
    "test": "test",
    "calibration": "calibration",
    "val": "calibration",
    "valid": "calibration",
    "validation": "calibration",
}
COLUMNS = ("path", "label", "split", "weight")


def source(
    *,
    path: str | os.PathLike | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    resolution: int | None = None,
    test_examples: int | None = None,
    skip_bad: bool = False,
    feed: str = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> Source:
    """A `.csv` (UTF-8, comma, with a header) or `.parquet` with the columns `path` and `label`, and if wanted `split`
    and `weight`.

        path,label,split
        photos/0001.jpg,cat,train
        photos/0002.jpg,dog,test

    Paths are relative to the table's own folder. Labels are names, numbered in sorted order, or integers in [0, K) with
    `num_classes=K`. Splits are train, test and val (also calibration, valid, validation); without the column a fixed
    fifth of every class becomes the test split. Everything else is as in `folders.source`.

    Raises:
      Refused: no such file; a column that is missing; a row without its values, by number; whatever the images do.
    """
    table = _table(path)
    columns = _read(table)
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise Refused(
            f"{table} has the columns {', '.join(columns) or 'none'} and lacks {' and '.join(missing)}; "
            f"{nearest(missing[0], columns) if columns else ''} expected a header path,label or path,label,split."
        )
    _refuse_or_name_others(table, [name for name in columns if name not in COLUMNS])
    if not columns["path"]:
        raise Refused(f"{table} has a header and no rows; expected one row for each image.")
    for row, values in enumerate(zip(columns["path"], columns["label"], strict=True)):
        if not all(values):
            raise Refused(f"{table} has no {'path' if not values[0] else 'label'} in row {row + 1}; fill it in.")
    encoded, num_classes, names = labels.encode(str(table), {"all": _as_integers(columns["label"])}, num_classes, ())
    labels.check_range(str(table), encoded["all"], num_classes)
    listed = Listed(table.parent, list(columns["path"]), encoded["all"], _weights(table, columns))
    return files_source(
        "files",
        {what: listed.take(rows) for what, rows in _rows(table, columns, listed.label, test_examples).items()},
        names or tuple(str(i) for i in range(num_classes)),
        image_size=image_size,
        resolution=resolution,
        skip_bad=skip_bad,
        feed=feed,
        cache_dir=cache_dir,
    )


def _table(path: str | os.PathLike | None) -> Path:
    if path is None:
        raise Refused("data set 'files' needs a table of paths and labels; set data.path=mine.csv.")
    return existing(path, expected="a .csv or .parquet of paths and labels", example="mine.csv")


def _read(table: Path) -> dict[str, list[str]]:
    """The columns as text, by name."""
    if table.suffix.lower() == ".parquet":
        return _read_parquet(table)
    if table.suffix.lower() != ".csv":
        raise Refused(f"{table} is neither .csv nor .parquet; expected a table of paths and labels in one of them.")
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            columns: dict[str, list[str]] = {name: [] for name in header}
            if len(columns) < len(header):
                raise Refused(f"{table} has a column twice in its header {','.join(header)}; expected each once.")
            for number, row in enumerate(rows, 1):
                if not row:
                    continue
                if len(row) != len(header):
                    raise Refused(
                        f"{table} has {len(row)} values in row {number} and {len(header)} columns; expected as many: "
                        "put quotes around values that contain commas."
                    )
                for name, value in zip(header, row, strict=True):
                    columns[name].append(value.strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{table} cannot be read as CSV ({error}); expected UTF-8 text with commas.") from error
    return columns


def _read_parquet(table: Path) -> dict[str, list[str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise Refused(f"{table} needs pyarrow, which is not installed; type pip install pyarrow.") from error
    try:
        names = parquet.read_schema(table).names
        _refuse_or_name_others(table, [name for name in names if name not in COLUMNS])
        names = [name for name in names if name in COLUMNS]
        read = parquet.read_table(table, columns=names)
    except (OSError, ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise Refused(f"{table} cannot be read as Parquet ({reason}); expected columns of text and numbers.") from error
    return {name: [_as_text(value, name) for value in read.column(name).to_pylist()] for name in names}


def _as_text(value: object, column: str) -> str:
    """A value of Parquet as a CSV would hold it; a missing number is NaN where pandas has written it."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value) if column == "path" else str(value).strip()


def _refuse_or_name_others(table: Path, others: Sequence[str]) -> None:
    """Names the columns that nothing reads, and refuses one that was meant as one that is read."""
    for name in others:
        meant = name.strip().lower()
        if meant in COLUMNS or (meant := meant.removesuffix("s")) in COLUMNS:
            raise Refused(
                f"{table} has a column {name!r}, which nothing would use; expected {meant}, or a name that "
                "nobody takes for it: rename it."
            )
    if named := [repr(name) for name in others if name]:  # the index that pandas writes has no name
        warnings.warn(f"{table} also holds {', '.join(named)}, which nothing uses.", stacklevel=4)


def _as_integers(values: Sequence[str]) -> np.ndarray:
    """Integers where all of them are, else the texts."""
    if all(re.fullmatch(r"-?\d+", value) and len(value) < 10 for value in values):
        return np.array([int(value) for value in values], np.int64)
    return np.array(values)


def _weights(table: Path, columns: Mapping[str, Sequence[str]]) -> np.ndarray | None:
    if "weight" not in columns:
        return None
    try:
        return np.array([float(value) for value in columns["weight"]], np.float32)
    except ValueError as error:
        raise Refused(f"{table} has a weight that is no number ({error}); expected numbers of at least 0.") from error


def _rows(
    table: Path, columns: Mapping[str, Sequence[str]], label: np.ndarray, test_examples: int | None
) -> dict[str, np.ndarray]:
    if "split" not in columns:
        test, train = carve(str(table), label, test_examples)
        return {"train": train, "test": test}
    if unknown := sorted({value for value in columns["split"] if value not in SPLITS}):
        raise Refused(f"{table} has a split named {unknown[0]!r}; {nearest(unknown[0], SPLITS)}")
    parts = np.array([SPLITS[value] for value in columns["split"]])
    if missing := [what for what in ("train", "test") if what not in parts]:
        raise Refused(f"{table} has no row whose split is {missing[0]}; expected train and test, and val if wanted.")
    return {what: np.flatnonzero(parts == what) for what in ("train", "calibration", "test") if what in parts}

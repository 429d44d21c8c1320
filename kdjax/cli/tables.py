"""Tables of predictions: CSV with the standard library and NumPy, Parquet with pyarrow where it is installed."""

from __future__ import annotations

import csv
import fnmatch
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax.cli.arrays import check_size
from kdjax.errors import Refused, nearest, printable

LABEL_NAMES = ("label", "labels", "y", "y_true", "target", "targets", "true_label", "truth", "ground_truth", "class")
NOT_SCORES = (
    *("pred", "preds", "prediction", "predicted", "predicted_label", "y_pred", "argmax", "correct"),
    *("confidence", "conf", "fold", "split", "weight", "sample", "sample_id", "image_id", "example_id", "uid"),
)
"""Headings of numbers that stand beside the scores of a model, and are no class as a rule."""
INDEX_NAMES = ("", "id", "index", "idx", "row", "unnamed: 0", "__index_level_0__")
_LINES = 20_000
_LONGEST_LINE = 2**22
_SNIFFED = 200


class Columns(NamedTuple):
    """What a table gives.

    Attributes:
      scores: [N, K].
      labels: [N], numbers or strings; None if the table has none.
      names: the K headings of the scores, () without a heading line.
      said: what was taken for what.
      label_name: heading of the labels, or "".
    """

    scores: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    said: list[str]
    label_name: str = ""


class _Roles(NamedTuple):
    scores: list[int]
    label: int | None
    left_out: list[int]


def read_csv(path: Path, scores: str, labels: str, limit: int) -> Columns:
    """Reads comma-, semicolon- or tab-separated values with a heading line.

    Args:
      scores: patterns of the score columns, such as "p_*", or "".
      labels: name of the label column, or "".

    Raises:
      Refused: no heading, a cell that is no number, lines of unequal length; naming line and column.
    """
    check_size(path, "the file", path.stat().st_size, limit)
    lines = _lines(path)
    first = next(lines, "")
    delimiter = max(",;\t", key=first.count)
    head = _cells(first, delimiter)
    sample = list(itertools.islice(lines, _SNIFFED))
    headless = bool(head) and all(map(_is_number, head)) and not _counted(path, head, sample)
    sample = ([first] if headless else []) + sample
    if not sample:
        raise Refused(f"{path} is empty but for its heading; expected a line for each example.")
    kinds = [
        all(map(_is_number, column)) for column in zip(*(_cells(line, delimiter) for line in sample), strict=False)
    ]
    if headless:
        if labels or scores:
            raise Refused(f"{path} has no heading line, so no column is called {labels or scores!r}; add one.")
        head, roles = [], _Roles([*range(len(kinds))], None, [])
    else:
        roles = _roles(path, head, kinds + [False] * (len(head) - len(kinds)), scores, labels)
    numbers: list[np.ndarray] = []
    texts: list[np.ndarray] = []
    line_number = 1 + (not headless)
    width = len(head) or len(kinds)
    for block in _blocks(itertools.chain(sample, lines)):
        numbers.append(_numbers(path, block, delimiter, roles.scores, head, width, line_number))
        if roles.label is not None:
            texts.append(_texts(block, delimiter, roles.label))
        line_number += len(block)
    label = None if roles.label is None else _typed(np.concatenate(texts))
    heads = tuple(head[i] for i in roles.scores) if head else ()
    return Columns(np.concatenate(numbers), label, heads, _say(head, roles), _label_name(head, roles))


def read_parquet(path: Path, scores: str, labels: str, limit: int) -> Columns:
    """Reads a Parquet table of numbers: one column a class, or one column of lists of equal length.

    Raises:
      Refused: pyarrow is not installed, the file is damaged or declares too much, missing values.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise Refused(f"{path} needs pyarrow to be read; type pip install pyarrow, or save a .csv or .npz.") from error
    try:
        file = pq.ParquetFile(path)
        meta, schema = file.metadata, file.schema_arrow
        inflated = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Refused(f"{path} is not readable as Parquet (cut off or damaged); save it again.") from error
    check_size(path, "what it declares", max(inflated, meta.num_rows * max(len(schema), 1)), limit)
    lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
    numeric = [pa.types.is_floating(f.type) or pa.types.is_integer(f.type) or f.name in lists for f in schema]
    roles = _roles(path, list(schema.names), numeric, scores, labels or "")
    if lists and not scores:
        chosen = [i for i in roles.scores if schema.names[i] in lists]
        roles = roles._replace(scores=chosen, left_out=[*roles.left_out, *({*roles.scores} - {*chosen})])
    wanted = [*roles.scores, *([] if roles.label is None else [roles.label])]
    try:
        table = file.read(columns=[schema.names[i] for i in wanted])
        columns = [table.column(schema.names[i]) for i in wanted]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Refused(f"{path} is damaged inside (a page cannot be read); save it again.") from error
    for i, column in zip(wanted, columns, strict=True):
        if column.null_count:
            raise Refused(f"{path}: column '{printable(schema.names[i], 60)}' misses {column.null_count} values.")
    names = tuple(schema.names[i] for i in roles.scores)
    if lists and len(roles.scores) == 1:
        flat = columns[0].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if meta.num_rows == 0 or len(flat) % meta.num_rows or len(flat) == 0:
            raise Refused(
                f"{path}: the lists in '{printable(names[0], 60)}' differ in length; expected K numbers each."
            )
        matrix, names = flat.reshape(meta.num_rows, -1), ()
    else:
        matrix = np.empty((meta.num_rows, len(roles.scores)), np.float64)
        for j in range(len(roles.scores)):
            matrix[:, j] = columns[j].to_numpy()
    label = None if roles.label is None else np.asarray(columns[-1].to_numpy(zero_copy_only=False))
    if label is not None and label.dtype.kind == "O":
        label = label.astype(str)
    return Columns(matrix, label, names, _say(schema.names, roles), _label_name(schema.names, roles))


def read_labels(path: Path, limit: int) -> np.ndarray:
    """Labels from a table of one column, or from its column called as labels are.

    Raises:
      Refused: several columns and none of them the labels.
    """
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        names = [name for name in pq.ParquetFile(path).schema_arrow.names]
    else:
        check_size(path, "the file", path.stat().st_size, limit)
        lines = list(_lines(path))
        delimiter = max(",;\t", key=lines[0].count)
        names = _cells(lines[0], delimiter)
    known = [i for i, name in enumerate(names) if name.strip().lower() in LABEL_NAMES]
    if len(names) > 1 and len(known) != 1:
        raise Refused(f"{path} has {len(names)} columns and none called 'label'; expected one column of labels.")
    column = known[0] if known else 0
    if path.suffix.lower() == ".parquet":
        labels = np.asarray(pq.read_table(path, columns=[names[column]]).column(0).to_numpy(zero_copy_only=False))
        return labels.astype(str) if labels.dtype.kind == "O" else labels
    return _typed(_texts(lines[1:] if known else lines, delimiter, column))


def _roles(path: Path, head: Sequence[str], numeric: Sequence[bool], scores: str, labels: str) -> _Roles:
    lower = [name.strip().lower() for name in head]
    shown = ", ".join(printable(name, 30) for name in head[:12]) + (", ..." if len(head) > 12 else "")
    if len({*head}) < len(head):
        raise Refused(f"{path} names the column '{printable(max(head, key=head.count), 60)}' twice; rename one.")
    label: int | None = None
    if labels:
        if labels not in head:
            raise Refused(f"{path} has no column {labels!r} for the labels; {printable(nearest(labels, head))}")
        label = list(head).index(labels)
    else:
        known = [i for i, name in enumerate(lower) if name in LABEL_NAMES]
        label = known[0] if known else None
        if len(known) > 1:
            raise Refused(
                f"{path} has several columns that may be the labels ({', '.join(head[i] for i in known)}); "
                f"type --labels {head[known[0]]}."
            )
        if label is None and numeric.count(False) == 1:
            label = list(numeric).index(False)
    rest = [i for i in range(len(head)) if i != label]
    if scores:
        patterns = scores.split(",")
        chosen = [i for i in rest if any(fnmatch.fnmatchcase(head[i], pattern.strip()) for pattern in patterns)]
        if not chosen:
            raise Refused(f"{path} has no column that matches --scores {scores!r}; its columns: {shown}.")
        if wrong := [head[i] for i in chosen if not numeric[i]]:
            raise Refused(f"{path}: the column '{printable(wrong[0], 60)}' holds text; expected numbers.")
    else:
        chosen = [i for i in rest if numeric[i] and lower[i] not in INDEX_NAMES]
        if doubtful := [head[i] for i in chosen if lower[i] in NOT_SCORES]:
            raise Refused(
                f"{path} has a column '{printable(doubtful[0], 60)}' of numbers, which may be no score; type "
                f"--scores with patterns of the score columns, such as 'p_*' (the columns: {shown})."
            )
    if not chosen:
        raise Refused(f"{path} has no columns of numbers besides the labels; its columns: {shown}.")
    return _Roles(chosen, label, [i for i in rest if i not in chosen])


def _counted(path: Path, head: Sequence[str], sample: Sequence[str]) -> bool:
    """Whether the first line is the heading 0,1,2,... that pandas writes where columns have no names.

    Raises:
      Refused: of two columns it may also be the first example.
    """
    if len(head) < 2 or [cell.strip() for cell in head] != [str(i) for i in range(len(head))]:
        return False
    if len(head) == 2 and not any("." in line or "e" in line.lower() for line in sample):
        raise Refused(
            f"{path} begins with the line 0,1, which may be a heading or an example; expected a heading of names, "
            "such as p_0,p_1."
        )
    return True


def _say(head: Sequence[str], roles: _Roles) -> list[str]:
    if not head:
        return ["no heading line: every column is a class"]
    names = [printable(head[i], 30) for i in roles.scores]
    shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    said = [f"scores: {len(names)} column{'s' * (len(names) > 1)}, {shown}"]
    if roles.left_out:
        said.append(f"left out: {', '.join(repr(printable(head[i], 30)) for i in roles.left_out)}")
    return said


def _label_name(head: Sequence[str], roles: _Roles) -> str:
    return "" if roles.label is None else head[roles.label]


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline=None) as file:
        try:
            while line := file.readline(_LONGEST_LINE):
                if len(line) >= _LONGEST_LINE or "\0" in line:
                    raise Refused(f"{path} is not a table of text (a line never ends, or holds binary data).")
                if line.strip():
                    yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise Refused(f"{path} is not UTF-8 text; save the table as UTF-8, or as .npz.") from error


def _blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    while block := list(itertools.islice(lines, _LINES)):
        yield block


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        raise Refused(f"a line of the table cannot be split into cells ({error}).") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(
    path: Path, block: list[str], delimiter: str, wanted: list[int], head: Sequence[str], width: int, start: int
) -> np.ndarray:
    """[lines, K] of one block; on a fault the cells are walked once more to name the first wrong one."""
    try:
        plain = all(line.count(delimiter) == width - 1 for line in block)
        if plain and '"' not in "".join(block[:_SNIFFED]):
            return np.loadtxt(block, delimiter=delimiter, usecols=wanted, ndmin=2, comments=None)
        rows = [_cells(line, delimiter) for line in block]
        if all(len(row) == width for row in rows):
            return np.array([[float(row[i]) for i in wanted] for row in rows])
    except (ValueError, IndexError):
        pass
    for number, line in enumerate(block, start):
        cells = _cells(line, delimiter)
        if len(cells) != width:
            raise Refused(f"{path}, line {number}, has {len(cells)} cells; expected {width}, as the first line.")
        for i in wanted:
            if not _is_number(cells[i]):
                name = f"column '{printable(head[i], 60)}'" if head else f"column {i + 1}"
                raise Refused(
                    f"{path}, line {number}, {name}, holds '{printable(cells[i], 40)}'; expected a number "
                    "(with a decimal point)."
                )
    return np.array([[float(_cells(line, delimiter)[i]) for i in wanted] for line in block])


def _texts(block: list[str], delimiter: str, column: int) -> np.ndarray:
    return np.array([_cells(line, delimiter)[column].strip() for line in block], dtype=str)


def _typed(texts: np.ndarray) -> np.ndarray:
    """Labels as integers where all are written so, as floats where all are numbers, else as they are."""
    for dtype in (np.int64, np.float64):
        try:
            return texts.astype(dtype)
        except (ValueError, OverflowError):
            continue
    return texts

"""One file of texts and labels, JSON lines or a table: read row by row, every row checked."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, Any

from kdjax.errors import Refused, nearest
from kdjax.huggingface.tokenizer import check_characters

SUFFIXES = (".jsonl", ".csv", ".tsv")
PACKED: Mapping[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]
ENDS = tuple(suffix + packed for suffix in SUFFIXES for packed in ("", *PACKED))


def read_table(
    path: Path,
    *,
    text_columns: Sequence[str] = ("text",),
    label_column: str = "label",
    by_option: bool = False,
    pool: bool = False,
) -> tuple[list[str], list[Any]]:
    """(texts, labels) of a `.jsonl`, `.csv` or `.tsv`, UTF-8, packed by gzip or xz or not; tables have a header.

    Several text columns are joined by a full stop. Blanks around a label are no part of it.

    Args:
      by_option: the columns were named by options of the data set `text`, and the sentence of a missing one says so.
      pool: splits are drawn from the file, so that a column `split`, in whatever case, is refused. Elsewhere the file
        is one split, and refused where such a column names several.

    Raises:
      Refused: another suffix; a file that cannot be read, by line; a column that is missing or there twice; a row of
        more or fewer values than columns; a `.tsv` with quoting; a text that is no text; a row without a label.
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
            rows = _json_rows(file, path) if plain.suffix == ".jsonl" else _table_rows(file, path, plain.suffix)
            for line, row in rows:
                for column in _split_columns({*row} - {*text_columns, label_column}):
                    splits.setdefault(str(row[column]), line)
                    _refuse_splits(path, column, splits, pool)
                text, label = _example(path, line, row, text_columns, label_column, by_option)
                texts.append(text)
                labels.append(label)
    except Refused:
        raise
    except (OSError, EOFError, lzma.LZMAError, zlib.error, csv.Error, ValueError, RecursionError) as error:
        raise Refused(
            f"{path} cannot be read after line {line} ({error}); expected UTF-8 {plain.suffix[1:]}."
        ) from error
    if not texts:
        raise Refused(f"{path} has no rows; expected a text and a label in each.")
    return texts, labels


def _example(
    path: Path, line: int, row: Mapping[str, Any], text_columns: Sequence[str], label_column: str, by_option: bool
) -> tuple[str, str | int]:
    label = row.get(label_column)
    label = label.strip() if isinstance(label, str) else label
    for column in (*text_columns, label_column):
        if row.get(column) is None or (column == label_column and label == ""):
            option = "label_column" if column == label_column else "text_column"
            hint = _hint(row, column, {*text_columns, label_column}, option if by_option else "")
            raise Refused(f"{path} has no {column!r} in line {line}; {hint}")
    parts = [row[column] for column in text_columns]
    if not all(isinstance(part, str) for part in parts) or not isinstance(label, str | int) or isinstance(label, bool):
        raise Refused(
            f"{path} holds {parts} with the label {label!r} in line {line}; expected a text, and a name or an integer "
            "as label."
        )
    text = ". ".join(parts)
    check_characters(f"line {line} of {path}", f"{text}{label}")
    return text, label


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


def _hint(row: Mapping[str, Any], column: str, named: Set[str], option: str) -> str:
    """What to type where a row has no such column, or an empty place in it."""
    if column in row:
        return "expected a value in every row: fill it in, or remove the row."
    there = list(row)
    hint = nearest(column, there) if there else "expected a row of named values."
    if not option or not (others := [name for name in there if name not in named]):
        return hint
    # The label mostly stands last, and the text is the longest.
    likely = others[-1] if option == "label_column" else max(others, key=lambda name: len(str(row[name])))
    close = difflib.get_close_matches(column, others, n=1, cutoff=0.5)
    return f"{hint} Rename it, or set data.options.{option}={(close or [likely])[0]}."


def _json_rows(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise Refused(f"{path} has {twice!r} twice in line {line}; expected each once: remove one of them.")
        return row

    for line, text in enumerate(file, 1):
        if text.strip():
            row = json.loads(text, object_pairs_hook=once)
            yield line, row if isinstance(row, dict) else {}


def _table_rows(file: IO[str], path: Path, suffix: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    if suffix == ".tsv":
        # Tab-separated files have no quoting by convention: a text may begin with a quotation mark.
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        surplus = "remove the tabs inside values"
    else:
        reader = csv.reader(file, strict=True)
        surplus = "put quotes around values that contain commas"
    header = next((row for row in reader if row), [])
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise Refused(f"{path} has the column {twice[0]!r} twice; expected each once: rename or remove one of them.")
    if suffix == ".tsv" and (quoted := [name for name in header if len(name) > 2 and name[0] == name[-1] == '"']):
        raise Refused(_quoted(path, quoted[0], reader.line_num))
    for row in reader:
        line = reader.line_num
        if row and len(row) != len(header):
            remedy = surplus if len(row) > len(header) else "fill in what is missing, or remove the row"
            raise Refused(
                f"{path} has {len(row)} values in line {line} and {len(header)} columns; expected as many: {remedy}."
            )
        if suffix == ".tsv" and (quoted := [value for value in row if _is_quoted(value)]):
            raise Refused(_quoted(path, quoted[0], line))
        if row:
            yield line, dict(zip(header, row, strict=True))


def _is_quoted(value: str) -> bool:
    """Whether a CSV writer has put quotation marks around the value and doubled those inside."""
    inside = value[1:-1]
    return len(value) > 2 and value[0] == value[-1] == '"' and '""' in inside and '"' not in inside.replace('""', "")


def _quoted(path: Path, value: str, line: int) -> str:
    shown = value if len(value) <= 40 else f"{value[:30]} ... {value[-5:]}"
    return (
        f"{path} has {shown} in line {line}, with the quotation marks of a CSV writer; expected none, which are part "
        "of a text in a .tsv: write the table as .csv, with commas."
    )

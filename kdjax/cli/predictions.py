"""A model's predictions from a file: which array is what, logits or probabilities, whose labels; all of it said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax.cli import tables
from kdjax.cli.arrays import GIB, Arrays, open_arrays
from kdjax.cli.labels import class_names, numbered
from kdjax.errors import Refused, nearest, printable
from kdjax.posthoc.portable import LEAST_PROBABILITY

ARRAYS = (".npy", ".npz", ".safetensors")
TABLES: dict[str, Callable[[Path, str, str, int], tables.Columns]] = {
    ".csv": tables.read_csv,
    ".tsv": tables.read_csv,
    ".txt": tables.read_csv,
    ".parquet": tables.read_parquet,
}
SCORE_NAMES = (
    "logits",
    "probabilities",
    "probs",
    "proba",
    "scores",
    "y_prob",
    "y_score",
    "outputs",
    "predictions",
    "preds",
)
CLASS_NAMES = ("classes", "class_names", "label_names")
# Rows of probabilities written with few decimals miss 1 by this much; more is no rounding.
_SUM_SLACK = 1e-2
_ROWS = 2**22


class Predictions(NamedTuple):
    """What one model says of N examples.

    Attributes:
      name: of the file, printable.
      logits: [N, K]; the logarithms where the file holds probabilities.
      labels: [N], int64 in [0, K), or None.
      classes: K names, printable, or ().
      scores: "logits" or "probabilities", what the file holds.
      said: sentences on what was taken for what.
    """

    name: str
    logits: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    scores: str
    said: list[str]

    @property
    def truth(self) -> np.ndarray:
        """The labels.

        Raises:
          Refused: there are none.
        """
        if self.labels is None:
            raise Refused(
                f"{self.name} holds no labels (looked for {', '.join(tables.LABEL_NAMES[:4])}, ...); type --labels "
                "with the name of the array or column, or with a file of labels."
            )
        return self.labels


class How(NamedTuple):
    """What the flags say of the files: see `kdjax audit --help`."""

    scores: str = ""
    labels: str = ""
    kind: str = ""
    limit: int = 4 * GIB


def read(path: str | Path, how: How) -> Predictions:
    """Reads one file of predictions.

    Raises:
      Refused: in one sentence, for whatever is wrong with it.
    """
    path = Path(path)
    suffix = _suffix(path, (*ARRAYS, *TABLES))
    label_file = Path(how.labels) if how.labels and Path(how.labels).is_file() else None
    if how.labels and label_file is None and Path(how.labels).suffix.lower() in (*ARRAYS, *TABLES):
        raise Refused(f"the labels '{printable(how.labels)}' are a file that does not exist.")
    label_name = "" if label_file else how.labels
    labels: np.ndarray | None
    if suffix in TABLES:
        table = TABLES[suffix](path, how.scores, label_name, how.limit)
        scores, labels, said = table.scores, table.labels, [*table.said]
        words = np.unique(labels) if labels is not None and labels.dtype.kind == "U" else ()
        names, origin = class_names(table.names, map(str, words)), f"column '{printable(table.label_name, 60)}'"
    else:
        scores, labels, names, said, origin = _from_arrays(open_arrays(path, how.limit), how.scores, label_name)
    if label_file:
        labels, origin = _label_file(label_file, how.limit), printable(label_file.name)
    name = printable(path.name, 80)
    scores = _matrix(name, scores)
    if suffix in TABLES and table.names and not how.scores:
        _refuse_extra(name, scores, table.names)
    kind = _detected(name, scores, how.kind, said)
    if all(part.isdigit() for part in names) and [int(part) for part in names] == list(range(len(names))):
        names = ()
    if labels is not None:
        if len(labels) != len(scores):
            more = len(labels) == len(scores) + 1 and label_file is not None and label_file.suffix.lower() in TABLES
            hint = " (is its first line a heading? call it label)" if more else ""
            raise Refused(
                f"{name} has {len(scores)} examples and {len(labels)} labels ({origin}); expected one each{hint}."
            )
        labels, names = numbered(name, labels, scores.shape[1], names, origin, said)
    if kind == "probabilities":
        _to_logits(scores, labels, said)
    elif labels is not None and (never := int(np.isneginf(scores[np.arange(len(labels)), labels]).sum())):
        said.append(f"{never} labels have a logit of -inf, a probability of 0 and an infinite NLL")
    return Predictions(name, scores, labels, tuple(printable(part, 60) for part in names), kind, said)


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    suffix = path.suffix.lower()
    shown = printable(str(path))
    if path.is_dir():
        raise Refused(f"{shown} is a directory; expected a file of predictions ({', '.join(known)}).")
    if suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib"):
        raise Refused(
            f"{shown} is a pickle, which can run code when it is read and is not opened; save the numbers with "
            "np.savez(path, logits=..., labels=...)."
        )
    if suffix not in known:
        raise Refused(f"{shown} ends in '{printable(suffix)}'; expected one of {', '.join(known)}.")
    if not path.is_file():
        raise Refused(f"{shown} does not exist, or is no file.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise Refused(f"{shown} is empty; save the predictions again.")
    except OSError as error:
        raise Refused(f"{shown} cannot be read ({error.strerror}).") from error
    return suffix


def _from_arrays(
    source: Arrays, scores: str, labels: str
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...], list[str], str]:
    """(scores, labels, class names, said, where the labels come from) of a file of named arrays."""
    headers, where = source.headers, printable(str(source.path))
    listed = ", ".join(f"{printable(name, 40)} {header}" for name, header in list(headers.items())[:8])
    matrices = [name for name, header in headers.items() if len(header.shape) == 2 and header.shape[1] != 1]
    for given, flag in ((scores, "--scores"), (labels, "--labels")):
        if given and given not in headers:
            raise Refused(f"{where} has no array {given!r} ({flag}); {printable(nearest(given, headers))}")
    usual = [name for name in SCORE_NAMES if name in headers]
    chosen = scores or (usual[0] if usual else matrices[0] if len(matrices) == 1 else "")
    if not chosen and len(headers) == 1:
        chosen = next(iter(headers))
    if not chosen:
        raise Refused(f"{where} holds {listed or 'no arrays'}: which are the scores? Type --scores NAME.")
    rest = [name for name in headers if name != chosen]
    vectors = [n for n in rest if headers[n].shape[:1] == headers[chosen].shape[:1] and n.lower() not in CLASS_NAMES]
    named = [name for name in rest if name.lower() in tables.LABEL_NAMES]
    label = labels or (named[0] if named else vectors[0] if len(vectors) == 1 else "")
    if len(named) > 1 and not labels:
        raise Refused(f"{where} holds {listed}: several may be the labels; type --labels {named[0]}.")
    classes = next((name for name in rest if name.lower() in CLASS_NAMES and len(headers[name].shape) == 1), None)
    names = tuple(str(name) for name in source.read(classes)) if classes else ()
    if names and headers[chosen].shape[1:] != (len(names),):
        raise Refused(
            f"{where} has {len(names)} names in {classes!r} for scores of shape {list(headers[chosen].shape)}."
        )
    said = [f"scores: array '{printable(chosen, 40)}'"]
    if unread := [name for name in rest if name not in (label, classes)]:
        said.append(f"left out: {', '.join(repr(printable(name, 30)) for name in unread[:8])}")
    vector = source.read(label) if label else None
    return source.read(chosen), vector, names, said, f"array '{printable(label, 40)}'"


def _label_file(path: Path, limit: int) -> np.ndarray:
    suffix = _suffix(path, (*ARRAYS, *TABLES))
    if suffix in ARRAYS:
        source = open_arrays(path, limit)
        names = [name for name in source.headers if name.lower() in tables.LABEL_NAMES] or list(source.headers)
        if len(names) != 1:
            raise Refused(f"{printable(str(path))} holds {len(names)} arrays; expected one of labels, called 'labels'.")
        return source.read(names[0])
    return tables.read_labels(path, limit)


def _matrix(name: str, scores: np.ndarray) -> np.ndarray:
    """[N, K] writable floating-point numbers, float32 at least, all of them numbers."""
    if scores.dtype.kind not in "fiub":
        raise Refused(f"{name}: the scores are {scores.dtype}; expected numbers.")
    if scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1):
        raise Refused(
            f"{name} has one column of scores; expected one for each class: of a two-class model with probability p "
            "save np.stack([1 - p, p], axis=1)."
        )
    if scores.ndim != 2:
        raise Refused(f"{name}: the scores have shape {list(scores.shape)}; expected [examples, classes].")
    if 0 in scores.shape:
        raise Refused(f"{name}: the scores have shape {list(scores.shape)}, and so no example; save them again.")
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)
    return np.require(scores.astype(scores.dtype.newbyteorder("="), copy=False), requirements="W")


def _refuse_extra(name: str, scores: np.ndarray, heads: tuple[str, ...]) -> None:
    """Refuses a table of probabilities with one more column of numbers, which would make logits of them all."""
    if scores.shape[1] < 3 or np.isinf(scores).any():
        return
    total, low, high = scores.sum(axis=1, dtype=np.float64), scores.min(axis=0), scores.max(axis=0)
    for j in np.flatnonzero(np.abs(total[0] - scores[0] - 1) <= _SUM_SLACK):
        others = np.arange(len(heads)) != j
        sums = np.abs(total - scores[:, j] - 1).max() <= _SUM_SLACK
        if sums and low[others].min() >= 0 and high[others].max() <= 1 and np.abs(scores[:, j]).max() > _SUM_SLACK:
            raise Refused(
                f"{name}: without the column '{printable(heads[j], 60)}' every row is a probability distribution; "
                "expected scores alone: type --scores with patterns of their columns, such as 'p_*'."
            )


def _detected(name: str, scores: np.ndarray, stated: str, said: list[str]) -> str:
    """ "logits" or "probabilities", by the values or as stated; refuses what is neither."""
    low, high, worst, worst_row, percent = np.inf, -np.inf, 0.0, 0, True
    step = max(1, _ROWS // scores.shape[1])
    for start in range(0, len(scores), step):
        block = scores[start : start + step]
        top = block.max(axis=1)
        if not np.isfinite(top).all():
            row = start + int(np.flatnonzero(~np.isfinite(top))[0])
            kind = "NaN" if np.isnan(scores[row]).any() else "an infinity"
            raise Refused(f"{name}, example {row} (counted from 0), holds {kind}; drop the example or mend the model.")
        low, high = min(low, float(block.min())), max(high, float(top.max()))
        sums = block.sum(axis=1, dtype=np.float64)
        off = np.abs(sums - 1)
        if off.max() > worst:
            worst, worst_row = float(off.max()), start + int(off.argmax())
        percent &= bool((np.abs(sums - 100) < 1).all())
    unit = low >= -1e-6 and high <= 1 + 1e-6
    if stated == "logits":
        if unit and worst <= _SUM_SLACK:
            said.append("logits, as --logits says; but every row is a probability distribution")
        else:
            said.append("logits, as --logits says")
        return "logits"
    if unit and worst <= _SUM_SLACK:
        rounded = f" to within {worst:.2g}, and is divided by its sum" if worst > 1e-4 else ""
        said.append(f"probabilities: every number lies in [0, 1] and every row sums to 1{rounded}")
        return "probabilities"
    if low >= 0 and percent:
        raise Refused(f"{name} holds percentages (rows sum to 100); divide them by 100.")
    if unit:
        total = float(scores[worst_row].sum(dtype=np.float64))
        raise Refused(
            f"{name} lies in [0, 1], but example {worst_row} sums to {total:.4g} and not to 1: sigmoid outputs? Divide "
            "each row by its sum if exactly one class is right, or type --logits if these are logits."
        )
    if stated == "probabilities":
        raise Refused(
            f"{name} holds numbers from {low:.4g} to {high:.4g}, which are no probabilities; type --logits, or save "
            "the output of the softmax."
        )
    said.append(f"logits: numbers from {low:.3g} to {high:.3g}")
    return "logits"


def _to_logits(scores: np.ndarray, labels: np.ndarray | None, said: list[str]) -> None:
    """Probabilities to their logarithms, in place: a second matrix need not fit in memory."""
    step, zeros = max(1, _ROWS // scores.shape[1]), 0
    for start in range(0, len(scores), step):
        block = scores[start : start + step]
        if labels is not None:
            said_of_truth = block[np.arange(len(block)), labels[start : start + step]]
            zeros += int((said_of_truth < LEAST_PROBABILITY).sum())
        np.log(np.maximum(block, LEAST_PROBABILITY, out=block), out=block)
    if zeros:
        said.append(
            f"{zeros} labels have a probability of 0, an infinite NLL, or below {LEAST_PROBABILITY:g}: it is counted "
            f"as {LEAST_PROBABILITY:g}"
        )

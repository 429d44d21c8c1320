"""Labels as people have them -> integers in [0, K) and names; whatever is ambiguous is refused with its remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.errors import Refused

PADDING = -1
"""The label of a region that does not exist, in labels [N, R]."""
MOST_CLASSES = 2**31 - 1
"""As many as labels of 32 bits tell apart."""


def check_num_classes(num_classes: Any, label_names: Sequence[str] = ()) -> None:
    """Refuses K that is not an integer of at least 2, or not the number of names."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise Refused(f"num_classes is {num_classes!r}; expected an integer of at least 2.")
    if num_classes > MOST_CLASSES:
        raise Refused(
            f"num_classes is {num_classes:,}, which takes {4 * num_classes // 10**9:,} GB for the logits of one "
            f"example; expected at most {MOST_CLASSES:,}, as many as labels of 32 bits tell apart."
        )
    if label_names and len(label_names) != num_classes:
        raise Refused(f"there are {len(label_names)} label names for {num_classes} classes; expected one for each.")


def check_names(label_names: Any) -> tuple[str, ...]:
    """Label names as a tuple.

    Raises:
      Refused: one text instead of several, something that is no text, or a name that occurs twice.
    """
    if isinstance(label_names, str | bytes) or not np.iterable(label_names):
        raise Refused(f"label_names is {label_names!r}; expected one name for each class, such as ('cat', 'dog').")
    names = tuple(label_names)
    if not all(isinstance(name, str) for name in names):
        wrong = next(name for name in names if not isinstance(name, str))
        raise Refused(f"a label name is {wrong!r}; expected text: label_names=('cat', 'dog').")
    names = tuple(str(name) for name in names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"the label name {twice!r} occurs twice; expected a name of its own for each class.")
    return names


def encode(
    where: str, labels: Mapping[str, Any], num_classes: int | None, label_names: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], int, tuple[str, ...]]:
    """Labels of every split as arrays, K, and the names.

    Text is numbered by `label_names`, or by the sorted names of all splits; integers pass and are checked later.

    Args:
      where: the set's name, for sentences.
      labels: split name -> labels.
      num_classes: K; may be left out where there are names.

    Raises:
      Refused: text in one split and numbers in another; a name that `label_names` lacks; no K.
    """
    names = check_names(label_names)
    arrays = {what: np.asarray(label) for what, label in labels.items()}
    is_text = {what: _is_text(array) for what, array in arrays.items()}
    if any(is_text.values()):
        if not all(is_text.values()):
            numbers = next(what for what, text in is_text.items() if not text)
            texts = next(what for what, text in is_text.items() if text)
            raise Refused(
                f"{where} has text as labels of {texts} and numbers as those of {numbers}; expected one kind."
            )
        arrays = {what: _decoded(where, array) for what, array in arrays.items()}
        occurring = sorted(set().union(*(np.unique(array).tolist() for array in arrays.values())))
        if names and (unknown := sorted(set(occurring) - set(names))):
            raise Refused(
                f"{where} has the label {unknown[0]!r}, which is not among the {len(names)} label names; expected "
                f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}: add it to label_names or drop the examples."
            )
        names = names or tuple(occurring)
        if num_classes is not None and num_classes != len(names):
            raise Refused(
                f"{where} has {len(names)} different names as labels and num_classes is {num_classes!r}; expected the "
                "same: leave num_classes out, or list the names of all classes in label_names."
            )
        table = {name: i for i, name in enumerate(names)}
        for what, array in arrays.items():
            values, inverse = np.unique(array, return_inverse=True)
            arrays[what] = np.array([table[value] for value in values.tolist()], np.int64)[inverse].reshape(array.shape)
    if num_classes is None:
        if not names:
            raise Refused(
                f"{where} does not say how many classes it has; expected num_classes=K, which is never guessed from "
                "the labels because a class may be missing."
            )
        num_classes = len(names)
    check_num_classes(num_classes, names)
    return arrays, int(num_classes), names


def check_type(what: str, label: np.ndarray, num_classes: int | None = None) -> None:
    """Refuses labels that are not integers [N], or [N, R] for R regions of each example."""
    integers = np.issubdtype(label.dtype, np.integer)
    if label.ndim == 2 and label.size and label.dtype.kind in "biuf" and _one_hot(label, num_classes):
        raise Refused(
            f"{what} labels have shape {label.shape} and look one-hot; expected one integer each, shape [N]: type "
            "label.argmax(-1)."
        )
    if label.ndim == 2 and label.shape[1] == 1:
        raise Refused(
            f"{what} labels have shape {label.shape}; expected one integer each, shape [N]: type label[:, 0]."
        )
    if label.ndim not in (1, 2) or (label.ndim == 2 and not integers):
        hint = " (probabilities: label.argmax(-1))" if label.ndim == 2 and label.dtype.kind == "f" else ""
        raise Refused(
            f"{what} labels have shape {label.shape} and type {label.dtype}; expected one integer each, shape [N], or "
            f"integers [N, R] for R regions of each example{hint}."
        )
    if not integers:
        all_whole = label.dtype.kind == "f" and bool(np.all(label == np.floor(label)))
        kind = "; they are whole numbers: type label.astype('int32')." if all_whole else ", the number of a class each."
        raise Refused(f"{what} labels have type {label.dtype}; expected integers in [0, K){kind}")


def check_range(what: str, label: np.ndarray, num_classes: int) -> None:
    """Refuses labels outside [0, K): -1 would train silently as class K-1, and K would give NaN.

    In labels [N, R], -1 marks a region that does not exist; one real region at least must be there.
    """
    lowest = PADDING if label.ndim == 2 else 0
    outside = (label < lowest) | (label >= num_classes)
    if label.ndim == 2 and not (label >= 0).any():
        raise Refused(f"{what} has only -1 as labels, so no region exists; expected classes 0 to {num_classes - 1}.")
    if not outside.any():
        return
    row = int(np.flatnonzero(outside.reshape(len(label), -1).any(1))[0])
    first = int(label[outside][0])
    existing = label[label != PADDING] if label.ndim == 2 else label
    if existing.min() == 1 and existing.max() == num_classes:
        remedy = f"they count from 1: type label - 1, or np.where(label > 0, label - 1, {PADDING})"
        remedy = remedy if label.ndim == 2 else "they count from 1: type label - 1"
    else:
        remedy = "drop those examples or correct num_classes"
    raise Refused(
        f"{what} has {int(outside.sum())} of {label.size} labels outside [0, {num_classes}), the first at position "
        f"{row} with value {first}; expected classes 0 to {num_classes - 1}: {remedy}."
    )


def _is_text(array: np.ndarray) -> bool:
    if array.dtype.kind == "O":
        return array.size > 0 and all(isinstance(value, str) for value in array.ravel())
    return array.dtype.kind in "UST"


def _decoded(where: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 1:
        raise Refused(f"{where} has text as labels of shape {array.shape}; expected one name each, shape [N].")
    if array.dtype.kind != "S":
        return array.astype(str)
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{where} has bytes as labels that are not UTF-8; expected text or integers.") from error


def _one_hot(label: np.ndarray, num_classes: int | None) -> bool:
    fits = label.shape[1] == num_classes if num_classes is not None else label.shape[1] > 1
    return fits and bool(np.isin(label, (0, 1)).all() and (label.sum(1) == 1).all())

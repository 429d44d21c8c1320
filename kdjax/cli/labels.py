"""Labels as class numbers: integers from 0 or 1, names, and what the headings of the scores call the classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from kdjax.errors import Refused, printable


def numbered(
    name: str, labels: np.ndarray, num_classes: int, names: tuple[str, ...], origin: str, said: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 labels in [0, K), and the class names."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise Refused(f"{name}: the labels have shape {list(labels.shape)} (one-hot?); save labels.argmax(axis=1).")
    if labels.ndim != 1:
        raise Refused(f"{name}: the labels have shape {list(labels.shape)}; expected one for each example.")
    if labels.dtype.kind in "US":
        return _by_name(name, labels.astype(str), num_classes, names, origin, said)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        integral = np.isfinite(labels).all() and (labels == np.round(labels)).all()
        raise Refused(
            f"{name}: the labels are {labels.dtype} (such as {labels[0]:.6g}); expected integers: "
            + ("save labels.astype(int)." if integral else "soft labels or a regression target cannot be audited.")
        )
    low, high = int(labels.min()), int(labels.max())
    if names and all(part.isdigit() for part in names) and {*map(str, np.unique(labels))} <= {*names}:
        return _by_name(name, labels.astype(str), num_classes, names, origin, said)
    if low < 0 or high > num_classes or (high == num_classes and low == 0):
        wrong = labels < 0 if low < 0 else labels >= num_classes
        row = int(np.flatnonzero(wrong)[0])
        raise Refused(
            f"{name}: label {labels[row]} of example {row} is none of the {num_classes} classes; expected 0 to "
            f"{num_classes - 1} (or 1 to {num_classes})."
        )
    if high == num_classes:
        said.append(f"labels: {origin}, integers from 1, so 1 is subtracted (the largest is {high}, of {high} classes)")
        return labels.astype(np.int64) - 1, names
    said.append(f"labels: {origin}, integers {low} to {high}")
    return labels.astype(np.int64), names


def _by_name(
    name: str, labels: np.ndarray, num_classes: int, names: tuple[str, ...], origin: str, said: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    distinct, index = np.unique(labels, return_inverse=True)
    if names and {*distinct} <= {*names}:
        said.append(f"labels: {origin}, by the names of the classes")
        places = np.array([names.index(one) for one in distinct])
        return places[index], names
    if len(distinct) == num_classes and (not names or all(part.isdigit() for part in names)):
        shown = ", ".join(f"{printable(one, 30)} = {i}" for i, one in enumerate(distinct[:4]))
        more = ", ..." if num_classes > 4 else ""
        said.append(f"labels: {origin}, strings in alphabetical order, as scikit-learn numbers them ({shown}{more})")
        return index.astype(np.int64), tuple(map(str, distinct))
    strange = next((one for one in distinct if one not in names), distinct[0])
    known = f"the classes are {', '.join(names[:6])}" if names else f"there are {num_classes} classes without names"
    raise Refused(
        f"{name}: the label '{printable(str(strange), 40)}' names no class ({printable(known, 200)}); name the score "
        "columns after the classes, or give the labels as integers."
    )


def class_names(heads: Sequence[str], labels: Iterable[str] = ()) -> tuple[str, ...]:
    """The class names in headings: what follows their common beginning ("p_cat", "p_dog" -> "cat", "dog").

    Of a beginning of several words ("p_big cat", "p_big dog") so many belong to the names as the labels say.
    """
    heads = [head.strip() for head in heads]
    if len(heads) < 2:
        return tuple(heads)
    letters = zip(*heads, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len({*column}) == 1, letters))
    numbered = all(head[shared:].isdigit() or not head[shared:] for head in heads)
    within_name = str.isdigit if numbered else str.isalnum
    cuts = [cut for cut in range(shared, 0, -1) if not within_name(heads[0][cut - 1])] + [0]
    wanted = {*labels}
    cut = next((cut for cut in cuts if wanted <= {head[cut:] for head in heads}), cuts[0])
    return tuple(head[cut:] for head in heads)

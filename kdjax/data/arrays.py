"""The user's own arrays, from Python or from an `.npz` file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdjax.data import checks
from kdjax.data.order import permutation
from kdjax.data.splits import Normalization, Source, assemble, check_num_classes, take
from kdjax.errors import Refused
from kdjax.types import Dataset, Split


def from_arrays(
    train: Split | Sequence,
    test: Split | Sequence,
    calibration: Split | Sequence | None = None,
    *,
    num_classes: int,
    name: str = "arrays",
    label_names: Sequence[str] = (),
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    train_examples: int | None = None,
    test_examples: int | None = None,
    normalization: Normalization = None,
) -> Dataset:
    """A `Dataset` from arrays in memory (or memory maps).

        data = from_arrays(train=(x, y), test=(x_test, y_test), num_classes=10)

    Args:
      train, test: pairs (inputs, label), or triples (inputs, label, index) with numbers of your own. Inputs are images
        [N, H, W, C], uint8 (0 to 255) or floats, features [N, D], token ids [N, L], or a pytree of arrays with one
        leading axis; labels are integers in [0, K).
      calibration: a split of your own; by default `calibration_fraction` of train is held out by `split_seed`.
      num_classes: K. Never guessed from the labels: a class may be missing from a split.
      train_examples, test_examples: keep only that many.
      normalization: "own" (default; per channel, from train), "none", "kdc" or a pair (mean, std).

    Raises:
      Refused: one sentence for whatever is wrong with the arrays; see `kdjax.data.checks`.
    """
    return assemble(
        _source(name, train, calibration, test, num_classes, label_names),
        split_seed=split_seed,
        calibration_fraction=calibration_fraction,
        train_examples=train_examples,
        test_examples=test_examples,
        normalization=normalization,
    )


def npz_source(
    *, path: str | os.PathLike | None = None, num_classes: int | None = None, test_examples: int | None = None
) -> Source:
    """An `.npz` of the user's own.

    Keys: `train_inputs`, `train_label`, `test_inputs`, `test_label`, and if wanted `calibration_inputs`,
    `calibration_label`; or one pool `inputs`, `label`, of which a fixed fifth (or `test_examples`) becomes the test
    split. `num_classes` is a number in the file or the option; `label_names` in the file is used when there.

        np.savez("mine.npz", train_inputs=x, train_label=y, test_inputs=x2, test_label=y2, num_classes=10)

    Raises:
      Refused: no such file; not an `.npz`; missing keys; pickled objects (never unpickled: they can run code).
    """
    if path is None:
        raise Refused("data set 'arrays' needs a file; expected the path of an .npz: set data.path=mine.npz.")
    arrays = _read(Path(path).expanduser())
    names = tuple(str(name) for name in arrays.get("label_names", ()))
    if num_classes is None:
        if "num_classes" not in arrays and not names:
            raise Refused(
                f"{path} does not say how many classes it has; expected an entry num_classes: add num_classes=K to the "
                "arguments of np.savez."
            )
        found = arrays["num_classes"] if "num_classes" in arrays else np.array(len(names))
        num_classes = found.item() if found.ndim == 0 else found.tolist()
    if "inputs" in arrays or "label" in arrays:
        pool = checks.as_split(f"{path}", _pair(path, arrays, ""))
        n = len(pool.label)
        size = max(1, round(n / 5)) if test_examples is None else test_examples
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= n - 2:
            raise Refused(
                f"a test split of {size!r} of the {n} examples in {path} leaves too few; expected test_examples in "
                f"[1, {n - 2}]."
            )
        order = permutation(n, "test", 0)
        train, test = take(pool, np.sort(order[size:])), take(pool, np.sort(order[:size]))
        return _source("arrays", train, None, test, num_classes, names)
    pairs = {what: _pair(path, arrays, f"{what}_") for what in ("train", "test")}
    own = any(f"calibration_{part}" in arrays for part in ("inputs", "label"))
    calibration = _pair(path, arrays, "calibration_") if own else None
    return _source("arrays", pairs["train"], calibration, pairs["test"], num_classes, names)


def _source(name, train, calibration, test, num_classes, label_names) -> Source:
    check_num_classes(num_classes, label_names)
    train = checks.as_split(f"{name} train", train)
    if calibration is not None:
        calibration = checks.as_split(f"{name} calibration", calibration, first_index=len(train.label))
    return Source(
        name=name,
        num_classes=int(num_classes),
        train=train,
        test=checks.as_split(f"{name} test", test),
        calibration=calibration,
        label_names=tuple(label_names),
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise Refused(f"there is no file {path}; expected an .npz written by np.savez: correct data.path.")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise Refused(f"{path} holds a single array; expected an .npz with several: write it by np.savez.")
        with archive:
            return {key: _member(path, archive, key) for key in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise Refused(f"{path} cannot be read as .npz ({error}); expected a file written by np.savez.") from error
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} is not an .npz of plain arrays; expected a file written by np.savez.") from error


def _member(path: Path, archive, key: str) -> np.ndarray:
    try:
        return archive[key]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise Refused(
            f"{path} holds Python objects under {key!r}, and those are never unpickled because they can run code; "
            "expected plain numbers: save an array of one numeric type."
        ) from error


def _pair(path, arrays: dict[str, np.ndarray], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    wanted = (f"{prefix}inputs", f"{prefix}label")
    if missing := [key for key in wanted if key not in arrays]:
        raise Refused(
            f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'} and lacks {' and '.join(missing)}; expected "
            "train_inputs, train_label, test_inputs, test_label, or one pool inputs, label."
        )
    return arrays[wanted[0]], arrays[wanted[1]]

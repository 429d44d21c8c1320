"""`kdjax apply`: predictions in, calibrated probabilities out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from kdjax import posthoc
from kdjax.cli.audit import describe
from kdjax.cli.predictions import How, Predictions, read
from kdjax.errors import Refused
from kdjax.files import write_bytes

FORMATS = (".csv", ".npz", ".npy", ".parquet", ".safetensors")


def apply(calibrator: str, file: str, out: str, how: How) -> list[str]:
    """Writes the calibrated probabilities, with the labels where the file has them and the format has room.

    Raises:
      Refused: a wrong file, or one of another model than the calibrator's.
    """
    target = Path(out)
    if target.suffix.lower() not in FORMATS:
        raise Refused(f"--out is {out!r}; expected a name that ends in {', '.join(FORMATS)}.")
    if not target.parent.is_dir():
        raise Refused(f"--out is {out!r}, and the directory {str(target.parent)!r} does not exist; make it first.")
    for read_too in (file, how.labels):
        if read_too and target.exists() and Path(read_too).exists() and target.samefile(read_too):
            raise Refused(
                f"--out is {out!r}, which is read as well and would be lost; expected another name, such as "
                f"--out {target.with_stem(target.stem + '_calibrated')}."
            )
    loaded = posthoc.load(calibrator)
    predictions = read(file, how)
    count, num_classes = predictions.logits.shape
    if num_classes != loaded.num_classes:
        raise Refused(f"{predictions.name} has {num_classes} classes and the calibrator {loaded.num_classes}.")
    if predictions.classes and loaded.classes and predictions.classes != loaded.classes:
        raise Refused(
            f"{predictions.name} names its classes {', '.join(predictions.classes[:4])}, ... and the calibrator "
            f"{', '.join(loaded.classes[:4])}, ...; expected the same names in the same order."
        )
    if loaded.form == "vector" and loaded.scores != predictions.scores:
        raise Refused(
            f"the calibrator was fitted on {loaded.scores} and {predictions.name} holds {predictions.scores}, which "
            "vector scaling does not take for the same; give the same kind, or fit again on this one."
        )
    probabilities = np.empty((count, num_classes), np.float64)
    step = max(1, 2**22 // num_classes)
    for start in range(0, count, step):
        probabilities[start : start + step] = loaded(predictions.logits[start : start + step])
    _write(target, probabilities, predictions, loaded.classes or predictions.classes)
    return [describe(predictions), f"wrote {target}: probabilities by {loaded.method}, [{count}, {num_classes}]"]


def _write(path: Path, probabilities: np.ndarray, predictions: Predictions, classes: tuple[str, ...]) -> None:
    suffix, labels, memory = path.suffix.lower(), predictions.labels, io.BytesIO()
    heads = [f"p_{name}" for name in classes or range(probabilities.shape[1])]
    arrays = {"probabilities": probabilities, **({} if labels is None else {"labels": labels})}
    if suffix == ".npy":
        np.save(memory, probabilities)
    elif suffix == ".npz":
        named: dict = {**arrays, **({"classes": np.array(classes)} if classes else {})}
        np.savez(memory, **named)
    elif suffix == ".safetensors":
        from safetensors.numpy import save

        memory.write(save(arrays))
    elif suffix == ".parquet":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise Refused("writing .parquet needs pyarrow; type pip install pyarrow, or another ending.") from error
        columns = {head: probabilities[:, k] for k, head in enumerate(heads)}
        pq.write_table(pa.table(columns if labels is None else {**columns, "label": _shown(labels, classes)}), memory)
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*heads, *([] if labels is None else ["label"])])
        shown = None if labels is None else _shown(labels, classes)
        for i, row in enumerate(probabilities):
            writer.writerow([*(f"{p:.8g}" for p in row), *([] if shown is None else [shown[i]])])
        memory.write(text.getvalue().encode())
    write_bytes(path, memory.getvalue())


def _shown(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    return np.array(classes)[labels] if classes else labels

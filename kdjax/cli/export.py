"""`kdjax export`: a trained network as a file for others, compared with its run before it is written."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from kdjax import stages
from kdjax.cli.export_formats import FORMATS, about
from kdjax.data import is_lazy
from kdjax.errors import Refused, one_of
from kdjax.files import Damaged, read_json, replaceable, write_bytes, write_json
from kdjax.predictor import TOKENIZER, Predictor, load
from kdjax.recipes import Data, from_dict
from kdjax.types import PyTree

_COMPARED = 500


def export(run: str, kind: str, out: str, data: str) -> list[str]:
    """Writes the selected network of a run, and returns the lines to print.

    Args:
      run: a finished stage's directory.
      kind: a key of `export_formats.FORMATS`.
      out: where to; "" for model.<kind> in the current directory.
      data: the data set's file or folder, where the run was made from one; "" for what the run says.

    Raises:
      Refused: not a finished run; a network that the format does not hold; a file that does not reproduce the run's
        logits, which is then not kept.
    """
    shape = FORMATS[one_of("--format", kind, FORMATS)]
    target = Path(out or f"model{shape.suffix}")
    if target.suffix != shape.suffix and shape.suffix:
        raise Refused(f"--out is {out!r}; expected a name that ends in {shape.suffix}.")
    if not target.parent.is_dir():
        raise Refused(f"--out is {out!r}, and the directory {str(target.parent)!r} does not exist; make it first.")
    beside = target.with_suffix(".json") if shape.suffix else target / "kdjax.json"
    if not shape.suffix:
        _refuse_files(target)
    elif not replaceable(beside, "kdjax", "model"):
        raise Refused(
            f"--out is {out or target.name!r}, beside which {beside} would be written, and that is a file of another "
            f"kind already; give another name, such as --out {target.with_stem(target.stem + '_network')}."
        )
    predictor = load(run)
    inputs, stored, origin = _examples(Path(run), predictor, data)
    allowed = (5e-2 if predictor.described["precision"] == "bfloat16" else 1e-4) * (1 + float(np.abs(stored).max()))

    def difference(logits: np.ndarray) -> float:
        return float(np.abs(logits - stored).max()) if logits.shape == stored.shape else float("inf")

    exported = shape.make(predictor, lambda logits: difference(logits) <= allowed, inputs)
    distance = difference(exported.check(inputs))
    if not distance <= allowed:
        raise Refused(
            f"the exported network differs from {origin} by {distance:.3g} (allowed {allowed:.1g}); nothing was "
            "written. Is the data set another one, or the file of --data?"
        )
    if not shape.suffix:
        target.mkdir(exist_ok=True)
    for name, content in exported.files.items():
        write_bytes(target / name if name else target, content)
    write_json(beside, about(predictor))
    size = sum(len(content) for content in exported.files.values()) / 2**20
    return [
        f"largest difference from {origin}: {distance:.2g} (logits of {len(stored)} examples)",
        f"wrote {target} ({size:.1f} MiB) and {beside}; to use it without kdjax:",
        "",
        *("    " + line for line in shape.lines(target, predictor)),
    ]


def _refuse_files(folder: Path) -> None:
    """Refuses a folder whose files would be taken for a part of the network, but for an earlier export."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "kdjax.json").is_file():
        raise Refused(f"--out is {str(folder)!r}, which holds files already; give the name of a new folder.")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"--out is {str(folder)!r}, which is a file; give the name of a new folder.")


def _examples(run: Path, predictor: Predictor, data: str) -> tuple[PyTree, np.ndarray, str]:
    """(raw inputs, logits to be reproduced, what those are): of the test split where it is at hand, else of noise."""
    try:
        given = dict(read_json(run / "recipe.json")["data"])
        if data:
            given["path"] = data
        if predictor.vocabulary is not None:  # the run's own: what it was trained from need not be there any more
            given["options"] = {**given.get("options", {}), "tokenizer": str(run / TOKENIZER)}
        which = from_dict(Data, given, "recipe.data")
        split = stages.dataset(which).test
    except (Refused, Damaged, OSError, KeyError, ImportError) as error:
        if data:
            raise Refused(f"--data={data} is not the data set of {run}: {error}") from error
        return (*_noise(predictor), "the run's own network, on noise (give --data to compare the stored logits)")
    if is_lazy(split) or np.ndim(split.label) != 1:
        return (*_noise(predictor), "the run's own network, on noise (the data set is not in memory)")
    exists = np.flatnonzero(np.asarray(split.label) >= 0)[:_COMPARED]
    with np.load(run / "logits" / "test.npz", allow_pickle=False) as file:
        logits, labels = file["logits"][:_COMPARED], file["label"][:_COMPARED]
    if len(exists) != len(labels) or not np.array_equal(np.asarray(split.label)[exists], labels):
        raise Refused(
            f"the test split of {which.path or which.name} has other labels than {run}; give its own by --data."
        )
    return jax.tree.map(lambda x: np.asarray(x)[exists], split.inputs), logits, "the run's stored logits"


def _noise(predictor: Predictor) -> tuple[PyTree, np.ndarray]:
    rng = np.random.default_rng(0)

    def draw(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        size = (8, *shape.shape[1:])
        integers = np.issubdtype(shape.dtype, np.integer)
        return (rng.integers(0, 2, size) if integers else rng.random(size)).astype(shape.dtype)

    inputs = jax.tree.map(draw, predictor.inputs)
    return inputs, predictor.logits(inputs)

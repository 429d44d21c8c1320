"""Reading and writing a folder: the tensors of config.json's network, no more and no less."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from kdjax import models
from kdjax.errors import Refused
from kdjax.files import write_bytes, write_json
from kdjax.huggingface import config as configs
from kdjax.huggingface.names import HEAD, Tensor, canonical, skipped, tensors, unknown_reason
from kdjax.huggingface.tokenizer import Tokenizer
from kdjax.huggingface.vocabulary import Vocabulary
from kdjax.huggingface.weights import WHOLE, Weights, shape_text
from kdjax.models.transformer_names import SHAPE, Architecture
from kdjax.types import Model, PyTree
from kdjax.variables import named, nested

log = logging.getLogger(__name__)


class Pretrained(NamedTuple):
    """A network with its weights.

    Attributes:
      variables: {"params": ..., "batch_stats": {}}, float32.
      label_names: from `id2label`; () where the file has default names, and with a new head.
      fingerprint: SHA-256 of the weights file; belongs into a stage's id, as the folder's path does not.
      fresh: tensors that were drawn at random, by their names in the file.
      passed_over: tensors of the file that a classifier does not use.
      vocabulary: the folder's vocabulary, None where it has no tokenizer.
    """

    model: Model
    architecture: Architecture
    num_classes: int
    variables: PyTree
    label_names: tuple[str, ...] = ()
    fingerprint: str = ""
    fresh: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None


def load(
    folder: str | os.PathLike,
    *,
    num_classes: int | None = None,
    new_head: bool = False,
    label_names: Sequence[str] = (),
    dtype: str = "float32",
    seed: int = 0,
) -> Pretrained:
    """Reads `config.json` and `model.safetensors` (or its shards), and checks the vocabulary that lies beside them.

    Args:
      num_classes: K of the data; None takes the classifier's.
      new_head: begin with a new classifier for `num_classes` classes, drawn by `seed`; the file may have none, or one
        of another size, and may lack the pooling layer, which is then new as well.
      label_names: the data's, in order; compared with the folder's where both have names.
      dtype: compute dtype, "float32" or "bfloat16".

    Raises:
      Refused: one sentence that names the file and the tensor: a tensor or a bias missing, unknown, of another shape,
        in two spellings, not finite, of an integer type; all that `config.read_config`, `weights.Weights` and
        `Vocabulary.from_folder` refuse; a vocabulary larger than the word table; classes that differ in number, name
        or order from the data's.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Refused(f"{folder} is not a folder; expected one with config.json and {WHOLE}.")
    said = configs.read_config(folder)
    net = said.architecture
    weights = Weights(folder)
    where = str(folder / weights.file)
    file_names = canonical(weights, net.family, where)
    classes = _classes(weights, file_names, said, num_classes, new_head, where)
    known = tensors(net, classes)
    heads = {name for name, tensor in known.items() if tensor.part == "head"}
    pools = {name for name, tensor in known.items() if tensor.part == "pool"}
    passed_over = {name for name in file_names if skipped(name) or (new_head and name in heads)}
    fresh = (heads if new_head else set()) | (pools if new_head and not pools & file_names.keys() else set())
    _check_names(net, known, file_names, passed_over | fresh, where)
    for name in sorted(known.keys() - fresh):
        stored, expected = weights.shapes[file_names[name]], known[name].shape
        if stored != expected:
            raise Refused(
                f"{where} holds {file_names[name]} in shape {shape_text(stored)}; expected {shape_text(expected)}, as "
                "config.json says."
            )
    names = () if new_head else said.label_names
    check_label_names(names, label_names, str(folder))
    vocabulary = Vocabulary.from_folder(folder, optional=True)
    if vocabulary is not None and vocabulary.size > net.vocab_size:
        raise Refused(
            f"{folder} has a vocabulary of {vocabulary.size} entries and vocab_size {net.vocab_size}; expected no more "
            "entries than the word table has rows."
        )
    arrays = {name: weights.read(file_names[name]) for name in sorted(known.keys() - fresh)}
    model = network_of(net, classes, dtype)
    arrays |= {name: fresh_tensor(known[name], net, seed) for name in fresh}
    params = _params(arrays, known)
    result = Pretrained(
        model=model,
        architecture=net,
        num_classes=classes,
        variables={"params": params, "batch_stats": {}},
        label_names=names,
        fingerprint=weights.fingerprint(),
        fresh=tuple(sorted(fresh)),
        passed_over=tuple(sorted(file_names[name] for name in passed_over)),
        vocabulary=vocabulary,
    )
    _report(folder, result)
    return result


def save(
    folder: str | os.PathLike,
    network: Pretrained,
    *,
    tokenizer: Tokenizer | None = None,
    vocabulary: Vocabulary | None = None,
    max_length: int | None = None,
) -> None:
    """Writes a folder that transformers and `load` read: config.json, model.safetensors and, if given, the vocabulary.

    Args:
      tokenizer, vocabulary: one of them, if any: a tokenizer is saved by its vocabulary.
      max_length: tokens at which transformers cuts a text by `truncation=True`; as many as the network has positions
        for unless told.

    Raises:
      Refused: parameters that are not the network's, by name; a DistilBERT whose epsilon its config.json cannot say; a
        tokenizer with more entries than the word table has rows.
    """
    folder = Path(folder).expanduser()
    net, known = network.architecture, tensors(network.architecture, network.num_classes)
    fields = configs.fields_of(net, network.label_names, network.num_classes)
    leaves = named(network.variables["params"])
    expected = {"/".join(tensor.path): name for name, tensor in known.items()}
    if wrong := sorted(leaves.keys() ^ expected.keys()):
        raise Refused(
            f"parameter {wrong[0]} is {'unknown' if wrong[0] in leaves else 'missing'}; expected those of {net}."
        )
    arrays = {}
    for path, name in expected.items():
        array = np.asarray(leaves[path], np.float32)
        arrays[name] = np.ascontiguousarray(array.T if known[name].transposed else array)
        if arrays[name].shape != known[name].shape:
            raise Refused(
                f"parameter {path} has shape {array.shape}; expected {known[name].shape} for {name}, transposed."
            )
    vocabulary = vocabulary if tokenizer is None else tokenizer.vocabulary
    if vocabulary is not None and vocabulary.size > net.vocab_size:
        raise Refused(
            f"the tokenizer has {vocabulary.size} entries and the word table {net.vocab_size} rows; expected "
            "no more entries than rows: set vocab_size."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if vocabulary is not None:
        vocabulary.save(folder, max_length=max_length or net.max_length)
    write_bytes(folder / WHOLE, safetensors.save(arrays, metadata={"format": "pt"}))
    write_json(folder / "config.json", fields)


def check_label_names(folder_names: Sequence[str], data_names: Sequence[str], where: str) -> None:
    """Refuses a classifier whose classes are named otherwise, or in another order, than the data's.

    Raises:
      Refused: naming the first class that differs.
    """
    if not folder_names or not data_names or tuple(folder_names) == tuple(data_names):
        return
    if len(folder_names) != len(data_names):
        raise Refused(f"{where} has {len(folder_names)} classes and the data {len(data_names)}; expected the same.")
    i = next(i for i, (a, b) in enumerate(zip(folder_names, data_names, strict=True)) if a != b)
    order = "in another order" if sorted(folder_names) == sorted(data_names) else "other names"
    raise Refused(
        f"{where} names its classes {order} than the data: class {i} is {folder_names[i]!r} there and "
        f"{data_names[i]!r} here; expected one order: renumber the labels, or begin with a new head "
        "(new_head=True, in a recipe init_head='new')."
    )


def classifier_rows(folder: Path) -> int | None:
    """How many classes the classifier in the weights has; None where there is none. Reads names and shapes alone.

    Raises:
      Refused: what `config.read_config`, `weights.Weights` and `names.canonical` refuse.
    """
    family = configs.read_config(folder).architecture.family
    weights = Weights(folder)
    names = canonical(weights, family, str(folder / weights.file))
    shape = weights.shapes.get(names.get(f"{HEAD[family]}.weight", ""), ())
    return shape[0] if shape else None


def _classes(
    weights: Weights, names: dict[str, str], said: configs.Config, wanted: int | None, new_head: bool, where: str
) -> int:
    """K: what is asked for with a new head, else the classifier's rows."""
    if new_head:
        if wanted is None:
            raise Refused("new_head is True and num_classes None; expected the number of classes of the new head.")
        return wanted
    head = f"{HEAD[said.architecture.family]}.weight"
    if head not in names:
        raise Refused(
            f"{where} lacks {head}: it has no classifier; expected one, or a new one for K classes: type "
            "new_head=True, num_classes=K."
        )
    shape = weights.shapes[names[head]]
    rows = shape[0] if shape else 0
    if rows < 2:
        raise Refused(
            f"{where} holds {head} in shape {shape_text(shape)}; expected a row for each of at least 2 classes."
        )
    for count, what in ((said.num_classes, "config.json names"), (wanted, "the data has")):
        if count is not None and count != rows:
            raise Refused(
                f"{where} has a classifier ({head}) of {rows} rows and {what} {count} classes; expected the same."
            )
    return rows


def _check_names(
    net: Architecture, known: dict[str, Tensor], names: dict[str, str], excused: set[str], where: str
) -> None:
    for name in sorted(names.keys() - known.keys() - excused):
        raise Refused(f"{where} holds {names[name]}, {unknown_reason(name, net, known)}.")
    for name in sorted(known.keys() - names.keys() - excused):
        raise Refused(f"{where} lacks {name} {shape_text(known[name].shape)}; expected every tensor of the network.")


def _params(arrays: dict[str, np.ndarray], known: dict[str, Tensor]) -> PyTree:
    leaves = {}
    for name, tensor in known.items():
        leaves["/".join(tensor.path)] = jnp.asarray(arrays[name].T if tensor.transposed else arrays[name])
    return nested(leaves)


def fresh_tensor(tensor: Tensor, net: Architecture, seed: int) -> np.ndarray:
    """A tensor of the pooling layer or the head as training from scratch would begin with it, in the file's layout."""
    if not tensor.transposed:
        return np.zeros(tensor.shape, np.float32)
    key = jax.random.fold_in(jax.random.key(seed), ("pool", "head").index(tensor.part))
    return net.initializer_range * np.asarray(jax.random.normal(key, tensor.shape, jnp.float32))


@functools.lru_cache(maxsize=64)
def network_of(net: Architecture, num_classes: int, dtype: str) -> Model:
    """Equal networks are one object, so that equal teachers share a compiled step."""
    attributes = {key: value for key, value in net.__dict__.items() if key not in SHAPE}
    name = f"{net.family}_{net.num_hidden_layers}l_{net.hidden_size}"
    return models.build(name, num_classes=num_classes, dtype=dtype, **attributes)


def _report(folder: Path, network: Pretrained) -> None:
    if network.fresh:
        log.info("%s: drawn at random: %s", folder, ", ".join(network.fresh))
    if network.passed_over:
        log.info("%s: passed over: %s", folder, ", ".join(network.passed_over))

"""A PyTorch `state_dict` in safetensors as the variables of a network: every tensor is used, none is left out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import data, models
from kdjax.errors import Refused
from kdjax.huggingface.weights import Weights, shape_text
from kdjax.models import torch_names
from kdjax.options import Options
from kdjax.types import Dataset, PyTree
from kdjax.variables import named, nested

SUFFIX = ".safetensors"
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_COUNTERS = "num_batches_tracked"
_WRAPPER = "module."  # of torch.nn.DataParallel


def is_file(init: str) -> bool:
    """Whether `init` names the file of a state_dict.

    Raises:
      Refused: a pickle, which could run code.
    """
    if Path(init).suffix in (".pth", ".pt", ".ckpt", ".bin", ".pkl"):
        raise Refused(
            f"init is {init!r}, a pickle, and those are never opened because they can run code; expected safetensors: "
            "write it by safetensors.torch.save_file(state_dict, 'net.safetensors')."
        )
    return init.endswith(SUFFIX)


def check_options(recipe: Any) -> None:
    """Refuses a recipe that begins with a file and a network whose tensors have no published names, or new layers."""
    if recipe.init_layers or recipe.init_head == "new":
        raise Refused(f"init is {recipe.init!r}, which is read whole; expected no init_layers, and init_head='auto'.")
    if not torch_names.styles(recipe.model):
        raise Refused(
            f"init is {recipe.init!r}, a state_dict, and the model {recipe.model!r} has no published names; expected "
            f"one of {torch_names.KNOWN}."
        )


def check(recipe: Any, dataset: Dataset) -> None:
    """Reads the file that a recipe begins with, once, and refuses it as `read` does."""
    path = Path(recipe.init).expanduser()
    _checked(recipe.init, path.stat().st_mtime_ns if path.is_file() else 0, _network(recipe, dataset))


def variables(recipe: Any, dataset: Dataset) -> PyTree:
    """The variables that a recipe begins with, out of its file.

    Raises:
      Refused: as `read`.
    """
    return read(recipe.init, recipe.model, _shapes(*_network(recipe, dataset)))


def _network(recipe: Any, dataset: Dataset) -> tuple:
    """What the shapes of a network's variables depend on; hashable."""
    inputs = data.one_example(dataset.train)
    if not hasattr(inputs, "shape"):
        raise Refused(f"model {recipe.model!r} takes images and data set {dataset.name!r} has none; use another model.")
    shape = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    return recipe.model, recipe.model_options, dataset.num_classes, shape, dataset.prepare


def _shapes(name: str, options: Options, num_classes: int, inputs: jax.ShapeDtypeStruct, prepare: Any) -> PyTree:
    model = models.build(name, num_classes=num_classes, **options)
    return {"batch_stats": {}, **jax.eval_shape(lambda x: model.init(jax.random.key(0), prepare(x)), inputs)}


@functools.lru_cache(maxsize=64)
def _checked(init: str, changed: int, network: tuple) -> None:
    read(init, network[0], _shapes(*network))


def read(path: str | Path, model: str, shapes: PyTree) -> dict[str, Any]:
    """The variables of a network out of a file that `safetensors.torch.save_model` or `save_file` wrote.

    Convolutions are stored [out, in / groups, h, w] and kept [h, w, in / groups, out]; linear layers are transposed.
    Names may begin with "module.", as DataParallel writes them; `num_batches_tracked` is passed over.

    Args:
      model: a network of `kdjax.models.torch_names`.
      shapes: its {"params": ..., "batch_stats": ...} as shapes.

    Raises:
      Refused: no such file, or a damaged one; all tensors that are missing, unknown or of another shape, by name;
        values that are not finite.
    """
    weights = Weights.of_file(Path(path).expanduser())
    unwrapped = all(name.startswith(_WRAPPER) for name in weights.shapes)
    stored = {name.removeprefix(_WRAPPER) if unwrapped else name: name for name in weights.shapes}
    stored = {short: name for short, name in stored.items() if not short.endswith(_COUNTERS)}
    leaves = named(shapes)
    tables = [(style, _table(style, leaves)) for style in torch_names.styles(model)]
    style, table = max(tables, key=lambda pair: len(pair[1].keys() & stored.keys()))
    missing, unknown = sorted(table.keys() - stored.keys()), sorted(stored.keys() - table.keys())
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"holds {', '.join(unknown)}"] * bool(unknown)
        raise Refused(f"{path} {' and '.join(parts)}; expected the tensors of {style.whose} {model}.")
    wrong = []
    for name, leaf in table.items():
        there, here = tuple(weights.shapes[stored[name]]), _stored_shape(leaves[leaf].shape)
        if there not in (here, (*here, 1, 1) if len(here) == 2 else here):  # KD(C)'s MobileNet ends in a convolution
            wrong.append(f"{name} in shape {shape_text(there)} (expected {shape_text(here)})")
    if wrong:
        raise Refused(f"{path} holds {', '.join(wrong)}; give the file of this very {model} and number of classes.")
    arrays = {leaf: _kept(weights.read(stored[name]), leaves[leaf].shape) for name, leaf in table.items()}
    return nested(arrays, empty=[name for name in ("params", "batch_stats") if not jax.tree.leaves(shapes[name])])


def _table(style: torch_names.Style, leaves: Mapping[str, Any]) -> dict[str, str]:
    """Name in the file -> leaf of the variables."""
    table = {}
    for leaf in leaves:
        _, *module, last = leaf.split("/")
        table[f"{style.name(tuple(module))}.{_LEAVES[last]}"] = leaf
    return table


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return outputs, inputs, height, width
    return tuple(reversed(shape))


def _kept(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(array.reshape(array.shape[:2]).T) if len(shape) == 2 else array


def fingerprint(init: str) -> str:
    """SHA-256 of the file's bytes."""
    path = Path(init).expanduser()
    return _fingerprint(path, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=64)
def _fingerprint(path: Path, changed: int) -> str:
    return Weights.of_file(path).fingerprint()

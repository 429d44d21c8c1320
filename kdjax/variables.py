"""Trees of arrays as names: nested dicts, and safetensors files of them.

Names are field names, keys and positions joined with "/", and are the format: no class is stored, so that a model may
be rewritten without a checkpoint being lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from kdjax.errors import Refused
from kdjax.files import FORMAT, Damaged, write_bytes
from kdjax.types import PyTree


def save_variables(path: Path, variables: PyTree) -> None:
    """Writes nested dicts of arrays as one safetensors file, atomically; names are joined with "/".

    Every array keeps its bits, also the float64 ones of a post-hoc fit.

    Raises:
      Refused: if something other than a dict or an array is in it, or a name could be taken for a path outside.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in named(variables, exact=False).items()}
    empty = sorted(_empty(variables))
    for name in (*arrays, *empty):
        _refuse_name(path, name)
    about = {"format": str(FORMAT), "empty": json.dumps(empty)}
    write_bytes(path, safetensors.save(arrays, metadata=about))


def load_variables(path: Path) -> dict[str, Any]:
    """Reads what `save_variables` wrote, or any safetensors file, as nested dicts of arrays on the default device.

    What this JAX does not hold, float64 and int64 unless jax_enable_x64 is set, comes back as NumPy arrays.

    Raises:
      Damaged: if the file is torn or its header declares more than it holds; nothing is allocated for it.
      Refused: if a name could be taken for a path outside, two names collide, or the FORMAT is newer.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"{path} is not a file; expected a safetensors file.")
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format", "").isdecimal() and int(about["format"]) > FORMAT:
                raise Refused(
                    f"{path} is of format {about['format']}, and this kdjax reads format {FORMAT}; upgrade kdjax."
                )
            names = list(file.keys())
            empty = json.loads(about.get("empty", "[]"))
            for name in (*names, *empty):
                _refuse_name(path, name)
            for name in names:  # a zero in a shape makes any other dimension fit the file
                if any(size >= 2**31 for size in file.get_slice(name).get_shape()):
                    raise Damaged(f"{path} declares the shape {file.get_slice(name).get_shape()} for {name}.")
            return nested({name: _on_device(file.get_tensor(name)) for name in names}, empty, str(path))
    except (SafetensorError, ValueError, TypeError) as error:
        if isinstance(error, Refused):
            raise
        raise Damaged(f"{path} is not readable as safetensors ({error}).") from error


def named(tree: PyTree, *, exact: bool = True) -> dict[str, Any]:
    """Leaves by name, in the tree's order: field names, keys and positions joined with "/".

    Args:
      exact: refuse what JAX would give back in another dtype, as float64 without jax_enable_x64.
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        name = "/".join(keys)
        if not keys or not all(keys) or any("/" in key for key in keys):
            raise Refused(f"the array named {keys} cannot be stored; names must not be empty or hold a slash.")
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise Refused(f"{name} is {leaf!r}, a {type(leaf).__name__}; expected an array, as jnp.asarray({leaf!r}).")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) or (exact and not _held(leaf.dtype)):
            raise Refused(f"{name} has dtype {leaf.dtype}, which would not come back as it is; convert it first.")
        leaves[name] = leaf
    return leaves


def nested(leaves: Mapping[str, Any], empty: Iterable[str] = (), where: str = "the tree") -> dict[str, Any]:
    """Nested dicts from names with slashes; `empty` names the dicts without anything in them."""
    tree: dict[str, Any] = {}
    for name, leaf in (*leaves.items(), *((name, {}) for name in empty)):
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise Refused(f"{where} has an array at {folder!r} and another below it, at {name!r}.")
        if last in node:
            raise Refused(f"{where} has {name!r} twice.")
        node[last] = leaf
    return tree


def refuse_misfit(path: Path, stored: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> None:
    """Refuses a checkpoint whose names, dtypes or shapes are not the ones wanted.

    Args:
      stored, wanted: name -> (dtype, shape).

    Raises:
      Refused: naming the first that differs.
    """

    def some(names: Iterable[str]) -> str:
        first, *others = sorted(names)
        return first if not others else f"{first} (and {len(others)} more)"

    parts = []
    if missing := wanted.keys() - stored.keys():
        parts.append(f"it lacks {some(missing)}")
    if more := stored.keys() - wanted.keys():
        parts.append(f"it has {some(more)}, which is not in this run")
    for name in sorted(stored.keys() & wanted.keys()):
        if stored[name] != wanted[name]:
            there, here = (f"{dtype}{list(shape)}" for dtype, shape in (stored[name], wanted[name]))
            parts.append(f"{name} is {there} there and {here} here")
            break
    if parts:
        raise Refused(
            f"checkpoint {path} does not fit this run: {'; '.join(parts)}. It was written with another model, "
            "objective, optimizer or number of training examples: use that recipe, or another directory."
        )


def refuse_not_finite(where: Path, variables: PyTree) -> None:
    """Refuses variables that hold NaN or an infinity, under whatever checksum: their every prediction is NaN.

    Raises:
      Refused: naming the first such array.
    """
    for name, leaf in named(variables, exact=False).items():
        array = np.asarray(leaf)
        if array.dtype.kind == "f" or array.dtype == jnp.bfloat16:
            bad = int(array.size - np.isfinite(array.astype(np.float32)).sum())
            if bad:
                raise Refused(
                    f"{where} holds {bad} NaN or infinite values in {name}; delete it and run the stage again."
                )


def _held(dtype: Any) -> bool:
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def _on_device(array: np.ndarray) -> Any:
    return jnp.asarray(array) if _held(array.dtype) else array


def _empty(tree: PyTree, name: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        if not tree and name:
            yield name
        for key, value in tree.items():
            yield from _empty(value, f"{name}/{key}".lstrip("/"))
    elif not hasattr(tree, "dtype"):
        raise Refused(f"{name or 'the tree'} is a {type(tree).__name__}; expected nested dicts of arrays.")


def _refuse_name(path: Path, name: str) -> None:
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or not name.isprintable():
        raise Refused(f"{path} holds the name {name!r}; expected names such as 'params/conv/kernel'.")

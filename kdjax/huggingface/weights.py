"""Tensors of `model.safetensors`, whole or in shards, read strictly; a pickle is never opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 once this is imported)
import numpy as np
from safetensors import SafetensorError, safe_open

from kdjax.errors import Refused

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Weights:
    """The tensors of a folder by name; shapes and types are known without reading them.

    Attributes:
      file: the name of the weight file, or of the index, for refusals.
      shapes: {name: shape}.

    Raises:
      Refused: no safetensors file (naming a pickle that lies there); a damaged file; an index that is no JSON, names a
        file outside the folder or one that is missing, or disagrees with its shards.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        if (folder / WHOLE).is_file():
            self.file = WHOLE
            self._add(folder / WHOLE)
        elif (folder / INDEX).is_file():
            self.file = INDEX
            self._add_shards(folder / INDEX)
        else:
            pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
            if pickles:
                raise Refused(
                    f"{folder} has its weights in {pickles[0]}, a pickle, and those are never opened because they can "
                    f"run code; expected {WHOLE}: write it with save_pretrained(folder, safe_serialization=True)."
                )
            raise Refused(f"{folder} has no weights; expected {WHOLE}, or {INDEX} and its shards.")
        self.shapes = {name: self._look(name)[0] for name in self._file_of}

    @classmethod
    def of_file(cls, path: Path) -> Weights:
        """The tensors of one file.

        Raises:
          Refused: no such file; a damaged one.
        """
        if not path.is_file():
            raise Refused(f"{path} is no file; expected tensors in safetensors.")
        weights = cls.__new__(cls)
        weights.folder, weights.file, weights._file_of = path.parent, path.name, {}
        weights._add(path)
        weights.shapes = {name: weights._look(name)[0] for name in weights._file_of}
        return weights

    def __iter__(self):
        return iter(self._file_of)

    def _add(self, path: Path) -> set[str]:
        try:
            with safe_open(path, framework="numpy") as file:
                names = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise Refused(
                f"{path} cannot be read as safetensors ({error}); expected a whole file: copy it again."
            ) from error
        if twice := sorted(names & self._file_of.keys()):
            raise Refused(f"{path} and {self._file_of[twice[0]]} both hold {twice[0]}; expected every tensor once.")
        self._file_of |= dict.fromkeys(names, path)
        return names

    def _add_shards(self, index: Path) -> None:
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{index} is no index of shards ({error!r}); expected JSON with a weight_map.") from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
                name = next(name for name, place in places.items() if place == file)
                raise Refused(f"{index} puts {name} into {file!r}; expected the plain name of a file in that folder.")
            if not (index.parent / file).is_file():
                raise Refused(f"{index} names the shard {file}, which is missing; expected every shard: copy it again.")
            names = self._add(index.parent / file)
            declared = {name for name, place in places.items() if place == file}
            if wrong := sorted(names ^ declared):
                raise Refused(
                    f"{index} and its shard {file} disagree on {wrong[0]}; expected one to list what the other holds."
                )

    def _look(self, name: str) -> tuple[tuple[int, ...], str]:
        with safe_open(self._file_of[name], framework="numpy") as file:
            part = file.get_slice(name)
            return tuple(part.get_shape()), part.get_dtype()

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32; float16 and bfloat16 are widened, which is exact.

        Raises:
          Refused: another type; NaN or infinity in it.
        """
        kind = self._look(name)[1]
        if kind not in _FLOATS:
            raise Refused(f"{self._file_of[name]} holds {name} as {kind}; expected float32, float16 or bfloat16.")
        with safe_open(self._file_of[name], framework="numpy") as file:
            array = np.asarray(file.get_tensor(name)).astype(np.float32)
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise Refused(f"{self._file_of[name]} has {bad} NaN or infinite values in {name}; expected finite weights.")
        return array

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the weight files, in the order of their names; not over where they lie."""
        files = sorted(set(self._file_of.values()))
        digests = [_sha256(path) for path in files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shape_text(shape: Iterable[Any]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"

"""Array files read by their headers: what a file declares is checked before anything is decompressed or allocated.

Nothing in a file is ever executed: pickled objects are refused, never loaded.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from kdjax.errors import Refused, printable

GIB = 2**30
# A member that inflates this many times, to more than this many bytes, is a bomb and no array of predictions.
_RATIO, _INFLATED = 300, 256 * 2**20
_LONGEST_HEADER = 10_000
# What NumPy and zipfile raise on a torn or changed file.
_DAMAGED = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, OverflowError)
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


class Header(NamedTuple):
    """What a file declares of one array."""

    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class Arrays(NamedTuple):
    """A file's arrays by name, unread."""

    path: Path
    headers: dict[str, Header]
    read: Callable[[str], np.ndarray]


def open_arrays(path: Path, limit: int) -> Arrays:
    """Reads the headers of a .npy, .npz or .safetensors file.

    Raises:
      Refused: torn files, pickled objects, arrays beyond `limit` bytes or beyond what the file holds.
    """
    return {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}[path.suffix.lower()](path, limit)


def check_size(path: Path, what: str, size: int, limit: int) -> None:
    """Refuses what would not fit in the memory allowed."""
    if size > limit:
        raise Refused(
            f"{path}: {what} takes {size / GIB:.1f} GiB, and at most {limit / GIB:g} are read; give fewer examples, or "
            f"type --max-gb {math.ceil(size / GIB)}."
        )


def _npy(path: Path, limit: int) -> Arrays:
    size = path.stat().st_size
    with path.open("rb") as file:
        header, fortran = _header(path, path.name, file, size, limit)
        start = file.tell()

    def read(name: str) -> np.ndarray:
        flat = np.fromfile(path, header.dtype, math.prod(header.shape), offset=start)
        return flat.reshape(header.shape, order="F" if fortran else "C")

    return Arrays(path, {path.stem: header}, read)


def _npz(path: Path, limit: int) -> Arrays:
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except _DAMAGED as error:
        raise Refused(
            f"{path} is not a whole .npz file (a zip archive that was cut off, or none); save it again with np.savez."
        ) from error
    with archive:
        names = [member.filename.removesuffix(".npy") for member in members]
        if len({*names}) < len(names):
            raise Refused(
                f"{path} holds the array '{printable(max(names, key=names.count), 60)}' twice; save it again."
            )
        check_size(path, "what it declares", sum(member.file_size for member in members), limit)
        headers = {}
        for name, member in zip(names, members, strict=True):
            if member.file_size > max(_INFLATED, _RATIO * member.compress_size):
                raise Refused(
                    f"{path}: '{printable(name, 60)}' would inflate {member.file_size // max(member.compress_size, 1)} "
                    f"times to {member.file_size / GIB:.1f} GiB, as zip bombs do; save it with np.savez, uncompressed."
                )
            with _member(archive, member, path) as file:
                headers[name] = _header(path, name, file, member.file_size, limit)[0]

    def read(name: str) -> np.ndarray:
        with zipfile.ZipFile(path) as archive, _member(archive, members[names.index(name)], path) as file:
            try:
                return np.lib.format.read_array(file, allow_pickle=False, max_header_size=_LONGEST_HEADER)
            except _DAMAGED as error:
                raise Refused(f"{path}: the array '{printable(name, 60)}' is damaged; save the file again.") from error

    return Arrays(path, headers, read)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> IO[bytes]:
    try:
        return archive.open(member)
    except (*_DAMAGED, RuntimeError) as error:
        raise Refused(
            f"{path}: '{printable(member.filename, 60)}' cannot be read (encrypted, or damaged); save it with np.savez."
        ) from error


def _header(path: Path, name: str, file: IO[bytes], size: int, limit: int) -> tuple[Header, bool]:
    """Shape and dtype of one .npy stream of `size` bytes, and whether it is in Fortran order."""
    where = f"{path}: '{printable(name, 60)}'" if path.suffix == ".npz" else str(path)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(file, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # NumPy's parser, fed with anything, raises nearly every kind
        raise Refused(f"{where} is not a NumPy array that can be read; save it with np.save or np.savez.") from error
    if dtype.hasobject:
        raise Refused(
            f"{where} holds Python objects, whose pickle could run code and is not opened; save plain numbers, "
            "such as np.asarray(values, np.float32), and string labels as np.asarray(labels, str)."
        )
    if dtype.kind not in "fiubUS" or dtype.names:
        raise Refused(f"{where} holds {printable(str(dtype), 60)}; expected numbers: save .astype(np.float32).")
    size_declared = math.prod(shape) * dtype.itemsize
    check_size(path, f"'{printable(name, 60)}', {dtype} {list(shape)},", size_declared, limit)
    if file.tell() + size_declared > size:
        raise Refused(
            f"{where} declares {dtype} {list(shape)} and is cut off after {size} bytes; copy or save the file again."
        )
    return Header(shape, dtype), fortran


def _safetensors(path: Path, limit: int) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            headers = {}
            for name in list(file.keys()):
                part = file.get_slice(name)
                headers[name] = Header(tuple(part.get_shape()), _FLOATS.get(part.get_dtype(), part.get_dtype()))
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused(f"{path} is not readable as safetensors (cut off or damaged); save it again.") from error
    check_size(path, "the file", path.stat().st_size, limit)

    def read(name: str) -> np.ndarray:
        import ml_dtypes  # noqa: F401

        with safe_open(path, framework="numpy") as file:
            array = np.asarray(file.get_tensor(name))
        return array if array.dtype.kind in "fiub" else array.astype(np.float32)

    return Arrays(path, headers, read)

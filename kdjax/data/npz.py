"""Reads an `.npz` that nobody vouches for: names, sizes and headers are checked before anything is unpacked.

An `.npz` is a zip of `.npy` members. A few bytes of each member say what it holds, so that a file that is damaged,
hostile or merely lacks an array is refused within milliseconds, whatever it would unpack to.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax.data.paths import existing
from kdjax.errors import Refused

MEMBERS = 1000
NAME_LENGTH = 200
HEADER_BYTES = 1 << 16
PACKED_RATIO = 200
"""Data that shrinks more than this is hardly data; deflate reaches 1,030 on zeros."""
SMALL = 50_000_000
"""Bytes that may be packed at any ratio."""


class Member(NamedTuple):
    """What the header of one array says."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Archive(Mapping[str, Member]):
    """The members of an `.npz` by name, as their headers declare them; `read` unpacks one.

    Raises:
      Refused: no such file; not an `.npz` of plain arrays (pickled objects are never read: they can run code); a header
        that does not agree with the size of its member; two members of one name; more bytes than the machine has.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = existing(path, expected="an .npz written by np.savez", example="mine.npz")
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = _names(self.path, archive.infolist())
                self._members = {name: _header(self.path, archive, name, info) for name, info in infos.items()}
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
            raise Refused(_not_npz(self.path, error)) from error
        self._infos = infos
        _check_sizes(self.path, infos)

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def __iter__(self):
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def read(self, name: str) -> np.ndarray:
        """Unpacks one array; the zip's checksum is verified on the way."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._infos[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, zlib.error) as error:
            raise Refused(
                f"{self.path} cannot be read as .npz ({name}: {error}); expected a file written by np.savez."
            ) from error
        except MemoryError as error:
            raise Refused(
                f"array {name!r} of {self.path} does not fit into memory, shape {self[name].shape}; expected less: "
                "keep the data as an image folder or a prepared set, which are streamed."
            ) from error


def _not_npz(path: Path, error: Exception) -> str:
    try:
        with open(path, "rb") as file:
            start = file.read(6)
    except OSError as unreadable:
        return f"{path} cannot be read ({unreadable.strerror}); expected a file written by np.savez."
    if start == b"\x93NUMPY":
        return f"{path} holds a single array; expected an .npz with several: write it by np.savez."
    if not start.startswith(b"PK"):
        return f"{path} is not an .npz of plain arrays; expected a file written by np.savez."
    return f"{path} cannot be read as .npz ({error}); expected a file written by np.savez."


def _names(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > MEMBERS:
        raise Refused(f"{path} has {len(infos)} members; expected at most {MEMBERS} arrays: it is no data set.")
    named: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if len(name) > NAME_LENGTH:
            raise Refused(
                f"{path} has a member whose name is {len(name)} characters long; expected names such as train_inputs."
            )
        if name == info.filename or not name.isprintable() or set(name) & set("/\\:") or name.startswith("."):
            raise Refused(
                f"{path} has a member named {info.filename!r}; expected the name of an array, such as "
                "train_inputs.npy, without a folder: write the file by np.savez."
            )
        if name in named:
            raise Refused(f"{path} has the array {name!r} twice; expected it once: write the file anew by np.savez.")
        named[name] = info
    return named


def _header(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Member:
    with archive.open(info) as file:
        start = io.BytesIO(file.read(HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = parse(start)
    except (ValueError, EOFError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise Refused(
            f"array {name!r} of {path} has no readable header; expected a file written by np.savez."
        ) from error
    if dtype.hasobject:
        raise Refused(
            f"{path} holds Python objects under {name!r}, and those are never unpickled because they can run code; "
            "expected plain numbers: save an array of one numeric type."
        )
    declared = math.prod(shape) * dtype.itemsize  # Python integers: no size is too large to be compared
    if any(size < 0 for size in shape) or start.tell() + declared != info.file_size:
        raise Refused(
            f"array {name!r} of {path} says it has shape {shape} and type {dtype}, {declared} bytes, and its member "
            f"has {info.file_size - start.tell()}; expected a file written by np.savez."
        )
    return Member(tuple(shape), dtype)


def _check_sizes(path: Path, infos: Mapping[str, zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in infos.values())
    packed = max(1, path.stat().st_size)
    if total > SMALL and total > PACKED_RATIO * packed:
        raise Refused(
            f"{path} has {packed} bytes and unpacks to {total}, {total // packed} times as much, which no real data "
            "does; expected at most "
            f"{PACKED_RATIO} times: if it is yours, write it by np.savez instead of np.savez_compressed."
        )
    memory = physical_memory()
    if total > 0.9 * memory:
        raise Refused(
            f"{path} unpacks to {total / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f}; expected less: keep the "
            "data as an image folder or a prepared set, which are streamed."
        )


def physical_memory() -> int:
    """Bytes of memory of this machine; 2^62 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 62

"""Decoded arrays on disk: written atomically, read into memory, and verified there.

An entry is a folder of one `.npy` file per array and a `meta.json` with each array's SHA-256. It is filled under a
temporary name and renamed when every byte is on disk, so a killed process leaves no entry that looks complete. Nothing
is mapped: whatever happens to the files later, a process goes on with the bytes whose checksum it has seen.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kdjax.data.contents import digest

FORMAT = 1  # part of every key: an entry of another layout is never looked at

Arrays = dict[str, np.ndarray]


def default_folder(cache_dir: str | os.PathLike | None) -> Path:
    """`cache_dir`, else `$KDJAX_CACHE`, else `$XDG_CACHE_HOME/kdjax`, else `~/.cache/kdjax`."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if folder := os.environ.get("KDJAX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "kdjax"


def cached(folder: Path, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of an entry, built when there is no entry that verifies.

    A damaged entry is named in a warning, removed and rebuilt. A folder that cannot be written (read-only, full) costs
    a warning and the time to decode again, never the run.

    Returns:
      {name: array}, read-only, in memory.
    """
    entry = folder / f"{key}-{FORMAT}"
    damaged = entry.is_dir()
    if damaged:
        try:
            return _read(entry)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"cached data in {entry} is damaged ({error}); rebuilding it.", stacklevel=2)
    arrays = build()
    try:
        if damaged:
            shutil.rmtree(entry)
        _write(entry, arrays, {name: digest(array) for name, array in arrays.items()})
    except OSError as error:
        warnings.warn(
            f"decoded data is not cached: {folder} cannot be written ({error.strerror or error}); decoding is repeated "
            "in every run until KDJAX_CACHE names a writable folder.",
            stacklevel=2,
        )
    return _read_only(arrays)


def _read(entry: Path) -> Arrays:
    digests: Mapping[str, str] = json.loads((entry / "meta.json").read_text())["sha256"]
    arrays = {name: np.load(entry / f"{name}.npy", allow_pickle=False) for name in digests}
    for name, array in arrays.items():
        if digest(array) != digests[name]:
            raise ValueError(f"{name}.npy does not have the checksum it was written with")
    return _read_only(arrays)


def _read_only(arrays: Arrays) -> Arrays:
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _write(entry: Path, arrays: Arrays, digests: dict[str, str]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            with open(scratch / f"{name}.npy", "wb") as file:
                # np.save hides the reason of a short write; file.write raises "No space left on device".
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(np.ascontiguousarray(array).data)
                file.flush()
                os.fsync(file.fileno())
        with open(scratch / "meta.json", "w") as file:
            json.dump({"format": FORMAT, "sha256": digests}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _fsync_folder(scratch)
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the entry from others who share the cache
        try:
            scratch.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
            return  # another process was quicker: the key names the content, so its entry is this one
        _fsync_folder(entry.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

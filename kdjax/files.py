"""Files that are whole or not there: atomic writes, and JSON.

Every write goes to a temporary name, is flushed to disk, and takes its final name by one rename, so that a process
killed anywhere leaves the old file or the new one and never half of either. A rename replaces a symbolic link and never
the file behind it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

from kdjax.errors import Refused

FORMAT = 2  # of everything on disk; a newer one is refused, an older one is read as long as a golden test pins it
LOCK = ".lock"
TEMPORARY = ".tmp-"
UNFINISHED: set[Path] = set()
"""Temporary files of this process; whoever ends it from a signal handler removes them."""
_LARGEST_JSON = 256 * 2**20


class Damaged(OSError):
    """Files that exist and cannot be trusted or read: a wrong checksum, a torn JSON, nothing left to fall back to."""


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_number)


def namespace() -> int | None:
    """The process namespace, by its inode: two containers number their processes alike. None off Linux."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return None


def temporary_name(name: str) -> str:
    """The name under which this process writes what will be called `name`."""
    return f"{name}{TEMPORARY}{socket.gethostname()}-{namespace()}-{os.getpid()}"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, whatever the locale; a lone surrogate, which UTF-8 cannot say, becomes `\\udc80`.

    Raises:
      OSError: naming the directory when it has no room or is not writable; what was there before is untouched.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    temporary = Path(path).with_name("." + temporary_name(Path(path).name))
    UNFINISHED.add(temporary)
    try:
        # Made anew: opening a file that is there would write through a link left under this name.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(temporary.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, f"{error.strerror} while writing {len(data)} bytes", str(path)) from error
    finally:
        UNFINISHED.discard(temporary)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: sorted keys, two-space indent, NumPy and JAX scalars as numbers.

    Raises:
      Refused: if the value holds NaN or an infinity, which JSON cannot say, or something that is not data.
      OSError: as `write_text`.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, default=_number)
    except ValueError as error:
        where = _not_finite(value) or "some value"
        raise Refused(f"{path} cannot be written: {where} is not finite, and JSON has no NaN or infinity.") from error
    except TypeError as error:
        raise Refused(f"{path} cannot be written as JSON: {error}.") from error
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      Damaged: if it is not JSON, holds NaN, is absurdly large, or is no plain file (a pipe would be waited for).
      FileNotFoundError: if it is not there.
    """
    try:
        return json.loads(read_bytes(path).decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not readable as JSON ({error}).") from error


def replaceable(path: Path, *keys: str) -> bool:
    """Whether nothing is lost by writing JSON there: no file is, or one of the same kind, an object with these keys."""
    try:
        said = read_json(path)
    except FileNotFoundError:
        return True
    except (Damaged, OSError):
        return False
    return isinstance(said, dict) and said.keys() >= {*keys}


def read_bytes(path: Path) -> bytes:
    """The content of a small plain file; raises what `read_json` does."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise Damaged(f"{path} is not a plain file; it is not read.")
        if about.st_size > _LARGEST_JSON:
            raise Damaged(f"{path} has {about.st_size} bytes, more than any file of this kind needs; it is not read.")
        return file.read()


def sync_directory(directory: Path) -> None:
    """Flushes a directory's entries, which is what makes a rename survive a power cut. Nothing to do on Windows."""
    if sys.platform == "win32":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a number, string, list or dict")


def _not_finite(value: Any, name: str = "") -> str | None:
    """The dotted name of the first number that is not finite."""
    if isinstance(value, dict):
        value = {str(key): inner for key, inner in value.items()}
        return next(filter(None, (_not_finite(v, f"{name}.{k}".lstrip(".")) for k, v in value.items())), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (_not_finite(v, f"{name}[{i}]") for i, v in enumerate(value))), None)
    value = _number(value) if getattr(value, "ndim", None) == 0 else value
    return (name or "the value") if isinstance(value, float) and not math.isfinite(value) else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")

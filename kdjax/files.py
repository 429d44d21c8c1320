"""Files that are whole or not there: atomic JSON, manifests of sizes and SHA-256, directory locks (floor 4).

A directory is finished iff its `manifest.json` verifies. The manifest is written last; every write goes to a
temporary name, is flushed to disk, and takes its final name by one rename, so that a process killed anywhere leaves the
old file or the new one and never half of either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import sys
from pathlib import Path
from typing import Any

from kdjax.errors import Refused

FORMAT = 1  # of everything on disk; a newer one is refused, an older one is read as long as a golden test pins it
MANIFEST = "manifest.json"
LOCK = ".lock"
_LARGEST_JSON = 256 * 2**20


class Damaged(OSError):
    """Files that exist and cannot be trusted or read: a wrong checksum, a torn JSON, nothing left to fall back to."""


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_number)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically.

    Raises:
      OSError: naming the directory when it has no room or is not writable; what was there before is untouched.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, f"{error.strerror} while writing {len(data)} bytes", str(path)) from error


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
      Damaged: if it is not JSON, holds NaN, or is absurdly large.
      FileNotFoundError: if it is not there.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > _LARGEST_JSON:
        raise Damaged(f"{path} has {size} bytes, more than any file of this kind needs; it is not read.")
    try:
        return json.loads(path.read_bytes().decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not readable as JSON ({error}).") from error


def write_manifest(directory: Path) -> dict[str, Any]:
    """Writes `manifest.json`: FORMAT, size and SHA-256 of every file below `directory`, and its own SHA-256.

    Every listed file is flushed to disk first. Call it last; from then on the directory is finished.

    Returns:
      The manifest, {"format": int, "files": {relative path: {"size": bytes, "sha256": hex}}, "sha256": hex}.
    """
    directory = Path(directory)
    listed = {name: _entry(path, flush=True) for name, path in _walk(directory).items() if path.is_file()}
    body = {"format": FORMAT, "files": listed}
    manifest = {**body, "sha256": _seal(body)}
    write_json(directory / MANIFEST, manifest)
    return manifest


def verify_manifest(directory: Path) -> list[str]:
    """What is wrong with a directory, each problem in words that name the file; `[]` means that it verifies."""
    directory = Path(directory)
    try:
        manifest = read_json(directory / MANIFEST)
        body = {"format": manifest["format"], "files": manifest["files"]}
        if manifest.keys() != {*body, "sha256"} or manifest["sha256"] != _seal(body):
            return [f"{MANIFEST} does not have its own SHA-256"]
    except (FileNotFoundError, NotADirectoryError):
        return ["no manifest"]
    except (Damaged, TypeError, KeyError, AttributeError, ValueError):
        return [f"{MANIFEST} is not readable"]
    if manifest["format"] != FORMAT:
        return [f"written in format {manifest['format']}, and this kdjax reads format {FORMAT}"]
    found, problems = _walk(directory), []
    for name, entry in manifest["files"].items():
        if name not in found:
            problems.append(f"{name} is missing")
            continue
        path = found.pop(name)
        if path.is_symlink() or not path.is_file():
            problems.append(f"{name} is not a plain file")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        elif _entry(path) != entry:
            problems.append(f"{name} does not have its SHA-256 (a byte changed)")
    return problems + [f"{name} is not in the manifest" for name in sorted(found)]


class Lock:
    """`with Lock(directory):` one process at a time; a lock left by a process that is gone is broken.

    The file `.lock` holds pid, host and, where the system tells it, the process's start time, so that a pid that was
    given to another process later does not keep the lock alive.

    Raises:
      Refused: on entry, if a living process (or one on another host, which cannot be asked) holds it.
    """

    def __init__(self, directory: Path):
        self.path = Path(directory) / LOCK
        self._mine: dict[str, Any] | None = None

    def __enter__(self) -> Lock:
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self.path.parent):
            holder = self._holder()
            if holder is not None and _alive(holder):
                raise Refused(
                    f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}; wait for it, choose "
                    f"another directory, or delete {self.path} if that process is gone."
                )
            self.path.unlink(missing_ok=True)
            with self.path.open("x") as file:
                file.write(canonical(mine))
        self._mine = mine
        return self

    def __exit__(self, *exception: object) -> None:
        if self._holder() == self._mine:
            self.path.unlink(missing_ok=True)
        self._mine = None

    def _holder(self) -> dict[str, Any] | None:
        """Who holds the lock; None if nobody does or the file is the torn one of a process killed while writing it."""
        try:
            holder = read_json(self.path)
            return holder if {"pid", "host"} <= set(holder) and int(holder["pid"]) > 0 else None
        except (FileNotFoundError, Damaged, TypeError, ValueError):
            return None


def sync_directory(directory: Path) -> None:
    """Flushes a directory's entries, which is what makes a rename survive a power cut. Nothing to do on Windows."""
    if sys.platform == "win32":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def alive(host: str, pid: int) -> bool:
    """Whether a process may still run; one on another host cannot be asked and counts as alive."""
    return _alive({"host": host, "pid": pid, "started": None})


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started, now = holder.get("started"), _started(int(holder["pid"]))
    return started is None or now is None or started == now


def _started(pid: int) -> str | None:
    """Boot id and start time in clock ticks, from /proc; None where there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # the command's name, in parentheses, may hold spaces: count the fields after its last parenthesis
        return f"{boot}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None


@contextlib.contextmanager
def _one_at_a_time(directory: Path):
    """Between looking at a stale lock and replacing it nobody else may do the same; the kernel ends this by itself."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without it: the window is microseconds
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _walk(directory: Path) -> dict[str, Path]:
    """Everything below a directory that is not a directory, by relative name, without its manifest and its lock."""
    found = {}
    for folder, folders, names in os.walk(directory, followlinks=False):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in [*names, *links]:
            path = Path(folder) / name
            found[path.relative_to(directory).as_posix()] = path
    return {name: found[name] for name in sorted(found) if name not in (MANIFEST, LOCK)}


def _entry(path: Path, flush: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush and sys.platform != "win32":
            os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()


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

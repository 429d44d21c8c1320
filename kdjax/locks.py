"""One process at a time in a directory, also where several machines or containers share it.

Whether the holder of a lock still runs can be asked only on its own machine and in its own process namespace. Anybody
else goes by its heartbeat: the holder touches the lock file every few seconds, and a lock whose file nobody has touched
for `FREE_AFTER` seconds is free. Ages are differences between two times of one file system, so that neither a wrong
clock nor one that is set back decides.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdjax.errors import Held, Refused
from kdjax.files import LOCK, TEMPORARY, Damaged, canonical, namespace, read_json, temporary_name

HEARTBEAT = 10.0
"""Seconds between two touches of a lock file."""
FREE_AFTER = 180.0
"""Seconds without a touch after which the lock of a process that cannot be asked is free."""
_LARGEST_PID = 2**31 - 1


class Lock:
    """`with Lock(directory):` one process at a time; a lock left by a process that is gone is broken.

    The file `.lock` holds pid, host, process namespace and, where the system tells it, boot id and start time, so that
    a pid that was given to another process later does not keep the lock alive.

    Raises:
      Held: on entry, if a living process holds it, or one that cannot be asked and whose heartbeat is younger than
        `FREE_AFTER`.
      Refused: if the lock file is no lock file.
    """

    def __init__(self, directory: Path):
        self.path = Path(directory) / LOCK
        self._content: dict[str, Any] | None = None
        self._released = threading.Event()

    def __enter__(self) -> Lock:
        content = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "namespace": namespace(),
            "started": _started(os.getpid()),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self.path.parent):
            holder = self._holder()
            if holder is not None:
                self._refuse_living(holder)
            self.path.unlink(missing_ok=True)
            with self.path.open("x", encoding="utf-8") as file:
                file.write(canonical(content))
        self._content = content
        self._released.clear()
        threading.Thread(target=self._beat, name="kdjax lock", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._released.set()
        if self.held():
            self.path.unlink(missing_ok=True)
        self._content = None

    def held(self) -> bool:
        """Whether the lock file is still this lock's: a process that slept through `FREE_AFTER` may have lost it."""
        with contextlib.suppress(Refused):
            return self._content is not None and self._holder() == self._content
        return False

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            if not self.held():
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _holder(self) -> dict[str, Any] | None:
        """Who holds the lock; None if nobody does or the file is the torn one of a process killed while writing it."""
        try:
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise Refused(f"{self.path} is no lock file (a pipe, link or folder); remove it if nobody works here.")
            holder = read_json(self.path)
            if not isinstance(holder["host"], str) or not isinstance(holder["pid"], int):
                return None
        except (FileNotFoundError, Damaged, TypeError, KeyError):
            return None
        if not 0 < holder["pid"] <= _LARGEST_PID:
            number = str(holder["pid"])
            raise Refused(
                f"{self.path} names process {number if len(number) < 25 else number[:22] + '...'}, which no system "
                "numbers so; remove it if nobody works here."
            )
        return holder

    def _refuse_living(self, holder: dict[str, Any]) -> None:
        who = f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}"
        if askable(holder):
            if not running(holder):
                return
            # Without its start the number may be another process's by now; where a system tells it, kdjax writes it.
            if holder.get("started") is not None or _started(os.getpid()) is None:
                raise Held(
                    f"{who}; wait for it, choose another directory, or delete {self.path} if that process is gone.", who
                )
        age = self._age()
        if age < FREE_AFTER:
            raise Held(
                f"{who}, which cannot be asked from here and whose heartbeat is {age:.0f} s old; the lock is free "
                f"{FREE_AFTER:.0f} s after the last one: wait for it, choose another directory, or delete {self.path} "
                "if that process is gone.",
                who,
            )

    def _age(self) -> float:
        """Seconds since the lock file was touched, by the file system's own clock."""
        with tempfile.TemporaryFile(dir=self.path.parent) as file:
            file.write(b".")
            file.flush()
            now = os.fstat(file.fileno()).st_mtime
        # A heartbeat from the future is of a clock that was set back since: it says no more than a missing one.
        age = now - os.lstat(self.path).st_mtime
        return age if age > -FREE_AFTER else FREE_AFTER


def askable(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine, since its last start, in this process namespace: its pid then counts.

    A host's name alone says little: many machines are called "localhost", and a container may bear its host's name.
    """
    boot = str(holder.get("started") or "").partition(":")[0]
    same_boot = not boot or _boot() in (None, boot)
    return same_boot and holder["host"] == socket.gethostname() and holder.get("namespace") in (None, namespace())


def running(holder: dict[str, Any]) -> bool:
    """Whether the process of that pid, started at that time, runs in this namespace."""
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    started, now = holder.get("started"), _started(holder["pid"])
    return started is None or now is None or started == now


def sweep(directory: Path, *, whoever: bool = False) -> None:
    """Removes the temporary files that killed processes left in a directory.

    Args:
      whoever: also those of processes that cannot be asked; for the holder of the directory's lock.
    """
    for path in Path(directory).glob(f".*{TEMPORARY}*"):
        if path.name == temporary_name("." + path.name[1:].partition(TEMPORARY)[0]):
            continue
        if whoever or abandoned(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def abandoned(name: str) -> bool:
    """Whether a temporary name was given by a process of this machine and namespace that is gone."""
    where, _, pid = name.rpartition("-")
    # isascii: int() reads "١" too, and a pid beyond the system's is nobody's name.
    known = pid.isascii() and pid.isdecimal() and where.endswith(f"{TEMPORARY}{socket.gethostname()}-{namespace()}")
    return known and not running({"pid": int(pid)})


def _started(pid: int) -> str | None:
    """Boot id and start time in clock ticks, from /proc; None where there is none."""
    try:
        # the command's name, in parentheses, may hold spaces: count the fields after its last parenthesis
        return f"{_boot()}:{Path(f'/proc/{pid}/stat').read_bytes().rpartition(b')')[2].split()[19].decode()}"
    except (OSError, IndexError):
        return None


def _boot() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


@contextlib.contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
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

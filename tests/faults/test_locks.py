"""Locks: living and dead holders here, holders that cannot be asked, and lock files that are none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from kdjax import files, locks
from kdjax.errors import Refused
from kdjax.locks import Lock
from tests.processes import ROOT


def test_lock_of_a_living_process_is_refused(tmp_path):
    """Held here, asked for there, and the other way round, and twice in one process."""
    ask = "from kdjax.locks import Lock; Lock({!r}).__enter__(); print('held', flush=True); {}"

    def other(then: str) -> subprocess.Popen:
        code = ask.format(str(tmp_path), then)
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with Lock(tmp_path):
        with pytest.raises(Refused, match=rf"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}"):
            Lock(tmp_path).__enter__()
        _, err = other("").communicate(timeout=60)
        assert f"is in use by process {os.getpid()}" in err
    assert not (tmp_path / ".lock").exists()

    child = other("import time; time.sleep(60)")
    assert child.stdout.readline() == "held\n"
    with pytest.raises(Refused, match=f"is in use by process {child.pid}"):
        Lock(tmp_path).__enter__()
    child.kill()
    child.communicate()
    with Lock(tmp_path):  # its process is gone
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def mine(**changes) -> dict:
    """A lock file's content as this process would write it."""
    here = {"pid": os.getpid(), "host": socket.gethostname(), "namespace": files.namespace()}
    return {**here, "started": locks._started(os.getpid()), **changes}


def test_stale_and_torn_locks_are_broken(tmp_path):
    """A pid given to another process since; the torn file of a process killed while writing it."""
    lock = tmp_path / ".lock"
    if sys.platform == "linux":
        lock.write_text(json.dumps(mine(started=f"{locks._boot()}:1")))
        with Lock(tmp_path):
            pass
    for torn in ("", "{", "[]", '{"pid": "x", "host": "y"}', '{"pid": 1, "host": 2}', "\x00\xff"):
        lock.write_text(torn)
        with Lock(tmp_path):
            assert json.loads(lock.read_text())["pid"] == os.getpid()


UNKNOWN = {
    "another host": {"pid": 1, "host": "another-host", "started": None},
    "another boot": {"started": "another boot:1"},
    "another namespace": {"namespace": 1, "pid": 999_999_9},
    "no start": {"pid": 1, "started": None},  # alive, and waited for without end
}


@pytest.mark.parametrize("who", UNKNOWN)
def test_a_holder_that_cannot_be_asked_counts_by_its_heartbeat(tmp_path, who):
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps(mine(**UNKNOWN[who])))
    now = lock.stat().st_mtime
    os.utime(lock, (now - 60, now - 60))
    with pytest.raises(
        Refused, match=r"cannot be asked from here and whose heartbeat is 6\d s old; .* free 180 s after"
    ):
        Lock(tmp_path).__enter__()
    for age in (locks.FREE_AFTER + 1, -10 * locks.FREE_AFTER):  # the second: a clock that was set back since
        lock.write_text(json.dumps(mine(**UNKNOWN[who])))
        os.utime(lock, (now - age, now - age))
        with Lock(tmp_path):
            assert json.loads(lock.read_text()) == mine()


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare")
def test_a_living_holder_in_another_process_namespace_is_not_taken_for_dead(tmp_path):
    """As two containers that share a folder: each sees pids of its own alone."""
    hold = f"from kdjax.locks import Lock; Lock({str(tmp_path)!r}).__enter__(); print('held', flush=True); input()"
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
    holder = subprocess.Popen([*inside, hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=r"cannot be asked from here and whose heartbeat is \d+ s old"):
            Lock(tmp_path).__enter__()
        ask = f"from kdjax.locks import Lock; Lock({str(tmp_path)!r}).__enter__()"
        other = subprocess.run([*inside, ask], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "cannot be asked from here" in other.stderr
    finally:
        holder.communicate("\n")
    assert holder.returncode == 0


def test_a_holder_beats_and_notices_the_loss_of_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    lock = tmp_path / ".lock"
    with Lock(tmp_path) as held:
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime == 0:
            time.sleep(0.01)
        assert held.held()
        lock.write_text(json.dumps(mine(pid=1)))
        assert not held.held()
    assert json.loads(lock.read_text())["pid"] == 1, "another's lock is left alone"


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "dangling link"])
def test_a_lock_that_is_no_file_is_refused(tmp_path, kind):
    lock = tmp_path / ".lock"
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        (tmp_path / "target").write_text("{}")
        lock.symlink_to(tmp_path / ("target" if kind == "link" else "nothing"))
    with pytest.raises(Refused, match=r"\.lock is no lock file .*; remove it if nobody works here"):
        Lock(tmp_path).__enter__()
    assert os.path.lexists(lock)


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**64, 10**30, 10**300])
def test_a_lock_with_an_impossible_number_is_refused(tmp_path, pid):
    (tmp_path / ".lock").write_text(json.dumps(mine(pid=pid)))
    with pytest.raises(Refused, match=r"names process -?\d+(\.\.\.)?, which no system numbers so; remove it"):
        Lock(tmp_path).__enter__()


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    there = f".tmp-{socket.gethostname()}-{files.namespace()}-"
    kept = [
        f".a{there}{os.getppid()}",
        f".a.tmp-another-{files.namespace()}-{dead.pid}",
        "plain",
        f".b{there}{10**30}x",
    ]
    gone = [f".a{there}{dead.pid}", f".a{there}{10**30}"]
    for name in (*kept, *gone, "." + files.temporary_name("mine")):
        (tmp_path / name).write_text("")
    locks.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "." + files.temporary_name("mine")])
    locks.sweep(tmp_path, whoever=True)
    assert sorted(os.listdir(tmp_path)) == sorted(["plain", "." + files.temporary_name("mine")])

"""A signal that arrives where Python can only ignore an exception is acted on just after it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdjax import signals
from kdjax.settings import Interrupted
from tests.processes import ROOT, environment


class Dies:
    """Is interrupted while it is being removed, as a callback of the garbage collector may be."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_in_a_finalizer_ends_the_work_without_a_traceback(capsys):
    before = sys.unraisablehook
    reached = False
    with pytest.raises(Interrupted, match="what is saved stays"), signals.watched():
        Dies()
        time.sleep(0.5)
        reached = True
    assert not reached, "the work goes on"
    assert sys.unraisablehook is before and "ignored" not in capsys.readouterr().err


def test_writes_that_outlive_a_failed_save_print_nothing():
    """Twenty reports to a closed event loop, while stages run and after; another ignored error is still shown."""
    script = """
import asyncio
from kdjax import signals, storage

class Reports:
    def __del__(self):
        loop = asyncio.new_event_loop()
        loop.close()
        loop.call_soon_threadsafe(print)

class Fails:
    def __del__(self):
        raise ValueError("of another kind")

with signals.watched():
    for _ in range(10):
        Reports()
for _ in range(10):
    Reports()
Fails()
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "closed" not in done.stderr and "of another kind" in done.stderr


def test_a_signal_while_jax_writes_its_cache_ends_the_work_without_a_warning(tmp_path):
    """JAX goes on after any exception there, with a warning of two lines."""
    script = """
import os, signal, sys, time
import jax
from jax._src import lru_cache
from kdjax import signals

def written(cache, key, value):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)

lru_cache.LRUCache.put = written
with signals.watched():
    jax.jit(lambda x: x + 1)(1.0)
    time.sleep(5)
    print("the work goes on")
"""
    variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment() | variables, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "" and "UserWarning" not in done.stderr, done.stderr
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("run the same command to go on.")


def test_an_error_made_of_an_interruption_is_the_interruption():
    """As JAX does when it fails to shorten the traceback of a signal's exception."""
    with pytest.raises(Interrupted, match="what is saved stays"), signals.watched():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        except Interrupted:
            raise TypeError("'NoneType' object cannot be interpreted as an integer")  # noqa: B904
    with pytest.raises(TypeError), signals.watched():
        raise TypeError("of its own")


def test_a_signal_in_a_finalizer_within_a_step_is_noted():
    with pytest.raises(Interrupted), signals.watched() as asked, asked.later():
        Dies()
        assert asked == {"signal": signal.SIGTERM}


def heeds(process: subprocess.Popen, number: int) -> bool:
    """Whether the process has a handler for a signal: before that, Python itself is starting."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the handlers of a process")
@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("SIGTERM", 0.0),
        ("SIGINT", 0.0),
        ("SIGINT", 1.0),
        ("SIGTERM", 2.5),
        ("SIGINT", 5.0),
    ],
)
def test_a_signal_while_a_command_imports_and_starts_ends_it_in_one_sentence(tmp_path, name, seconds):
    """An experiment as people start it, from its first import on: 75, one sentence, no traceback."""
    words = [
        f"--workdir={tmp_path / 'runs'}",
        "--config=configs/digits.py:mlp",
        "--config.recipe.teacher.epochs=100000",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "experiments.distill", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    number = getattr(signal, name)
    while not (heeds(child, signal.SIGTERM) and heeds(child, signal.SIGINT)):
        time.sleep(0.001)
    time.sleep(seconds)
    child.send_signal(number)
    try:
        said = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert child.returncode == 75, said
    assert re.fullmatch(r"stopped: .* run the same command to go on\.\n", said), said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_command_kdjax_in_one_sentence(tmp_path, name):
    """A million rows of text take longer to read than the signal to come."""
    path = tmp_path / "predictions.csv"
    path.write_text("p_0,p_1,label\n" + "0.25,0.75,1\n" * 1_000_000)
    child = subprocess.Popen(
        [sys.executable, "-m", "kdjax", "audit", str(path), "--out", str(tmp_path / "audit.html")],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (heeds(child, signal.SIGTERM) and heeds(child, signal.SIGINT)):
        time.sleep(0.001)
    time.sleep(0.5)
    child.send_signal(getattr(signal, name))
    try:
        said = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert said == "stopped: interrupted; a file is written whole or not at all, run the same command again.\n"
    assert child.returncode == 75
    assert os.listdir(tmp_path) == ["predictions.csv"]


STUCK = """
import ctypes, sys
from kdjax import signals
signals.PATIENCE = float(sys.argv[1])
lock = ctypes.create_string_buffer(64)  # zeros: a mutex of pthreads that is free
with signals.watched():
    print("stuck", flush=True)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="waits for a mutex as Linux has it")
@pytest.mark.parametrize(("patience", "signals_sent"), [(1.0, 1), (500.0, 2)])
def test_a_signal_while_a_computation_never_ends(patience, signals_sent):
    """Python itself cannot act on a signal there: the process waited for ever, whatever was sent but -9."""
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(patience)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "stuck\n"
    for _ in range(signals_sent):
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
    try:
        said = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert child.returncode == 75 and said.startswith("stopped: the present step did not end; "), said


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files through /proc")
def test_nothing_is_left_of_the_watch():
    """Neither its thread, nor its pipe, nor its claim on the signals."""
    before = threading.active_count(), len(os.listdir("/proc/self/fd")), signal.set_wakeup_fd(-1)
    for _ in range(3):
        with signals.watched():
            assert threading.active_count() == before[0] + 1
    assert (threading.active_count(), len(os.listdir("/proc/self/fd")), signal.set_wakeup_fd(-1)) == before

"""Several processes that do not come, cannot be reached, are refused or die: each ends soon, in one sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from kdjax import meeting
from kdjax.errors import Refused
from tests.processes import ROOT, environment, slow


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def group(port: int, members: list[str], when: str = "never", patience: int = 30) -> Iterator[list[subprocess.Popen]]:
    """One process for each "COUNT,INDEX"."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.group", f"127.0.0.1:{port},{member}", when, str(patience)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for member in members
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def ends(child: subprocess.Popen) -> tuple[int, list[str]]:
    """(exit code, lines of the error stream)."""
    _, err = child.communicate(timeout=60)
    return child.returncode, err.splitlines()


def started(child: subprocess.Popen) -> None:
    """Waits until its first collectives are done; the library below says a line of its own before."""
    for line in child.stdout:
        if line == "computing\n":
            return
    raise AssertionError(child.stderr.read())


def worker_of(child: subprocess.Popen) -> int:
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
        return int(file.read().split()[0])


KILLS: dict[str, Callable[[subprocess.Popen], None]] = {
    "worker 9": lambda child: os.kill(worker_of(child), signal.SIGKILL),
    "worker abort": lambda child: os.kill(worker_of(child), signal.SIGABRT),
    "watcher 9": lambda child: os.kill(child.pid, signal.SIGKILL),
}


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker through /proc")
@pytest.mark.parametrize("case", ["0 worker 9", *slow(*[f"{i} {how}" for i in (0, 1) for how in KILLS][1:])])
def test_a_process_killed_ends_the_others_in_one_sentence(port, case):
    who, how = int(case[0]), case[2:]
    with group(port, ["2,0", "2,1"]) as children:
        for child in children:
            started(child)
        KILLS[how](children[who])
        code, lines = ends(children[1 - who])
    reason = {"worker 9": "was ended by SIGKILL", "worker abort": "was ended by SIGABRT", "watcher 9": "is gone"}[how]
    assert lines == [
        f"stopped: process {who} of 2 {reason}; what is saved stays, run the same command on all to go on."
    ]
    assert code == 75


def test_a_signal_to_one_ends_both_together(port):
    with group(port, ["2,0", "2,1"]) as children:
        for child in children:
            started(child)
        children[0].terminate()
        assert [ends(child) for child in children] == [(75, []), (75, [])]


@pytest.mark.slow
def test_one_that_is_refused_says_so_and_the_other_names_it(port):
    with group(port, ["2,0", "2,1"], "refused") as children:
        assert ends(children[1]) == (2, ["refused: this one alone"])
        code, (line,) = ends(children[0])
        assert code == 75 and line.startswith("stopped: process 1 of 2 ended with exit code 2; what is saved stays")


@pytest.mark.slow
def test_three_processes_that_finish_are_no_fault(port):
    with group(port, ["3,0", "3,1", "3,2"], "done") as children:
        assert [ends(child) for child in children] == [(0, [])] * 3


@pytest.mark.slow
def test_processes_that_never_come_are_named(port):
    """To process 0 and, at the same time, to one that did come."""
    with group(port, ["3,0", "3,1"], patience=4) as children:
        code, (line,) = ends(children[0])
        assert code == 75
        assert f"process 2 of 3 did not come to 127.0.0.1:{port} within 4 s; start all 3 with the same" in line
        code, (line,) = ends(children[1])
        assert code == 75 and "ended, or is no kdjax, before all 3 processes had come; start all again." in line


def test_a_coordinator_that_cannot_be_reached_is_named(port):
    with group(port, ["2,1"], patience=1) as (child,):
        code, (line,) = ends(child)
    assert code == 75 and f"process 0 at 127.0.0.1:{port} could not be reached within 1 s (Connection refused);" in line


def test_a_port_that_is_taken_and_a_port_of_another_program():
    """A web server, say: process 0 may not have its port, and it does not answer the others as process 0 would."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = meeting.parse(f"127.0.0.1:{port},2,0")
        with pytest.raises(Refused, match=rf"port {port} cannot be opened .* another program has it"):
            meeting.gather(place, 1.0)
        with pytest.raises(meeting.Lost, match="ended, or is no kdjax"):
            meeting.report(place._replace(process=1), 1.0)


def test_the_same_index_twice_and_another_count_are_refused(port):
    with group(port, ["2,0"]) as (first,):
        place = meeting.parse(f"127.0.0.1:{port},2,1")
        for wrong in (place._replace(processes=3), place._replace(process=7), place._replace(process=0)):
            with pytest.raises(Refused, match="is not expected at .*: process 0 expects 2 processes, of w"):
                meeting.report(wrong, 30.0)
        peers, coordinator = meeting.report(place, 30.0)
        assert coordinator.startswith("127.0.0.1:") and coordinator != f"127.0.0.1:{port}"
        peers[0].close()
        code, (line,) = ends(first)
        assert code == 75 and "process 1 of 2 is gone" in line


@pytest.mark.parametrize(
    "how",
    [
        "host",
        "host:1,2",
        "host:1,2,2",
        "h:99999,2,0",
        "h:0,2,1",
        "h:65536,2,1",
        f"h:1,{10**30},0",
        "h:1,-2,0",
        "a b:1,2,0",
    ],
)
def test_a_meeting_that_cannot_be_is_refused(how):
    with pytest.raises(Refused, match=r"--distributed is '.*(expected auto, or|with port \d+; expected one)"):
        meeting.parse(how)


def test_an_unknown_host_is_refused():
    with pytest.raises(Refused, match=r"names the host 'no\.such\.host\.invalid', which is unknown"):
        meeting.report(meeting.parse("no.such.host.invalid:1,2,1"), 5.0)

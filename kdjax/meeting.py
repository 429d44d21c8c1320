"""How several processes find each other: process 0 listens, the others report, and all hear one address."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from kdjax.errors import Refused


class Meeting(NamedTuple):
    """HOST:PORT,COUNT,INDEX."""

    host: str
    port: int
    processes: int
    process: int


class Lost(RuntimeError):
    """A process of the group did not come, cannot be reached or has ended: exit code 75."""


def parse(how: str) -> Meeting:
    """The meeting that `--distributed` names.

    Raises:
      Refused: it is not HOST:PORT,COUNT,INDEX, or the port, the count or the index cannot be.
    """
    match = re.fullmatch(r"([^,\s]+):(\d{1,9}),(\d{1,9}),(\d{1,9})", how, re.ASCII)
    if match is None or int(match[4]) >= int(match[3]):
        raise Refused(
            f"--distributed is {how!r}; expected auto, or the coordinator's HOST:PORT, the number of processes and "
            "this one's index from 0, such as --distributed=host0:9999,2,0."
        )
    if not 1 <= int(match[2]) <= 65535:
        raise Refused(f"--distributed is {how!r}, with port {match[2]}; expected one between 1 and 65535.")
    return Meeting(match[1].strip("[]"), int(match[2]), int(match[3]), int(match[4]))


def gather(meeting: Meeting, patience: float) -> tuple[dict[int, socket.socket], str]:
    """Process 0: waits for all others and tells them where JAX's coordinator will be."""
    try:
        family = socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM)[0][0]
        door = socket.create_server(("", meeting.port), family=family)
    except OSError as error:
        raise Refused(
            f"port {meeting.port} cannot be opened for --distributed ({error.strerror}); another program has it, or a "
            "run that has not ended: choose another port for all processes."
        ) from error
    end, peers = time.monotonic() + patience, dict[int, socket.socket]()
    with door:
        while len(peers) < meeting.processes - 1:
            missing = sorted({*range(1, meeting.processes)} - peers.keys())
            if not select.select([door], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Lost(
                    f"process {listed(missing)} of {meeting.processes} did not come to {meeting.host}:{meeting.port} "
                    f"within {patience:.0f} s; start all {meeting.processes} with the same --distributed=HOST:PORT,"
                    "COUNT and their own index."
                )
            connection, _ = door.accept()
            with contextlib.suppress(OSError, ValueError, TypeError):
                hello = receive(connection, min(patience, 10.0))
                if hello["count"] == meeting.processes and hello["index"] in missing:
                    peers[hello["index"]] = connection
                    continue
                expected = f"{meeting.processes} processes, of which {listed(missing)} are missing"
                send(connection, {"refused": f"process 0 expects {expected}"})
            connection.close()
    with socket.socket(family) as free:
        free.bind(("", 0))
        coordinator = f"{f'[{meeting.host}]' if ':' in meeting.host else meeting.host}:{free.getsockname()[1]}"
    for connection in peers.values():
        send(connection, {"coordinator": coordinator})
    return peers, coordinator


def report(meeting: Meeting, patience: float) -> tuple[dict[int, socket.socket], str]:
    """The others: find process 0 and hear where JAX's coordinator will be."""
    where, end = f"{meeting.host}:{meeting.port}", time.monotonic() + patience
    while True:
        try:
            connection = socket.create_connection(
                (meeting.host, meeting.port), timeout=max(0.1, end - time.monotonic())
            )
            break
        except socket.gaierror as error:
            raise Refused(
                f"--distributed names the host {meeting.host!r}, which is unknown ({error.strerror})."
            ) from error
        except OSError as error:
            if time.monotonic() > end:
                reason = error.strerror or "no answer"
                raise Lost(
                    f"process 0 at {where} could not be reached within {patience:.0f} s ({reason}); start it there, or "
                    "give all processes the address it listens at."
                ) from error
            time.sleep(0.2)
    try:
        send(connection, {"index": meeting.process, "count": meeting.processes})
        answer = receive(connection, patience + max(0.0, end - time.monotonic()))
    except (OSError, ValueError) as error:
        raise Lost(
            f"process 0 at {where} ended, or is no kdjax, before all {meeting.processes} processes had come; start all "
            "again."
        ) from error
    if "refused" in answer:
        raise Refused(
            f"process {meeting.process} of {meeting.processes} is not expected at {where}: {answer['refused']}; give "
            "each process its own index and the same count."
        )
    return {0: connection}, answer["coordinator"]


def send(connection: socket.socket, news: dict[str, Any]) -> None:
    """One line of JSON."""
    connection.sendall(json.dumps(news).encode() + b"\n")


def receive(connection: socket.socket, patience: float) -> dict[str, Any]:
    """One line of JSON.

    Raises:
      OSError, ValueError: none came in time, or something else did.
    """
    connection.settimeout(max(0.1, patience))
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)
        if not more or len(data) > 4096:
            raise ValueError("the connection ended")
        data += more
    connection.settimeout(None)
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer


def listed(indices: Sequence[int]) -> str:
    text = ", ".join(map(str, indices[:8]))
    return text if len(indices) <= 8 else f"{text}, ... ({len(indices)})"

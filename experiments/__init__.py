"""Commands: `python -m experiments.<name>`.

A signal while a command still imports its libraries ends it like one that comes later: exit code 75, one sentence. So
does a library that cannot be imported, and an address space in which they would abort: exit code 2.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

LEAST_ADDRESSES = 3 * 2**30
"""Bytes of address space; with less, the libraries end the process while they start their threads."""


def _stop(number: int, frame: FrameType | None) -> None:
    """Everything on disk is whole at any moment, so that nothing is left to do."""
    os.write(2, b"stopped: interrupted; what is finished stays, run the same command to go on.\n")
    os._exit(75)


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends a command before its own `main` is there to say it."""
    if not issubclass(kind, ImportError | MemoryError):
        return sys.__excepthook__(kind, error, trace)
    cause: BaseException = error
    while (earlier := cause.__cause__ or cause.__context__) is not None:
        cause = earlier
    reason = " ".join(str(cause).split())[:300] or type(cause).__name__
    what = getattr(error, "name", None) or _importing(cause.__traceback__ or trace)
    sys.stderr.write(f"refused: {what} cannot be imported here ({reason}); install it anew, or give it more memory.\n")
    sys.stderr.flush()
    os._exit(2)


def _importing(trace: TracebackType | None) -> str:
    """The package in whose code an error arose."""
    names = []
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return next((name for name in reversed(names) if name not in ("", "importlib", "__main__")), "a library")


def _refuse_little_room() -> None:
    try:
        import resource
    except ImportError:  # not Unix
        return
    room = resource.getrlimit(resource.RLIMIT_AS)[0]
    if room != resource.RLIM_INFINITY and room < LEAST_ADDRESSES:
        sys.stderr.write(
            f"refused: this process may use {room / 2**30:.1f} GiB of addresses, and JAX needs "
            f"{LEAST_ADDRESSES / 2**30:.0f} to start; type ulimit -v unlimited.\n"
        )
        sys.stderr.flush()
        os._exit(2)


if sys.argv[:1] == ["-m"]:  # the command is being found, and nothing else is imported yet
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _stop)
    sys.excepthook = _explain
    _refuse_little_room()

"""Commands: `python -m experiments.<name>`.

A signal while a command still imports its libraries ends it like one that comes later: exit code 75, one sentence.
"""

import os
import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    """Everything on disk is whole at any moment, so that nothing is left to do."""
    os.write(2, b"stopped: interrupted; what is finished stays, run the same command to go on.\n")
    os._exit(75)


if sys.argv[:1] == ["-m"]:  # the command is being found, and nothing else is imported yet
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _stop)

"""One of several processes that compute together for ever: `python -m tests.faults.group HOST:PORT,COUNT,INDEX WHEN`.

WHEN is never, term (SIGTERM ends it properly), refused (process 1 refuses) or done (ends after a few rounds).
"""

from __future__ import annotations

import signal
import sys

from jax.experimental import multihost_utils

from kdjax import launch, meeting
from kdjax.errors import Refused


def main(how: str, when: str, patience: str = "8") -> int:
    try:
        launch.join(how, patience=float(patience))
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except meeting.Lost as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 75
    import jax
    import numpy as np

    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    round = 0
    while True:
        stop = multihost_utils.process_allgather(np.int32(len(asked))).any()
        round += 1
        if round == 3:
            print("computing", flush=True)
        if stop or (when == "done" and round == 5):
            return 75 if stop else 0
        if when == "refused" and round == 3 and jax.process_index() == 1:
            print("refused: this one alone", file=sys.stderr)
            return 2


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    import os

    os._exit(code)

"""Several processes that run one program: who writes, and how the others hear of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.errors import Held, Refused


def is_primary() -> bool:
    """Whether this process writes the files: process 0 does."""
    return jax.process_index() == 0


def broadcast(text: str) -> str:
    """Process 0's text, on every process."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(np.resize(data, size)), np.uint8)).decode()


def on_primary(work: Callable[[], Any]) -> Any:
    """Runs `work` on process 0 alone, while the others wait; its JSON-able result, or what it raised, reaches all."""
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if is_primary():
        try:
            answer["value"] = work()
        except Exception as error:  # whatever it is, the others must hear of it rather than wait for ever
            failure = error
            kind = next((k for k, known in _RAISED.items() if isinstance(error, known)), "RuntimeError")
            answer = {"raised": kind, "text": str(error)}
    answer = json.loads(broadcast(json.dumps(answer)))
    if failure is not None:
        raise failure
    if "raised" in answer:
        raise _RAISED[answer["raised"]](answer["text"])
    return answer["value"]


_RAISED: dict[str, type[Exception]] = {
    "Held": Held,
    "Refused": Refused,
    "OSError": OSError,
    "RuntimeError": RuntimeError,
}


def any_process(flag: bool) -> bool:
    """True on every process if it is on one."""
    if jax.process_count() == 1:
        return flag
    return bool(np.asarray(multihost_utils.process_allgather(np.int32(flag))).any())

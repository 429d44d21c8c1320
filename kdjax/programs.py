"""Compiled programs: one for equal pieces, counted traces, and numerics that no setting from outside changes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from kdjax.objectives.core import Objective


class Program:
    """A compiled function that counts its traces: one per set of shapes, and a test holds it to that.

    `function` is the function itself, for a look at its shapes that counts as no trace.
    """

    def __init__(self, function: Callable, **jit: Any):
        self.traces = 0
        self.function = function

        @functools.wraps(function)
        def counted(*args):
            self.traces += 1
            return function(*args)

        self.jitted = jax.jit(counted, **jit)

    def __call__(self, *args: Any) -> Any:
        with _numerics():
            return self.jitted(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program for arguments of those shapes and shardings; of devices, too, that this machine does not have."""
        with _numerics():
            return self.jitted.lower(*args)


@contextlib.contextmanager
def _numerics() -> Iterator[None]:
    """Named here, so that no setting from outside changes the numbers of a run; a recipe says its precision."""
    with jax.default_matmul_precision("default"), jax.threefry_partitionable(True):
        yield


def random_key(seed: Any) -> jax.Array:
    """The key of a seed. The generator is named, so that no setting from outside changes the numbers of a run."""
    return jax.random.key(seed, impl="threefry2x32")


def key_at(seed: Any, step: Any) -> jax.Array:
    """The key of a step: all that is drawn in it is drawn from this one."""
    return jax.random.fold_in(random_key(seed), step)


_PROGRAMS: dict[tuple, Program] = {}
"""Compiled programs by what they were made of; equal pieces share one."""

_MOST_PROGRAMS = 64


def shared(make: Callable[..., Program]) -> Callable[..., Program]:
    """Remembers what `make` returned for the same arguments, and forgets the oldest beyond a number."""

    @functools.wraps(make)
    def get(**pieces: Any) -> Program:
        key = (make.__name__, *sorted(pieces.items()))
        program = _PROGRAMS.pop(key, None) or make(**pieces)
        _PROGRAMS[key] = program
        if len(_PROGRAMS) > _MOST_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]
        return program

    return get


def forget_programs(objective: Objective | None = None) -> None:
    """Drops the compiled programs of an objective, or all of them: a long table would keep hundreds in memory."""
    for key in list(_PROGRAMS):
        pieces = dict(key[1:])
        objectives = [pieces.get("objective"), *(student.objective for student in pieces.get("students", ()))]
        if objective is None or objective in objectives:
            del _PROGRAMS[key]

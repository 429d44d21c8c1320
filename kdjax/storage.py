"""Arrays on disk: the only file that imports Orbax.

A tree is nested plain dicts in one folder called `state`: OCDBT chunks and JSON. What Orbax does not know is done here:
arrays without elements, NumPy's scalars, folders whose name it would read as a pattern, and errors that it tells twice.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from kdjax.variables import named, nested

STATE = "state"


def save(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Writes arrays by name; every process calls it, with its own shards."""
    # Orbax refuses arrays without elements; their shape, in checkpoint.json, says all there is to say.
    stored = {name: _array(leaf) for name, leaf in leaves.items() if leaf.size}
    try:
        with _quiet(), _context(), _plain(folder) as place:
            ocp.save(place / STATE, nested(stored))
    except jax.errors.JaxRuntimeError:  # a process was lost
        raise
    except Exception as error:
        # The arrays were checked before, so the file system is what is left to fail; Orbax tells of it by many kinds of
        # errors.
        raise OSError(str(error).splitlines()[0]) from error


def load(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Reads what `save` wrote, with the shapes, dtypes and shardings wanted, in the order of `wanted`."""
    stored = {name: leaf for name, leaf in wanted.items() if np.prod(leaf.shape)}
    with _quiet(), _context(), _plain(folder) as place:
        loaded = named(ocp.load(place / STATE, nested(stored)))
    return {
        name: loaded[name] if name in loaded else jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        for name, leaf in wanted.items()
    }


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of a leaf; on the default device where it says none."""
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _array(leaf: Any) -> Any:
    """Orbax does not know NumPy's scalars."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _context() -> ocp.Context:
    """Orbax without what is not used here: shardings always come from the target, and weights do not compress."""
    context = ocp.Context()
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.use_compression = False
    context.asynchronous.create_directories_asynchronously = False
    return context


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder under a name without brackets and stars, into which Orbax reads a pattern."""
    if not any(letter in "*?[]" for letter in str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        link = Path(name) / "checkpoint"
        link.symlink_to(folder)
        yield link


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every exception of its threads with a trace, and then raises it: once is enough."""
    logger = logging.getLogger("absl")

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def _mute_closed_loops() -> None:
    """After a failed save, writes that had begun still report to an event loop that Orbax has closed, and each report
    would print a traceback. The save itself raises the one error that says what happened."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        trace = unraisable.exc_traceback
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = "" if trace is None else trace.tb_frame.f_code.co_filename
        if not (issubclass(unraisable.exc_type, RuntimeError) and "asyncio" in file):
            before(unraisable)

    sys.unraisablehook = hook


# Not where a save fails: the reports come from other threads, and whoever had set a hook by then would take ours away
# when it puts the earlier one back.
_mute_closed_loops()

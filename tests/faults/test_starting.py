"""Commands on a machine where libraries are broken or memory is short: one sentence, by a real process each."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import jax
import pytest

from experiments.common import call
from tests.processes import ROOT, environment

WORDS = ("--config=configs/digits.py:mlp", "--config.seeds=(0,)")


def started(module: str, *words: str, room: int = 0, **variables: str) -> tuple[int, str]:
    """(exit code, what it said on stderr) of a command, in so many bytes of address space."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room))) if room else None
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=limit,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "orbax", "numpy"])
def test_a_library_that_cannot_be_imported_is_named(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise ImportError('libx.so: cannot open shared object file')")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, said = started("experiments.distill", *WORDS, f"--workdir={tmp_path}", **path)
    assert code == 2 and said.count("\n") == 1, said
    assert said.startswith(f"refused: {name} cannot be imported here (libx.so: cannot open shared object file); ")
    if name == "jax":
        code, said = started("kdjax", "show", str(tmp_path), **path)
        assert code == 2 and said.count("\n") == 1 and "cannot be imported here (libx.so" in said, said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no limit of addresses")
@pytest.mark.parametrize("room", [200 * 2**20, 2**30, 2 * 2**30])
def test_too_few_addresses_to_start_are_refused(tmp_path, room):
    code, said = started("experiments.distill", *WORDS, f"--workdir={tmp_path}", room=room)
    assert code == 2 and said.count("\n") == 1 and f"may use {room / 2**30:.1f} GiB of addresses" in said, said


LITTLE = """
import resource, sys
from pathlib import Path
import jax
from experiments import common, distill, tables
run = tables.run
def limited(*given):
    jax.block_until_ready(jax.numpy.ones((8, 8)) @ jax.numpy.ones((8, 8)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
    return run(*given)
tables.run = limited
common.main(distill.run, "configs/digits.py")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no limit of addresses")
def test_memory_that_ends_while_a_stage_begins_is_one_sentence(tmp_path):
    """A network that takes 0.4 GB to begin with, in an address space that has 0.6 GB left."""
    words = [*WORDS, f"--workdir={tmp_path}", "--config.recipe.teacher.model_options.widths=(6000,6000)"]
    command = [sys.executable, "-c", LITTLE, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 70 and done.stderr.count("\n") == 1, done.stderr
    kinds = "INTERNAL|RESOURCE_EXHAUSTED"
    assert re.match(rf"stopped: the machine could not go on \(({kinds}): .*Out of memory", done.stderr), done.stderr


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("INTERNAL: device lost\nstack\ntrace")])
def test_an_error_of_the_device_is_one_sentence(capsys, error):
    def run(given):
        raise error

    assert call(run, ["x"], "configs/digits.py") == 70
    said = capsys.readouterr().err
    assert said.startswith("stopped: the machine could not go on (") and said.count("\n") == 1

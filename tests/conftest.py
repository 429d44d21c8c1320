"""Two forced host devices for every test, so that sharding and pmap are exercised rather than skipped."""

import collections
import contextlib
import ctypes
import gc
import os
from pathlib import Path

import pytest

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Workers, the processes that tests start, and the next run share what was compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# The count of golden cases must reach the controller of xdist, which loads no conftest of a subfolder.
pytest_plugins = ["tests.parity.counter"]

STEP = 1.5e9
"""Bytes by which a worker may grow before it forgets its compiled programs: thousands do not fit beside each other."""
_limit = [STEP]


COMPILE = {"users": "as users compile", "quick": "without LLVM's expensive passes", "draft": "nor XLA's fusions"}
# LLVM goes over a program in one piece: in 32, which it may compile side by side, small programs take a fifth longer.
_DRAFT = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_addoption(parser):
    text = "; ".join(f"{name}: {what}" for name, what in COMPILE.items())
    parser.addoption("--compile", choices=COMPILE, default="users", help=f"most of the suite's time; {text}")


def pytest_configure(config):
    """Before the first program is compiled. Processes that tests start inherit `quick`, and no draft."""
    how = config.getoption("--compile")
    if how == "draft":
        os.environ["XLA_FLAGS"] += f" {_DRAFT}"
    if how != "users":
        import jax

        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    gc.set_threshold(200_000, 50, 100)  # tracing makes many objects and few cycles


def pytest_collection_modifyitems(items):
    """Long files first: with one of them left to the end, one process would work on it alone."""
    length = collections.Counter()
    for item in items:
        length[item.path] += 20 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -length[item.path])


@pytest.fixture
def as_users_compile():
    """For what is decided by how a compiler rounds: golden values and ties."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_runtest_teardown():
    with contextlib.suppress(OSError):  # not Linux: the whole suite in one process needs some 7 GB
        if _resident() > _limit[0]:
            import jax

            jax.clear_caches()
            gc.collect()
            with contextlib.suppress(AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # else the freed memory stays with the process
            _limit[0] = _resident() + STEP

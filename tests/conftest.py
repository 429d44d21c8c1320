"""Two forced host devices for every test, so that sharding and pmap are exercised rather than skipped."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

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


def pytest_addoption(parser):
    text = "compile without XLA's expensive passes: most of the suite's time is compiling programs that run once"
    parser.addoption("--quick", action="store_true", help=text)


def pytest_configure(config):
    """Before the first program is compiled. Processes that tests start inherit the choice."""
    if config.getoption("--quick"):
        import jax

        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


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

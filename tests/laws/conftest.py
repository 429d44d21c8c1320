"""One fixed profile for every law: the same examples in every run, no deadline (XLA compiles inside the first one)."""

import jax
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    max_examples=5,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)


@pytest.fixture(autouse=True)
def quick_compilation():
    """Thousands of tiny programs run a few times each: compiling is nearly all of their cost."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

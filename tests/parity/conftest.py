"""Golden values are compared as users compile, whatever `--quick` says."""

import jax
import pytest


@pytest.fixture(autouse=True)
def as_users_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

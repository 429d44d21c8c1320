"""Golden values are compared as users compile, in every run but a draft."""

import jax
import pytest


@pytest.fixture(autouse=True)
def as_users_compile(request):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", request.config.getoption("--compile") == "draft")
    yield
    jax.config.update("jax_disable_most_optimizations", before)

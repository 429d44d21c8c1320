"""Compiled, no loss finds a value unequal to itself: at ties and at K = 2, float32 decides as float64 does.

Compilers compute an expression anew where it is used and round the copies differently; a comparison of the two then
decides by noise. Small integer logits make every kind of tie: in a row, between rows, with the label, at thresholds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, targets
from kdjax.objectives.shaping import project
from tests.processes import slow

pytestmark = [pytest.mark.fused, pytest.mark.usefixtures("as_users_compile")]


def shaped(target):
    """A target by its probabilities; their gradient is none."""
    return lambda z, t, y: 0.0 * z.sum() + jnp.sum(jnp.exp(target(t, y)) * jnp.arange(1.0, z.shape[1] + 1))


CASES = {
    "flsd": lambda z, t, y: losses.flsd(z, y).sum(),
    "dual_focal": lambda z, t, y: losses.dual_focal(z, y).sum(),
    "dus": lambda z, t, y: losses.dus(z, y, tau=1 / z.shape[1]).sum(),
    "mdca": lambda z, t, y: losses.mdca(z, y),
    "dca": lambda z, t, y: losses.dca(z, y),
    "mmce": lambda z, t, y: losses.mmce(z, y),
    "mmce_weighted": lambda z, t, y: losses.mmce_weighted(z, y),
    "crl": lambda z, t, y: losses.crl(z, y, span=3),
    "crl_margin": lambda z, t, y: losses.crl(z, y, span=3, confidence="margin"),
    "mbls": lambda z, t, y: losses.mbls(z, margin=0.5).sum(),
    "acls": lambda z, t, y: losses.acls(z, margin=0.5).sum(),
    "dkd": lambda z, t, y: losses.dkd(z, t, y).sum(),
    "lskd": lambda z, t, y: losses.lskd(z, t).sum(),
    "dist": lambda z, t, y: losses.dist(z, t, beta=0.0),
    "mlld": lambda z, t, y: sum(losses.mlld(z, t)),
    "mlld_selecting": lambda z, t, y: sum(losses.mlld(z, t, variant="selecting")),
    "wclip": shaped(targets.wclip),
    "swap": shaped(targets.swap),
    "margin": shaped(targets.margin),
    "top1": shaped(targets.top1),
    "project": shaped(lambda t, y: project(t, y, near_mass=0.3)[0]),
    "mistaken": lambda z, t, y: 0.0 * z.sum() + jnp.sum(targets.mistaken(t, y) * jnp.arange(1.0, len(y) + 1)),
}


@pytest.mark.parametrize("k", [2, *slow(5)])
@pytest.mark.parametrize("name", CASES)
def test_float32_decides_as_float64_does(name, k):
    compiled = jax.jit(jax.value_and_grad(CASES[name]))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        z, t = (rng.integers(0, 2, (10, k)).astype(np.float32) for _ in range(2))
        y = rng.integers(0, k, 10).astype(np.int32)
        single = compiled(z, t, y)
        with jax.enable_x64(True):
            double = compiled(z.astype(np.float64), t.astype(np.float64), y)
        for part, exact in zip(single, double, strict=True):
            np.testing.assert_allclose(part, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("n", [45, 100, 300])
def test_adafocals_edges_on_confidences_are_these_confidences(n):
    """An edge at a whole position b N / M is the value there, which lies in the bin below, however it was rounded."""
    confidence = np.sort(np.random.default_rng(n).uniform(0.1, 1, n)).astype(np.float32)
    _, edges = jax.jit(losses.adafocal_gap, static_argnums=2)(confidence, np.ones(n, bool), 15)
    whole = np.flatnonzero(np.arange(15) * n % 15 == 0)
    np.testing.assert_array_equal(np.asarray(edges)[whole], confidence[whole * n // 15])
    np.testing.assert_allclose(edges, np.interp(np.linspace(0, n, 16), np.arange(n), confidence), rtol=1e-6)

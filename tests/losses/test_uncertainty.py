"""CUD's teacher loss: its parts, its gate, and the gradient table that explains the defaults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.losses.uncertainty import dus

ONLY = {"lambda_ce": 0.0, "lambda_f": 0.0, "lambda_h": 0.0}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def logits_with(p_y, k=77):
    """One row whose label, class 0, has probability p_y and whose other classes share the rest."""
    return jnp.log(jnp.full((1, k), (1 - p_y) / (k - 1)).at[0, 0].set(p_y))


def slope(p_y, **options):
    y = jnp.array([0])
    return float(jax.grad(lambda z: dus(z, y, **{**ONLY, **options})[0])(logits_with(p_y))[0, 0])


@pytest.mark.parametrize(
    ("p_y", "ce", "focal", "entropy"),
    [
        (0.3, -0.70, -0.122, 0.073),
        (0.5, -0.50, -0.0039, 0.108),
        (0.7, -0.30, -1.7e-5, 0.109),
        (0.9, -0.10, -1e-10, 0.059),
    ],
)
def test_the_gradient_table(p_y, ce, focal, entropy):
    """d/dz_y of the three parts at 77 classes; the gate open everywhere."""
    np.testing.assert_allclose(slope(p_y, lambda_ce=1.0), ce, rtol=1e-9)
    np.testing.assert_allclose(slope(p_y, lambda_f=1.0, gamma=10.0), focal, rtol=0.1)
    np.testing.assert_allclose(slope(p_y, lambda_h=0.1, tau=1.0), entropy, atol=6e-4)


def test_it_is_its_formula():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    y = jnp.array([0, 1, 2, 3, 0])
    p = jax.nn.softmax(z)
    p_y = p[jnp.arange(5), y]
    h = -jnp.sum(p * jnp.log(p), 1)
    w = (p_y < 0.3) + 0.7 * (1 - p_y) ** 1.5
    wanted = -(0.2 + 0.6 * 0.9 * (1 - p_y) ** 2) * jnp.log(p_y) - 0.05 * w * h
    options = {"lambda_ce": 0.2, "lambda_f": 0.6, "lambda_h": 0.05, "gamma": 2.0, "alpha_y": 0.9}
    found = dus(z, y, **options, tau=0.3, rho=0.7, beta=1.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_limits():
    z, y = jnp.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]), jnp.array([0, 0])
    ce = -jax.nn.log_softmax(z)[:, 0]
    np.testing.assert_allclose(dus(z, y, **{**ONLY, "lambda_ce": 1.0}), ce)
    np.testing.assert_allclose(dus(z, y, **{**ONLY, "lambda_f": 1.0}, gamma=0.0), ce)
    # Entropy alone, of weight 1[p_y < tau] + rho (1 - p_y)^beta; p_y = 1/2 is not below tau = 1/2, jitted or not.
    z, y = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), jnp.zeros(3, jnp.int32)
    p, h = jax.nn.softmax(z)[:, 0], -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z), -1)
    for weight, options in (
        (jnp.array([0.0, 0.0, 1.0]), {}),
        (jnp.array([0.0, 0.0, 1.0]) + 2 * (1 - p) ** 0.5, {"rho": 2.0, "beta": 0.5}),
    ):
        entropy_alone = jax.jit(lambda z, o=options: dus(z, y, **{**ONLY, "lambda_h": 1.0, **o}))
        np.testing.assert_allclose(entropy_alone(z), -weight * h, rtol=1e-9)


def test_the_gate_pays_for_lowering_the_label_only_when_its_gradient_flows():
    """With the gradient through w, lambda_h rho beta (1 - p_y)^(beta-1) H dp_y/dz_y is added."""
    p_y = 0.6
    options = {"lambda_h": 0.1, "rho": 1.0, "beta": 2.0}
    z = logits_with(p_y, 5)
    h = float(-jnp.sum(jnp.exp(z) * z))
    y = jnp.array([0])
    stopped, open_ = (
        jax.grad(lambda z, s=s: dus(z, y, **{**ONLY, **options}, stop_gate=s)[0])(z)[0, 0] for s in (True, False)
    )
    np.testing.assert_allclose(open_ - stopped, 0.1 * 2 * (1 - p_y) * h * p_y * (1 - p_y), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 10.0])
def test_saturated_and_excluded_classes_stay_finite(gamma):
    z = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, -jnp.inf]], jnp.bfloat16)
    f = lambda z: jnp.sum(dus(z, jnp.array([0, 0, 1, 0]), gamma=gamma, rho=1.0, beta=0.5, stop_gate=False))  # noqa: E731
    value, grad = jax.value_and_grad(f)(z)
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert np.all(np.isfinite(grad.astype(jnp.float32)))


@pytest.mark.parametrize("wrong", [{"alpha_y": 0.0}, {"tau": 1.5}, {"gamma": -1.0}, {"lambda_h": -0.1}, {"rho": "x"}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(Refused):
        dus(jnp.zeros((1, 3)), jnp.array([0]), **wrong)

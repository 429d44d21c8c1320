"""Per-example losses at the edges: masked classes, saturation, dtypes, refusals. Values are held by tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import Refused

LABELLED = {
    "nll": losses.nll,
    "label_smoothing": losses.label_smoothing,
    "label_smoothing_uniform": lambda z, y: losses.label_smoothing(z, y, form="uniform"),
    "focal": losses.focal,
    "focal_half": lambda z, y: losses.focal(z, y, gamma=0.5),
    "flsd": losses.flsd,
    "dual_focal": losses.dual_focal,
    "dual_focal_half": lambda z, y: losses.dual_focal(z, y, gamma=0.5),
    "brier": losses.brier,
    "adafocal": lambda z, y: losses.adafocal(z, y, gamma=jnp.float32(1.5)),
    "adafocal_inverse": lambda z, y: losses.adafocal(z, y, gamma=jnp.float32(-1.5)),
    "cpc_discrimination": losses.cpc_discrimination,
    "cpc_exclusion": losses.cpc_exclusion,
    "mbls": lambda z, y: losses.mbls(z, margin=1.0),
    "acls": lambda z, y: losses.acls(z, margin=1.0),
    "acls_range": lambda z, y: losses.acls(z, margin=1.0, reference="range"),
}

# label, then the other classes: saturated both ways, equal, and a masked class that is not the label.
EDGES = np.array(
    [
        [1e4, -1e4, 0.0, 0.0],
        [-1e4, 1e4, 0.0, 0.0],
        [1e4, 1e4, 1e4, 1e4],
        [0.0, 0.0, 0.0, 0.0],
        [40.0, -40.0, -40.0, -40.0],
        [1.0, 2.0, -np.inf, 0.5],
        [1.0, 2.0, -np.inf, -np.inf],
        [2.0, 1.0, -np.inf, 1.0],
    ],
    np.float32,
)


def value_and_grad(loss, logits, labels):
    """([B] values, [B, K] gradients of their sum)."""
    grad, values = jax.jit(jax.grad(lambda z: (loss(z, labels).sum(), loss(z, labels)), has_aux=True))(logits)
    return values, grad


@pytest.mark.parametrize("loss", [losses.nll, losses.focal, losses.label_smoothing, losses.dus, losses.flsd])
@pytest.mark.parametrize("label", [-1, 4, -5])
def test_a_label_that_is_no_class_is_nan_and_not_the_last_class(loss, label):
    assert np.isnan(jax.jit(loss)(jnp.ones((1, 4)), jnp.array([label]))).all()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32])
def test_labels_of_few_bits_are_labels_of_many_classes(dtype):
    logits = jnp.zeros((1, 300)).at[0, 100].set(5.0)
    loss = jax.jit(losses.nll)(logits, jnp.array([100], dtype))
    np.testing.assert_array_equal(loss, jax.jit(losses.nll)(logits, jnp.array([100])))


def test_thresholds_of_flsd_ascend():
    with pytest.raises(Refused, match=r"flsd.thresholds is \(0.5, 0.2\); expected two .* in ascending order"):
        losses.flsd(jnp.ones((1, 4)), jnp.array([0]), thresholds=(0.5, 0.2))


@pytest.mark.parametrize("name", LABELLED)
def test_finite_at_the_edges_and_float32_from_bfloat16(name):
    labels = jnp.zeros(len(EDGES), jnp.int32)
    values, grad = value_and_grad(LABELLED[name], jnp.asarray(EDGES), labels)
    assert values.shape == labels.shape and values.dtype == jnp.float32
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(grad)), (values, grad)
    assert not np.any(np.asarray(grad)[np.isneginf(EDGES)]), "a masked class has no gradient"
    loss = jax.jit(LABELLED[name])
    half = loss(jnp.asarray([[1.0, 2.0, 0.5]], jnp.bfloat16), jnp.array([0]))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, loss(jnp.asarray([[1.0, 2.0, 0.5]]), jnp.array([0])), rtol=1e-6)


@pytest.mark.parametrize("name", ["nll", "focal", "flsd", "dual_focal", "brier", "adafocal"])
def test_a_masked_class_is_an_absent_class(name):
    logits, labels = jnp.array([[0.3, -jnp.inf, 1.0, -0.7], [2.0, -jnp.inf, 1.0, 1.5]]), jnp.array([0, 2])
    present = jnp.array([0, 2, 3])
    values, grad = value_and_grad(LABELLED[name], logits, labels)
    wanted, wanted_grad = value_and_grad(LABELLED[name], logits[:, present], jnp.array([0, 1]))
    np.testing.assert_allclose(values, wanted, rtol=1e-6)
    np.testing.assert_allclose(grad[:, present], wanted_grad, rtol=1e-5, atol=1e-7)


def test_the_loss_of_an_impossible_label_is_infinite():
    logits = jnp.array([[-jnp.inf, 1.0, 2.0]])
    for name in ("nll", "focal", "label_smoothing", "label_smoothing_uniform"):
        assert LABELLED[name](logits, jnp.array([0]))[0] == jnp.inf, name


def test_soft_nll_ignores_targets_of_zero():
    logits, target = jnp.array([[1.0, -jnp.inf, 2.0]]), jnp.array([[0.25, 0.0, 0.75]])
    value, grad = jax.value_and_grad(lambda z: losses.soft_nll(z, target).sum())(logits)
    log_p = jax.nn.log_softmax(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(value, -(0.25 * log_p[0] + 0.75 * log_p[1]), rtol=1e-6)
    np.testing.assert_allclose(grad[0, [0, 2]], jnp.exp(log_p) - jnp.array([0.25, 0.75]), rtol=1e-6)
    assert grad[0, 1] == 0


def test_dual_focal_in_float64():
    with jax.enable_x64(True):
        z = np.array([[0.2, 1.0, -0.5, 0.9], [3.0, 1.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
        y, gamma = np.array([1, 0, 0]), 3.0
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        # Largest probability strictly below p_y: class 3; class 1 (class 2 ties with the label); none.
        other = np.array([p[0, 3], p[1, 1], 0.0])
        p_y = p[np.arange(3), y]
        wanted = -((1 - p_y + other) ** gamma) * np.log(p_y)
        np.testing.assert_allclose(losses.dual_focal(z, y, gamma=gamma), wanted, rtol=1e-12)
        f = lambda z: losses.dual_focal(z, y, gamma=gamma).sum()  # noqa: E731
        grad, step = jax.grad(f)(jnp.asarray(z)), 1e-6
        for i, j in [(0, 1), (0, 3), (0, 0), (1, 1), (2, 0), (2, 3)]:
            e = np.zeros_like(z)
            e[i, j] = step
            np.testing.assert_allclose(grad[i, j], (f(z + e) - f(z - e)) / (2 * step), rtol=1e-6, atol=1e-9)


def test_identities():
    z, y = jax.random.normal(jax.random.key(0), (16, 5)) * 3, jnp.arange(16) % 5
    nll = losses.nll(z, y)
    for same in (
        losses.focal(z, y, gamma=0.0),
        losses.dual_focal(z, y, gamma=0.0),
        losses.label_smoothing(z, y, alpha=0.0),
        losses.label_smoothing(z, y, alpha=0.0, form="uniform"),
        losses.adafocal(z, y, gamma=jnp.zeros(16)),
        losses.soft_nll(z, jax.nn.one_hot(y, 5)),
    ):
        np.testing.assert_allclose(same, nll, rtol=1e-5, atol=1e-6)
    two_forms = losses.label_smoothing(z, y, alpha=0.1), losses.label_smoothing(z, y, alpha=0.125, form="uniform")
    np.testing.assert_allclose(*two_forms, rtol=1e-5)
    per_example = losses.focal(z, y, gamma=jnp.where(jnp.arange(16) < 8, 1.0, 3.0))
    np.testing.assert_allclose(per_example[:8], losses.focal(z, y, gamma=1.0)[:8], rtol=1e-6)


@pytest.mark.slow
def test_focal_with_gamma_zero_has_the_gradient_of_nll_also_where_saturated():
    z, y = jnp.array([[200.0, 0.0], [0.0, 200.0], [0.1, 0.0]]), jnp.array([0, 0, 0])
    focal = jax.grad(lambda z: losses.focal(z, y, gamma=jnp.float32(0)).sum())(z)
    np.testing.assert_allclose(focal, jax.grad(lambda z: losses.nll(z, y).sum())(z), atol=1e-6)


def test_leading_axes_are_free():
    z, y = jax.random.normal(jax.random.key(1), (2, 3, 4)), jnp.ones((2, 3), jnp.int32)
    for name, loss in LABELLED.items():
        if name != "cpc_exclusion":
            assert loss(z, y).shape == (2, 3), name


def test_refusals():
    z, y = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    with pytest.raises(Refused, match="labels are float32"):
        losses.nll(z, y.astype(jnp.float32))
    with pytest.raises(Refused, match=r"shape \[3\] and logits \[2, 3\]"):
        losses.focal(z, jnp.zeros(3, jnp.int32))
    with pytest.raises(Refused, match="logits are int32"):
        losses.nll(z.astype(jnp.int32), y)
    with pytest.raises(Refused, match="expected the same"):
        losses.soft_nll(z, jnp.zeros((2, 4)))
    with pytest.raises(Refused, match=r"label_smoothing\.form is 'szegedy'"):
        losses.label_smoothing(z, y, form="szegedy")
    with pytest.raises(Refused, match="at least 2 classes"):
        losses.label_smoothing(z[:, :1], y)

"""Distillation losses: formulas, identities, limits and numerical edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.losses import features
from kdjax.losses.distillation import DIVERGENCES, dist, dkd, kd, lskd, power_sum, ttm
from kdjax.losses.mlld import mlld
from tests.processes import slow

RNG = np.random.default_rng(1)
Z, T_LOGITS = 3 * RNG.normal(size=(2, 6, 5))
Y = np.array([0, 1, 4, 2, 2, 3])


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(q, p):
    return np.sum(q * np.log(q / p), -1)


REFERENCE = {
    "forward": kl,
    "reverse": lambda q, p: kl(p, q),
    "js": lambda q, p: 0.5 * kl(q, (p + q) / 2) + 0.5 * kl(p, (p + q) / 2),
}


def numerical(f, x, h=1e-6):
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        grad[i] = (float(f(x + step)) - float(f(x - step))) / (2 * h)
    return grad


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize(("T", "T_c"), [(1.0, 1.0), (4.0, 1.0), (2.0, 1.5)])
def test_kd_is_its_formula(double, divergence, T, T_c):
    wanted = T**2 * REFERENCE[divergence](softmax(T_LOGITS / (T_c * T)), softmax(Z / T))
    found = kd(Z, T_LOGITS, T=T, T_c=T_c, divergence=divergence)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    total = jax.jit(lambda z: jnp.sum(kd(z, T_LOGITS, T=T, T_c=T_c, divergence=divergence)))
    np.testing.assert_allclose(jax.grad(total)(Z), numerical(total, Z), atol=1e-7)


def test_kd_gradient_takes_temperatures_per_row_and_leaves_the_teacher_alone(double):
    T, T_c = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), np.linspace(1, 2, 6)
    grads = jax.grad(lambda z, t: jnp.sum(kd(z, t, T=T, T_c=T_c)), (0, 1))(Z, T_LOGITS)
    wanted = T[:, None] * (softmax(Z / T[:, None]) - softmax(T_LOGITS / (T * T_c)[:, None]))
    np.testing.assert_allclose(grads[0], wanted, rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(grads[1], 0)


@pytest.mark.parametrize(("divergence", "factor"), [("forward", 1.0), ("reverse", 1.0), ("js", 0.25)])
def test_kd_at_high_temperature_is_the_squared_difference_of_centered_logits(double, divergence, factor):
    centered = (Z - Z.mean(1, keepdims=True)) - (T_LOGITS - T_LOGITS.mean(1, keepdims=True))
    wanted = factor * np.sum(centered**2, 1) / (2 * Z.shape[1])
    np.testing.assert_allclose(kd(Z, T_LOGITS, T=1e4, divergence=divergence), wanted, rtol=2e-3)


LOSSES = {
    **{d: lambda z, t, y, d=d: jnp.sum(kd(z, t, T=3.0, divergence=d)) for d in DIVERGENCES},
    "lskd": lambda z, t, y: jnp.sum(lskd(z, t)),
    "dkd": lambda z, t, y: jnp.sum(dkd(z, t, y)),
    "dist": lambda z, t, y: dist(z, t, T=2.0),
    "mlld": lambda z, t, y: sum(mlld(z, t)),
    "mlld_selecting": lambda z, t, y: sum(mlld(z, t, variant="selecting", standardize=True)),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_student_that_equals_its_teacher_is_left_exactly_alone(name):
    f = jax.jit(jax.value_and_grad(LOSSES[name]))
    for logits in (Z, 50 * Z, np.full(Z.shape, 1.0)):
        z = jnp.asarray(logits, jnp.float32)
        value, grad = f(z, z, jnp.asarray(Y))
        assert float(value) == 0.0
        np.testing.assert_array_equal(grad, 0.0)


EDGES = {
    "zero": ([[0.0] * 4] * 2, [[0.0, 1, 2, 3]] * 2),
    "huge": ([[1e4, -1e4, 0, 0], [0, 1e4, 0, 0]], [[-1e4, 1e4, 0, 0], [1e4, 0, 0, 0]]),
    "saturated": ([[100.0, -100, -100, -100]] * 2, [[-100.0, 100, -100, -100]] * 2),
    "excluded": ([[1.0, 2, 3, -np.inf]] * 2, [[3.0, 2, -np.inf, -np.inf]] * 2),
    "binary": ([[5.0, -5.0], [0, 0]], [[-50.0, 50.0], [0, 1]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(LOSSES.keys() - {"mlld"}), *slow("mlld")])
def test_values_and_gradients_stay_finite(name):
    f = jax.jit(jax.value_and_grad(LOSSES[name]))
    for edge, logits in EDGES.items():
        z, t = (jnp.asarray(x, jnp.bfloat16) for x in logits)
        value, grad = f(z, t, jnp.array([0, 1]))
        assert value.dtype == jnp.float32
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(grad.astype(jnp.float32))), edge


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_shift_of_every_logit_and_a_permutation_of_classes_change_nothing(double, name):
    f = jax.jit(LOSSES[name])
    value = f(Z, T_LOGITS, Y)
    np.testing.assert_allclose(f(Z + 7.0, T_LOGITS - 3.0, Y), value, rtol=1e-9)
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(f(Z[:, order], T_LOGITS[:, order], np.argsort(order)[Y]), value, rtol=1e-9)


def test_ttm_is_the_teacher_only_temperature_and_wttm_its_weighted_form(double):
    q = softmax(T_LOGITS)
    power = q**0.2
    z_sum = power.sum(1)
    wanted = kl(power / z_sum[:, None], softmax(Z))
    np.testing.assert_allclose(ttm(Z, T_LOGITS, T=5.0), wanted, rtol=1e-10)
    np.testing.assert_allclose(ttm(Z, T_LOGITS, T=5.0, weighted=True), z_sum * wanted, rtol=1e-10)
    np.testing.assert_allclose(power_sum(np.zeros((1, 5)), 5.0), 5**0.8)


def test_dkd_with_the_teachers_rest_mass_for_beta_is_kd(double):
    rest = 1 - softmax(T_LOGITS / 3.0)[np.arange(6), Y]
    np.testing.assert_allclose(dkd(Z, T_LOGITS, Y, beta=rest, T=3.0), kd(Z, T_LOGITS, T=3.0), rtol=1e-10)


def test_dkd_of_two_classes_has_no_non_target_part(double):
    z, t, y = Z[:, :2], T_LOGITS[:, :2], Y % 2
    np.testing.assert_array_equal(dkd(z, t, y, alpha=0.0, beta=8.0), 0.0)
    np.testing.assert_allclose(dkd(z, t, y, T=2.0), kd(z, t, T=2.0), rtol=1e-10)
    with pytest.raises(Refused, match="2 classes"):
        dkd(Z[:, :1], T_LOGITS[:, :1], Y * 0)


@pytest.mark.slow
def test_dist_is_pearsons_correlation(double):
    p, q = softmax(Z / 2), softmax(T_LOGITS / 2)
    rho = lambda a, b: np.corrcoef(a, b)[0, 1]  # noqa: E731
    inter = np.mean([1 - rho(a, b) for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - rho(a, b) for a, b in zip(p.T, q.T, strict=True)])
    loss = jax.jit(lambda z: dist(z, T_LOGITS, beta=2.0, gamma=3.0, T=2.0))(Z)
    np.testing.assert_allclose(loss, 4 * (2 * inter + 3 * intra), rtol=1e-9)
    f = jax.jit(lambda z: dist(z, T_LOGITS, T=2.0))
    np.testing.assert_allclose(jax.grad(f)(Z), numerical(f, Z), atol=1e-7)


def test_dist_without_directions_is_zero():
    one = jnp.asarray(Z[:1], jnp.float32)
    assert float(jax.jit(lambda z, t: dist(z, t, beta=0.0))(one, one[:, ::-1])) == 0.0
    value, grad = jax.jit(jax.value_and_grad(dist))(jnp.zeros((3, 4)), jnp.asarray(Z[:3, :4], jnp.float32))
    assert float(value) == 0.0
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("scale", [30.0, 60.0, 100.0, 300.0, 1e4])
def test_dist_of_confident_networks_has_a_finite_gradient(scale):
    """Columns of small probabilities: in float32 their squares underflow and the inverse roots of these overflow."""
    z, t = (jnp.asarray(scale * np.random.default_rng(s).normal(size=(30, 4, 3)), jnp.float32) for s in (1, 2))
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(dist)))(z, t)
    assert np.all(np.isfinite(grads)) and np.all((values >= 0) & (values <= 4))


def gram(p, q):
    return (q.T @ q - p.T @ p) ** 2, (q @ q.T - p @ p.T) ** 2


def test_mlld_selecting_selects(double):
    views = np.stack([Z, RNG.normal(size=Z.shape)]), np.stack([T_LOGITS, RNG.normal(size=Z.shape)])
    weak = softmax(views[1][0])
    rows = weak.max(1) <= np.median(weak.max(1))
    classes = weak.sum(0) <= np.median(weak.sum(0))
    instance = category = batch = 0.0
    for tau in (4.0, 3.0, 5.0, 2.0, 6.0):
        for v, (r, c) in enumerate([(rows, classes), (np.ones(6, bool), np.ones(5, bool))]):
            p, q = softmax(views[0][v] / tau), softmax(views[1][v] / tau)
            per_class, per_row = gram(p, q)
            instance += tau**2 * np.sum(kl(q, p)[r]) / 6
            category += per_class[c].sum() / 5
            batch += per_row[r].sum() / 6
    f = jax.jit(lambda z, t: mlld(z, t, variant="selecting"))
    found = f(views[0].reshape(12, 5), views[1].reshape(12, 5))
    np.testing.assert_allclose(found, [instance, category, batch], rtol=1e-9)


@pytest.mark.parametrize("name", ["dist", "mlld", "mlld_selecting"])
def test_weight_zero_is_absence_in_value_and_gradient(double, name):
    kept = np.array([0, 1, 3, 4])
    weight = np.zeros(6)
    weight[kept] = 1.0
    z, t = Z.copy(), T_LOGITS.copy()
    if name == "dist":
        call = dist
    else:
        variant = "selecting" if name == "mlld_selecting" else "reference"
        call = lambda z, t, **w: sum(mlld(z, t, variant=variant, **w))  # noqa: E731
        z, t, weight = np.concatenate([z, z[::-1]]), np.concatenate([t, t[::-1]]), np.concatenate([weight, weight])
        kept = np.concatenate([kept, kept + 6])
    z[weight == 0] = 1e4  # finite, as `as_rows` has it
    value, grad = jax.jit(jax.value_and_grad(lambda z: call(z, t, weight=weight)))(z)
    wanted, wanted_grad = jax.jit(jax.value_and_grad(lambda z: call(z, t[kept])))(z[kept])
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(grad[kept], wanted_grad, rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(grad[weight == 0], 0.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kd(Z, T_LOGITS, T=0), "T is 0"),
        (lambda: kd(Z, T_LOGITS, T_c=-1.0), "T_c is -1.0"),
        (lambda: kd(Z, T_LOGITS, divergence="foward"), "forward"),
        (lambda: kd(Z, T_LOGITS[:, :4]), "same classes"),
        (lambda: mlld(Z[:5], T_LOGITS[:5]), "two_views"),
        (lambda: mlld(Z, T_LOGITS, variant="paper"), "variant"),
        (lambda: dist(Z, T_LOGITS, beta=-1.0), "beta"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(call, words):
    with pytest.raises(Refused, match=words):
        call()


def test_feature_losses_are_their_formulas():
    s, t = (jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(features.hidden_state(s, t), np.mean((s - t) ** 2, (1, 2)), rtol=1e-6)
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    wanted = [np.mean((s[0, :2] - t[0, :2]) ** 2), np.mean((s[1] - t[1]) ** 2), 0.0]
    np.testing.assert_allclose(features.hidden_state(s, t, mask=mask), wanted, rtol=1e-6)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(features.pkd(s, t), np.sum((unit(s) - unit(t)) ** 2, (1, 2)), rtol=1e-5)
    np.testing.assert_allclose(features.pkd(2 * s, t), features.pkd(s, t), rtol=1e-5)
    with pytest.raises(Refused, match="project one of them"):
        features.hidden_state(s, t[..., :3])


def test_attention_losses_are_their_formulas():
    s, t = (jnp.asarray(RNG.normal(size=(2, 3, 4, 4)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(features.attention(s, t), np.mean((s - t) ** 2, (1, 2, 3)), rtol=1e-6)
    hidden = t.at[..., 3].set(-1e9)
    wanted = np.mean((s - t.at[..., 3].set(0.0)) ** 2, (1, 2, 3))
    np.testing.assert_allclose(features.attention(s, hidden), wanted, rtol=1e-6)
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    found = features.attention(s, t, mask=mask)
    np.testing.assert_allclose(found[0], np.mean((s - t)[0, :, :2, :2] ** 2), rtol=1e-6)
    maps = [np.mean(np.asarray(x) ** 2, -1).reshape(2, -1) for x in (s, t[..., :2])]
    maps = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps]
    np.testing.assert_allclose(
        features.attention_transfer(s, t[..., :2]), np.mean((maps[0] - maps[1]) ** 2, 1), rtol=1e-5
    )
    for loss in (features.attention_transfer, features.pkd):
        grad = jax.grad(lambda x, loss=loss: jnp.sum(loss(x, t)))(jnp.zeros_like(s))
        assert np.all(np.isfinite(grad))

"""BatchNorm: sums that do not cancel, the closed-form gradient, groups, and the same numbers on two devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.errors import Refused
from kdjax.models import build
from kdjax.models.batchnorm import EPSILON, BatchNorm, normalize
from kdjax.recipes import Recipe
from tests.models.drawing import variables_of

KEY = jax.random.key(0)
SHAPE = (8, 4, 4, 3)


def data(mean=0.0, sd=1.0):
    return (np.random.default_rng(0).normal(size=SHAPE) * sd + mean).astype(np.float32)


def variables(channels=3):
    ones, zeros = jnp.ones(channels), jnp.zeros(channels)
    return {"params": {"scale": ones, "bias": zeros}, "batch_stats": {"mean": zeros, "var": ones}}


@partial(jax.jit, static_argnames="group")
def trained(x, group=0):
    y, changed = BatchNorm(group).apply(variables(), x, True, mutable=["batch_stats"])
    return y, changed["batch_stats"]


def exact(x):
    """Float64, over the axes but the last."""
    x = np.asarray(x, np.float64)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + EPSILON), mean, var


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1000.0, 1.0), (-1e5, 10.0), (3.0, 0.0)])
def test_a_mean_far_from_zero_costs_no_digits(mean, sd):
    x = data(mean, sd)
    y, stats = trained(x)
    expected, batch_mean, batch_var = exact(x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], 0.1 * batch_mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * batch_var, rtol=1e-5)


def test_gradient_is_that_of_the_definition():
    scale, bias = jnp.array([0.5, 1.0, 2.0]), jnp.array([0.0, 1.0, -1.0])
    weights = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    x = jnp.asarray(data(2.0, 3.0)).reshape(2, 4, 4, 4, 3)

    def definition(x, scale, bias):
        mean = x.mean((1, 2, 3), keepdims=True)
        var = jnp.square(x - mean).mean((1, 2, 3), keepdims=True)
        return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias

    def gradient(f):
        return jax.jit(jax.grad(lambda *a: (jnp.tanh(f(*a)).reshape(SHAPE) * weights).sum(), argnums=(0, 1, 2)))

    ours = gradient(lambda *a: normalize(*a)[0])(x, scale, bias)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, gradient(definition)(x, scale, bias)
    )


def test_relu_is_that_of_the_normalized_and_so_is_its_gradient():
    scale, bias = jnp.array([0.5, 1.0, 2.0]), jnp.array([0.0, 1.0, -1.0])
    x = jnp.asarray(data(2.0, 3.0)).reshape(2, 4, 4, 4, 3)

    def value_and_gradient(f):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.square(f(*a) - 0.3).sum(), argnums=(0, 1, 2)))(x, scale, bias)

    together = value_and_gradient(lambda *a: normalize(*a, True)[0])
    apart = value_and_gradient(lambda *a: nn.relu(normalize(*a)[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, apart)


def test_numbers_are_those_of_flax():
    x = data(0.3, 2.0)
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=EPSILON)
    y, changed = jax.jit(lambda x: flax.apply(variables(), x, mutable=["batch_stats"]))(x)
    ours, stats = trained(x)
    np.testing.assert_allclose(ours, y, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), stats, changed["batch_stats"])


def test_groups_are_consecutive_examples_and_statistics_their_mean():
    x = data()
    x[4:] = 5 + 3 * x[4:]
    y, stats = trained(x, 4)
    for half in (slice(0, 4), slice(4, 8)):
        np.testing.assert_allclose(y[half], exact(x[half])[0], atol=1e-5)
    means, variances = zip(*(exact(x[half])[1:] for half in (slice(0, 4), slice(4, 8))), strict=True)
    np.testing.assert_allclose(stats["mean"], 0.1 * np.mean(means, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-5)


def test_one_group_is_the_whole_batch_bit_for_bit():
    x = data(1.0, 2.0)
    jax.tree.map(np.testing.assert_array_equal, trained(x, 8), trained(x, 0))


def test_a_group_that_does_not_divide_the_rows_is_refused():
    model = build("conv_tiny", num_classes=3, norm_group=3)
    x = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    with pytest.raises(Refused, match=r"norm_group is 3 and a batch has 8 rows; .* \(1, 2, 4, 8\), or 0"):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, x)
    # Evaluation has no groups, so any batch will do.
    assert jax.eval_shape(lambda v, x: model.apply(v, x, train=False)[0].logits, variables, x).shape == (8, 3)


@pytest.fixture(scope="module", params=[0, 4])
def on_one_and_two(request):
    """(group, one device's results, two devices' results, two devices' program text) of loss gradients."""
    model = build("conv_tiny", num_classes=5, norm_group=request.param)
    half = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    # The halves differ in mean and scale, so that statistics per device would be far off.
    x = jnp.concatenate([half, 3 + 5 * half])
    everything = variables_of(model, x)

    def loss(params, stats, x):
        output, stats = model.apply({"params": params, "batch_stats": stats}, x, train=True)
        return jnp.square(output.logits - 1).mean(), (stats, output.logits)

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    params, stats = jax.device_put(
        (everything["params"], everything["batch_stats"]), NamedSharding(mesh, PartitionSpec())
    )
    program = gradient.lower(params, stats, sharded).compile()
    one = gradient(everything["params"], everything["batch_stats"], x)
    return request.param, one, program(params, stats, sharded), program.as_text()


def test_numbers_do_not_depend_on_the_device_count(on_one_and_two):
    _, one, two, _ = on_one_and_two
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)


def test_groups_on_their_own_device_need_no_collective_to_normalize(on_one_and_two):
    """What is left sums running statistics and gradients over the devices, none of which a layer waits for."""
    group, *_, text = on_one_and_two
    collectives = len(re.findall(r" (?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text))
    # The whole batch: a reference, the sums and the backward sums of each of three layers, in that order.
    assert collectives == 1 if group else collectives >= 3 * 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "conv_tiny", "batch_size": 32, "norm_group": 12}, "norm_group is 12 and batch_size 32"),
        ({"model": "mlp", "batch_size": 32, "norm_group": 8}, "'mlp' has no option 'norm_group'"),
    ],
)
def test_a_recipe_refuses_groups_before_any_data_is_read(fields, words):
    with pytest.raises(Refused, match=words):
        Recipe(**fields)

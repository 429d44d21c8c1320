"""What the networks compute: modes, dtypes, initializers, alignment, and the same numbers on two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.models import build, layers

KEY = jax.random.key(0)


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def setup(name, *shape, **options):
    model = build(name, num_classes=5, **options)
    x = images(*shape)
    return model, model.init(KEY, x), x


def test_training_updates_statistics_and_evaluation_does_not():
    model, variables, x = setup("conv_tiny", 6, 8, 8, 1)
    output, stats = model.apply(variables, x, train=False)
    assert output.logits.shape == (6, 5)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, stats, variables["batch_stats"]))
    _, stats = model.apply(variables, x, train=True, key=KEY)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])

    # momentum 0.9 on the biased variance, against NumPy on the first convolution's output
    kernel = np.asarray(variables["params"]["stage1"]["kernel"])[:, :, 0]
    padded = np.pad(np.asarray(x)[..., 0], ((0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    maps = np.einsum("bhwij,ijc->bhwc", patches, kernel)
    np.testing.assert_allclose(stats["stage1_norm"]["mean"], 0.1 * maps.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["stage1_norm"]["var"], 0.9 + 0.1 * maps.var((0, 1, 2)), rtol=1e-5)


def test_network_without_batchnorm_has_empty_statistics():
    model, variables, x = setup("mlp", 3, 4, 4, 1)
    assert variables["batch_stats"] == {}
    assert model.apply(variables, x, train=True, key=KEY)[1] == {}


def test_dropout_is_a_function_of_the_key():
    model, variables, x = setup("mlp", 3, 4, 4, 1, dropout=0.5)

    def logits(train, key):
        return np.asarray(model.apply(variables, x, train=train, key=key)[0].logits)

    assert (logits(True, KEY) == logits(True, KEY)).all()
    assert (logits(True, KEY) != logits(True, jax.random.key(1))).any()
    assert (logits(True, KEY) != logits(False, None)).any()


@pytest.mark.parametrize("name", ["wrn_10_1", "mlp"])
def test_bfloat16_compute_leaves_float32_logits_and_parameters(name):
    model, variables, x = setup(name, 4, 8, 8, 3, dtype="bfloat16")
    output, stats = jax.jit(model.apply, static_argnames="train")(variables, x, train=True, key=KEY)
    assert output.logits.dtype == output.features["penultimate"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))
    assert jnp.isfinite(output.logits).all()
    exact = build(name, num_classes=5).apply(variables, x, train=True, key=KEY)[0].logits
    gap = jnp.abs(output.logits - exact).max()
    assert 0 < gap < 0.1 * jnp.abs(exact).max() + 0.05  # it did compute in bfloat16, and nearly the same


@pytest.mark.parametrize(
    ("name", "size", "stages", "width"),
    [
        ("wrn_10_2", 32, [(32, 32), (16, 64), (8, 128)], 128),
        ("resnet8", 32, [(32, 16), (16, 32), (8, 64)], 64),
        ("resnet11_bottleneck", 32, [(32, 64), (16, 128), (8, 256)], 256),
        ("resnet50", 32, [(32, 256), (16, 512), (8, 1024), (4, 2048)], 2048),
        # KD(C)'s stem makes a 34x34 map
        ("mobilenet_v2", 32, [(34, 16), (17, 24), (9, 32), (5, 64), (5, 96), (5, 160), (5, 320)], 1280),
        ("mobilenet_v2_half", 32, [(16, 8), (16, 12), (8, 16), (4, 32), (4, 48), (2, 80), (2, 160)], 1280),
        ("vgg8", 32, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)], 512),
        ("vgg8", 64, [(64, 64), (32, 128), (16, 256), (8, 512), (4, 512)], 512),
        ("conv_small", 8, [(8, 32), (4, 64), (2, 64)], 128),
    ],
)
def test_features_are_the_stages_and_the_penultimate_layer(name, size, stages, width):
    model = build(name, num_classes=7)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    output, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, x)
    assert output.logits.shape == (2, 7)
    assert output.features["penultimate"].shape == (2, width)
    maps = [output.features[f"stage{i}"].shape for i in range(1, len(output.features))]
    assert maps == [(2, s, s, c) for s, c in stages]


def test_logits_are_the_head_of_the_penultimate_features():
    model, variables, x = setup("resnet8", 2, 8, 8, 3)
    output, _ = model.apply(variables, x, train=False)
    head = variables["params"]["head"]
    expected = output.features["penultimate"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-6)


def test_strided_convolution_is_aligned_as_in_pytorch():
    from flax import linen as nn

    class Strided(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.conv(x, 1, 3, "conv", stride=2)

    x = images(1, 4, 4, 1)
    center = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    y = Strided().apply({"params": {"conv": {"kernel": center}}}, x)
    np.testing.assert_array_equal(y, x[:, ::2, ::2])


def test_basic_block_adds_its_shortcut_before_the_last_relu():
    model, variables, x = setup("resnet8", 2, 8, 8, 3)
    params = jax.tree.map(lambda a: a, variables["params"])
    # A silenced branch leaves the block the identity on the (non-negative) output of the stem.
    params["stage1_block1"]["norm2"]["scale"] = jnp.zeros(16)
    stem = jnp.asarray(variables["params"]["stem"]["kernel"])
    y = jax.lax.conv_general_dilated(x, stem, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    output, _ = model.apply({**variables, "params": params}, x, train=False)
    np.testing.assert_allclose(output.features["stage1"], jax.nn.relu(y / np.sqrt(1 + 1e-5)), rtol=1e-5, atol=1e-6)


def test_initializers_are_those_of_the_authors():
    def drawn(name, *path):
        def pick(key, x):
            node = build(name, num_classes=100).init(key, x)["params"]
            for part in path:
                node = node[part]
            return node

        return jax.jit(pick)(KEY, images(1, 16, 16, 3))  # XLA computes the picked leaves alone

    he_normal = drawn("wrn_10_2", "stage3_block1", "conv2", "kernel")
    np.testing.assert_allclose(he_normal.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    head = drawn("wrn_10_2", "head")
    assert (head["bias"] == 0).all()
    assert 0.98 * 128**-0.5 < jnp.abs(head["kernel"]).max() <= 128**-0.5

    depthwise = drawn("mobilenet_v2", "stage7_block1", "depthwise")
    for leaf in (depthwise["kernel"], depthwise["bias"]):  # the fan-in of a depthwise 3x3 is 9
        assert 0.98 / 3 < jnp.abs(leaf).max() <= 1 / 3
    np.testing.assert_allclose(drawn("mobilenet_v2_half", "head", "kernel").std(), 0.01, rtol=0.02)
    np.testing.assert_allclose(drawn("mobilenet_v2_half", "last", "kernel").std(), np.sqrt(2 / 1280), rtol=0.02)
    assert jnp.abs(drawn("resnet50", "stage1_block1", "conv1", "kernel")).max() <= 1 / 8


def test_batchnorm_over_a_sharded_batch_sees_the_global_batch():
    model, variables, _ = setup("conv_tiny", 8, 8, 8, 1)
    # The halves differ in mean and scale, so that statistics per shard would be far off.
    x = jnp.concatenate([images(4, 8, 8, 1), 3 + 5 * images(4, 8, 8, 1)])
    step = jax.jit(model.apply, static_argnames="train")
    one, one_stats = step(variables, x, train=True, key=KEY)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    two, two_stats = step(everywhere, sharded, train=True, key=KEY)
    np.testing.assert_allclose(one.logits, two.logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one_stats, two_stats)
    shard, _ = step(variables, x[:4], train=True, key=KEY)
    assert jnp.abs(shard.logits - one.logits[:4]).max() > 0.05

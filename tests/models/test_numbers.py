"""What the networks compute: modes, dtypes, initializers, alignment, and the same numbers on two devices."""

import functools
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kdjax.models import MODELS, as_model, build, densenet, layers, shufflenet
from tests.models.drawing import drawn, images, variables_of

KEY = jax.random.key(0)


def setup(name, *shape, **options):
    model = build(name, num_classes=5, **options)
    x = images(*shape)
    return model, variables_of(model, x), x


def run(model, variables, x, *, train, key=None):
    """Compiled: op by op every small operation would be a compilation of its own."""
    return jax.jit(model.apply, static_argnames="train")(variables, x, train=train, key=key)


def test_training_updates_statistics_and_evaluation_does_not():
    model, variables, x = setup("conv_tiny", 6, 8, 8, 1)
    output, stats = run(model, variables, x, train=False)
    assert output.logits.shape == (6, 5)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    _, stats = run(model, variables, x, train=True, key=KEY)
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
    assert run(model, variables, x, train=True)[1] == {}


def test_dropout_is_a_function_of_the_key():
    model, variables, x = setup("mlp", 3, 4, 4, 1, dropout=0.5)

    def logits(train, key):
        return np.asarray(run(model, variables, x, train=train, key=key)[0].logits)

    assert (logits(True, KEY) == logits(True, KEY)).all()
    assert (logits(True, KEY) != logits(True, jax.random.key(1))).any()
    assert (logits(True, KEY) != logits(False, None)).any()


def test_bfloat16_compute_leaves_float32_logits_and_parameters():
    model, variables, x = setup("mlp", 4, 8, 8, 3, dtype="bfloat16")
    output, _ = run(model, variables, x, train=True)
    exact = run(build("mlp", num_classes=5), variables, x, train=True)[0].logits
    gap = jnp.abs(output.logits - exact).max()
    assert 0 < gap < 0.1 * jnp.abs(exact).max() + 0.05  # it did compute in bfloat16, and nearly the same

    model, variables, x = setup("conv_tiny", 4, 8, 8, 3, dtype="bfloat16")
    output, stats = jax.eval_shape(lambda v: model.apply(v, x, train=True), variables)
    assert output.features["stage1"].dtype == jnp.bfloat16
    assert output.logits.dtype == output.features["penultimate"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))


@pytest.mark.parametrize(
    ("name", "size", "stages", "width"),
    [
        ("wrn_10_2", 32, [(32, 32), (16, 64), (8, 128)], 128),
        ("resnet8", 32, [(32, 16), (16, 32), (8, 64)], 64),
        ("resnet11_bottleneck", 32, [(32, 64), (16, 128), (8, 256)], 256),
        pytest.param("resnet50", 32, [(32, 256), (16, 512), (8, 1024), (4, 2048)], 2048, marks=pytest.mark.slow),
        # KD(C)'s stem makes a 34x34 map
        ("mobilenet_v2", 32, [(34, 16), (17, 24), (9, 32), (5, 64), (5, 96), (5, 160), (5, 320)], 1280),
        ("mobilenet_v2_half", 32, [(16, 8), (16, 12), (8, 16), (4, 32), (4, 48), (2, 80), (2, 160)], 1280),
        ("shufflenet_v1", 32, [(16, 240), (8, 480), (4, 960)], 960),
        pytest.param("shufflenet_v2", 32, [(16, 116), (8, 232), (4, 464)], 1024, marks=pytest.mark.slow),
        ("vgg8", 32, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)], 512),
        pytest.param("vgg8", 64, [(64, 64), (32, 128), (16, 256), (8, 512), (4, 512)], 512, marks=pytest.mark.slow),
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
    output, _ = run(model, variables, x, train=False)
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
    output, _ = run(model, {**variables, "params": params}, x, train=False)
    np.testing.assert_allclose(output.features["stage1"], jax.nn.relu(y / np.sqrt(1 + 1e-5)), rtol=1e-5, atol=1e-6)


def test_initializers_are_those_of_the_authors():
    def initial(name, *paths, **options):
        def pick(key, x):
            params = build(name, num_classes=100, **options).init(key, x)["params"]
            return [functools.reduce(getitem, path.split("/"), params) for path in paths]

        return jax.jit(pick)(KEY, images(1, 16, 16, 3))  # XLA computes the picked leaves alone

    he_normal, kernel, bias = initial("wrn_10_2", "stage3_block1/conv2/kernel", "head/kernel", "head/bias")
    np.testing.assert_allclose(he_normal.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    assert (bias == 0).all()
    assert 0.98 * 128**-0.5 < np.abs(kernel).max() <= 128**-0.5

    for leaf in initial("mobilenet_v2", "stage7_block1/depthwise/kernel", "stage7_block1/depthwise/bias"):
        assert 0.98 / 3 < np.abs(leaf).max() <= 1 / 3  # the fan-in of a depthwise 3x3 is 9
    small, he_normal = initial("mobilenet_v2_half", "head/kernel", "last/kernel")
    np.testing.assert_allclose(np.std(small), 0.01, rtol=0.02)
    np.testing.assert_allclose(np.std(he_normal), np.sqrt(2 / 1280), rtol=0.02)
    assert MODELS["resnet50"].defaults["conv_init"] == "torch"
    (torch,) = initial("resnet8", "stage3_block1/conv2/kernel", conv_init="torch")
    assert 0.98 / 24 < np.abs(torch).max() <= 1 / 24


def test_channel_shuffle_is_the_transpose_of_groups():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    np.testing.assert_array_equal(shufflenet.shuffle(x, 2)[0, 0, 0], [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(shufflenet.shuffle(x, 3)[0, 0, 0], [0, 2, 4, 1, 3, 5])


def test_transitions_of_a_densenet_halve_the_channels_and_the_map():
    network = as_model(densenet.DenseNet(7, blocks=(1, 2, 1), growth=4), "small_densenet")
    x = images(2, 8, 8, 3)
    variables = variables_of(network, x)
    output, _ = jax.eval_shape(lambda v: network.apply(v, x, train=False), variables)
    assert [output.features[f"stage{i}"].shape for i in (1, 2, 3)] == [(2, 8, 8, 12), (2, 4, 4, 14), (2, 2, 2, 11)]
    assert output.features["penultimate"].shape == (2, 11) and output.logits.shape == (2, 7)


def test_dense_block_keeps_its_input_and_adds_channels():
    x = jnp.abs(images(2, 4, 4, 6))
    block = densenet.DenseBlock(growth=3, dropout=0.0)
    variables = drawn(jax.eval_shape(lambda: block.init(KEY, x, NO_NORM, False)))
    y = block.apply(variables, x, NO_NORM, False)
    assert y.shape == (2, 4, 4, 9)
    np.testing.assert_array_equal(y[..., :6], x)
    assert variables["params"]["conv1"]["kernel"].shape == (1, 1, 6, 12)


def NO_NORM(x, name, *, relu=False, after=None):
    x = x if after is None else after(x)
    return nn.relu(x) if relu else x

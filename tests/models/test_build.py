"""Names, parameter counts, the checkpoint format, and what is refused. Only shapes are computed."""

import functools
import hashlib
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.models import MODELS, build, describe

GOLDEN = Path(__file__).with_name("golden.json")
# The smallest member of each family, on its smallest sensible images.
FAMILIES = {
    "wrn_10_2": (8, 3),
    "resnet8": (8, 3),
    "resnet11_bottleneck": (8, 3),
    "resnet18": (8, 3),
    "mobilenet_v2": (8, 3),
    "mobilenet_v2_half": (8, 3),
    "vgg8": (16, 3),
    "densenet121": (8, 3),
    "shufflenet_v1": (8, 3),
    "shufflenet_v2": (8, 3),
    "conv_tiny": (8, 1),
    "mlp": (8, 1),
}


@functools.cache
def abstract(name, num_classes, size=8, channels=3, **options):
    model = build(name, num_classes=num_classes, **options)
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def counts(name):
    """Parameters with 10 and with 100 classes; the head is a linear layer in all networks."""
    params = abstract(name, 10)["params"]
    ten = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    features, classes = params["head"]["kernel"].shape
    assert classes == 10
    return ten, ten + 90 * (features + 1)


@pytest.mark.parametrize(
    ("name", "ten", "hundred"),
    [
        ("wrn_40_2", 2_243_546, 2_255_156),
        ("wrn_40_1", 563_930, 569_780),
        ("wrn_16_2", 691_674, 703_284),
        ("wrn_16_1", 175_066, 180_916),
        ("mobilenet_v2", 2_254_090, 2_369_380),
        ("resnet50", 23_520_842, 23_705_252),
        ("resnet8", 78_042, 83_892),
        ("resnet32", 466_906, 472_756),
        ("resnet56_bottleneck", 591_322, 614_452),
        ("resnet110_bottleneck", 1_147_738, 1_170_868),
    ],
)
def test_parameter_counts_of_kdc(name, ten, hundred):
    assert counts(name) == (ten, hundred)


@pytest.mark.parametrize(
    ("name", "hundred"),
    [
        ("resnet20", 278_324),
        ("resnet110", 1_736_564),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("mobilenet_v2_half", 812_836),
        ("vgg8", 3_965_028),
        ("vgg13", 9_462_180),
        ("shufflenet_v1", 949_258),
        ("shufflenet_v2", 1_355_528),
    ],
)
def test_parameter_counts_of_mdistiller(name, hundred):
    assert counts(name)[1] == hundred


def test_densenet_of_kdc():
    ten, hundred = counts("densenet121")
    assert (hundred, ten + 190 * 1025) == (7_048_548, 7_151_048)


def test_two_networks_by_the_name_of_resnet56_are_told_apart():
    basic = describe("resnet56", 100)
    assert basic.parameters == 861_620
    assert "mdistiller's" in basic.whose and "resnet56_bottleneck" in basic.whose
    assert describe("resnet56_bottleneck", 100) == (614_452, "KD(C)'s: bottlenecks, 9n+2 layers")
    # 28x28 gray digits: the count of a network that flattens its inputs depends on them
    digits = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    assert describe("mlp", 10, digits, widths=[5]).parameters == 784 * 5 + 5 + 5 * 10 + 10


def test_every_network_says_whose_it_is():
    for name, entry in MODELS.items():
        assert re.match(r"(KD\(C\)|mdistiller|kdjax|Google|Hugging Face|Facebook)'s", entry.whose), name
    # BERT-Mini and its pooler have 11.17 M parameters; the head has 256 K + K
    assert describe("bert_4l_256", 77) == (11_170_560 + 257 * 77, "Google's BERT, 4 layers of 256")


def test_head_of_the_64x64_networks_is_four_times_wider():
    head = abstract("resnet18", 200, size=64, pool=2)["params"]["head"]
    assert head["kernel"].shape == (4 * 512, 200)


def listing(name):
    """One line per array, its path and shape; of long lists the hash."""
    size, channels = FAMILIES[name]
    leaves = jax.tree_util.tree_leaves_with_path(abstract(name, 10, size, channels))
    lines = [f"{'/'.join(k.key for k in path)} {'x'.join(map(str, leaf.shape))}" for path, leaf in leaves]
    return lines if len(lines) < 200 else hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", FAMILIES)
def test_parameter_names_and_shapes_are_the_checkpoint_format(name):
    assert listing(name) == json.loads(GOLDEN.read_text())[name]


def test_variables_are_plain_float32_dicts():
    for name in ("conv_tiny", "mlp"):
        variables = abstract(name, 3, channels=1, dtype="bfloat16")
        assert type(variables) is dict and set(variables) == {"params", "batch_stats"}
        stack = [variables]
        while stack:
            node = stack.pop()
            if isinstance(node, jax.ShapeDtypeStruct):
                assert node.dtype == jnp.float32
            else:
                assert type(node) is dict
                stack += node.values()


def test_every_name_builds():
    for name in MODELS:
        assert build(name, num_classes=2).name == name
    assert build("wrn_22_3", num_classes=2).name == "wrn_22_3"
    assert build("resnet29_bottleneck", num_classes=2).name == "resnet29_bottleneck"


def test_equal_arguments_give_the_same_model_and_so_the_same_compiled_step():
    assert build("conv", num_classes=3, widths=[8, 8]) is build("conv", num_classes=3, widths=(8, 8))
    assert build("wrn_10_1", num_classes=3) is not build("wrn_10_1", num_classes=3, norm_group=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "wrn_40_2x", "num_classes": 10}, "did you mean .*wrn_40_2"),
        ({"name": "wrn_41_2", "num_classes": 10}, r"d = 6n\+4"),
        ({"name": "wrn_40_0", "num_classes": 10}, "k >= 1"),
        ({"name": "resnet57_bottleneck", "num_classes": 10}, r"d = 9n\+2"),
        ({"name": "mlp", "num_classes": 1}, "num_classes is 1; expected"),
        ({"name": "mlp", "num_classes": 10.0}, "num_classes is 10.0; expected"),
        ({"name": "mlp", "num_classes": 10, "dtype": "float16"}, "dtype is 'float16'"),
        ({"name": "mlp", "num_classes": 10, "dtype": "bfloat61"}, "did you mean bfloat16"),
        ({"name": "wrn_16_1", "num_classes": 10, "dropuot": 0.3}, "did you mean dropout"),
        ({"name": "wrn_16_1", "num_classes": 10, "depth": 40}, "no option 'depth'"),
        ({"name": "wrn_16_1", "num_classes": 10, "dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"name": "vgg8", "num_classes": 10, "dropout": 0.1}, "known: norm_group"),
        ({"name": "conv", "num_classes": 10, "widths": (8, 0)}, "expected positive integers"),
        ({"name": "conv", "num_classes": 10, "widths": 8}, "expected positive integers"),
        ({"name": "conv", "num_classes": 10, "hidden": 0}, "conv.hidden is 0; expected an integer of at least 1"),
        ({"name": "resnet18", "num_classes": 10, "conv_init": "hee"}, "did you mean he"),
        ({"name": "resnet18", "num_classes": 10, "pool": 2.0}, "resnet18.pool is 2.0; expected an integer"),
        ({"name": "mobilenet_v2", "num_classes": 10, "multiplier": 0}, "mobilenet_v2.multiplier is 0; expected"),
        ({"name": "mobilenet_v2_half", "num_classes": 10, "multiplier": 1.0}, "no option 'multiplier'"),
        ({"name": "resnet8", "num_classes": 10, "norm_group": -1}, "resnet8.norm_group is -1; expected"),
        ({"name": "mlp", "num_classes": 10, "norm_group": 8}, "'mlp' has no option 'norm_group'"),
        ({"name": "shufflenet_v1", "num_classes": 10, "groups": 3}, "no option 'groups'"),
        ({"name": object(), "num_classes": 10}, "expected a name such as 'wrn_40_2'"),
    ],
)
def test_refusals_before_any_compile(arguments, words):
    with pytest.raises(Refused, match=words):
        build(**arguments)


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("conv_tiny", jnp.zeros((8, 8, 1)), r"ConvNet got inputs of shape \(8, 8, 1\); expected images \[B, H, W, C\]"),
        ("wrn_10_1", jnp.zeros((1, 8, 8, 3), jnp.uint8), r"WideResNet got uint8 inputs; expected floats.*`prepare`"),
        ("vgg8", {"ids": jnp.zeros((1, 8))}, r"VGG got a dict as inputs; expected images"),
        ("shufflenet_v2", jnp.zeros((1, 8)), r"expected images"),
        ("densenet121", jnp.zeros((1, 8)), r"expected images"),
        ("mlp", jnp.zeros(8), r"MLP got inputs of shape \(8,\); expected one array \[B, ...\]"),
    ],
)
def test_each_network_checks_its_own_inputs(name, inputs, words):
    with pytest.raises(Refused, match=words):
        jax.eval_shape(build(name, num_classes=3).init, jax.random.key(0), inputs)


def test_pooling_that_does_not_fit_and_dropout_without_a_key_are_refused():
    with pytest.raises(Refused, match="pool is 2 and the last map is 1x1"):
        abstract("resnet18", 3, pool=2)
    for name, shape in (("mlp", (1, 4)), ("wrn_10_1", (1, 8, 8, 3))):
        model = build(name, num_classes=3, dropout=0.5)
        x = jnp.zeros(shape)
        with pytest.raises(Refused, match="key=None"):
            jax.eval_shape(lambda model=model, x=x: model.apply(model.init(jax.random.key(0), x), x, train=True))


if __name__ == "__main__":
    # python -m tests.models.test_build: a new format; old checkpoints will not load, so raise FORMAT with it.
    GOLDEN.write_text(json.dumps({name: listing(name) for name in FAMILIES}, indent=0) + "\n")
    sys.exit(0)

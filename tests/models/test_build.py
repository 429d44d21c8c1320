"""Names, parameter counts, the checkpoint format, and what is refused."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.models import MODELS, build

GOLDEN = Path(__file__).with_name("golden.json")
# The smallest member of each family, on its smallest sensible images.
FAMILIES = {
    "wrn_10_2": (8, 3),
    "resnet8": (8, 3),
    "resnet11_bottleneck": (8, 3),
    "resnet18": (8, 3),
    "mobilenet_v2": (8, 3),
    "mobilenet_v2_half": (16, 3),
    "vgg8": (16, 3),
    "conv_tiny": (8, 1),
    "mlp": (8, 1),
}


def abstract(name, num_classes, size=8, channels=3, **options):
    model = build(name, num_classes=num_classes, **options)
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(name, num_classes, **options):
    shapes = jax.tree.leaves(abstract(name, num_classes, **options)["params"])
    return sum(int(np.prod(leaf.shape)) for leaf in shapes)


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
    assert (count(name, 10), count(name, 100)) == (ten, hundred)


@pytest.mark.parametrize(
    ("name", "hundred"),
    [
        ("resnet20", 278_324),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("mobilenet_v2_half", 812_836),
        ("vgg8", 3_965_028),
        ("vgg13", 9_462_180),
    ],
)
def test_parameter_counts_of_mdistiller(name, hundred):
    assert count(name, 100) == hundred


def test_head_of_the_64x64_networks_is_four_times_wider():
    head = abstract("resnet18", 200, size=64, pool=2)["params"]["head"]
    assert head["kernel"].shape == (4 * 512, 200)


def describe(name):
    """One line per array: its path and shape."""
    size, channels = FAMILIES[name]
    leaves = jax.tree_util.tree_leaves_with_path(abstract(name, 10, size, channels))
    return [f"{'/'.join(k.key for k in path)} {'x'.join(map(str, leaf.shape))}" for path, leaf in leaves]


@pytest.mark.parametrize("name", FAMILIES)
def test_parameter_names_and_shapes_are_the_checkpoint_format(name):
    assert describe(name) == json.loads(GOLDEN.read_text())[name]


def test_variables_are_plain_float32_dicts():
    for name in ("conv_tiny", "mlp"):
        variables = build(name, num_classes=3, dtype="bfloat16").init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        assert type(variables) is dict and set(variables) == {"params", "batch_stats"}
        stack = [variables]
        while stack:
            node = stack.pop()
            if isinstance(node, jax.Array):
                assert node.dtype == jnp.float32
            else:
                assert type(node) is dict
                stack += node.values()


def test_every_name_builds():
    for name in MODELS:
        assert build(name, num_classes=2).name == name
    assert build("wrn_22_3", num_classes=2).name == "wrn_22_3"
    assert build("resnet29_bottleneck", num_classes=2).name == "resnet29_bottleneck"


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
        ({"name": "vgg8", "num_classes": 10, "dropout": 0.1}, "it takes none"),
        ({"name": "conv", "num_classes": 10, "widths": (8, 0)}, "expected positive integers"),
        ({"name": "resnet18", "num_classes": 10, "conv_init": "hee"}, "did you mean he"),
    ],
)
def test_refusals_before_any_compile(arguments, words):
    with pytest.raises(Refused, match=words):
        build(**arguments)


def test_wrong_inputs_are_refused():
    model = build("conv_tiny", num_classes=3)
    key = jax.random.key(0)
    with pytest.raises(Refused, match=r"shape \(8, 8, 1\); expected images \[B, H, W, C\]"):
        model.init(key, jnp.zeros((8, 8, 1)))
    with pytest.raises(Refused, match=r"uint8 inputs; expected floats.*normalize"):
        model.init(key, jnp.zeros((1, 8, 8, 1), jnp.uint8))
    with pytest.raises(Refused, match="pool is 2 and the last map is 1x1"):
        build("resnet18", num_classes=3, pool=2).init(key, jnp.zeros((1, 8, 8, 3)))
    dropped = build("mlp", num_classes=3, dropout=0.5)
    variables = dropped.init(key, jnp.zeros((1, 4)))
    with pytest.raises(Refused, match="key=None"):
        dropped.apply(variables, jnp.zeros((1, 4)), train=True)


if __name__ == "__main__":
    # python -m tests.models.test_build: a new format; old checkpoints will not load, so raise FORMAT with it.
    GOLDEN.write_text(json.dumps({name: describe(name) for name in FAMILIES}, indent=0) + "\n")
    sys.exit(0)

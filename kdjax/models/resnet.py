"""Post-activation residual networks: three stages for CIFAR, and four stages behind a 3x3 stem.

Two networks go by the name ResNet-56 (and 110): mdistiller's has basic blocks, 6n+2 layers; KD(C)'s has
bottlenecks, 9n+2 layers. Here they are `resnet56` and `resnet56_bottleneck`. All shortcuts that change the
shape are a 1x1 convolution with BatchNorm; the parameter-free shortcut of the original paper ("option A")
is in neither code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.errors import Refused, deepest
from kdjax.models.entry import Entry
from kdjax.models.layers import NORM_GROUP, Norm, conv, dense, norm, pool, to_images
from kdjax.options import Check, choice, integer
from kdjax.types import Output


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + branch(x)); branch: 3x3, 3x3, or with `bottleneck` 1x1, 3x3, 1x1 of 4 times the width.

    The stride sits on the first convolution of a basic block and on the 3x3 of a bottleneck.
    """

    features: int
    stride: int
    bottleneck: bool
    conv_init: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], norm: Norm) -> Float[Array, "B h w out"]:
        if self.bottleneck:
            plan = [(self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1)]
        else:
            plan = [(self.features, 3, self.stride), (self.features, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(plan, start=1):
            layer = partial(conv, features=features, kernel=kernel, name=f"conv{i}", stride=stride, init=self.conv_init)
            y = norm(y, f"norm{i}", relu=i < len(plan), after=layer)
        if x.shape != y.shape:
            layer = partial(
                conv, features=y.shape[-1], kernel=1, name="shortcut", stride=self.stride, init=self.conv_init
            )
            x = norm(x, "shortcut_norm", after=layer)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 stem of stride 1, no max-pooling, then stages of residual blocks; all but the first halve the map.

    Features: "stage1".. (after the last ReLU of the stage), "penultimate" [B, F], the pooled last stage.

    Attributes:
      stem: channels of the stem.
      widths: channels of each stage (a bottleneck stage leaves with four times as many).
      blocks: residual blocks of each stage.
      bottleneck: three-convolution blocks instead of two.
      pool: average the last map over a pool x pool grid; 2 is KD(C)'s four times wider head for 64x64 images.
      conv_init: initializer of the convolutions, "he" or "torch"; the head is always PyTorch's default.
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: He et al., CVPR 2016; layouts of KD(C)'s `models/resnet*.py` and mdistiller's
    `cifar/resnet*.py`. KD(C)'s CIFAR ResNet-50 leaves the convolutions at PyTorch's default, all others use
    He fan-out.
    """

    num_classes: int
    stem: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False
    pool: int = 1
    conv_init: str = "he"
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {
        "pool": integer(1),
        "conv_init": choice("he", "torch"),
        "norm_group": NORM_GROUP,
    }

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        stem = partial(conv, features=self.stem, kernel=3, name="stem", init=self.conv_init)
        x = batch_norm(to_images(inputs, self), "stem_norm", relu=True, after=stem)
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = ResidualBlock(width, stride, self.bottleneck, self.conv_init, name=name)(x, batch_norm)
            features[f"stage{stage}"] = x
        x = pool(x, self.pool)
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head"), features)


def _cifar(blocks: int, whose: str, *, multiplier: int = 1, bottleneck: bool = False) -> Entry:
    """Three stages. mdistiller's "x4" networks widen the stem by 2 only: 32, then 64, 128, 256."""
    widths = (16 * multiplier, 32 * multiplier, 64 * multiplier)
    stem = 16 if multiplier == 1 else 32
    factory = partial(ResNet, stem=stem, widths=widths, blocks=(blocks,) * 3, bottleneck=bottleneck)
    return Entry(factory, whose, {"conv_init": "he"})


def _four_stages(*blocks: int, bottleneck: bool = False, conv_init: str = "he") -> Entry:
    factory = partial(ResNet, stem=64, widths=(64, 128, 256, 512), blocks=blocks, bottleneck=bottleneck)
    whose = "KD(C)'s: 3x3 stem, no max-pooling; pool=2 is its head for 64x64 images"
    return Entry(factory, whose, {"conv_init": conv_init})


def _bottleneck(depth: int) -> Entry:
    return _cifar((depth - 2) // 9, "KD(C)'s: bottlenecks, 9n+2 layers", bottleneck=True)


_SHARED = "KD(C)'s, the same as mdistiller's: basic blocks, 6n+2 layers"
_MDISTILLER = "mdistiller's: basic blocks, 6n+2 layers"

NAMES = {
    **{f"resnet{6 * n + 2}": _cifar(n, _SHARED if n in (1, 5) else _MDISTILLER) for n in (1, 2, 3, 5, 7)},
    **{
        f"resnet{6 * n + 2}": _cifar(n, f"{_MDISTILLER}; KD(C)'s network of that name is resnet{6 * n + 2}_bottleneck")
        for n in (9, 18)
    },
    "resnet8x4": _cifar(1, "mdistiller's: resnet8, four times as wide", multiplier=4),
    "resnet32x4": _cifar(5, "mdistiller's: resnet32, four times as wide", multiplier=4),
    "resnet56_bottleneck": _bottleneck(56),
    "resnet110_bottleneck": _bottleneck(110),
    "resnet18": _four_stages(2, 2, 2, 2),
    "resnet34": _four_stages(3, 4, 6, 3),
    "resnet50": _four_stages(3, 4, 6, 3, bottleneck=True, conv_init="torch"),
    "resnet101": _four_stages(3, 4, 23, 3, bottleneck=True),
    "resnet110_four_stages": _four_stages(3, 4, 26, 3, bottleneck=True),
    "resnet152": _four_stages(3, 8, 36, 3, bottleneck=True),
}


def parse(name: str) -> Entry | None:
    """Any other depth of KD(C)'s CIFAR networks.

    Raises:
      Refused: a depth that is not 9n + 2.
    """
    match = re.fullmatch(r"resnet(\d{1,18})_bottleneck", name)
    if match is None:
        return None
    depth = int(match[1])
    if depth < 11 or (depth - 2) % 9:
        raise Refused(f"model is {name!r}; expected resnet<d>_bottleneck with d = 9n+2 (11, 20, 29, ...).")
    deepest("model", name, depth)
    return _bottleneck(depth)

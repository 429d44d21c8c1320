"""Post-activation residual networks: three stages for CIFAR, and four stages behind a 3x3 stem (floor 2).

Two networks go by the name ResNet-56 (and 110): mdistiller's has basic blocks, 6n+2 layers; KD(C)'s has
bottlenecks, 9n+2 layers. Here they are `resnet56` and `resnet56_bottleneck`. All shortcuts that change the
shape are a 1x1 convolution with BatchNorm; the parameter-free shortcut of the original paper ("option A")
is in neither code.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.layers import conv, dense, norm, pool
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
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w out"]:
        if self.bottleneck:
            plan = [(self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1)]
        else:
            plan = [(self.features, 3, self.stride), (self.features, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(plan, start=1):
            y = nn.relu(y) if i > 1 else y
            y = norm(conv(y, features, kernel, f"conv{i}", stride=stride, init=self.conv_init), train, f"norm{i}")
        if x.shape != y.shape:
            x = conv(x, y.shape[-1], 1, "shortcut", stride=self.stride, init=self.conv_init)
            x = norm(x, train, "shortcut_norm")
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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Output:
        features = {}
        x = conv(inputs.astype(self.dtype), self.stem, 3, "stem", init=self.conv_init)
        x = nn.relu(norm(x, train, "stem_norm"))
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True), start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"
                x = ResidualBlock(width, stride, self.bottleneck, self.conv_init, name=name)(x, train)
            features[f"stage{stage}"] = x
        x = pool(x, self.pool)
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head"), features)

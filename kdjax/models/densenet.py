"""DenseNet-BC for small images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.entry import Entry
from kdjax.models.layers import DROPOUT, NORM_GROUP, Norm, conv, dense, norm, pool, to_images
from kdjax.options import Check
from kdjax.types import Output


class DenseBlock(nn.Module):
    """The input and, behind its channels, `growth` new ones: BN-ReLU-1x1 to 4 · growth, BN-ReLU-3x3, dropout."""

    growth: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], norm: Norm, train: bool) -> Float[Array, "B H W out"]:
        first = partial(conv, features=4 * self.growth, kernel=1, name="conv1")
        y = norm(norm(x, "norm1", relu=True), "norm2", relu=True, after=first)
        y = conv(y, self.growth, 3, "conv2")
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """A 3x3 stem of stride 1, then stages of dense blocks; in between BN-ReLU-1x1 to half the channels and a 2x2 mean.

    He fan-out convolutions; the head is PyTorch's default.

    Features: "stage1".. (before the transition), "penultimate" [B, F], the pooled activations.

    Attributes:
      blocks: dense blocks of each stage.
      growth: channels that a block adds; the stem has twice as many.
      dropout: rate after the 3x3 convolution of each block.
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: Huang et al., CVPR 2017; KD(C) trains DenseNet-121 with growth 32, compression 0.5 and dropout 0.2
      on 64x64 images.
    """

    num_classes: int
    blocks: tuple[int, ...]
    growth: int = 32
    dropout: float = 0.2
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"dropout": DROPOUT, "norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        x = conv(to_images(inputs, self), 2 * self.growth, 3, "stem")
        for stage, blocks in enumerate(self.blocks, start=1):
            if stage > 1:
                x = batch_norm(x, f"transition{stage - 1}_norm", relu=True)
                x = conv(x, x.shape[-1] // 2, 1, f"transition{stage - 1}")
                x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
            for block in range(1, blocks + 1):
                x = DenseBlock(self.growth, self.dropout, name=f"stage{stage}_block{block}")(x, batch_norm, train)
            features[f"stage{stage}"] = x
        x = pool(batch_norm(x, "norm", relu=True))
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head"), features)


NAMES = {
    "densenet121": Entry(
        partial(DenseNet, blocks=(6, 12, 24, 16), growth=32), "KD(C)'s: growth 32, compression 0.5, dropout 0.2"
    )
}

"""Wide residual networks for 32x32 images (floor 2)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.layers import conv, dense, norm, pool
from kdjax.types import Output


class WideBlock(nn.Module):
    """BN-ReLU-conv, twice. Where the width changes, the 1x1 shortcut reads the activated input, as in the code."""

    features: int
    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w features"]:
        active = nn.relu(norm(x, train, "norm1"))
        y = conv(active, self.features, 3, "conv1", stride=self.stride)
        y = nn.relu(norm(y, train, "norm2"))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = conv(y, self.features, 3, "conv2")
        if x.shape[-1] != self.features:
            x = conv(active, self.features, 1, "shortcut", stride=self.stride)
        return x + y


class WideResNet(nn.Module):
    """WRN-depth-width: (depth - 4) / 6 pre-activation blocks in each of 3 stages of 16k, 32k, 64k channels.

    He fan-out convolutions; the head's kernel is PyTorch's default and its bias 0, as in the code.

    Features: "stage1".."stage3" (before the next BN and ReLU), "penultimate" [B, 64k], the pooled
      activations.

    Attributes:
      dropout: rate between the two convolutions of a block; 0 in KD(C) and mdistiller.

    Source: Zagoruyko & Komodakis, BMVC 2016; the layout is that of KD(C)'s `models/wrn.py`, which
      mdistiller shares.
    """

    num_classes: int
    depth: int
    width: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Output:
        features = {}
        x = conv(inputs.astype(self.dtype), 16, 3, "stem")
        for stage in (1, 2, 3):
            for block in range(1, (self.depth - 4) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                width = 16 * self.width * 2 ** (stage - 1)
                x = WideBlock(width, stride, self.dropout, name=f"stage{stage}_block{block}")(x, train)
            features[f"stage{stage}"] = x
        x = pool(nn.relu(norm(x, train, "norm")))
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head", bias="he"), features)

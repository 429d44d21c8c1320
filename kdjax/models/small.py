"""Networks for small images and quick runs, and VGG (floor 2)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.layers import conv, dense, norm, pool
from kdjax.types import Output


class ConvNet(nn.Module):
    """3x3 convolution, BatchNorm, ReLU per width; all but the first halve the map; then one hidden layer.

    Made for 8x8 digits, works on any size. Strided convolutions halve the map rather than max-pooling,
    whose gradient is slow on CPU. Flattening keeps the positions, which a digit is made of; so the hidden
    layer's kernel depends on the image size.

    Features: "stage1".., "penultimate" [B, hidden].

    Attributes:
      widths: channels of each convolution.
      hidden: units of the hidden layer.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 64)
    hidden: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Output:
        features = {}
        x = inputs.astype(self.dtype)
        for stage, width in enumerate(self.widths, start=1):
            x = conv(x, width, 3, f"stage{stage}", stride=1 if stage == 1 else 2)
            x = nn.relu(norm(x, train, f"stage{stage}_norm"))
            features[f"stage{stage}"] = x
        x = nn.relu(dense(x.reshape(x.shape[0], -1), self.hidden, "hidden")).astype(jnp.float32)
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head"), features)


class MLP(nn.Module):
    """Flattened inputs, ReLU layers, no BatchNorm. Features: "penultimate" [B, widths[-1]].

    Attributes:
      widths: units of the hidden layers; `()` is multinomial logistic regression.
      dropout: rate after each hidden layer.
    """

    num_classes: int
    widths: tuple[int, ...] = (128, 128)
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B ..."], train: bool) -> Output:
        x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
        for layer, width in enumerate(self.widths, start=1):
            x = nn.relu(dense(x, width, f"hidden{layer}"))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x.astype(jnp.float32)
        return Output(dense(x, self.num_classes, "head"), {"penultimate": x})


class VGG(nn.Module):
    """VGG with BatchNorm and biases: five stages, 2x2 max-pooling in between, global average, one linear layer.

    As in mdistiller, the last of the four poolings is taken only for 64x64 images.

    Features: "stage1".."stage5" (before the pooling), "penultimate" [B, 512].

    Attributes:
      blocks: convolutions of each stage; (1, 1, 1, 1, 1) is VGG-8.

    Source: Simonyan & Zisserman, ICLR 2015; layout of mdistiller's `cifar/vgg.py` (`vgg*_bn` there).
    """

    num_classes: int
    blocks: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Output:
        features = {}
        x = inputs.astype(self.dtype)
        for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512, 512), self.blocks, strict=True), start=1):
            if 1 < stage < 5 or (stage == 5 and inputs.shape[1] == 64):
                x = nn.max_pool(x, (2, 2), (2, 2))
            for block in range(1, blocks + 1):
                x = conv(x, width, 3, f"stage{stage}_conv{block}", bias=True)
                x = nn.relu(norm(x, train, f"stage{stage}_norm{block}"))
            features[f"stage{stage}"] = x
        x = pool(x)
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head", init="small"), features)

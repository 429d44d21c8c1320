"""Networks for small images and quick runs, and VGG."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.entry import Entry
from kdjax.models.layers import DROPOUT, NORM_GROUP, check_floats, conv, dense, norm, pool, sizes, to_images
from kdjax.options import Check, integer
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
      norm_group: examples per group of BatchNorm, 0 for the whole batch.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 64)
    hidden: int = 128
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"widths": sizes, "hidden": integer(1), "norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        x = to_images(inputs, self)
        for stage, width in enumerate(self.widths, start=1):
            x = conv(x, width, 3, f"stage{stage}", stride=1 if stage == 1 else 2)
            x = batch_norm(x, f"stage{stage}_norm", relu=True)
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

    hyper: ClassVar[Mapping[str, Check]] = {"widths": sizes, "dropout": DROPOUT}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B ..."], *, train: bool) -> Output:
        check_floats(inputs, self, "one array [B, ...]", lambda rank: rank >= 2)
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
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: Simonyan & Zisserman, ICLR 2015; layout of mdistiller's `cifar/vgg.py` (`vgg*_bn` there).
    """

    num_classes: int
    blocks: tuple[int, ...]
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        x = to_images(inputs, self)
        for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512, 512), self.blocks, strict=True), start=1):
            if 1 < stage < 5 or (stage == 5 and inputs.shape[1] == 64):
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for block in range(1, blocks + 1):
                layer = partial(conv, features=width, kernel=3, name=f"stage{stage}_conv{block}", bias=True)
                x = batch_norm(x, f"stage{stage}_norm{block}", relu=True, after=layer)
            features[f"stage{stage}"] = x
        x = pool(x)
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head", init="small"), features)


def _vgg(*blocks: int) -> Entry:
    return Entry(partial(VGG, blocks=blocks), "mdistiller's: BatchNorm and biases, one linear layer")


NAMES = {
    "vgg8": _vgg(1, 1, 1, 1, 1),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "conv": Entry(ConvNet, "kdjax's own, for small images"),
    "conv_small": Entry(partial(ConvNet, widths=(32, 64, 64), hidden=128), "kdjax's own, for small images"),
    "conv_tiny": Entry(partial(ConvNet, widths=(8, 16, 16), hidden=32), "kdjax's own, for quick runs"),
    "mlp": Entry(MLP, "kdjax's own: ReLU layers on flattened inputs"),
}

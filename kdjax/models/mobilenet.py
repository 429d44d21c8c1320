"""MobileNetV2, in the two layouts that the papers use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.entry import Entry
from kdjax.models.layers import NORM_GROUP, Norm, conv, dense, norm, pool, to_images
from kdjax.options import Check, at_least
from kdjax.types import Output


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; skip connection only at stride 1 and equal width."""

    features: int
    stride: int
    expand: int
    kdc: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], norm: Norm) -> Float[Array, "B h w features"]:
        expanded = x.shape[-1] * self.expand
        activation, conv_options = _flavor(self.kdc)
        layer = partial(conv, **conv_options)
        expand = partial(layer, features=expanded, kernel=1, name="expand")
        depthwise = partial(layer, features=expanded, kernel=3, name="depthwise", stride=self.stride, groups=expanded)
        project = partial(layer, features=self.features, kernel=1, name="project")
        y = activation(norm(x, "expand_norm", after=expand))
        y = activation(norm(y, "depthwise_norm", after=depthwise))
        y = norm(y, "project_norm", after=project)
        return x + y if x.shape == y.shape else y


_multiplier = at_least(1 / 16)  # the narrowest stage has 16 channels, and keeps one


class MobileNetV2(nn.Module):
    """MobileNetV2 with expansion 6 and a head of 1,280 features.

    - `kdc=True`, KD(C)'s: full width; stem a **1x1** convolution of stride 1 with padding 1, which puts a
      rim of biases around the image (32x32 becomes 34x34); stages of stride 1, 2, 2, 2, 1, 1, 1; every
      convolution has a bias, although BatchNorm follows; ReLU6; PyTorch's default initializers. The
      classifier is a 1x1 convolution after the pooling in the code, which is this linear layer.
    - `kdc=False`, mdistiller's `mobile_half` at `multiplier=0.5`: stem 3x3 of stride 2; stages of stride 1,
      1, 2, 2, 1, 2, 1; no biases; ReLU, not ReLU6; He fan-out; head N(0, 0.01^2).

    Features: "stage1".."stage7", "penultimate" [B, 1280].

    Attributes:
      multiplier: the widths of all stages are multiplied by it and rounded down.
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: Sandler et al., CVPR 2018; KD(C)'s `models/mobilenetv2.py`, mdistiller's `cifar/mobilenetv2.py`.
    """

    num_classes: int
    kdc: bool
    multiplier: float = 1.0
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"multiplier": _multiplier, "norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        activation, conv_options = _flavor(self.kdc)
        kernel, stem_stride = (1, 1) if self.kdc else (3, 2)
        strides = (1, 2, 2, 2, 1, 1, 1) if self.kdc else (1, 1, 2, 2, 1, 2, 1)
        features = {}
        x = to_images(inputs, self)
        layer = partial(conv, **conv_options)
        width = int(32 * self.multiplier)
        stem = partial(layer, features=width, kernel=kernel, name="stem", stride=stem_stride, padding=1)
        x = activation(batch_norm(x, "stem_norm", after=stem))
        plan = zip((16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), strides, strict=True)
        for stage, (width, blocks, stride) in enumerate(plan, start=1):
            for block in range(1, blocks + 1):
                x = InvertedResidual(
                    features=int(width * self.multiplier),
                    stride=stride if block == 1 else 1,
                    expand=1 if stage == 1 else 6,
                    kdc=self.kdc,
                    name=f"stage{stage}_block{block}",
                )(x, batch_norm)
            features[f"stage{stage}"] = x
        last = partial(layer, features=1280, kernel=1, name="last")
        x = pool(activation(batch_norm(x, "last_norm", after=last)))
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head", init="torch" if self.kdc else "small"), features)


def _flavor(kdc: bool) -> tuple[Callable, dict[str, Any]]:
    """Activation, and the convolutions' bias and initializer."""
    return (nn.relu6, {"bias": True, "init": "torch"}) if kdc else (nn.relu, {"bias": False, "init": "he"})


NAMES = {
    "mobilenet_v2": Entry(
        partial(MobileNetV2, kdc=True), "KD(C)'s: full width, biases, ReLU6; mdistiller's is mobilenet_v2_half"
    ),
    "mobilenet_v2_half": Entry(
        partial(MobileNetV2, kdc=False, multiplier=0.5), "mdistiller's: half width; KD(C)'s is mobilenet_v2"
    ),
}

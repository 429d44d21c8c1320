"""MobileNetV2, in the two layouts that the papers use (floor 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.layers import conv, dense, norm, pool
from kdjax.types import Output


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; skip connection only at stride 1 and equal width."""

    features: int
    stride: int
    expand: int
    kdc: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w features"]:
        wide = x.shape[-1] * self.expand
        act, how = _flavor(self.kdc)
        y = act(norm(conv(x, wide, 1, "expand", **how), train, "expand_norm"))
        y = conv(y, wide, 3, "depthwise", stride=self.stride, groups=wide, **how)
        y = act(norm(y, train, "depthwise_norm"))
        y = norm(conv(y, self.features, 1, "project", **how), train, "project_norm")
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """MobileNetV2 with expansion 6 and a head of 1,280 features.

    - `kdc=True`, KD(C)'s: full width; stem a **1x1** convolution of stride 1 with padding 1, which puts a
      rim of biases around the image (32x32 becomes 34x34); stages of stride 1, 2, 2, 2, 1, 1, 1; every
      convolution has a bias, although BatchNorm follows; ReLU6; PyTorch's default initializers. The
      classifier is a 1x1 convolution after the pooling in the code, which is this linear layer.
    - `kdc=False`, mdistiller's `mobile_half` at `multiplier=0.5`: stem 3x3 of stride 2; stages of stride 1,
      1, 2, 2, 1, 2, 1; no biases; ReLU, not ReLU6; He fan-out; head N(0, 0.01^2).

    Features: "stage1".."stage7", "penultimate" [B, 1280].

    Source: Sandler et al., CVPR 2018; KD(C)'s `models/mobilenetv2.py`, mdistiller's `cifar/mobilenetv2.py`.
    """

    num_classes: int
    kdc: bool
    multiplier: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], train: bool) -> Output:
        act, how = _flavor(self.kdc)
        kernel, stem_stride = (1, 1) if self.kdc else (3, 2)
        strides = (1, 2, 2, 2, 1, 1, 1) if self.kdc else (1, 1, 2, 2, 1, 2, 1)
        features = {}
        x = inputs.astype(self.dtype)
        x = conv(x, int(32 * self.multiplier), kernel, "stem", stride=stem_stride, padding=1, **how)
        x = act(norm(x, train, "stem_norm"))
        plan = zip((16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), strides, strict=True)
        for stage, (width, blocks, stride) in enumerate(plan, start=1):
            for block in range(1, blocks + 1):
                x = InvertedResidual(
                    features=int(width * self.multiplier),
                    stride=stride if block == 1 else 1,
                    expand=1 if stage == 1 else 6,
                    kdc=self.kdc,
                    name=f"stage{stage}_block{block}",
                )(x, train)
            features[f"stage{stage}"] = x
        x = pool(act(norm(conv(x, 1280, 1, "last", **how), train, "last_norm")))
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head", init="torch" if self.kdc else "small"), features)


def _flavor(kdc: bool) -> tuple[Callable, dict[str, Any]]:
    """Activation, and the convolutions' bias and initializer."""
    return (nn.relu6, {"bias": True, "init": "torch"}) if kdc else (nn.relu, {"bias": False, "init": "he"})

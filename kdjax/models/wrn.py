"""Wide residual networks for 32x32 images."""

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
from kdjax.models.layers import DROPOUT, NORM_GROUP, Norm, conv, dense, norm, pool, to_images
from kdjax.options import Check
from kdjax.types import Output


class WideBlock(nn.Module):
    """BN-ReLU-conv, twice. Where the width changes, the 1x1 shortcut reads the activated input, as in the code."""

    features: int
    stride: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], norm: Norm, train: bool) -> Float[Array, "B h w features"]:
        active = norm(x, "norm1", relu=True)
        first = partial(conv, features=self.features, kernel=3, name="conv1", stride=self.stride)
        y = norm(active, "norm2", relu=True, after=first)
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
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: Zagoruyko & Komodakis, BMVC 2016; the layout is that of KD(C)'s `models/wrn.py`, which
      mdistiller shares.
    """

    num_classes: int
    depth: int
    width: int
    dropout: float = 0.0
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"dropout": DROPOUT, "norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        x = conv(to_images(inputs, self), 16, 3, "stem")
        for stage in (1, 2, 3):
            for block in range(1, (self.depth - 4) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                width = 16 * self.width * 2 ** (stage - 1)
                x = WideBlock(width, stride, self.dropout, name=f"stage{stage}_block{block}")(x, batch_norm, train)
            features[f"stage{stage}"] = x
        x = pool(batch_norm(x, "norm", relu=True))
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head", bias="he"), features)


def _entry(depth: int, width: int) -> Entry:
    whose = "KD(C)'s, the same as mdistiller's: pre-activation blocks, no dropout"
    return Entry(partial(WideResNet, depth=depth, width=width), whose)


NAMES = {f"wrn_{depth}_{width}": _entry(depth, width) for depth in (16, 28, 40) for width in (1, 2, 4, 10)}


def parse(name: str) -> Entry | None:
    """Any other depth and width.

    Raises:
      Refused: a depth that is not 6n + 4.
    """
    match = re.fullmatch(r"wrn_(\d{1,18})_(\d{1,18})", name)
    if match is None:
        return None
    depth, width = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise Refused(f"model is {name!r}; expected wrn_<d>_<k> with d = 6n+4 (10, 16, 22, ...) and k >= 1.")
    deepest("model", name, depth)
    return _entry(depth, width)

"""ShuffleNet, versions 1 and 2, for 32x32 images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.models.entry import Entry
from kdjax.models.layers import NORM_GROUP, Norm, conv, dense, norm, pool, to_images
from kdjax.options import Check
from kdjax.types import Output

GROUPS = 3
_layer = partial(conv, init="torch")
STEM = partial(_layer, features=24, kernel=1, name="stem")


def shuffle(x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W C"]:
    """Channel i of group g, in C / groups channels a group, becomes channel i · groups + g."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, groups, c // groups).swapaxes(-1, -2).reshape(b, h, w, c)


class GroupedBlock(nn.Module):
    """relu(shortcut + branch); branch: grouped 1x1 to a quarter, ReLU, shuffle, depthwise 3x3, ReLU, grouped 1x1.

    At stride 2 the shortcut is a 3x3 mean, whose channels are put behind the branch's instead of added to them.
    `features` counts the channels that leave the block.
    """

    features: int
    stride: int
    first_groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], norm: Norm) -> Float[Array, "B h w features"]:
        features = self.features - x.shape[-1] if self.stride == 2 else self.features
        narrow = features // 4
        first = partial(_layer, features=narrow, kernel=1, name="conv1", groups=self.first_groups)
        depthwise = partial(_layer, features=narrow, kernel=3, name="depthwise", stride=self.stride, groups=narrow)
        second = partial(_layer, features=features, kernel=1, name="conv2", groups=GROUPS)
        y = shuffle(norm(x, "norm1", relu=True, after=first), self.first_groups)
        y = norm(y, "depthwise_norm", relu=True, after=depthwise)
        y = norm(y, "norm2", after=second)
        if self.stride == 1:
            return nn.relu(x + y)
        x = nn.avg_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return nn.relu(jnp.concatenate([y, x], axis=-1))


class ShuffleNetV1(nn.Module):
    """ShuffleNet 1x with 3 groups: a 1x1 stem of 24 channels, no max-pooling, three stages that halve the map.

    All layers have PyTorch's default initializers. The first convolution of the first stage has one group.

    Features: "stage1".."stage3", "penultimate" [B, 960].

    Attributes:
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: Zhang et al., CVPR 2018; layout of mdistiller's `cifar/ShuffleNetv1.py`.
    """

    num_classes: int
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        x = batch_norm(to_images(inputs, self), "stem_norm", relu=True, after=STEM)
        for stage, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            for block in range(1, blocks + 1):
                first_groups = 1 if stage == block == 1 else GROUPS
                stride = 2 if block == 1 else 1
                x = GroupedBlock(width, stride, first_groups, name=f"stage{stage}_block{block}")(x, batch_norm)
            features[f"stage{stage}"] = x
        x = pool(x)
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head"), features)


class SplitBlock(nn.Module):
    """Half of the channels pass; the others go through 1x1, ReLU, depthwise 3x3, 1x1, ReLU; then all are shuffled.

    With `down` no channel passes: both branches read all of them at stride 2, the first by depthwise 3x3, 1x1, ReLU.
    """

    features: int
    down: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], norm: Norm) -> Float[Array, "B h w features"]:
        half = self.features // 2
        stride = 2 if self.down else 1
        if self.down:
            width = x.shape[-1]
            depthwise = partial(_layer, features=width, kernel=3, name="left_depthwise", stride=2, groups=width)
            left = partial(_layer, features=half, kernel=1, name="left")
            passed = norm(norm(x, "left_depthwise_norm", after=depthwise), "left_norm", relu=True, after=left)
        else:
            passed, x = jnp.split(x, 2, axis=-1)
        depthwise = partial(_layer, features=half, kernel=3, name="depthwise", stride=stride, groups=half)
        y = norm(x, "norm1", relu=True, after=partial(_layer, features=half, kernel=1, name="conv1"))
        y = norm(y, "depthwise_norm", after=depthwise)
        y = norm(y, "norm2", relu=True, after=partial(_layer, features=half, kernel=1, name="conv2"))
        return shuffle(jnp.concatenate([passed, y], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 1x: a 1x1 stem of 24 channels, no max-pooling, three stages that halve the map, 1x1 to 1,024.

    All layers have PyTorch's default initializers.

    Features: "stage1".."stage3", "penultimate" [B, 1024].

    Attributes:
      norm_group: examples per group of BatchNorm, 0 for the whole batch.

    Source: Ma et al., ECCV 2018; layout of mdistiller's `cifar/ShuffleNetv2.py`.
    """

    num_classes: int
    norm_group: int = 0
    dtype: Any = jnp.float32

    hyper: ClassVar[Mapping[str, Check]] = {"norm_group": NORM_GROUP}

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"], *, train: bool) -> Output:
        batch_norm = partial(norm, train=train, group=self.norm_group)
        features = {}
        x = batch_norm(to_images(inputs, self), "stem_norm", relu=True, after=STEM)
        for stage, (width, blocks) in enumerate(((116, 4), (232, 8), (464, 4)), start=1):
            for block in range(1, blocks + 1):
                x = SplitBlock(width, down=block == 1, name=f"stage{stage}_block{block}")(x, batch_norm)
            features[f"stage{stage}"] = x
        x = pool(batch_norm(x, "last_norm", relu=True, after=partial(_layer, features=1024, kernel=1, name="last")))
        features["penultimate"] = x
        return Output(dense(x, self.num_classes, "head"), features)


NAMES = {
    "shufflenet_v1": Entry(ShuffleNetV1, "mdistiller's ShuffleV1: 1x, 3 groups, stem without pooling"),
    "shufflenet_v2": Entry(ShuffleNetV2, "mdistiller's ShuffleV2: 1x, stem without pooling"),
}

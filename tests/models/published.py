"""The published PyTorch networks as functions of their `state_dict`: channels first, under the names of their code.

Written from the layouts alone and without kdjax, so that what the two have in common is the weights. `Draw` makes the
tensors as they are asked for; what it has made at the end is the `state_dict`.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np
from jax import lax


class Draw:
    """Tensors by name, each a function of its name and shape; `made` holds them as float32."""

    def __init__(self) -> None:
        self.made: dict[str, np.ndarray] = {}

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        assert name not in self.made, f"{name} is asked for twice"
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, (2 / max(1, np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.2, shape)
        self.made[name] = values.astype(np.float32)
        return self.made[name]


def conv(w, x, name, out, kernel, stride=1, pad=None, groups=1, bias=False):
    pad = (kernel - 1) // 2 if pad is None else pad
    weight = w(f"{name}.weight", out, x.shape[1] // groups, kernel, kernel)
    y = lax.conv_general_dilated(x, weight, (stride, stride), [(pad, pad)] * 2, feature_group_count=groups)
    return y + w(f"{name}.bias", out)[:, None, None] if bias else y


def bn(w, x, name):
    c = x.shape[1]
    scale, bias, mean, var = (
        w(f"{name}.{part}", c)[:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    w.made[f"{name}.num_batches_tracked"] = np.array(7, np.int64)
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def linear(w, x, name, out):
    return x @ w(f"{name}.weight", out, x.shape[1]).T + w(f"{name}.bias", out)


def relu6(x):
    return jax.numpy.clip(x, 0, 6)


def resnet(w, x, k, widths, blocks, bottleneck=False, shortcut="downsample", head="fc"):
    stem, *widths = widths
    x = jax.nn.relu(bn(w, conv(w, x, "conv1", stem, 3), "bn1"))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            at, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            if bottleneck:
                plan = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            else:
                plan = [(width, 3, stride), (width, 3, 1)]
            y = x
            for i, (out, kernel, step) in enumerate(plan, 1):
                y = jax.nn.relu(y) if i > 1 else y
                y = bn(w, conv(w, y, f"{at}.conv{i}", out, kernel, step), f"{at}.bn{i}")
            if stride != 1 or x.shape[1] != y.shape[1]:
                x = bn(w, conv(w, x, f"{at}.{shortcut}.0", y.shape[1], 1, stride), f"{at}.{shortcut}.1")
            x = jax.nn.relu(x + y)
    return linear(w, x.mean((2, 3)), head, k)


def wrn(w, x, k, blocks, factor):
    x = conv(w, x, "conv1", 16, 3)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, out = f"block{stage}.layer.{block}", 16 * factor * 2 ** (stage - 1)
            stride = 2 if stage > 1 and not block else 1
            a = jax.nn.relu(bn(w, x, f"{at}.bn1"))
            y = jax.nn.relu(bn(w, conv(w, a, f"{at}.conv1", out, 3, stride), f"{at}.bn2"))
            y = conv(w, y, f"{at}.conv2", out, 3)
            x = (x if x.shape[1] == out else conv(w, a, f"{at}.convShortcut", out, 1, stride)) + y
    return linear(w, jax.nn.relu(bn(w, x, "bn1")).mean((2, 3)), "fc", k)


def vgg(w, x, k, blocks):
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512, 512), blocks, strict=True)):
        if 0 < stage < 4:
            x = lax.reduce_window(x, -np.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        for i in range(count):
            x = jax.nn.relu(
                bn(w, conv(w, x, f"block{stage}.{3 * i}", width, 3, bias=True), f"block{stage}.{3 * i + 1}")
            )
    return linear(w, x.mean((2, 3)), "classifier", k)


def inverted(w, x, at, out, stride, expand, bias, act):
    y = x
    plan = [(x.shape[1] * expand, 1, 1, 1), (x.shape[1] * expand, 3, stride, x.shape[1] * expand), (out, 1, 1, 1)]
    for i, (width, kernel, step, groups) in enumerate(plan):
        y = act(y) if i else y
        y = bn(w, conv(w, y, f"{at}.{3 * i}", width, kernel, step, groups=groups, bias=bias), f"{at}.{3 * i + 1}")
    return x + y if x.shape == y.shape else y


STAGES = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))


def mobile_half(w, x, k):
    x = jax.nn.relu(bn(w, conv(w, x, "conv1.0", 16, 3, 2), "conv1.1"))
    for stage, ((width, count), first) in enumerate(zip(STAGES, (1, 1, 2, 2, 1, 2, 1), strict=True)):
        for block in range(count):
            stride, expand = 1 if block else first, 6 if stage else 1
            x = inverted(w, x, f"blocks.{stage}.{block}.conv", width // 2, stride, expand, False, jax.nn.relu)
    x = jax.nn.relu(bn(w, conv(w, x, "conv2.0", 1280, 1), "conv2.1"))
    return linear(w, x.mean((2, 3)), "classifier.0", k)


def mobile_kdc(w, x, k):
    x = relu6(bn(w, conv(w, x, "pre.0", 32, 1, pad=1, bias=True), "pre.1"))
    for stage, ((width, count), first) in enumerate(zip(STAGES, (1, 2, 2, 2, 1, 1, 1), strict=True), 1):
        for block in range(count):
            at = f"stage{stage}.residual" if stage in (1, 7) else f"stage{stage}.{block}.residual"
            x = inverted(w, x, at, width, 1 if block else first, 6 if stage > 1 else 1, True, relu6)
    x = relu6(bn(w, conv(w, x, "conv1.0", 1280, 1, bias=True), "conv1.1"))
    return conv(w, x.mean((2, 3), keepdims=True), "conv2", k, 1, bias=True)[:, :, 0, 0]


def shuffled(x, groups):
    b, c, h, v = x.shape
    return x.reshape(b, groups, c // groups, h, v).swapaxes(1, 2).reshape(x.shape)


def shuffle_v1(w, x, k):
    x = jax.nn.relu(bn(w, conv(w, x, "conv1", 24, 1), "bn1"))
    for stage, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for block in range(count):
            at, down = f"layer{stage}.{block}", not block
            groups = 1 if x.shape[1] == 24 else 3
            out = width - x.shape[1] if down else width
            y = jax.nn.relu(bn(w, conv(w, x, f"{at}.conv1", out // 4, 1, groups=groups), f"{at}.bn1"))
            y = conv(w, shuffled(y, groups), f"{at}.conv2", out // 4, 3, 2 if down else 1, groups=out // 4)
            y = bn(w, conv(w, jax.nn.relu(bn(w, y, f"{at}.bn2")), f"{at}.conv3", out, 1, groups=3), f"{at}.bn3")
            if down:
                window = ((1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
                y = jax.numpy.concatenate([y, lax.reduce_window(x, 0.0, lax.add, *window) / 9], 1)
            x = jax.nn.relu(y if down else x + y)
    return linear(w, x.mean((2, 3)), "linear", k)


def shuffle_v2(w, x, k):
    x = jax.nn.relu(bn(w, conv(w, x, "conv1", 24, 1), "bn1"))
    for stage, (width, count) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
        for block in range(count):
            at, half, down = f"layer{stage}.{block}", width // 2, not block
            first = 3 if down else 1
            left, right = (x, x) if down else jax.numpy.split(x, 2, axis=1)
            if down:
                left = bn(w, conv(w, x, f"{at}.conv1", x.shape[1], 3, 2, groups=x.shape[1]), f"{at}.bn1")
                left = jax.nn.relu(bn(w, conv(w, left, f"{at}.conv2", half, 1), f"{at}.bn2"))
            y = jax.nn.relu(bn(w, conv(w, right, f"{at}.conv{first}", half, 1), f"{at}.bn{first}"))
            y = conv(w, y, f"{at}.conv{first + 1}", half, 3, 2 if down else 1, groups=half)
            y = conv(w, bn(w, y, f"{at}.bn{first + 1}"), f"{at}.conv{first + 2}", half, 1)
            x = shuffled(jax.numpy.concatenate([left, jax.nn.relu(bn(w, y, f"{at}.bn{first + 2}"))], 1), 2)
    x = jax.nn.relu(bn(w, conv(w, x, "conv2", 1024, 1), "bn2"))
    return linear(w, x.mean((2, 3)), "linear", k)


NETWORKS = {
    "resnet8": lambda w, x, k: resnet(w, x, k, (16, 16, 32, 64), 1),
    "resnet11_bottleneck": lambda w, x, k: resnet(w, x, k, (16, 16, 32, 64), 1, bottleneck=True),
    "resnet18": lambda w, x, k: resnet(w, x, k, (64, 64, 128, 256, 512), 2, shortcut="shortcut", head="linear"),
    "wrn_10_2": lambda w, x, k: wrn(w, x, k, 1, 2),
    "vgg8": lambda w, x, k: vgg(w, x, k, (1, 1, 1, 1, 1)),
    "mobilenet_v2_half": mobile_half,
    "mobilenet_v2": mobile_kdc,
    "shufflenet_v1": shuffle_v1,
    "shufflenet_v2": shuffle_v2,
}
"""kdjax's name -> (draw, images [B, 3, H, W], classes) -> logits."""

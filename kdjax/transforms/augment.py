"""RandAugment on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.errors import positive, within
from kdjax.transforms.pixels import check_integer, gather_pixels, images
from kdjax.types import Batch, Key, Transform

Pixels = Float[Array, "B H W C"]

_OPS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "posterize",
    "solarize",
    "autocontrast",
)


def rand_augment(num_ops: int = 2, magnitude: float = 10, high: float | None = None) -> Transform:
    """RandAugment: `num_ops` operations per image, each drawn uniformly from twelve, all of one strength.

    Operations, with f = magnitude / 30: identity; shear x, y by 0.3 f; translate x, y by 150/331 f of the
    side; rotate by 30 f degrees; brightness, color, contrast by a factor 1 + 0.9 f; posterize to 8 - round(4f)
    bits; solarize above (1 - f) high; autocontrast. Signs are fair coins. Geometry is about the center, nearest
    pixel, zeros outside.

    Ranges are those of torchvision, which shears about a corner and also has sharpness and equalize; both are
    left out (a histogram per image on the device costs more than the rest together).

    Args:
      num_ops: at least 0.
      magnitude: in [0, 30].
      high: the value of white; by default 255 for uint8 images and 1 for floats (a recipe on floats far outside [0, 1]
        is refused). Black is 0.

    Source: Cubuk et al., NeurIPS 2020; MLLD's strong view is the weak one followed by `rand_augment(2, 10)`.
    """
    check_integer("num_ops", num_ops, 0)
    within("magnitude", magnitude, 0, 30)
    if high is not None:
        positive("high", high)

    def apply(key: Key, batch: Batch) -> Batch:
        x = images(batch, "rand_augment")
        integer = x.dtype == jnp.uint8
        white = high if high is not None else (255.0 if integer else 1.0)
        y, strength = x.astype(jnp.float32), magnitude / 30
        for i in range(num_ops):
            which, coin = jax.random.split(jax.random.fold_in(key, i))
            op = jax.random.randint(which, (x.shape[0],), 0, len(_OPS))
            sign = jnp.where(jax.random.bernoulli(coin, 0.5, op.shape), 1.0, -1.0)
            y = _photometric(_affine(y, op, sign * strength), op, sign, strength, white)
        return batch._replace(inputs=(jnp.round(y) if integer else y).astype(x.dtype))

    return apply


def _affine(x: Pixels, op: Int[Array, "B"], s: Float[Array, "B"]) -> Pixels:
    """Pulls each pixel from M (row, col) + t about the center; the photometric operations have M = I, t = 0."""
    _, h, w, _ = x.shape

    def only(name, value, otherwise=0.0):
        return jnp.where(op == _OPS.index(name), value, otherwise)[:, None, None]

    angle = jnp.deg2rad(30 * s)
    turn = only("rotate", jnp.cos(angle), 1.0)
    rows = (jnp.arange(h) - (h - 1) / 2)[None, :, None]
    cols = (jnp.arange(w) - (w - 1) / 2)[None, None, :]
    shift_rows = only("translate_y", jnp.trunc(150 / 331 * h * s))
    shift_cols = only("translate_x", jnp.trunc(150 / 331 * w * s))
    from_rows = turn * rows + (only("shear_y", 0.3 * s) - only("rotate", jnp.sin(angle))) * cols + shift_rows
    from_cols = turn * cols + (only("shear_x", 0.3 * s) + only("rotate", jnp.sin(angle))) * rows + shift_cols

    def nearest(position, size):
        # The last term makes a tie fall to one side whatever the rounding of sin and cos.
        return jnp.floor(position + (size - 1) / 2 + 0.5 + 1e-4).astype(jnp.int32)

    return gather_pixels(x, nearest(from_rows, h), nearest(from_cols, w))


def _photometric(x: Pixels, op: Int[Array, "B"], sign: Float[Array, "B"], f: float, high: float) -> Pixels:
    """The operations on values, clipped to [0, high]; the identity for the geometric ones."""
    factor = (1 + 0.9 * f * sign)[:, None, None, None]
    luma = jnp.array([0.299, 0.587, 0.114]) if x.shape[-1] == 3 else jnp.full(x.shape[-1], 1 / x.shape[-1])
    gray = jnp.sum(x * luma, axis=-1, keepdims=True)
    step = 2.0 ** round(4 * f) * high / 255
    low, top = jnp.min(x, axis=(1, 2), keepdims=True), jnp.max(x, axis=(1, 2), keepdims=True)
    results = {
        "brightness": factor * x,
        "color": gray + factor * (x - gray),
        "contrast": (mean := gray.mean(axis=(1, 2), keepdims=True)) + factor * (x - mean),
        "posterize": jnp.floor(x / step + 1e-4) * step,
        "solarize": jnp.where(x >= high * (1 - f), high - x, x),
        "autocontrast": jnp.where(top > low, (x - low) * high / jnp.where(top > low, top - low, 1), x),
    }
    chosen = [(op == _OPS.index(name))[:, None, None, None] for name in results]
    return jnp.select(chosen, [jnp.clip(y, 0, high) for y in results.values()], x)

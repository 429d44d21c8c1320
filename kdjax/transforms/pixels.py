"""Transforms of single images, and the checks that all transforms share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from kdjax.errors import Refused, one_of, within
from kdjax.prepare import Normalize
from kdjax.types import Batch, Key, Transform


def pad_crop(padding: int = 4, mode: str = "zero") -> Transform:
    """Pads by `padding` on every side and crops back to size, each image at an offset uniform in {0..2 padding}^2.

    Args:
      padding: pixels, at least 0.
      mode: "zero", as PyTorch's RandomCrop, or "reflect" (the edge pixel is not repeated).

    Raises:
      Refused: while building, for another range or mode; while tracing, for inputs that are not images.
    """
    check_integer("padding", padding, 0)
    one_of("mode", mode, ("zero", "reflect"))

    def apply(key: Key, batch: Batch) -> Batch:
        x = images(batch, "pad_crop")
        b, h, w, _ = x.shape
        if mode == "reflect" and padding >= min(h, w):
            raise Refused(f"pad_crop reflects {padding} pixels of {h}x{w} images; expected padding < {min(h, w)}.")
        shift = jax.random.randint(key, (b, 2), -padding, padding + 1)
        rows = (shift[:, :1] + jnp.arange(h))[:, :, None]
        cols = (shift[:, 1:] + jnp.arange(w))[:, None, :]
        if mode == "reflect":
            rows = (h - 1) - jnp.abs((h - 1) - jnp.abs(rows))
            cols = (w - 1) - jnp.abs((w - 1) - jnp.abs(cols))
        return batch._replace(inputs=gather_pixels(x, rows, cols))

    return apply


def flip() -> Transform:
    """Mirrors each image left to right with probability 1/2."""

    def apply(key: Key, batch: Batch) -> Batch:
        x = images(batch, "flip")
        mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        return batch._replace(inputs=jnp.where(mirrored, x[:, :, ::-1], x))

    return apply


def cutout(size: int, fill: float = 0.0) -> Transform:
    """Fills one size x size square per image; its center is uniform over the pixels, so it may hang over the edge.

    `fill` is in the units of the inputs. Source: DeVries & Taylor, arXiv 1708.04552 (CIFAR-10: 16, CIFAR-100: 8).
    """
    check_integer("size", size, 1)

    def apply(key: Key, batch: Batch) -> Batch:
        x = images(batch, "cutout")
        b, h, w, _ = x.shape
        center = jax.random.randint(key, (b, 2), 0, jnp.array([h, w]))
        start = center - size // 2
        rows = (jnp.arange(h) >= start[:, :1]) & (jnp.arange(h) < start[:, :1] + size)
        cols = (jnp.arange(w) >= start[:, 1:]) & (jnp.arange(w) < start[:, 1:] + size)
        hole = rows[:, :, None, None] & cols[:, None, :, None]
        return batch._replace(inputs=jnp.where(hole, jnp.asarray(fill, x.dtype), x))

    return apply


def gaussian_noise(sd: float) -> Transform:
    """inputs + sd * N(0, 1) per element, `sd` in the units of the inputs; float32, not clipped; any shape."""
    within("sd", sd, 0)

    def apply(key: Key, batch: Batch) -> Batch:
        x = array(batch, "gaussian_noise").astype(jnp.float32)
        return batch._replace(inputs=x + sd * jax.random.normal(key, x.shape))

    return apply


def normalize(mean: Sequence[float], std: Sequence[float], scale: float = 1.0) -> Transform:
    """(inputs / scale - mean) / std over the last axis, in float32, as `kdjax.prepare.Normalize`.

    A data set normalizes its inputs itself, after all transforms; this one is for loops of your own.

    Raises:
      Refused: if std or scale is not positive, or, while tracing, if the number of channels differs.
    """
    prepare = Normalize(tuple(mean), tuple(std), scale)

    def apply(key: Key, batch: Batch) -> Batch:
        return batch._replace(inputs=prepare(array(batch, "normalize")))

    return apply


def array(batch: Batch, name: str) -> Shaped[Array, "B ..."]:
    """The batch's inputs.

    Raises:
      Refused: unless they are one array of uint8 or floats.
    """
    x = batch.inputs
    if not hasattr(x, "dtype") or not (x.dtype == jnp.uint8 or jnp.issubdtype(x.dtype, jnp.floating)):
        inputs = f"{x.dtype} inputs" if hasattr(x, "dtype") else f"inputs that are a {type(x).__name__}"
        raise Refused(f"transform {name!r} got {inputs}; expected one array of uint8 or floats.")
    return x


def images(batch: Batch, name: str) -> Shaped[Array, "B H W C"]:
    """The batch's inputs.

    Raises:
      Refused: unless they are one array [B, H, W, C] of uint8 or floats.
    """
    x = array(batch, name)
    if x.ndim != 4:
        raise Refused(f"transform {name!r} got inputs of shape {x.shape}; expected images [B, H, W, C].")
    return x


def gather_pixels(
    x: Shaped[Array, "B H W C"], rows: Int[Array, "B #H #W"], cols: Int[Array, "B #H #W"]
) -> Shaped[Array, "B H W C"]:
    """x[b, rows, cols], and zero outside.

    One gather along the flattened pixels of each image: a sharded batch needs no communication for it.
    """
    b, h, w, c = x.shape
    inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
    index = (jnp.clip(rows, 0, h - 1) * w + jnp.clip(cols, 0, w - 1)).reshape(b, h * w, 1)
    y = jnp.take_along_axis(x.reshape(b, h * w, c), index, axis=1, mode="promise_in_bounds")
    return jnp.where(inside[..., None], y.reshape(x.shape), jnp.zeros((), x.dtype))


def check_integer(what: str, value: Any, low: int) -> None:
    """Refuses what is not a Python integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise Refused(f"{what} is {value!r}; expected an integer of at least {low}.")

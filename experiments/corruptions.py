"""What may happen to an image on its way to a network, at five severities: noise, blur, veil, brightness, contrast,
pixelate, JPEG.

They are modeled on CIFAR-10-C but not equal to it, so do not compare numbers measured on one with numbers on the other.
Lengths are in units of the image's side, so that a severity means the same at every resolution. What is drawn at random
is drawn once for all severities of a kind, so that each severity adds to the one before it.

Source of the idea: Hendrycks & Dietterich, Benchmarking neural network robustness, ICLR 2019.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from kdjax.errors import Refused, one_of

Images = UInt8[np.ndarray, "N H W C"]
Floats = Float[np.ndarray, "N H W C"]
SEVERITIES = (1, 2, 3, 4, 5)
VERSION = 1
"""Raised when what a corruption does is changed: what was measured before is then measured anew."""


def _noise(x: Floats, sd: float, rng: np.random.Generator) -> Floats:
    return x + sd * rng.standard_normal(x.shape, np.float32)


def _blur(x: Floats, sigma: float, rng: np.random.Generator) -> Floats:
    width = sigma * min(x.shape[1:3])
    return ndimage.gaussian_filter(x, (0, width, width, 0), mode="reflect")


def _veil(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Mixed with a bright fog that varies smoothly over each image."""
    coarse = rng.uniform(0.6, 1.0, (len(x), 4, 4)).astype(np.float32)
    fog = _stretched(coarse, x.shape[1], x.shape[2])
    return (1 - share) * x + share * fog[..., None]


def _brightness(x: Floats, more: float, rng: np.random.Generator) -> Floats:
    return x + more


def _contrast(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    middle = x.mean((1, 2), keepdims=True)
    return middle + share * (x - middle)


def _pixelate(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Means over a coarser grid, shown in blocks."""
    rows, columns = (_block_means(side, max(1, round(side * share))) for side in x.shape[1:3])
    return np.einsum("ij,njkc,lk->nilc", rows, x, columns, optimize=True)


def _jpeg(x: Floats, quality: float, rng: np.random.Generator) -> Floats:
    from PIL import Image

    made = np.empty_like(x)
    for i, image in enumerate(_bytes(x)):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=int(quality))
        with Image.open(file) as decoded:
            made[i] = np.asarray(decoded, np.float32).reshape(image.shape) / 255
    return made


KINDS: Mapping[str, tuple[Callable[..., Floats], tuple[float, ...]]] = {
    # Standard deviation, in units of the pixel range.
    "noise": (_noise, (0.04, 0.06, 0.09, 0.13, 0.18)),
    # Standard deviation of a Gaussian, in units of the side.
    "blur": (_blur, (0.025, 0.0325, 0.04, 0.05, 0.065)),
    # Share of the fog.
    "veil": (_veil, (0.15, 0.3, 0.45, 0.6, 0.75)),
    # Added, in units of the pixel range.
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    # Share of the contrast that is left.
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    # Share of the rows and columns that are left.
    "pixelate": (_pixelate, (0.85, 0.7, 0.55, 0.45, 0.35)),
    # Quality as the codec counts it.
    "jpeg": (_jpeg, (80, 60, 45, 30, 15)),
}
"""Kind -> (what is done to images in [0, 1], how much at each severity)."""


def corrupted(images: Images, kind: str, severity: int, *, seed: int = 0) -> Images:
    """The images after one corruption; the same arguments give the same bytes.

    Args:
      kind: a key of `KINDS`.
      severity: 1 (slight) to 5.

    Raises:
      Refused: an unknown kind or severity; other than uint8 [N, H, W, 1 or 3].
    """
    one_of("the corruption", kind, KINDS)
    if severity not in SEVERITIES:
        raise Refused(f"the severity is {severity!r}; expected 1, 2, 3, 4 or 5.")
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise Refused(
            f"only images are corrupted, and these are {images.dtype} {list(images.shape)}; expected uint8 "
            "[N, H, W, 3] or [N, H, W, 1]."
        )
    change, levels = KINDS[kind]
    rng = np.random.default_rng([seed, [*KINDS].index(kind)])
    return _bytes(change(images.astype(np.float32) / 255, levels[severity - 1], rng))


def _bytes(x: Floats) -> Images:
    return np.clip(np.round(x * 255), 0, 255).astype(np.uint8)


def _stretched(coarse: Float[np.ndarray, "N h w"], height: int, width: int) -> Float[np.ndarray, "N H W"]:
    """Linear interpolation to a larger grid, corners on corners."""
    rows, columns = (_interpolation(n, side) for n, side in zip(coarse.shape[1:], (height, width), strict=True))
    return np.einsum("ij,njk,lk->nil", rows, coarse, columns, optimize=True)


def _interpolation(n: int, side: int) -> Float[np.ndarray, "side n"]:
    at = np.linspace(0, n - 1, side)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n))).astype(np.float32)


def _block_means(side: int, blocks: int) -> Float[np.ndarray, "side side"]:
    """Every row of pixels -> the mean over its block, of `blocks` equal ones that may cut through pixels."""
    edges = np.linspace(0, side, blocks + 1)
    low, high = edges[:-1, None], edges[1:, None]
    overlap = np.clip(np.minimum(high, np.arange(1, side + 1)) - np.maximum(low, np.arange(side)), 0, None)
    means = overlap / overlap.sum(1, keepdims=True)
    block = np.minimum((np.arange(side) + 0.5) * blocks / side, blocks - 1e-9).astype(int)
    return means[block].astype(np.float32)

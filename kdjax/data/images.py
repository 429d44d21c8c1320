"""Encoded images -> uint8 arrays of one shape, the same bytes for the same file; and what is measured of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from kdjax.data.order import permutation
from kdjax.errors import Refused

MEASURED_FULLY = 100_000
MEASURED_SAMPLE = 20_000
"""Sets up to MEASURED_FULLY are decoded once in full, larger ones in a fixed random sample of MEASURED_SAMPLE."""


@dataclasses.dataclass(frozen=True)
class Decode:
    """Encoded bytes -> uint8 [H, W, C], by Pillow; orientation tags are ignored, alpha is dropped.

    Attributes:
      channels: 1 or 3.
      image_size: the shorter side becomes that long (bilinear with antialiasing), and the center square is cut out;
        None keeps the size.
      resolution: afterwards, means over equal squares, as `area_means`; None leaves that out.
    """

    channels: int = 3
    image_size: int | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("image_size", self.image_size), ("resolution", self.resolution)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
                raise Refused(f"{name} is {value!r}; expected an integer of at least 1, such as 32.")

    def __call__(self, encoded: bytes) -> UInt8[np.ndarray, "H W C"]:
        """Raises ValueError, in a few words, for anything that is no 8-bit image."""
        pixels = self.pixels(self.open(encoded))
        return pixels if self.resolution is None else area_means(pixels, self.resolution)

    def open(self, encoded: bytes) -> Any:
        from PIL import Image

        try:
            picture = Image.open(io.BytesIO(encoded))
            stored = [tile.args for tile in picture.tile]
            picture.load()
        except Exception as error:  # Pillow's plugins raise whatever they stumble over
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"its mode is {picture.mode}, more than 8 bits a channel")
        if any(map(_deep, stored)):
            raise ValueError("it has more than 8 bits a channel")
        return picture

    def pixels(self, picture: Any) -> UInt8[np.ndarray, "H W C"]:
        from PIL import Image

        picture = picture.convert("L" if self.channels == 1 else "RGB")
        if self.image_size is not None:
            size, (width, height) = self.image_size, picture.size
            short = min(width, height)
            width, height = (max(size, round(side * size / short)) for side in (width, height))
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - size) // 2, (height - size) // 2
            picture = picture.crop((left, top, left + size, top + size))
        array = np.asarray(picture, np.uint8)
        return array.reshape(*array.shape[:2], self.channels)

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _deep(stored: Any) -> bool:
    """Whether pixels that Pillow opens with 8 bits a channel have more in the file, by the form of a tile's bytes."""
    parts = stored if isinstance(stored, tuple) else (stored,)
    # BGR;16 of a .bmp is 5 or 6 bits a channel; a .ppm has the value of white beside its form.
    return any(isinstance(part, str) and re.search(";16[BLN]", part) for part in parts) or (
        len(parts) == 2 and isinstance(parts[1], int) and parts[1] > 255
    )


def area_means(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 [..., H, W, C] -> [..., resolution, resolution, C]: means over equal rectangles, rounded half up.

    The sums are integers, so that every processor gives the same bytes.

    Raises:
      Refused: a side that is no multiple of the resolution.
    """
    *lead, height, width, channels = pixels.shape
    if height % resolution or width % resolution:
        divisors = [str(d) for d in range(1, min(height, width) + 1) if height % d == 0 and width % d == 0]
        raise Refused(
            f"resolution {resolution} does not divide the sides of {height}x{width} images; expected one of "
            f"{', '.join(divisors)}."
        )
    rows, columns = height // resolution, width // resolution
    total = np.zeros((*lead, resolution, resolution, channels), np.uint32)
    for i in range(rows):
        for j in range(columns):
            total += pixels[..., i::rows, j::columns, :]
    total *= 2
    total += rows * columns
    total //= 2 * rows * columns
    return total.astype(np.uint8)


class Measured(NamedTuple):
    """What one decoded image shows.

    Attributes:
      reason: why it cannot be used, or "".
      gray: it was stored with one channel.
      height, width: after decoding.
      sums, squares: of each channel's values.
    """

    reason: str
    gray: bool = False
    height: int = 0
    width: int = 0
    sums: tuple[int, ...] = (0, 0, 0)
    squares: tuple[int, ...] = (0, 0, 0)


def measure(encoded: bytes, decode: Decode) -> Measured:
    """Decodes one image and adds up its pixels."""
    try:
        picture = decode.open(encoded)
        pixels = decode.pixels(picture)
    except ValueError as error:
        return Measured(str(error).split("\n")[0] or "it cannot be decoded")
    if decode.resolution is not None:
        pixels = area_means(pixels, decode.resolution)
    sums, squares = pixel_sums(pixels)
    return Measured(
        "",
        gray=picture.mode in ("1", "L", "LA", "La"),
        height=pixels.shape[0],
        width=pixels.shape[1],
        sums=tuple(sums.tolist()),
        squares=tuple(squares.tolist()),
    )


def pixel_sums(pixels: UInt8[np.ndarray, "H W C"]) -> tuple[Int64[np.ndarray, "C"], Int64[np.ndarray, "C"]]:
    """(sum, sum of squares) of each channel's values, exact."""
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(pixels.shape[-1])])
    values = np.arange(256)
    return counts @ values, counts @ values**2


def measured_positions(n: int, everything: bool = False) -> Int64[np.ndarray, "m"]:
    """Which of n images are decoded when a set is indexed: all, or a fixed sample of a large set; ascending."""
    if everything or n <= MEASURED_FULLY:
        return np.arange(n)
    return np.sort(permutation(n, "sample", 0)[:MEASURED_SAMPLE])


def channel_statistics(
    sums: np.ndarray, squares: np.ndarray, pixels_of_one: int, scale: float = 255.0
) -> tuple[list[float], list[float]]:
    """(mean, population deviation) of each channel from exact sums over images; a constant channel has deviation 1.

    Args:
      sums, squares: int64 [n, C], over the pixels of each image.
      pixels_of_one: H * W.
      scale: values are divided by it.
    """
    n = len(sums) * pixels_of_one
    total, square = (side.sum(0).tolist() for side in (sums, squares))
    mean = [t / n / scale for t in total]
    # n Σx² - (Σx)² in Python integers: exact, where floats would cancel.
    variance = [(n * s - t * t) / (n * n) / scale**2 for t, s in zip(total, square, strict=True)]
    std = [v**0.5 if v > 0 else 1.0 for v in variance]
    return [float(f"{value:.6g}") for value in mean], [float(f"{value:.6g}") for value in std]


def content(encoded: bytes) -> UInt8[np.ndarray, "16"]:
    """The hash of an encoded example."""
    return np.frombuffer(hashlib.blake2b(encoded, digest_size=16).digest(), np.uint8)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results in order; reading, hashing and decoding leave the interpreter lock. A few hundred items are in flight."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        block: list[Any] = []
        for item in items:
            block.append(item)
            if len(block) == 256:
                yield from pool.map(function, block)
                block = []
        yield from pool.map(function, block)

"""Image files with labels: listed, hashed and measured once, then decoded into memory or read when they are needed."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.data import checks, images
from kdjax.data.cache import Arrays, cached, default_folder
from kdjax.data.contents import digest
from kdjax.data.images import Decode
from kdjax.data.lazy import Lazy, gather
from kdjax.data.source import Source, streams
from kdjax.errors import Refused
from kdjax.types import Split

PROBED = 64  # images whose pixels go into the fingerprint: another JPEG decoder must not go unnoticed


class Listed(NamedTuple):
    """The image files of one split, class by class and by name within a class.

    Attributes:
      files: paths under the root, as text.
      label: positions in the list of classes.
      weight: how much each counts, or None.
    """

    root: Path
    files: list[str]
    label: np.ndarray
    weight: np.ndarray | None = None

    def take(self, positions: np.ndarray) -> Listed:
        weight = None if self.weight is None else self.weight[positions]
        return Listed(self.root, [self.files[i] for i in positions], self.label[positions], weight)


def files_source(
    name: str,
    listed: dict[str, Listed],
    classes: tuple[str, ...],
    *,
    image_size: int | None,
    resolution: int | None,
    skip_bad: bool,
    feed: str,
    cache_dir: str | os.PathLike | None,
) -> Source:
    """The source of listed image files: train and test, and calibration where there is one.

    Raises:
      Refused: a file that is missing or no image, by name; images of several sizes without an image_size.
    """
    if not isinstance(skip_bad, bool):
        raise Refused(f"skip_bad is {skip_bad!r}; expected True or False.")
    decode = Decode(3, image_size, resolution)
    indexed = {what: _index(what, part, decode, skip_bad, cache_dir) for what, part in listed.items()}
    if all(index["gray"].all() for _, index in indexed.values()):
        decode = Decode(1, image_size, resolution)
    shape = _one_shape(indexed, decode)
    examples = sum(len(part.files) for part, _ in indexed.values())
    lazily = streams(feed, examples * int(np.prod(shape)))
    splits: dict[str, Split] = {}
    hashes, probes = {}, []
    for what, (part, index) in indexed.items():
        files = ImageFiles(part, decode, shape, index)
        inputs = files if lazily else _resident(files, cache_dir)
        splits[what] = checks.as_split(f"{name} {what}", (inputs, part.label), weight=part.weight)
        hashes[what] = files.contents
        probes.append(digest(gather(inputs, np.arange(min(PROBED, len(part.files))))))
    return Source(
        name=name,
        num_classes=len(classes),
        label_names=classes,
        contents=hashes,
        about={"decode": decode.describe(), "pixels": probes},
        measured=np.flatnonzero(indexed["train"][1]["measured"]),
        train=splits["train"],
        calibration=splits.get("calibration"),
        test=splits["test"],
    )


class ImageFiles(Lazy):
    """Image files that are read, verified and decoded when they are needed."""

    def __init__(self, listed: Listed, decode: Decode, shape: tuple[int, ...], index: Arrays):
        self.listed, self.decode = listed, decode
        self.shape_of_one = jax.ShapeDtypeStruct(shape, np.uint8)
        self.all_contents = index["content"]
        self.positions = np.arange(len(listed.files))
        self._index = index

    def read(self, position: int) -> np.ndarray:
        path = self.listed.root / self.listed.files[position]
        encoded = read_file(path)
        if (images.content(encoded) != self.all_contents[position]).any():
            raise Refused(
                f"{path} is not the file that was indexed when the run began; expected files that stay as they are: "
                "put the old file back, or start anew."
            )
        try:
            pixels = self.decode(encoded)
        except ValueError as error:
            raise Refused(_bad(path, str(error))) from error
        if pixels.shape != self.shape_of_one.shape:
            raise Refused(_other_size(path, pixels.shape, self.shape_of_one.shape))
        return pixels

    def statistics(self, positions: np.ndarray) -> tuple[list[float], list[float]]:
        stored = self.positions[positions]
        stored = stored[self._index["measured"][stored]]
        height, width, channels = self.shape_of_one.shape
        sums, squares = (self._index[name][stored, :channels] for name in ("sums", "squares"))
        return images.channel_statistics(sums, squares, height * width)


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
      Refused: naming it and the reason.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(
            f"{path} cannot be read ({reason}); expected an image file: put it back, or take it out "
            "of the data set and start anew."
        ) from error


def _index(
    what: str, listed: Listed, decode: Decode, skip_bad: bool, cache_dir: str | os.PathLike | None
) -> tuple[Listed, Arrays]:
    """The files that can be used, and what is known of each."""

    def read(name: str) -> np.ndarray:
        return images.content(read_file(listed.root / name))

    missing = [name for name in listed.files if not _readable(listed.root / name)] if skip_bad else []
    if missing:
        if len(missing) == len(listed.files):
            raise Refused(_none_usable(what, listed.root, len(missing), missing[0]))
        listed = listed.take(np.flatnonzero(~np.isin(listed.files, missing)))
    hashes = np.stack(list(images.in_threads(read, listed.files)))
    chosen = images.measured_positions(len(hashes), everything=skip_bad)
    key = hashlib.sha256(hashes.tobytes())
    key.update(f"{json.dumps(decode.describe())}{len(chosen)}{_pillow()}".encode())
    index = cached(
        default_folder(cache_dir), f"folder-{key.hexdigest()[:24]}", lambda: _measure(listed, decode, chosen)
    )
    index = {**index, "content": hashes}
    bad = np.flatnonzero(index["bad"])
    if bad.size and not skip_bad:
        path = listed.root / listed.files[bad[0]]
        reason = images.measure(read_file(path), decode).reason
        more = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
        raise Refused(f"{_bad(path, reason)[:-1]}{more}.")
    if bad.size + len(missing):
        first = missing[0] if missing else listed.files[bad[0]]
        total, good = len(hashes) + len(missing), np.flatnonzero(~index["bad"])
        if not good.size:
            raise Refused(_none_usable(what, listed.root, total, first))
        warnings.warn(
            f"{listed.root}: {bad.size + len(missing)} of {total} files cannot be used and were skipped, the first "
            f"{first}.",
            stacklevel=4,
        )
        listed, index = listed.take(good), {name: values[good] for name, values in index.items()}
    return listed, index


def _readable(path: Path) -> bool:
    try:
        return os.access(path, os.R_OK)
    except ValueError:  # a name that no file can have
        return False


def _none_usable(what: str, root: Path, count: int, first: str) -> str:
    return (
        f"none of the {count} {what} images can be read and decoded, the first is {first} in {root}; expected files "
        "that Pillow reads, by their paths from that folder: correct the paths, or replace the files."
    )


def _measure(listed: Listed, decode: Decode, chosen: np.ndarray) -> Arrays:
    n = len(listed.files)
    arrays: dict[str, Any] = {name: np.zeros(n, bool) for name in ("bad", "gray", "measured")}
    arrays.update({name: np.zeros((n, 3), np.int64) for name in ("sums", "squares")}, shape=np.zeros((n, 2), np.int64))
    arrays["measured"][chosen] = True
    arrays["gray"][:] = True  # files that are not measured have no say

    def read(i: int) -> images.Measured:
        return images.measure(read_file(listed.root / listed.files[i]), decode)

    for i, row in zip(chosen, images.in_threads(read, chosen.tolist()), strict=True):
        arrays["bad"][i], arrays["gray"][i] = bool(row.reason), row.gray or bool(row.reason)
        arrays["shape"][i] = row.height, row.width
        arrays["sums"][i], arrays["squares"][i] = row.sums, row.squares
    return arrays


def _one_shape(indexed: dict[str, tuple[Listed, Arrays]], decode: Decode) -> tuple[int, int, int]:
    first: tuple[int, int] | None = None
    for listed, index in indexed.values():
        measured = np.flatnonzero(index["measured"])
        shapes = index["shape"][measured]
        first = first or (int(shapes[0][0]), int(shapes[0][1]))
        if (odd := np.flatnonzero((shapes != first).any(1))).size:
            other = measured[odd[0]]
            raise Refused(_other_size(listed.root / listed.files[other], (*index["shape"][other],), first))
    assert first is not None
    return (*first, decode.channels)


def _resident(files: ImageFiles, cache_dir: str | os.PathLike | None) -> np.ndarray:
    def build() -> Arrays:
        pixels = np.empty((len(files), *files.shape_of_one.shape), np.uint8)
        for i, image in enumerate(images.in_threads(files.__getitem__, range(len(files)))):
            pixels[i] = image
        return {"image": pixels}

    key = hashlib.sha256(files.contents.tobytes() + json.dumps(files.decode.describe()).encode() + _pillow().encode())
    return cached(default_folder(cache_dir), f"images-{key.hexdigest()[:24]}", build)["image"]


def _pillow() -> str:
    import PIL

    return PIL.__version__


def _bad(path: Path, reason: str) -> str:
    return (
        f"{path} is no image that can be decoded ({reason}); expected an undamaged PNG or JPEG: replace it, or pass "
        "skip_bad=True to leave such files out."
    )


def _other_size(path: Path, shape: tuple, expected: tuple) -> str:
    return (
        f"{path} is {shape[0]}x{shape[1]} pixels and others are {expected[0]}x{expected[1]}; expected one size: set "
        "image_size=64 to resize and cut all of them."
    )

"""The records of prepared sets: array_record shards of `tf.train.Example`, decoded into memory or read one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from kdjax.data import images
from kdjax.data.cache import Arrays, cached, default_folder
from kdjax.data.contents import Contents
from kdjax.data.images import Decode
from kdjax.data.lazy import Lazy
from kdjax.errors import Refused

RECORDS = 256  # read together: bounds the encoded bytes in memory


class Prepared(NamedTuple):
    """What the JSON files of a prepared set say.

    Attributes:
      shards: paths by split, in order.
      lengths: numbers of examples, one for each shard.
      shape: [H, W, C] of every image; H and W are -1 where they differ.
      image, label: the names of the two features.
    """

    name: str
    version: str
    folder: Path
    shards: dict[str, list[Path]]
    lengths: dict[str, list[int]]
    shape: tuple[int, int, int]
    image: str
    label: str
    num_classes: int
    label_names: tuple[str, ...]


def read_split(
    prepared: Prepared, split: str, decode: Decode, shape: tuple[int, ...], cache_dir: str | os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray, Contents]:
    """(uint8 images [N, H, W, C], labels [N], hashes of the encoded images [N, 16]) of one split, decoded at most once.

    The cache entry is named by the content of the shards and of the description: a shard that is replaced gives a new
    entry, even when its size and time are kept.
    """
    stored = dataclasses.replace(decode, resolution=None)
    key = _key(prepared, split, stored)
    arrays = cached(default_folder(cache_dir), key, lambda: _decode_split(prepared, split, stored))
    pixels = arrays["image"]
    if decode.resolution is not None:
        pixels = images.area_means(pixels, decode.resolution)
    return pixels, arrays["label"], arrays["content"]


def read_lazily(
    prepared: Prepared, split: str, decode: Decode, shape: tuple[int, ...], cache_dir: str | os.PathLike | None = None
) -> tuple[Records, np.ndarray, Contents]:
    """The same split with its images left on disk; one pass over the records takes labels, hashes and pixel sums."""
    key = f"{_key(prepared, split, decode)}-index"
    index = cached(default_folder(cache_dir), key, lambda: _index_split(prepared, split, decode, shape))
    records = Records(prepared, split, decode, shape, index)
    return records, index["label"], index["content"]


class Records(Lazy):
    """The images of one split of a prepared set, read from its shards by number. Only the shards' own index, the
    labels, the hashes and the pixel sums are in memory."""

    def __init__(self, prepared: Prepared, split: str, decode: Decode, shape: tuple[int, ...], index: Arrays):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.prepared, self.decode = prepared, decode
        self.shape_of_one = jax.ShapeDtypeStruct(shape, np.uint8)
        self.all_contents = index["content"]
        self.positions = np.arange(len(self.all_contents))
        self._index = index
        self._measured = images.measured_positions(len(self.positions))
        try:
            self._shards = ArrayRecordDataSource([str(path) for path in prepared.shards[split]])
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise Refused(_damaged(prepared.folder, error)) from error

    def read(self, position: int) -> np.ndarray:
        try:
            record = self._shards[position]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise Refused(_damaged(self.prepared.folder, error)) from error
        encoded, _ = split_record(self.prepared, record)
        if (images.content(encoded) != self.all_contents[position]).any():
            raise Refused(
                f"record {position} of {self.prepared.folder} is not the one that was indexed when the run began; "
                "expected files that stay as they are: start again, and prepare the set again if this comes back."
            )
        return _decoded(self.prepared, encoded, self.decode, self.shape_of_one.shape)

    def statistics(self, positions: np.ndarray) -> tuple[list[float], list[float]]:
        rows = np.searchsorted(self._measured, np.intersect1d(self.positions[positions], self._measured))
        height, width, _ = self.shape_of_one.shape
        return images.channel_statistics(self._index["sums"][rows], self._index["squares"][rows], height * width)


def _key(prepared: Prepared, split: str, decode: Decode) -> str:
    h = hashlib.sha256((prepared.folder / "dataset_info.json").read_bytes())
    h.update((prepared.folder / "features.json").read_bytes())
    for shard in prepared.shards[split]:
        h.update(f"{shard.name},{shard_digest(shard)};".encode())
    h.update(json.dumps(decode.describe(), sort_keys=True).encode())
    return f"{prepared.name.replace('/', '-')}-{prepared.version}-{split}-{h.hexdigest()[:16]}"


def shard_digest(shard: Path) -> str:
    """SHA-256 of a file, computed once a session and again when the file's size, times or identity change.

    Raises:
      Refused: it is missing or cannot be read.
    """
    try:
        stat = shard.stat()
        return _shard_digest(shard, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    except FileNotFoundError as error:
        raise Refused(f"{shard} is missing; expected every shard of the set: prepare the set again.") from error
    except OSError as error:
        raise Refused(_damaged(shard, error)) from error


@functools.lru_cache(maxsize=100_000)
def _shard_digest(shard: Path, *identity: int) -> str:
    with open(shard, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_split(prepared: Prepared, split: str, decode: Decode) -> Arrays:
    """Decodes a split into memory, in the order of the shards."""
    n = sum(prepared.lengths[split])
    height, width, channels = prepared.shape
    shape = (decode.image_size, decode.image_size, channels) if decode.image_size else (height, width, channels)
    arrays = {"image": np.empty((n, *shape), np.uint8), **_empty_index(n)}

    def read(record: bytes) -> tuple[np.ndarray, int, np.ndarray]:
        encoded, label = split_record(prepared, record)
        return _decoded(prepared, encoded, decode, shape), label, images.content(encoded)

    for i, row in enumerate(images.in_threads(read, records(prepared, split))):
        arrays["image"][i], arrays["label"][i], arrays["content"][i] = row
    return arrays


def _index_split(prepared: Prepared, split: str, decode: Decode, shape: tuple[int, ...]) -> Arrays:
    """Labels and hashes of all records, and the pixel sums of `images.measured_positions`; keeps no image."""
    n = sum(prepared.lengths[split])
    measured = images.measured_positions(n)
    chosen = np.zeros(n, bool)
    chosen[measured] = True
    arrays = _empty_index(n)
    sums = {name: np.zeros((n, shape[-1]), np.int64) for name in ("sums", "squares")}

    def read(numbered: tuple[int, bytes]) -> tuple[int, int, np.ndarray, np.ndarray | None]:
        i, record = numbered
        encoded, label = split_record(prepared, record)
        if not chosen[i]:
            return i, label, images.content(encoded), None
        pixels = _decoded(prepared, encoded, decode, shape)
        return i, label, images.content(encoded), np.stack(images.pixel_sums(pixels))

    for i, label, content, pixels in images.in_threads(read, enumerate(records(prepared, split))):
        arrays["label"][i], arrays["content"][i] = label, content
        if pixels is not None:
            sums["sums"][i], sums["squares"][i] = pixels
    return {**arrays, **{name: values[measured] for name, values in sums.items()}}


def _empty_index(n: int) -> Arrays:
    return {"label": np.empty(n, np.int64), "content": np.empty((n, 16), np.uint8)}


def records(prepared: Prepared, split: str) -> Iterator[bytes]:
    """The serialized examples of a split, in the order of its shards.

    Raises:
      Refused: a damaged file, by name.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for shard, declared in zip(prepared.shards[split], prepared.lengths[split], strict=True):
        reader = None
        try:
            reader = ArrayRecordReader(str(shard))
            total = reader.num_records()
            if total != declared:
                raise ValueError(f"it holds {total} records where dataset_info.json says {declared}")
            for start in range(0, total, RECORDS):
                yield from reader.read(start, min(start + RECORDS, total))
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise Refused(_damaged(shard, error)) from error
        finally:
            if reader is not None:
                with contextlib.suppress(RuntimeError):  # a damaged file fails again when it is closed
                    reader.close()


def split_record(prepared: Prepared, record: bytes) -> tuple[bytes, int]:
    """(encoded image, label) of one serialized example."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        return features[prepared.image].bytes_list.value[0], features[prepared.label].int64_list.value[0]
    except (DecodeError, IndexError) as error:
        raise Refused(_no_image(prepared, f"{type(error).__name__}: {error}")) from error


def _decoded(prepared: Prepared, encoded: bytes, decode: Decode, shape: tuple[int, ...]) -> np.ndarray:
    try:
        pixels = decode(encoded)
    except Refused:
        raise
    except ValueError as error:
        raise Refused(_no_image(prepared, str(error))) from error
    if pixels.shape != shape:
        raise Refused(
            f"an image of {prepared.name} has shape {pixels.shape}; expected {shape} as features.json says: prepare "
            "the set again, or set image_size."
        )
    return pixels


def _no_image(prepared: Prepared, reason: str) -> str:
    return (
        f"a record of {prepared.name} in {prepared.folder} is no image with a label ({reason}); expected what tfds "
        "writes: prepare the set again."
    )


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).split("\n")[0] or type(error).__name__
    return f"{path} cannot be read ({reason}); expected undamaged array_record files: prepare the set again."

"""Prepared tfds sets of images and classes, read without TensorFlow; the only file that touches tfds and array_record.

`python -m experiments.prepare NAME` writes `DATA_DIR/NAME/VERSION/`: `dataset_info.json`, `features.json` and
array_record shards of `tf.train.Example` messages. Reading them item by item through tfds takes 21-32 s for CIFAR-100;
here shards are read in order, decoded by Pillow (4-6 s) and kept as one uint8 array a split, which later runs map into
memory (0.2 s, most of it the checksum).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data import checks
from kdjax.data.cache import Arrays, cached, default_folder
from kdjax.data.splits import Source
from kdjax.errors import Refused, nearest

RECORDS = 2048  # read together: bounds the encoded bytes in memory


class Prepared(NamedTuple):
    """What the JSON files of a prepared set say.

    Attributes:
      shards: paths by split, in order.
      lengths: numbers of examples, one for each shard.
      shape: [H, W, C] of every image.
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


def default_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """`data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as in tfds."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def source(
    name: str, *, data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None
) -> Source:
    """A prepared set by its tfds name, `name`, `name/config` or `name:version` (the newest when not given).

    Images are uint8 [N, H, W, C], memory-mapped from the cache. The test split is `test`, or `validation` when there is
    no `test`; the calibration split is always held out of `train`. `data_dir` and `cache_dir` default as in
    `default_data_dir` and `cache.default_folder`. JPEG sets may decode to pixels a few levels apart under another
    version of libjpeg; then fingerprints differ, as they must.

    Raises:
      Refused: not prepared; prepared in another format; not images of one shape with one class label.
    """
    found = describe(name, default_data_dir(data_dir))
    test = next((split for split in ("test", "validation") if split in found.shards), None)
    if "train" not in found.shards or test is None:
        raise Refused(f"{name} has the splits {', '.join(found.shards)}; expected train, and test or validation.")
    splits = {}
    digests = {}
    for what, split in (("train", "train"), ("test", test)):
        inputs, label, digests[what] = read_split(found, split, cache_dir)
        splits[what] = checks.as_split(f"{name} {what}", (inputs, label))
    return Source(
        name=found.name,
        num_classes=found.num_classes,
        train=splits["train"],
        test=splits["test"],
        label_names=found.label_names,
        normalization="kdc" if found.name in ("cifar10", "cifar100") else "own",
        digests=digests,
    )


def describe(name: str, data_dir: Path) -> Prepared:
    """Finds a prepared set and reads its description, no example.

    Raises:
      Refused: naming the folder that was looked in and the command that prepares the set.
    """
    match = re.fullmatch(r"(\w+(?:/[\w.-]*\w)?)(?::(\d+\.\d+\.\d+))?", name)
    if not match:
        raise Refused(f"data set {name!r} is no tfds name; expected name, name/config or name:1.2.3, as in cifar100.")
    base, version = match.groups()
    root = data_dir / base
    versions = [p for p in root.glob("*.*.*") if (p / "dataset_info.json").is_file() and _numbers(p.name)]
    versions = [p for p in versions if version in (None, p.name)]
    if not versions:
        near = {p.name for p in data_dir.glob("*") if p.is_dir() and not p.name.startswith(".")} - {"downloads"}
        hint = f"prepared there: {nearest(base, near)}" if near else "nothing is prepared there."
        raise Refused(
            f"data set {name!r} is not prepared in {root} (data_dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets); "
            f"type python -m experiments.prepare {name} --data_dir {data_dir}, or name the right folder; {hint}"
        )
    folder = max(versions, key=lambda p: _numbers(p.name))
    info, features = (_json(folder / file) for file in ("dataset_info.json", "features.json"))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise Refused(
            f"{folder} is prepared as {file_format}, which only TensorFlow reads; expected array_record: type "
            f"python -m experiments.prepare {name} --data_dir OTHER_FOLDER and use that folder."
        )
    image, label, shape, num_classes = _features(name, info, features)
    shards, lengths = {}, {}
    for split in info.get("splits", []):
        counts = [int(count) for count in split.get("shardLengths", [])]
        template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        shards[split["name"]] = [
            folder / _fill(template, base, split["name"], i, len(counts)) for i in range(len(counts))
        ]
        lengths[split["name"]] = counts
    names = folder / f"{label}.labels.txt"
    return Prepared(
        name=base,
        version=folder.name,
        folder=folder,
        shards=shards,
        lengths=lengths,
        shape=shape,
        image=image,
        label=label,
        num_classes=num_classes,
        label_names=tuple(names.read_text(encoding="utf-8").splitlines()) if names.is_file() else (),
    )


def read_split(
    found: Prepared, split: str, cache_dir: str | os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """(uint8 images [N, H, W, C], int32 labels [N], `digest` of the images) of one split, decoded at most once.

    The cache entry is named by the description and by name, size and time of the shards: preparing the set anew, or
    replacing a shard, gives a new entry.
    """
    h = hashlib.sha256((found.folder / "dataset_info.json").read_bytes())
    h.update((found.folder / "features.json").read_bytes())
    for shard in found.shards[split]:
        if not shard.is_file():
            raise Refused(f"{shard} is missing; expected every shard of {found.name}: prepare the set again.")
        stat = shard.stat()
        h.update(f"{shard.name},{stat.st_size},{stat.st_mtime_ns};".encode())
    key = f"{found.name.replace('/', '-')}-{found.version}-{split}-{h.hexdigest()[:16]}"
    arrays, digests = cached(default_folder(cache_dir), key, lambda: decode_split(found, split))
    return arrays["image"], np.asarray(arrays["label"]), digests["image"]


def decode_split(found: Prepared, split: str) -> Arrays:
    """Decodes a split into memory, in the order of the shards."""
    n = sum(found.lengths[split])
    images, labels = np.empty((n, *found.shape), np.uint8), np.empty(n, np.int64)
    for i, record in enumerate(records(found, split)):
        images[i], labels[i] = parse(found, record)
    return {"image": images, "label": labels}


def records(found: Prepared, split: str) -> Iterator[bytes]:
    """The serialized examples of a split, in the order of its shards.

    Raises:
      Refused: a damaged file, by name.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for shard, declared in zip(found.shards[split], found.lengths[split], strict=True):
        reader = None
        try:
            reader = ArrayRecordReader(str(shard))
            total = reader.num_records()
            if total != declared:
                raise ValueError(f"it holds {total} records where dataset_info.json says {declared}")
            for start in range(0, total, RECORDS):
                yield from reader.read(start, min(start + RECORDS, total))
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise Refused(
                f"{shard} cannot be read ({reason}); expected an undamaged array_record file: prepare the set again."
            ) from error
        finally:
            if reader is not None:
                with contextlib.suppress(RuntimeError):  # a damaged file fails again when it is closed
                    reader.close()


def parse(found: Prepared, record: bytes) -> tuple[np.ndarray, int]:
    """(uint8 image [H, W, C], label) of one serialized example."""
    from google.protobuf.message import DecodeError
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        label = features[found.label].int64_list.value[0]
        with Image.open(io.BytesIO(features[found.image].bytes_list.value[0])) as picture:
            image = np.asarray(picture.convert("L" if found.shape[-1] == 1 else "RGB"), np.uint8)
    except (DecodeError, IndexError, OSError, SyntaxError) as error:
        raise Refused(
            f"a record of {found.name} in {found.folder} is no image with a label ({type(error).__name__}: {error}); "
            "expected what tfds writes: prepare the set again."
        ) from error
    if image.size != np.prod(found.shape):
        raise Refused(
            f"an image of {found.name} has shape {image.shape}; expected {found.shape} as features.json says."
        )
    return image.reshape(found.shape), label


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Downloads and prepares a set by tfds's own builder, as array_record. True if there was anything to do.

    This alone needs TensorFlow (archive extraction, image encoding).

    Raises:
      Refused: TensorFlow is not installed; prepared already in another format.
    """
    folder = default_data_dir(data_dir)
    try:
        describe(name, folder)
        return False
    except Refused as refusal:
        if "is not prepared in" not in str(refusal):
            raise
    if importlib.util.find_spec("tensorflow") is None:
        raise Refused(
            f"preparing {name} needs TensorFlow, which is not installed (training does not need it); type "
            "pip install 'kdjax[prepare]' here, or prepare the set on another machine and copy the folder."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return True


def _features(name: str, info: dict[str, Any], features: dict[str, Any]) -> tuple[str, str, tuple[int, int, int], int]:
    table = features.get("featuresDict", {}).get("features", {})
    pair = [item.get("featureKey") for item in info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])]
    images = [key for key in table if "image" in table[key]]
    labels = [key for key in table if "classLabel" in table[key]]
    image, label = pair if len(pair) == 2 else ((images or [""])[0], "label" if "label" in labels else "")
    if image not in images or label not in labels:
        raise Refused(
            f"{name} has the features {', '.join(sorted(table))}, of which {images or 'none'} are images and "
            f"{labels or 'none'} class labels; expected a classification set with an image and a label."
        )
    dimensions = [int(size) for size in table[image]["image"].get("shape", {}).get("dimensions", [])]
    if len(dimensions) != 3 or min(dimensions) < 1 or table[image]["image"].get("dtype") != "uint8":
        raise Refused(
            f"{name} images have shape {dimensions} (-1: any size) and type {table[image]['image'].get('dtype')}; "
            "expected uint8 of one fixed [height, width, channels]: prepare a resized configuration, or pass arrays of "
            "your own."
        )
    if dimensions[-1] not in (1, 3):
        raise Refused(f"{name} images have {dimensions[-1]} channels; expected 1 or 3: pass arrays of your own.")
    height, width, channels = dimensions
    return image, label, (height, width, channels), int(table[label]["classLabel"]["numClasses"])


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({error}); expected the JSON that tfds writes: prepare again.") from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if re.fullmatch(r"\d+\.\d+\.\d+", version) else ()


def _fill(template: str, base: str, split: str, shard: int, shards: int) -> str:
    return template.format(
        DATASET=base.split("/")[0],
        SPLIT=split,
        FILEFORMAT="array_record",
        SHARD_INDEX=f"{shard:05d}",
        NUM_SHARDS=f"{shards:05d}",
        SHARD_X_OF_Y=f"{shard:05d}-of-{shards:05d}",
    )

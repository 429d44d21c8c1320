"""Prepared tfds sets of images and classes, read without TensorFlow; beside `records` the only file that touches tfds.

`kdjax prepare NAME` writes `DATA_DIR/NAME/VERSION/`: `dataset_info.json`, `features.json` and
array_record shards of `tf.train.Example` messages. Reading them item by item through tfds takes 21-32 s for CIFAR-100;
here shards are read in order, decoded by Pillow (4-6 s) and kept as one uint8 array per split, which later runs read in
0.3 s, most of it the checksum. A set that would not fit into memory stays on disk (`Records`), and only its labels and
the hash of every image are kept.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data import checks, images
from kdjax.data.contents import digest
from kdjax.data.image_files import PROBED
from kdjax.data.images import Decode
from kdjax.data.lazy import gather
from kdjax.data.records import Prepared, read_lazily, read_split
from kdjax.data.source import Source, streams
from kdjax.errors import OUTSIDE, Refused, nearest


def default_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """`data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as in tfds."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def source(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    feed: str = "auto",
    image_size: int | None = None,
    resolution: int | None = None,
) -> Source:
    """A prepared set by its tfds name, `name`, `name/config` or `name:version` (the newest when not given).

    The test split is `test`, or `validation` when there is no `test`; the calibration split is always held out of
    `train`, not stratified, as in KD(C). `data_dir` and `cache_dir` default as in `default_data_dir` and
    `cache.default_folder`. Splits are recognized by the encoded images and the pixels of the first 64 images, so that
    the fingerprint is the same for both feeds, and another one where a JPEG decoder gives other pixels.

    Args:
      feed: "resident" decodes into memory, "streamed" leaves the records on disk, "auto" streams above 1 GiB.
      image_size: resize and cut to squares of that side, see `images.Decode`.
      resolution: means over squares, see `images.area_means`.

    Raises:
      Refused: not prepared; prepared in another format; not images with one class label; images of several sizes
        without an image_size.
    """
    Decode(3, image_size, resolution)  # refuses sizes that are none before anything is looked for
    prepared = describe(name, default_data_dir(data_dir), any_size=image_size is not None)
    test = next((split for split in ("test", "validation") if split in prepared.shards), None)
    if "train" not in prepared.shards or test is None:
        raise Refused(f"{name} has the splits {', '.join(prepared.shards)}; expected train, and test or validation.")
    height, width, channels = prepared.shape
    side = image_size or 0
    shape = (side, side, channels) if image_size else (height, width, channels)
    decode = Decode(channels, image_size, resolution)
    if resolution is not None:
        shape = images.area_means(np.zeros((1, *shape), np.uint8), resolution).shape[1:]
    examples = sum(sum(prepared.lengths[split]) for split in ("train", test))
    read = read_lazily if streams(feed, examples * int(np.prod(shape))) else read_split
    parts, hashes, probes = {}, {}, []
    for what, split in (("train", "train"), ("test", test)):
        inputs, label, hashes[what] = read(prepared, split, decode, shape, cache_dir)
        parts[what] = checks.as_split(f"{name} {what}", (inputs, label))
        probes.append(digest(gather(inputs, np.arange(min(PROBED, len(label))))))
    return Source(
        name=prepared.name,
        num_classes=prepared.num_classes,
        train=parts["train"],
        test=parts["test"],
        label_names=prepared.label_names,
        normalization="kdc" if prepared.name in ("cifar10", "cifar100") else "own",
        calibration_split="random",
        contents=hashes,
        about={"decode": decode.describe(), "pixels": probes},
        measured=images.measured_positions(len(parts["train"].label)),
    )


class Absent(Refused):
    """The set is not prepared in the folder that was looked in."""


def check_name(name: str, data_dir: str | os.PathLike | None, sources: Collection[str]) -> None:
    """Refuses a name that is neither prepared nor known to tfds, with the nearest names, and one that is not prepared.

    Args:
      sources: the names that are no prepared sets.
    """
    base, version = _parse(name)
    folder = default_data_dir(data_dir)
    if _versions(folder / base, version):
        return
    known, near = _tfds_names(), {*sources, *_prepared(folder)}
    if base.split("/")[0] in known:
        raise _absent(name, base, folder)
    if difflib.get_close_matches(base, {*near, *known}, n=1, cutoff=0.5):
        near |= known
    raise Refused(f"data set {name!r} is unknown; {nearest(base, near)} {OUTSIDE}")


def describe(name: str, data_dir: Path, *, any_size: bool = False, text_label: str = "") -> Prepared:
    """Finds a prepared set and reads its description, no example.

    Args:
      any_size: images may have different sizes, because they will be resized.
      text_label: the label's name in a set of texts, which has no images.

    Raises:
      Refused: naming the folder that was looked in and the command that prepares the set.
    """
    base, version = _parse(name)
    versions = _versions(data_dir / base, version)
    if not versions:
        raise _absent(name, base, data_dir)
    folder = max(versions, key=lambda p: _numbers(p.name))
    info, features = (_json(folder / file) for file in ("dataset_info.json", "features.json"))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise Refused(
            f"{folder} is prepared as {file_format}, which only TensorFlow reads; expected array_record: type "
            f"kdjax prepare {name} --data_dir OTHER_FOLDER and use that folder."
        )
    if text_label:
        image, label, shape, num_classes = "", text_label, (0, 0, 0), _classes(features, text_label)
    else:
        image, label, shape, num_classes = _features(name, info, features, any_size)
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


def _parse(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(\w+(?:/[\w.-]*\w)?)(?::(\d+\.\d+\.\d+))?", name)
    if not match:
        raise Refused(
            f"data set {name!r} is no name of a data set; expected digits, arrays, folder, files or a tfds name: "
            "name, name/config or name:1.2.3, as in cifar100."
        )
    return match[1], match[2]


def _versions(root: Path, version: str | None) -> list[Path]:
    """The folders of the prepared versions; all, or the one asked for."""
    folders = [p for p in root.glob("*.*.*") if (p / "dataset_info.json").is_file() and _numbers(p.name)]
    return [p for p in folders if version in (None, p.name)]


def _prepared(data_dir: Path) -> set[str]:
    return {p.name for p in data_dir.glob("*") if p.is_dir() and not p.name.startswith(".")} - {"downloads"}


def _absent(name: str, base: str, data_dir: Path) -> Absent:
    near = _prepared(data_dir)
    hint = f"prepared there: {nearest(base, near)}" if near else "nothing is prepared there."
    return Absent(
        f"data set {name!r} is not prepared in {data_dir / base} (data_dir, else TFDS_DATA_DIR, else "
        f"~/tensorflow_datasets); type kdjax prepare {name} --data_dir {data_dir}, or name the right "
        f"folder; {hint}"
    )


def _tfds_names() -> set[str]:
    """Every set that tfds can prepare; none where tfds is not installed."""
    try:
        import tensorflow_datasets as tfds

        return set(tfds.list_builders(with_community_datasets=False))
    except ImportError:
        return set()


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Downloads and prepares a set by tfds's own builder, as array_record. True if there was anything to do.

    This alone needs TensorFlow (archive extraction, image encoding).

    Raises:
      Refused: TensorFlow is not installed; prepared already in another format.
    """
    folder = default_data_dir(data_dir)
    with contextlib.suppress(Absent):
        describe(name, folder)
        return False
    if importlib.util.find_spec("tensorflow") is None:
        raise Refused(
            f"preparing {name} needs TensorFlow, which is not installed (training does not need it); type "
            "pip install 'kdjax[prepare]' here, or prepare the set on another machine and copy the folder."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return True


def _features(
    name: str, info: dict[str, Any], features: dict[str, Any], any_size: bool
) -> tuple[str, str, tuple[int, int, int], int]:
    table = features.get("featuresDict", {}).get("features", {})
    pair = [item.get("featureKey") for item in info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])]
    pictures = [key for key in table if "image" in table[key]]
    labels = [key for key in table if "classLabel" in table[key]]
    image, label = pair if len(pair) == 2 else ((pictures or [""])[0], "label" if "label" in labels else "")
    if image not in pictures or label not in labels:
        raise Refused(
            f"{name} has the features {', '.join(sorted(table))}, of which {pictures or 'none'} are images and "
            f"{labels or 'none'} class labels; expected a classification set with an image and a label."
        )
    dimensions = [int(size) for size in table[image]["image"].get("shape", {}).get("dimensions", [])]
    fixed = len(dimensions) == 3 and (min(dimensions) >= 1 or (any_size and dimensions[2] >= 1))
    if not fixed or table[image]["image"].get("dtype") != "uint8":
        raise Refused(
            f"{name} images have shape {dimensions} (-1: any size) and type {table[image]['image'].get('dtype')}; "
            "expected uint8 of one fixed [height, width, channels]: set image_size=64, prepare a resized set, "
            "or pass arrays of your own."
        )
    if dimensions[-1] not in (1, 3):
        raise Refused(f"{name} images have {dimensions[-1]} channels; expected 1 or 3: pass arrays of your own.")
    height, width, channels = dimensions
    return image, label, (height, width, channels), int(table[label]["classLabel"]["numClasses"])


def _classes(features: dict[str, Any], label: str) -> int:
    feature = features.get("featuresDict", {}).get("features", {}).get(label, {})
    return int(feature.get("classLabel", {}).get("numClasses", 0))


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

"""Writes a data set in the on-disk form of tfds (array_record), so that reading is tested without tfds's own code."""

import io
import json
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

LABELS = ("ant", "bee", "cat")


def arrays(n: int, seed: int = 0, size: int = 8, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), np.uint8), rng.integers(0, len(LABELS), n).astype(np.int64)


def write(
    data_dir: Path,
    name: str = "tiny",
    version: str = "1.0.0",
    *,
    splits: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    file_format: str = "array_record",
    shape: tuple[int, ...] | None = None,
    declared: dict[str, list[int]] | None = None,
    features: dict | None = None,
) -> Path:
    """Writes `data_dir/name/version`; `splits` holds one (images, labels) pair per shard."""
    folder = data_dir / name / version
    folder.mkdir(parents=True)
    table = []
    for split, shards in splits.items():
        for i, (images, labels) in enumerate(shards):
            path = folder / f"{name}-{split}.{file_format}-{i:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for image, label in zip(images, labels, strict=True):
                writer.write(example(image, int(label)))
            writer.close()
        lengths = (declared or {}).get(split) or [len(labels) for _, labels in shards]
        table.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "shardLengths": [str(n) for n in lengths],
            }
        )
    items = [{"featureKey": "image"}, {"featureKey": "label"}]
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": table}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"supervisedKeys": {"tuple": {"items": items}}}))
    shape = shape or next(iter(splits.values()))[0][0].shape[1:]
    dimensions = {"dimensions": [str(n) for n in shape]}
    features = features or {
        "image": {"image": {"dtype": "uint8", "encodingFormat": "png", "shape": dimensions}},
        "label": {"classLabel": {"numClasses": str(len(LABELS))}},
    }
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    (folder / "label.labels.txt").write_text("\n".join(LABELS) + "\n")
    return folder


def example(image: np.ndarray, label: int) -> bytes:
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
    message = tf_example_pb2.Example()
    message.features.feature["image"].bytes_list.value.append(png.getvalue())
    message.features.feature["label"].int64_list.value.append(label)
    return message.SerializeToString()

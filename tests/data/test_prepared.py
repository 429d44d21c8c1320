"""Prepared tfds sets are read without TensorFlow, whole and in order, or refused."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import load, prepared, records
from kdjax.data.images import Decode
from kdjax.errors import Refused
from tests.data import tiny

ROOT = Path(__file__).parents[2]
TRAIN, MORE, TEST = tiny.arrays(30, 0), tiny.arrays(10, 1), tiny.arrays(15, 2)
SPLITS = {"train": [TRAIN, MORE], "test": [TEST]}
OTHER = tiny.arrays(15, 3)


@pytest.fixture
def folders(tmp_path):
    return {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}


def test_shards_are_read_in_order(folders):
    tiny.write(folders["data_dir"], splits=SPLITS)
    data = load("tiny", **folders)
    assert (data.name, data.num_classes, data.label_names, data.prepare.scale) == ("tiny", 3, tiny.LABELS, 255.0)
    images, labels = (np.concatenate([a, b]) for a, b in zip(TRAIN, MORE, strict=True))
    for split in (data.train, data.calibration):
        np.testing.assert_array_equal(split.inputs, images[split.index])
        np.testing.assert_array_equal(split.label, labels[split.index])
    np.testing.assert_array_equal(data.test.inputs, TEST[0])
    assert data.test.inputs.dtype == np.uint8 and not isinstance(data.test.inputs, np.memmap)
    np.testing.assert_allclose(data.prepare.mean, images[data.train.index].mean((0, 1, 2)) / 255, rtol=1e-5)


def test_the_cache_gives_the_same_data_set_and_notices_new_files(folders, monkeypatch):
    folder = tiny.write(folders["data_dir"], splits=SPLITS)
    first = load("tiny", **folders)
    with monkeypatch.context() as patch:
        patch.setattr(records, "split_record", lambda *_: pytest.fail("decoded twice"))
        assert load("tiny", **folders).fingerprint == first.fingerprint
    # Preparing anew: array_record pads files, so the size alone would not tell.
    shard = folder / "tiny-test.array_record-00000-of-00001"
    size = shard.stat().st_size
    other = folders["data_dir"].parent / "other"
    again = tiny.write(other, splits={"train": [TRAIN, MORE], "test": [tiny.arrays(15, 3)]})
    shard.write_bytes((again / shard.name).read_bytes())
    assert shard.stat().st_size == size
    assert load("tiny", **folders).fingerprint == load("tiny", data_dir=other).fingerprint != first.fingerprint


def test_a_shard_that_is_replaced_under_its_size_and_time_is_noticed(folders):
    """The cache was named by size and time, and served the old pixels."""
    folder = tiny.write(folders["data_dir"], splits=SPLITS)
    first = load("tiny", **folders)
    shard = folder / "tiny-test.array_record-00000-of-00001"
    other = tiny.write(folders["data_dir"].parent / "other", splits={"train": SPLITS["train"], "test": [OTHER]})
    stat = shard.stat()
    shard.write_bytes((other / shard.name).read_bytes())
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    again = load("tiny", **folders)
    assert again.fingerprint != first.fingerprint
    np.testing.assert_array_equal(again.test.inputs, OTHER[0])


@pytest.fixture(autouse=True)
def no_cache_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("KDJAX_CACHE", str(tmp_path / "home"))


def test_in_memory_when_nothing_can_be_cached(folders, tmp_path):
    tiny.write(folders["data_dir"], splits=SPLITS)
    good = load("tiny", **folders)
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert load("tiny", data_dir=folders["data_dir"], cache_dir=tmp_path / "file").fingerprint == good.fingerprint


def test_gray_images_validation_split_versions_and_environment(folders, monkeypatch):
    gray = {"train": [tiny.arrays(20, 4, channels=1)], "validation": [tiny.arrays(6, 5, channels=1)]}
    tiny.write(folders["data_dir"], version="1.9.0", splits=SPLITS)
    tiny.write(folders["data_dir"], version="1.10.0", splits=gray)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folders["data_dir"]))
    newest = load("tiny")
    np.testing.assert_array_equal(newest.test.inputs, gray["validation"][0][0])
    assert load("tiny:1.9.0").train.inputs.shape[-1] == 3


FEATURES = {"image": {"image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}}}}
CLASSES = {"label": {"classLabel": {"numClasses": "3"}}}


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"file_format": "tfrecord"}, "is prepared as tfrecord, .* expected array_record: .* kdjax prepare tiny"),
        ({"declared": {"test": [16]}}, "holds 15 records where dataset_info.json says 16"),
        ({"declared": {"test": [14]}}, "holds 15 records where dataset_info.json says 14"),
        ({"shape": (8, 9, 3)}, r"has shape \(8, 8, 3\); expected \(8, 9, 3\)"),
        ({"splits": {"train": [TRAIN]}}, "has the splits train; expected train, and test or validation"),
        ({"features": FEATURES | CLASSES}, r"shape \[-1, -1, 3\] .* set image_size=64, prepare a resized set"),
        ({"features": CLASSES}, "of which none are images"),
        ({"features": FEATURES | {"label": {"text": {}}}}, "and none class labels"),
        ({"splits": {"train": [TRAIN], "test": [(TEST[0], np.full(15, 3))]}}, r"15 of 15 labels outside \[0, 3\)"),
    ],
)
def test_refused(folders, written, sentence):
    tiny.write(folders["data_dir"], **({"splits": SPLITS} | written))
    with pytest.raises(Refused, match=sentence):
        load("tiny", **folders)


def test_damaged_shards_are_named(folders):
    folder = tiny.write(folders["data_dir"], splits=SPLITS)
    shard = folder / "tiny-train.array_record-00001-of-00002"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(Refused, match=r"tiny-train\.array_record-00001-of-00002 cannot be read"):
        load("tiny", **folders)
    middle = content.index(b"PNG") + 40
    shard.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(Refused, match=r"tiny-train\.array_record-00001-of-00002 cannot be read"):
        load("tiny", **folders)
    shard.unlink()
    with pytest.raises(Refused, match="is missing; expected every shard"):
        load("tiny", **folders)
    (folder / "features.json").write_text("{")
    with pytest.raises(Refused, match=r"features\.json cannot be read"):
        load("tiny", **folders)


@pytest.mark.parametrize("record", [b"\xff\xff", b"", tiny.example(TEST[0][0], 1).replace(b"PNG", b"GNP")])
def test_records_that_are_no_images_are_refused(folders, record, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "example", lambda *_: record)
        tiny.write(folders["data_dir"], splits=SPLITS)
    with pytest.raises(Refused, match=r"a record of tiny in .* is no image with a label"):
        load("tiny", **folders)


def test_a_missing_set_names_folder_and_command(folders):
    with pytest.raises(Refused) as refusal:
        load("cifar100", **folders)
    assert str(folders["data_dir"] / "cifar100") in str(refusal.value)
    assert f"kdjax prepare cifar100 --data_dir {folders['data_dir']}" in str(refusal.value)
    tiny.write(folders["data_dir"], splits=SPLITS)
    with pytest.raises(Refused, match="did you mean tiny"):
        load("tinny", **folders)


@pytest.mark.slow
def test_no_tensorflow_and_no_tfds_once_cached(folders):
    tiny.write(folders["data_dir"], splits=SPLITS)
    program = f"""
    import importlib.abc, sys

    class Blocked(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("tensorflow", "matplotlib", "grain"):
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Blocked())
    import kdjax, kdjax.data, experiments.prepare

    heavy = {{"tensorflow", "tensorflow_datasets", "array_record", "grain", "matplotlib", "sklearn"}}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    folders = dict(data_dir={str(folders["data_dir"])!r}, cache_dir={str(folders["cache_dir"])!r})
    print(kdjax.data.load("tiny", **folders).fingerprint, "tensorflow_datasets" in sys.modules)
    assert "tensorflow" not in sys.modules
    """
    runs = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            check=True, capture_output=True, text=True, cwd=ROOT, timeout=120,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert runs[0] == [runs[1][0], "True"] and runs[1][1] == "False"


def real_data() -> Path | None:
    for folder in (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "data" / "tfds"):
        if folder and (Path(folder) / "cifar100").is_dir():
            return Path(folder)
    return None


@pytest.mark.parametrize(("name", "per_class"), [("cifar100", 100), ("cifar10", 1000)])
def test_the_real_test_split(name, per_class, tmp_path):
    folder = real_data()
    if folder is None or not (folder / name).is_dir():
        pytest.skip(f"{name} is not prepared in TFDS_DATA_DIR or ../shared/data/tfds")
    described = prepared.describe(name, folder)
    assert {split: sum(counts) for split, counts in described.lengths.items()} == {
        "train": 50_000,
        "test": 10_000,
    } and described.shape == (32, 32, 3)
    images, labels, hashes = records.read_split(described, "test", Decode(3), described.shape, tmp_path)
    assert images.shape == (10_000, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [per_class] * described.num_classes
    assert len(np.unique(hashes, axis=0)) == (9_998 if name == "cifar100" else 10_000)
    # tfds's own reader, item by item, is the reference.
    import tensorflow_datasets as tfds

    reference = tfds.data_source(name, split="test", data_dir=folder)
    for i in (0, 1, 2500, 9999):
        assert reference[i]["label"] == labels[i]
        # JPEG decoders differ by a few gray levels, PNG decoders by none.
        tolerance = 0 if name == "cifar100" else 8
        np.testing.assert_allclose(reference[i]["image"].astype(int), images[i].astype(int), atol=tolerance)

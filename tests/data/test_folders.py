"""Folders of images by class: in memory or on disk they are the same data set."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdjax.data import images, is_lazy, load
from kdjax.data.images import Decode, area_means
from kdjax.errors import Refused

RNG = np.random.default_rng(0)
CLASSES = ("ant", "bee", "cat")


def write_class(folder: Path, n: int, *, shape=(8, 8, 3), suffix=".png") -> None:
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = RNG.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}{suffix}")


def write(root: Path, splits=("train", "val", "test"), n=12, **form) -> Path:
    for split in splits:
        for name in CLASSES:
            write_class(root / split / name, n if split == "train" else 4, **form)
    return root


@pytest.fixture
def folders(tmp_path):
    return {"path": tmp_path / "set", "cache_dir": tmp_path / "cache"}


def both(**options):
    return [load("folder", feed=feed, **options) for feed in ("resident", "streamed")]


def test_the_two_feeds_are_one_data_set(folders):
    root = write(folders["path"])
    resident, streamed = both(**folders)
    assert [is_lazy(data.train) for data in (resident, streamed)] == [False, True]
    assert resident.fingerprint == streamed.fingerprint and resident.calibration_id == streamed.calibration_id
    assert resident.prepare == streamed.prepare and resident.kind == streamed.kind == "image"
    assert resident.label_names == CLASSES and resident.num_classes == 3
    for name in ("train", "calibration", "test"):
        one, two = getattr(resident, name), getattr(streamed, name)
        np.testing.assert_array_equal(one.inputs, two.inputs.gather(np.arange(len(two.label))))
        np.testing.assert_array_equal(one.label, two.label)
        np.testing.assert_array_equal(one.index, two.index)
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted((root / "train").glob("*/*.png"))])
    np.testing.assert_array_equal(resident.train.inputs, pixels)
    np.testing.assert_allclose(resident.prepare.mean, pixels.mean((0, 1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(resident.prepare.std, (pixels / 255).std((0, 1, 2)), rtol=1e-5)
    one = streamed.train.inputs.shape_of_one
    assert (one.shape, one.dtype) == ((8, 8, 3), np.uint8) and len(streamed.train.inputs) == 36


def test_one_tree_is_split_by_class(folders):
    for name in CLASSES:
        write_class(folders["path"] / name / "inner", 20, suffix=".bmp")
    resident, streamed = both(**folders, calibration_fraction=0.25)
    assert resident.fingerprint == streamed.fingerprint
    assert [np.bincount(s.label).tolist() for s in resident[2:5]] == [[12] * 3, [4] * 3, [4] * 3]
    fewer = load("folder", **folders, test_examples=6, classes=("cat", "ant"))
    assert fewer.label_names == ("cat", "ant") and np.bincount(fewer.test.label).tolist() == [2, 2]


def test_val_is_the_test_split_where_there_is_no_other(folders):
    write(folders["path"], ("train", "val"))
    with pytest.warns(UserWarning, match="has no test folder, so val is the test split"):
        data = load("folder", **folders)
    assert [len(split.label) for split in data[2:5]] == [32, 4, 12]
    assert len(load("folder", **folders, test_examples=5).test.label) == 5


def test_sizes_are_made_equal_and_gray_stays_gray(folders):
    write(folders["path"], shape=(9, 12))
    write_class(folders["path"] / "train" / "dog", 3, shape=(20, 16))
    with pytest.raises(Refused, match=r"dog/000.png is 20x16 pixels and others are 9x12; .* image_size=64"):
        load("folder", **folders)
    with pytest.warns(UserWarning, match=r"1 of 4 classes have no calibration example \(dog\)"):
        resident, streamed = both(**folders, image_size=8, resolution=4)
    assert resident.train.inputs.shape == (39, 4, 4, 1) and resident.fingerprint == streamed.fingerprint
    np.testing.assert_array_equal(resident.train.inputs[-1], streamed.train.inputs[38])
    picture = Image.open(folders["path"] / "train" / "dog" / "002.png").resize((8, 10), Image.Resampling.BILINEAR)
    square = np.asarray(picture.crop((0, 1, 8, 9)))[..., None]
    np.testing.assert_array_equal(resident.train.inputs[-1], area_means(square, 4))
    assert resident.prepare == streamed.prepare and len(resident.prepare.mean) == 1


def test_area_means_are_exact_and_rounded_half_up():
    pixels = RNG.integers(0, 256, (5, 6, 8, 3), np.uint8)
    expected = np.floor(pixels.reshape(5, 2, 3, 2, 4, 3).astype(float).mean((2, 4)) + 0.5)
    np.testing.assert_array_equal(area_means(pixels, 2), expected)
    half = np.array([[0, 1], [1, 0]], np.uint8)[..., None]
    assert area_means(half, 1).item() == 1
    with pytest.raises(Refused, match="resolution 5 does not divide the sides of 6x8 images; expected one of 1, 2"):
        area_means(pixels, 5)
    with pytest.raises(Refused, match="resolution is 2.0; expected an integer"):
        Decode(3, resolution=2.0)


def test_statistics_of_a_large_set_are_those_of_its_sample(folders, monkeypatch):
    write(folders["path"])
    whole = load("folder", **folders)
    monkeypatch.setattr(images, "MEASURED_FULLY", 30)
    monkeypatch.setattr(images, "MEASURED_SAMPLE", 20)
    resident, streamed = both(**folders)
    assert resident.prepare == streamed.prepare != whole.prepare
    chosen = images.measured_positions(36)
    assert len(chosen) == 20
    expected = resident.train.inputs[chosen].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(resident.prepare.mean, expected, rtol=1e-5)
    assert resident.fingerprint == streamed.fingerprint != whole.fingerprint


def break_file(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_bytes(b"no image at all")
    elif how == "deep":
        Image.fromarray(RNG.integers(0, 60_000, (8, 8), np.uint16)).save(path)
    elif how == "deep colors":  # Pillow opens them as 8 bits, the high byte of each
        path.write_bytes(deep_png(8, 8))


def deep_png(height: int, width: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + RNG.bytes(6 * width) for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_more_than_8_bits_a_channel_are_no_image_and_fewer_are():
    deep = {"png": deep_png(2, 2), "ppm": b"P6 2 2 65535\n" + bytes(24), "text": b"P3 1 1 1023\n9 9 9\n"}
    for name, encoded in deep.items():
        assert images.measure(encoded, Decode()).reason == "it has more than 8 bits a channel", name
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0)
    shallow = {
        "ppm": b"P6 2 2 100\n" + bytes(12),
        "bmp": b"BM" + struct.pack("<IHHI", 62, 0, 0, 54) + header + bytes(8),
    }
    for name, encoded in shallow.items():
        assert images.measure(encoded, Decode()).reason == "", name


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "deep", "deep colors"])
def test_a_bad_file_is_named_or_skipped(folders, how):
    bad = write(folders["path"]) / "train" / "bee" / "005.png"
    break_file(bad, how)
    with pytest.raises(Refused, match=r"train/bee/005\.png is no image that can be decoded .*skip_bad=True") as refusal:
        load("folder", **folders)
    assert "\n" not in str(refusal.value)
    with pytest.warns(
        UserWarning, match=r"1 of 36 files cannot be used and were skipped, the first train/bee/005\.png"
    ):
        resident, streamed = both(**folders, skip_bad=True)
    assert len(resident.train.label) == 35 and resident.fingerprint == streamed.fingerprint
    np.testing.assert_array_equal(resident.train.inputs, streamed.train.inputs.gather(np.arange(35)))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("gone", "cannot be read .No such file"),
        ("truncated", "is not the file that was indexed"),
        ("text", "is not the file that was indexed"),
        ("other", "is not the file that was indexed"),
    ],
)
def test_a_file_that_changes_during_the_run_is_named(folders, how, sentence):
    root = write(folders["path"])
    data = load("folder", feed="streamed", **folders)
    path = root / "test" / "ant" / "001.png"
    if how == "other":  # another image, of the same size in bytes and with the same time
        stat = path.stat()
        content = bytearray(path.read_bytes())
        content[60] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        break_file(path, how)
    with pytest.raises(Refused, match=rf"test/ant/001\.png {sentence}"):
        data.test.inputs.gather(np.arange(12))


def test_changed_files_change_the_fingerprint_and_places_do_not(folders, tmp_path):
    root = write(folders["path"])
    first = load("folder", **folders)
    shutil.copytree(root, tmp_path / "elsewhere")
    again = load("folder", path=tmp_path / "elsewhere", cache_dir=tmp_path / "other", feed="streamed")
    assert again.fingerprint == first.fingerprint
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "train" / "ant" / "000.png")
    assert load("folder", **folders).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: write(root, ("train",)), "has train and neither test nor val"),
        (lambda root: write(root, ("test", "val")), "has test, val and no train"),
        (lambda root: write(root, ("train", "test", "val", "valid")), "has val and valid; expected one folder"),
        (lambda root: write(root, ("Training", "Testing")), "has a folder 'Testing' .*rename Testing to test"),
        (lambda root: write(root, ("train", "test", "Val")), "has a folder 'Val' .*rename Val to val"),
        (lambda root: root.mkdir(), "has no images in class folders|no class folders"),
        (lambda root: write_class(root / "only", 9), "num_classes is 1"),
        (lambda root: (write(root), write_class(root / "test" / "bea", 1)), "class folder 'bea'.* did you mean bee"),
        (lambda root: (write(root), shutil.rmtree(root / "test" / "ant"))[0], None),
    ],
)
def test_other_trees(folders, make, sentence):
    make(folders["path"])
    if sentence is None:  # a class may be missing from the test split
        assert load("folder", **folders).num_classes == 3
        return
    with pytest.raises(Refused, match=sentence):
        load("folder", **folders)


def test_folders_that_nothing_reads_are_named(folders):
    write(folders["path"], ("train", "test", "dev", "extra"))
    with pytest.warns(UserWarning, match="also holds dev, extra, which nothing uses"):
        load("folder", **folders)


def test_a_class_folder_without_images_is_said_and_what_an_archive_brings_along_is_no_class(folders):
    root = write(folders["path"])
    for split in (root, root / "train"):
        (split / "__MACOSX").mkdir()
    (root / "train" / "thumbnails").mkdir()
    with pytest.warns(UserWarning) as said:
        assert load("folder", **folders).label_names == (*CLASSES, "thumbnails")
    assert ["1 of 4 class folders hold no image (thumbnails)" in str(one.message) for one in said] == [True]


def test_linked_folders_inside_a_class_are_read_once(folders, tmp_path):
    root = folders["path"]
    for name in CLASSES:
        write_class(root / name / "inner", 10)
    alone = load("folder", **folders)
    bee, more = root / "bee", tmp_path / "more"
    for name, target in {"loop": bee, "up": root, "again": bee / "inner"}.items():
        (bee / name).symlink_to(target)
    assert load("folder", **folders).fingerprint == alone.fingerprint
    write_class(more / "deep", 5)
    for place, target in {bee / "a": more, bee / "z": more / "deep", more / "loop": more, more / "back": bee}.items():
        place.symlink_to(target)
    linked = load("folder", **folders)
    assert sum(np.bincount(split.label) for split in linked[2:5]).tolist() == [10, 15, 10]


def test_a_class_may_be_called_training(folders):
    for name in ("Testing", "training"):
        write_class(folders["path"] / name, 20)
    assert load("folder", **folders).label_names == ("Testing", "training")


def test_options_are_checked_before_anything_is_read(folders):
    write(folders["path"])
    for options, sentence in [
        ({"num_classes": 4}, "has 3 class folders and num_classes is 4"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 8.0}, "image_size is 8.0"),
        ({"skip_bad": 1}, "skip_bad is 1"),
        ({"resolution": 3}, "resolution 3 does not divide"),
        ({"noise": 1.0}, "has no such option"),
    ]:
        with pytest.raises(Refused, match=sentence):
            load("folder", **folders, **options)
    assert Decode(3, 4)(next((folders["path"] / "train" / "ant").iterdir()).read_bytes()).shape == (4, 4, 3)

"""The published layouts of Tiny-ImageNet and ImageNet-100, of three classes and a handful of tiny JPEGs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import common, distill
from kdjax.data import is_lazy, load
from kdjax.errors import Refused

IDS = ("n03", "n01", "n02")
RNG = np.random.default_rng(0)


def write(folder: Path, names, shape=(8, 8, 3)) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(folder / name)


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name in IDS:
        write(root / "train" / name / "images", [f"{name}_{i}.JPEG" for i in range(10)])
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t7\t7\n")
    write(root / "val" / "images", [f"val_{i}.JPEG" for i in range(6)])
    write(root / "test" / "images", ["test_0.JPEG"])
    lines = [f"val_{i}.JPEG\t{IDS[i % 3]}\t0\t0\t7\t7\n" for i in range(6)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(IDS))
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\n")
    return root


def test_the_archive_is_read_as_it_is_unpacked(archive, tmp_path):
    options = {"path": archive, "cache_dir": tmp_path / "cache", "calibration_fraction": 0.2}
    resident, streamed = (load("tiny_imagenet", feed=feed, **options) for feed in ("resident", "streamed"))
    assert is_lazy(streamed.train) and resident.fingerprint == streamed.fingerprint
    assert resident.label_names == ("goldfish", "n02", "n03"), "in the order of ids; what two are called is no name"
    assert [np.bincount(split.label).tolist() for split in resident[2:5]] == [[8] * 3, [2] * 3, [2] * 3]
    # Of val: class n01 has val_1 and val_4, and so on.
    for position, (number, label) in enumerate([(1, 0), (4, 0), (2, 1), (5, 1), (0, 2), (3, 2)]):
        pixels = np.asarray(Image.open(archive / "val" / "images" / f"val_{number}.JPEG"))
        assert (resident.test.inputs[position] == pixels).all() and resident.test.label[position] == label
        assert (streamed.test.inputs[position] == pixels).all()
    held_out = {*resident.calibration.index.tolist()}
    assert len(held_out | {*resident.train.index.tolist()}) == 30 and len(held_out) == 6
    (archive / "words.txt").unlink()
    assert load("tiny_imagenet", **options).label_names == ("n01", "n02", "n03")
    with pytest.raises(Refused, match=r"set data\.name=tiny_imagenet"):
        load("folder", **options)


ANNOTATIONS, WNIDS = "val/val_annotations.txt", "wnids.txt"


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (ANNOTATIONS, "val_1.JPEG\tn01\t0\t0\t7\t7\n", "", r"images has val_1\.JPEG, whose class .* does not say \(1 "),
        (ANNOTATIONS, "val_1.JPEG", "val_0.JPEG", r"names val_0\.JPEG a second time in line 2"),
        (ANNOTATIONS, "val_1.JPEG", "../../x.JPEG", r"names \.\./\.\./x\.JPEG, which is not in .*val/images \(1 "),
        (ANNOTATIONS, "1.JPEG\tn01", "1.JPEG\tn0l", r"has in line 2 the class 'n0l', which is not in wnids\.txt; did"),
        (ANNOTATIONS, "1.JPEG\tn01\t0\t0\t7\t7", "1.JPEG n01", r"in line 2; expected a file, a tab and its class"),
        (ANNOTATIONS, None, None, r"val_annotations\.txt cannot be read \(No such file"),
        (WNIDS, None, None, r"wnids\.txt cannot be read .* expected one class a line"),
        (WNIDS, "n02", "n01", r"has the class 'n01' twice"),
        (WNIDS, "n02", "n04", r"train has the class folder 'n02', which is not in wnids\.txt"),
        (WNIDS, "n02", "n02\nn04", r"train has no folder 'n04', which is in wnids\.txt"),
    ],
)
def test_what_is_no_such_archive_is_refused(archive, tmp_path, file, old, new, sentence):
    path = archive / file
    if old is None:
        path.unlink()
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(Refused, match=sentence):
        load("tiny_imagenet", path=archive, cache_dir=tmp_path / "cache")


def test_bad_images_are_named_or_counted(archive, tmp_path):
    options = {"path": archive, "cache_dir": tmp_path / "cache"}
    (archive / "val" / "images" / "val_4.JPEG").write_bytes(b"no image")
    with pytest.raises(Refused, match=r"val/images/val_4\.JPEG is no image .* skip_bad=True"):
        load("tiny_imagenet", **options)
    with pytest.warns(UserWarning, match="1 of 6 files cannot be used"):
        assert len(load("tiny_imagenet", **options, skip_bad=True).test.label) == 5
    for wrong, sentence in (({"path": None}, "needs its unpacked archive"), ({"num_classes": 200}, "has 3 classes")):
        with pytest.raises(Refused, match=sentence):
            load("tiny_imagenet", **{**options, **wrong})


def test_imagenet_100_is_a_folder_by_class(tmp_path):
    """Images of many sizes; val is the test split, and calibration is held out of train."""
    root = tmp_path / "imagenet100"
    for name in IDS:
        write(root / "train" / name, [f"{name}_{i}.JPEG" for i in range(10)], (9, 12, 3))
        write(root / "val" / name, [f"ILSVRC2012_val_{name}_{i}.JPEG" for i in range(2)], (14, 10, 3))
    options = {"path": root, "cache_dir": tmp_path / "cache", "image_size": 8, "feed": "streamed"}
    with pytest.warns(UserWarning, match="val is the test split and calibration is held out of train"):
        data = load("folder", **options, calibration_fraction=0.2)
    assert data.label_names == ("n01", "n02", "n03") and is_lazy(data.train)
    assert [np.bincount(split.label).tolist() for split in data[2:5]] == [[8] * 3, [2] * 3, [2] * 3]


def test_a_command_names_the_archive(archive, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KDJAX_CACHE", str(tmp_path / "cache"))
    fields = ("name=tiny_imagenet", f"path={archive}", "options.skip_bad=True", "options.image_size=8")
    given = ["x", "--plan", f"--workdir={tmp_path / 'runs'}", "--config.seeds=(0,)", "--config=configs/digits.py:mlp"]
    given += [f"--config.recipe.data.{field}" for field in fields]
    given += [f"--config.recipe.{who}.batch_size=8" for who in ("teacher", "student")]
    (archive / "train" / "n01" / "images" / "n01_3.JPEG").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 30 files cannot be used"):
        assert common.call(distill.run, given, "configs/digits.py") == 0
    assert "26 training examples in batches of 8" in capsys.readouterr().out

"""The test split after a shift: published folders and our own corruptions, and what drift keeps of its measurements."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from configs import drift as drift_config
from experiments import corruptions, drift, shifts, tables
from kdjax import metrics
from kdjax.errors import Refused


def folder_of(path, images, label):
    """Published form: severities one after the other, the n-th with n added to every pixel."""
    path.mkdir()
    np.save(path / "labels.npy", np.tile(label, 5))
    for kind in ("fog", "snow"):
        np.save(path / f"{kind}.npy", np.concatenate([images + n for n in range(1, 6)]))
    return path


@pytest.fixture
def tiny_images(tmp_path):
    """A configuration on uint8 images of a file of one's own, and its test split."""
    rng = np.random.default_rng(0)
    x, label = rng.integers(0, 200, (60, 8, 8, 3)).astype(np.uint8), np.arange(60) % 4
    np.savez(tmp_path / "mine.npz", train_inputs=x, train_label=label, test_inputs=x[:20] + 1, test_label=label[:20])
    config = drift_config.get_config()
    with config.unlocked():
        config.recipe.data.name, config.recipe.data.path = "arrays", str(tmp_path / "mine.npz")
        config.recipe.data.num_classes = 4
        config.recipe.shift.ood = ""
    return config, x[:20] + 1, label[:20]


def test_published_files_are_cut_into_severities(tmp_path, tiny_images):
    config, images, label = tiny_images
    config.recipe.shift.folder = str(folder_of(tmp_path / "C", images, label))
    made = shifts.shifts(config)
    assert made.kinds == ("snow", "fog") and "published C" in made.sentence()
    shifted = {(shift.kind, shift.severity): shift for shift in made}
    assert len(shifted) == 10
    np.testing.assert_array_equal(shifted["fog", 3].images, images + 3)
    np.testing.assert_array_equal(shifted["snow", 5].label, label)


def test_files_that_are_not_published_ones_are_named(tmp_path, tiny_images):
    config, images, label = tiny_images
    folder = folder_of(tmp_path / "C", images, label)
    config.recipe.shift.folder = str(folder)
    np.save(folder / "snow.npy", np.zeros((100, 4, 4, 3), np.uint8))
    with pytest.raises(Refused, match=r"snow.npy holds uint8 \[100, 4, 4, 3\]; expected uint8 images like those"):
        shifts.shifts(config)
    (folder / "snow.npy").write_bytes(b"<html>not found</html>")
    with pytest.raises(Refused, match=r"snow.npy cannot be read as an array; fetch it again"):
        shifts.shifts(config)
    np.save(folder / "labels.npy", label[:7])
    with pytest.raises(Refused, match=r"labels.npy holds int64 \[7\]; expected labels of 5 x N"):
        shifts.shifts(config)


@pytest.mark.parametrize("classes", [0, 3])
def test_labels_of_another_data_set_are_refused_before_a_training(tmp_path, tiny_images, classes):
    config, images, label = tiny_images
    config.recipe.data.classes = classes  # a part of the classes still needs the labels of the whole set
    folder = folder_of(tmp_path / "C", images, label)
    config.recipe.shift.folder = str(folder)
    assert len(shifts.shifts(config).kinds) == 2
    for other, low, high in ((label * 33, 0, 99), (label * 0 - 3, -3, -3), (label * 0 + 30, 30, 30), (label % 3, 0, 2)):
        np.save(folder / "labels.npy", np.tile(other, 5))
        with pytest.raises(Refused, match=rf"holds labels from {low} to {high}; expected 0 to 3, those of arrays"):
            shifts.shifts(config)


def test_other_content_of_the_published_files_is_another_shift(tmp_path, tiny_images):
    config, images, label = tiny_images
    folder = folder_of(tmp_path / "C", images, label)
    config.recipe.shift.folder = str(folder)
    before = shifts.shifts(config).digest()
    assert before == shifts.shifts(config).digest()
    np.save(folder / "fog.npy", np.load(folder / "snow.npy") + 1)  # as many bytes
    other = shifts.shifts(config).digest()
    np.save(folder / "labels.npy", np.tile(label[::-1], 5))
    assert len({before, other, shifts.shifts(config).digest()}) == 3


def test_a_seed_below_zero_is_refused_before_a_training(tiny_images):
    config, _, _ = tiny_images
    config.recipe.shift.seed = -1
    with pytest.raises(Refused, match=r"config.recipe.shift.seed is -1; expected an integer of at least 0"):
        shifts.shifts(config)


@pytest.mark.parametrize("harm", ["none", "edited", "truncated", "another shift"])
def test_a_kept_measurement_is_used_as_it_was_written_or_made_again(tmp_path, tiny_images, monkeypatch, harm):
    config, _, label = tiny_images
    config.recipe.shift.corruptions = ("noise", "contrast")
    made, asked = shifts.shifts(config), []

    class Network:
        def logits(self, images):
            asked.append(len(images))
            return 9 * np.eye(4, dtype=np.float32)[label]

    monkeypatch.setattr(drift.kdjax, "load", lambda directory: Network())
    stage = SimpleNamespace(id="abc")
    result = SimpleNamespace(directory=tmp_path)
    finished = tables.Finished({"row": tables.Row()}, [], {"row": [stage]}, {"abc": result}, {})
    first = drift.measure(finished, made, None, tmp_path)
    (kept,) = (tmp_path / "drift").iterdir()
    text = kept.read_text()
    if harm == "edited":
        assert '"top1": 1.0' in text
        kept.write_text(text.replace('"top1": 1.0', '"top1": 0.5'))
    elif harm == "truncated":
        kept.write_text(text[: len(text) // 2])
    elif harm == "another shift":
        config.recipe.shift.seed = 1
        made = shifts.shifts(config)
    assert len(asked) == 10
    assert drift.measure(finished, made, None, tmp_path) == first and len(asked) == (10 if harm == "none" else 20)
    assert (kept.read_text() == text) == (harm != "another shift")


def test_our_shifts_are_the_same_for_the_same_test_split(tiny_images):
    config, _, label = tiny_images
    made = shifts.shifts(config)
    assert made.kinds == (*corruptions.KINDS,) and made.digest() == shifts.shifts(config).digest()
    shift = next(iter(made))
    assert (shift.kind, shift.severity) == ("noise", 1) and len(shift.images) == len(label)
    config.recipe.shift.seed = 1
    assert made.digest() != shifts.shifts(config).digest()


def test_unknown_images_are_of_another_data_set_of_the_same_size(tiny_images, tmp_path, monkeypatch):
    config, _, _ = tiny_images
    test = shifts.shifts(config).dataset
    assert shifts.foreign(config, test) is None
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, sentence in (
        ("cifar10", f"{tmp_path}.*prepare cifar10"),
        ("cifar11", "did you mean cifar10"),
        ("arrays", "the data set itself"),
        ("digits", r"whose images are .*\[8, 8, 1\], and arrays's are uint8 \[8, 8, 3\]"),
    ):
        config.recipe.shift.ood = name
        with pytest.raises(Refused, match=sentence):
            shifts.foreign(config, test)


def test_known_against_unknown_is_by_confidence():
    summary = drift.summarized(
        {"a 1": {"top1": 0.5, "ece": 0.1, "aurc": 0.2}, "b 1": {"top1": 0.3, "ece": 0.3, "aurc": 0.4}}
        | {f"a {n}": {"top1": 0.1, "ece": 0.5, "aurc": 0.6} for n in range(2, 6)}
        | {"ood": metrics.ood([0.9, 0.8], [0.1, 0.85])}
    )
    assert summary["ece_severity_1"] == pytest.approx(0.2) and summary["ece_b"] == pytest.approx(0.3)
    assert summary["ood_auroc"] == pytest.approx(0.75) and summary["top1_shifted"] == pytest.approx(1.2 / 6)

"""Every wrong array is refused in one sentence that says what was found."""

import numpy as np
import pytest

from kdjax.data import from_arrays, load
from kdjax.errors import Refused

N, K = 12, 3
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (N, 4, 4, 1), np.uint8)
FLOATS = RNG.random((N, 4, 4, 1), np.float32)
LABEL = np.arange(N) % K
TEST = (RNG.random((5, 4, 4, 1), np.float32), LABEL[:5])


def changed(array, position, value, dtype=None):
    array = array.astype(dtype) if dtype else array.copy()
    array[position] = value
    return array


def build(train=(FLOATS, LABEL), test=TEST, **options):
    return from_arrays(**({"train": train, "test": test, "num_classes": K} | options))


def test_the_good_case_passes():
    data = build()
    # A tenth of 12 would be one example; every class gives one.
    assert [len(split.label) for split in (data.train, data.calibration, data.test)] == [9, 3, 5]
    assert data.kind == "image" and data.train.weight is None


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            {"train": (FLOATS, changed(LABEL, 4, 3))},
            r"1 of 12 labels outside \[0, 3\), the first at position 4 with value 3",
        ),
        ({"train": (FLOATS, changed(LABEL, [2, 5], -1))}, r"2 of 12 labels outside .* position 2 with value -1"),
        ({"train": (FLOATS, changed(LABEL, 4, 2**40, np.int64))}, "position 4 with value 2147483647"),
        ({"test": (FLOATS[:5], changed(LABEL[:5], 1, 9))}, "arrays test has 1 of 5 labels outside"),
        (
            {"train": (FLOATS, LABEL.astype(np.float32))},
            r"labels have type float32; expected integers .* type label.astype\('int32'\)",
        ),
        ({"train": (FLOATS, LABEL + 0.5)}, "labels have type float64; expected integers .* the number of a class each"),
        ({"train": (FLOATS, np.where(LABEL, LABEL, 3))}, "12 of 12 labels|they count from 1: type label - 1"),
        ({"train": (FLOATS.transpose(0, 3, 1, 2).repeat(3, 1).repeat(2, 2).repeat(2, 3), LABEL)}, "transpose"),
        ({"train": (FLOATS, LABEL[:, None])}, r"shape \(12, 1\); expected .* type label\[:, 0\]"),
        ({"train": (FLOATS, np.eye(K)[LABEL])}, r"look one-hot; .* type label.argmax\(-1\)"),
        ({"train": (FLOATS, np.full((N, K), 1 / K))}, r"shape \(12, 3\) and type float64; .*label.argmax\(-1\)"),
        ({"kind": "picture"}, "kind is 'picture'"),
        ({"label_names": "abc"}, "label_names is 'abc'; expected one name for each class"),
        ({"label_names": ("a", "b", 3)}, "a label name is 3; expected text"),
        ({"label_names": ("a", "b", "a")}, "label name 'a' occurs twice"),
        ({"train": (FLOATS, LABEL, np.arange(N), 1)}, "expected a pair"),
        ({"train_examples": "5"}, "train_examples is '5'"),
        ({"normalization": 3}, "normalization is 3; expected"),
        ({"normalization": (("a",), ("b",))}, "expected numbers in a pair"),
        ({"calibration_split": "even"}, "calibration_split is 'even'"),
        ({"num_classes": None}, "does not say how many classes"),
        ({"train": (FLOATS, LABEL == 0)}, "labels have type bool; expected integers"),
        ({"train": (FLOATS, np.eye(K, dtype=int)[LABEL])}, r"labels have shape \(12, 3\).*one-hot"),
        (
            {"train": (changed(FLOATS, (3, 0, 0, 0), np.nan), LABEL)},
            "1 NaN or infinite values in 1 of 12 .* position 3",
        ),
        (
            {"train": (changed(FLOATS, (slice(2, 4), 0), np.inf), LABEL)},
            "8 NaN or infinite values in 2 of 12 .* position 2",
        ),
        ({"train": (FLOATS[:0], LABEL[:0])}, "train is an empty split"),
        ({"test": (FLOATS[:0], LABEL[:0])}, "test is an empty split"),
        ({"train": (FLOATS[..., 0], LABEL)}, r"shape \(12, 4, 4\); expected rank 4.*inputs\[..., None\]"),
        ({"train": (LABEL, LABEL)}, r"shape \(12,\); expected rank 4"),
        ({"train": (FLOATS[None], LABEL)}, r"shape \(1, 12, 4, 4, 1\); expected rank 4"),
        ({"train": (FLOATS, LABEL[:-1])}, "12 inputs and 11 labels"),
        ({"train": (FLOATS, LABEL, changed(np.arange(N), 7, 2))}, "index has 1 duplicates, .* twice is 2"),
        ({"train": (FLOATS, LABEL, np.arange(N) / 1)}, "index has type float64"),
        ({"train": FLOATS}, "train is ndarray; expected a pair"),
        ({"train": (FLOATS.astype(int), LABEL)}, "inputs have type int64; expected uint8 pixels"),
        ({"train": (FLOATS.astype(object), LABEL)}, "inputs have type object"),
        ({"train": ((FLOATS > 0.5).astype(np.uint8), LABEL)}, "uint8 with no value above 1"),
        ({"train": ({"a": FLOATS, "b": FLOATS[:3]}, LABEL)}, "expected one leading axis N"),
        ({"train": ({}, LABEL)}, "no input arrays"),
        ({"train": (PIXELS, LABEL)}, r"train examples are uint8\[4, 4, 1\] and test examples are float32\[4, 4, 1\]"),
        ({"train": (FLOATS[:, :2], LABEL)}, r"float32\[2, 4, 1\] and test examples are float32\[4, 4, 1\]"),
        ({"num_classes": 1}, "num_classes is 1; expected an integer of at least 2"),
        ({"num_classes": 3.0}, "num_classes is 3.0"),
        ({"label_names": ("a", "b")}, "2 label names for 3 classes"),
        ({"train_examples": 12}, r"train_examples is 12; expected an integer in \[1, 9\]"),
        ({"train_examples": 0}, "train_examples is 0"),
        ({"test_examples": 6}, r"test_examples is 6; expected an integer in \[1, 5\]"),
        ({"calibration_fraction": 0.0}, r"calibration_fraction is 0.0; expected a number in \(0.0, 1.0\)"),
        ({"calibration_fraction": 1.0}, "calibration_fraction is 1.0"),
        ({"calibration_fraction": float("nan")}, "calibration_fraction is nan"),
        ({"calibration_fraction": "0.1"}, "expected a number"),
        ({"calibration_fraction": 0.01}, "holds out 0, which leaves a split empty"),
        ({"calibration_fraction": 0.99}, "holds out 12, which leaves a split empty"),
        ({"split_seed": -1}, "the calibration seed is -1"),
        (
            {"calibration": (FLOATS[:4], LABEL[:4])},
            "4 of 4 calibration examples also occur in train; expected .* allow_overlap",
        ),
        ({"normalization": "kcd"}, "normalization is 'kcd', .* did you mean kdc"),
        ({"normalization": "kdc"}, "for inputs of 1 channels"),
        ({"normalization": ((0.5,), (0.0,))}, "one positive std"),
        ({"normalization": (0.5, 0.5)}, "a pair"),
    ],
)
def test_refused(case, sentence):
    with pytest.raises(Refused, match=sentence) as refusal:
        build(**case)
    assert "\n" not in str(refusal.value)


def test_the_first_bad_example_is_found_beyond_the_first_chunk():
    x = np.zeros((3000, 2), np.float32)
    x[2500, 1] = np.nan
    with pytest.raises(Refused, match="at position 2500"):
        build(train=(x, np.zeros(3000, int)), test=(x[:5], LABEL[:5]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "digits", "path": "x.npz"}, "data.path is 'x.npz', and data set 'digits' has no such option"),
        ({"name": "arrays", "noise": 0.5}, "data.noise is 0.5, and data set 'arrays' has no such option"),
        ({"name": "digits", "resolution": 4}, "data.resolution is 4, and data set 'digits' has no such option"),
        ({"name": "digits", "nois": 0.5}, "has no option 'nois'; did you mean noise"),
        ({"name": "cifar11", "noise": 0.5}, "data set 'cifar11' is unknown; did you mean .*cifar10"),
        ({"name": "digit"}, r"data set 'digit' is unknown; did you mean digits.*\? .*--import MODULE"),
        ({"name": 3}, "data.name is 3"),
        ({"name": "arrays", "path": 3}, "data.path is 3"),
        ({"name": "arrays", "path": "x" * 5000}, "is no path of a file"),
        ({"name": "folder", "path": "x" * 5000}, "is no path of a folder"),
        ({"name": "folder"}, "needs a folder"),
        ({"name": "folder", "path": "absent"}, "there is no folder absent"),
        ({"name": "digits", "classes": 1}, "classes is 1; expected between 2 and the 10 classes"),
        ({"name": "digits", "classes": (1, 1)}, "expected two or more different"),
        ({"name": "digits", "classes": ("1", "11")}, "digits has no class '11'"),
        ({"name": "digits", "classes": "all"}, "classes is 'all'"),
        ({"name": "digits", "feed": "disk"}, "feed is 'disk'"),
        ({"name": "digits", "noise": -1.0}, "noise is -1.0"),
        ({"name": "digits", "test_examples": 1797}, r"test_examples is 1797; expected an integer in \[1, 1795\]"),
        ({"name": "digits", "train_examples": 901}, r"train_examples is 901; expected an integer in \[1, 900\]"),
        ({"name": "arrays"}, "needs a file"),
        ({"name": "arrays", "path": "absent.npz"}, "there is no file absent.npz"),
        ({"name": "../etc"}, "is no name of a data set"),
    ],
)
def test_load_refuses(options, sentence):
    with pytest.raises(Refused, match=sentence):
        load(**options)


GOOD = {"train_inputs": FLOATS, "train_label": LABEL, "test_inputs": TEST[0], "test_label": LABEL[:5]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"train_inputs": FLOATS, "train_label": LABEL, "num_classes": K}, "lacks test_inputs and test_label"),
        ({"inputs": FLOATS, "num_classes": K}, "lacks label"),
        (GOOD, "expected an entry num_classes"),
        (GOOD | {"num_classes": np.array([3, 4])}, r"num_classes is \[3, 4\]"),
        (GOOD | {"num_classes": K, "train_inputs": np.array([{}] * N, object)}, "Python objects under 'train_inputs'"),
        (GOOD | {"num_classes": K, "label_names": "abc"}, r"label_names of shape \(\)"),
        (GOOD | {"num_classes": K, "train_weight": np.ones(3)}, "expected one leading axis"),
        (GOOD | {"num_classes": K, "train_label": LABEL[:4]}, "as many labels as inputs"),
        (GOOD | {"num_classes": 2}, r"labels outside \[0, 2\)"),
    ],
)
def test_npz_refused(tmp_path, content, sentence):
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(Refused, match=sentence):
        load("arrays", path=tmp_path / "mine.npz")


def test_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **GOOD, num_classes=K)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"not a zip", b""):
        path.write_bytes(damaged)
        with pytest.raises(Refused, match=r"mine\.npz"):
            load("arrays", path=path)
    position = content.find(FLOATS.tobytes()[:16])
    path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    with pytest.raises(Refused, match=r"cannot be read as \.npz"):
        load("arrays", path=path)
    np.save(tmp_path / "one.npy", FLOATS)
    with pytest.raises(Refused, match="holds a single array"):
        load("arrays", path=tmp_path / "one.npy")

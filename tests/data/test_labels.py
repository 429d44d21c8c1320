"""Labels as people have them: names, regions, weights; what is ambiguous is refused with its remedy."""

import numpy as np
import pytest

from kdjax.data import from_arrays, labels
from kdjax.errors import Refused

N, K = 40, 4
RNG = np.random.default_rng(0)
X, X2 = RNG.random((N, 5), np.float32), RNG.random((12, 5), np.float32)
Y, Y2 = np.arange(N) % K, np.arange(12) % K
NAMES = np.array(["dog", "ant", "cat", "bee"])


def build(train=(X, Y), test=(X2, Y2), **options):
    return from_arrays(train=train, test=test, **({"num_classes": K} | options))


@pytest.mark.parametrize("dtype", [str, object, "S"])
def test_names_are_numbered_in_sorted_order_and_kept(dtype):
    data = build((X, NAMES[Y].astype(dtype)), (X2, NAMES[Y2].astype(dtype)), num_classes=None)
    assert data.label_names == ("ant", "bee", "cat", "dog") and data.num_classes == K
    expected = np.array([3, 0, 2, 1])[Y[data.train.index]]
    np.testing.assert_array_equal(data.train.label, expected)
    by_list = build((X, NAMES[Y].tolist()), (X2, NAMES[Y2].tolist()), num_classes=None, label_names=tuple(NAMES))
    np.testing.assert_array_equal(by_list.train.label, Y[by_list.train.index])
    assert by_list.label_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ({"train": (X, NAMES[Y])}, "text as labels of train and numbers as those of test; expected one kind"),
        ({"train": (X, NAMES[Y]), "test": (X2, NAMES[Y2]), "num_classes": 5}, "4 different names .* num_classes is 5"),
        (
            {"train": (X, NAMES[Y]), "test": (X2, NAMES[Y2]), "label_names": ("ant", "bee", "cat", "eel")},
            "the label 'dog', which is not among the 4 label names",
        ),
        ({"train": (X, NAMES[Y][:, None]), "test": (X2, NAMES[Y2])}, r"text as labels of shape \(40, 1\)"),
        ({"train": (X, np.full(N, b"\xff"))}, "one kind"),
        ({"train": (X, Y + 1)}, "10 of 40 labels outside .* they count from 1: type label - 1"),
        ({"train": (X, Y + 2)}, "20 of 40 labels outside .* correct num_classes"),
        ({"train": (X, np.stack([Y, Y - 2], 1))}, r"10 of 80 labels outside|labels \(40, 2\)"),
        ({"train": (X, np.full((N, 2), -1)), "test": (X2, np.full((12, 2), -1))}, "only -1 as labels"),
        ({"train_weight": np.ones(3)}, r"weights have type float64 and shape \(3,\); .* shape \(40,\)"),
        ({"train_weight": np.where(Y == 1, -1.0, 1.0)}, "10 weights that are negative or not finite, .* position 1"),
        ({"train_weight": np.where(Y == 1, np.nan, 1.0)}, "10 weights that are negative or not finite"),
        ({"train_weight": np.zeros(N)}, "only weights of 0"),
        ({"train_weight": ["a"] * N}, "weights have type"),
        ({"calibration_weight": np.ones(3)}, "calibration_weight was given without a calibration split"),
        ({"class_weight": "even"}, "class_weight is 'even'"),
        ({"class_weight": (1.0, 2.0)}, "expected 'balanced' or 4 numbers"),
        ({"class_weight": (1.0, 2.0, -1.0, 1.0)}, "finite numbers of at least 0"),
    ],
)
def test_refused(case, sentence):
    with pytest.raises(Refused, match=sentence) as refusal:
        build(**case)
    assert "\n" not in str(refusal.value)


def test_labels_that_count_from_one_are_told_from_other_mistakes():
    labels.check_range("it", np.array([0, 3]), 4)
    with pytest.raises(Refused, match="count from 1: type label - 1, or np.where"):
        labels.check_range("it", np.array([[1, -1], [4, 2]]), 4)


def test_regions_with_padding():
    label = np.stack([Y, np.where(Y == 0, -1, Y - 1)], 1)
    data = build((X, label), (X2, np.stack([Y2, Y2], 1)), train_weight=np.arange(1, N + 1), class_weight="balanced")
    assert data.train.label.shape == data.train.weight.shape == (len(data.train.index), 2)
    np.testing.assert_array_equal(data.train.label, label[data.train.index])
    assert ((data.train.weight == 0) == (data.train.label == -1)).all()
    # A zero-one row per region is no one-hot label of four classes.
    build((X, np.stack([Y % 2, 1 - Y % 2], 1)), (X2, np.stack([Y2 % 2, Y2 % 2], 1)))


def test_weights_follow_their_examples_and_enter_the_fingerprint():
    weight = RNG.random(N)
    data = build(train_weight=weight, test_weight=np.arange(12.0))
    for split, values in ((data.train, weight), (data.calibration, weight), (data.test, np.arange(12.0))):
        np.testing.assert_array_equal(split.weight, values[split.index].astype(np.float32))
    assert build().train.weight is None
    prints = {build().fingerprint, data.fingerprint, build(train_weight=weight, test_weight=np.ones(12)).fingerprint}
    assert len(prints) == 3


def test_balanced_weights_give_every_class_the_same_total():
    y = np.repeat(np.arange(3), [60, 30, 10])
    x, x2 = RNG.random((100, 5)), RNG.random((9, 5))
    data = from_arrays((x, y), (x2, np.arange(9) % 3), num_classes=3, class_weight="balanced")
    totals = np.bincount(data.train.label, data.train.weight)
    np.testing.assert_allclose(totals, len(data.train.label) / 3, rtol=1e-6)
    np.testing.assert_allclose(data.train.weight.mean(), 1, rtol=1e-6)
    assert data.calibration.weight is None  # evaluation is about the data as it is
    given = from_arrays((x, y), (x2, np.arange(9) % 3), num_classes=3, class_weight=(1, 2, 6), train_weight=x[:, 0])
    rows = given.train.index
    np.testing.assert_allclose(given.train.weight, x[rows, 0] * np.array([1, 2, 6])[y[rows]], rtol=1e-6)

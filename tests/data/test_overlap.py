"""A test split that is known from training is refused, by whatever way it got there."""

import numpy as np
import pytest

from kdjax.data import from_arrays, load
from kdjax.errors import Refused

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (300, 4, 4, 1), np.uint8), np.arange(300) % 3
X2, Y2 = RNG.integers(0, 256, (100, 4, 4, 1), np.uint8), np.arange(100) % 3


def joined(a, b):
    return np.concatenate([a, b])


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"test": (X, Y)}, "270 of 300 test examples also occur in train; 30 of 300 test examples also occur in calib"),
        ({"test": (joined(X2[:50], X[:50]), Y2)}, "of 100 test examples also occur in train"),
        ({"test": (X[:100], Y2)}, "of 100 test examples also occur in train"),  # other labels do not hide them
        ({"calibration": (X2, Y2)}, "100 of 100 test examples also occur in calibration"),
        ({"calibration": (X[:20], Y[:20])}, "20 of 20 calibration examples also occur in train"),
        ({"train": (joined(X, X), joined(Y, Y))}, "of 60 calibration examples also occur in train; .* repeat another"),
    ],
)
def test_refused_unless_allowed(parts, sentence):
    parts = {"train": (X, Y), "test": (X2, Y2)} | parts
    with pytest.raises(Refused, match=rf"{sentence}.*allow_overlap=True"):
        from_arrays(**parts, num_classes=3)
    with pytest.warns(UserWarning, match=sentence):
        data = from_arrays(**parts, num_classes=3, allow_overlap=True)
    assert len(data.test.label) == len(parts["test"][1])


def test_the_few_duplicates_of_public_sets_are_said_and_not_refused():
    test = X2.copy()
    test[5], test[6] = X[7], test[4]
    with pytest.warns(UserWarning, match="1 of 100 test examples also occur in .*; 1 of 100 test examples repeat"):
        from_arrays((X, Y), (test, Y2), num_classes=3)


def test_a_file_is_held_to_the_same(tmp_path):
    np.savez(tmp_path / "mine.npz", train_inputs=X, train_label=Y, test_inputs=X[:60], test_label=Y[:60], num_classes=3)
    with pytest.raises(Refused, match="of 60 test examples also occur in train"):
        load("arrays", path=tmp_path / "mine.npz")
    with pytest.warns(UserWarning, match="also occur in train"):
        load("arrays", path=tmp_path / "mine.npz", allow_overlap=True)

"""The hold-out: in proportion to the classes, none lost; or blind to them, as KD(C) draws it."""

import warnings

import numpy as np
import pytest

from kdjax import recipes, stages
from kdjax.data import from_arrays, load
from kdjax.data.hold_out import carve, hold_out, stratified
from kdjax.data.order import permutation
from kdjax.errors import Refused

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.9])
def test_every_class_keeps_its_share(fraction):
    label = RNG.permutation(np.repeat(np.arange(5), [200, 100, 60, 30, 10]))
    held_out, rest = hold_out(label, 0, fraction)
    assert len(held_out) == round(400 * fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([held_out, rest])), np.arange(400))
    share = np.bincount(label) * fraction
    assert (np.abs(np.bincount(label[held_out], minlength=5) - share) < 1).all()
    assert (np.diff(held_out) > 0).all() and not (np.diff(rest) > 0).all()


def test_no_class_of_two_or_more_is_lost_on_either_side():
    label = RNG.permutation(np.concatenate([np.repeat(np.arange(8), [300, 2, 2, 3, 2, 2, 1, 1])]))
    for seed in range(20):
        held_out, rest = hold_out(label, seed, 0.05)
        assert set(label[held_out]) == set(range(6)) and set(label[rest]) == set(range(8))
        held_out, rest = hold_out(label, seed, 0.9)
        assert set(range(6)) <= set(label[held_out]) and set(label[rest]) == set(range(8))


def test_classes_of_one_example_leave_nothing_to_hold_out():
    label = np.arange(6)
    with pytest.raises(Refused, match="0.3 of 6 training examples holds out none, .* alone in its class; .*'random'"):
        from_arrays((RNG.random((6, 4)), label), (RNG.random((6, 4)), label), num_classes=6, calibration_fraction=0.3)
    assert len(hold_out(label, 0, 0.3, "random")[0]) == 2 and len(hold_out(label % 5, 0, 0.3)[0]) == 1
    with pytest.raises(Refused, match=r"each of the 6 examples in here\.csv is alone in its class"):
        carve("here.csv", label, 2)


def test_it_is_a_function_of_its_arguments_and_random_is_what_it_was():
    label = RNG.integers(0, 3, 90)
    np.testing.assert_array_equal(hold_out(label, 4, 0.2)[0], hold_out(label, 4, 0.2)[0])
    assert not np.array_equal(hold_out(label, 4, 0.2)[0], hold_out(label, 5, 0.2)[0])
    order = permutation(90, "calibration", 4)
    held_out, rest = hold_out(label, 4, 0.2, "random")
    np.testing.assert_array_equal(held_out, np.sort(order[:18]))
    np.testing.assert_array_equal(rest, order[18:])


def test_regions_are_spread_by_their_rarest_class():
    label = np.full((60, 3), -1)
    label[:, 0] = 0
    label[:30, 1] = 1
    label[[3, 17, 28, 41], 2] = 2
    held_out, rest = stratified(label, 6, 0, "calibration", every_class=True)
    for side in (held_out, rest):
        assert {0, 1, 2} <= set(label[side].ravel().tolist())


def test_own_data_is_stratified_and_published_protocols_are_not():
    label = np.repeat([0, 1], [95, 5])
    x = RNG.random((100, 4))
    data = from_arrays((x, label), (x[:10] + 1, np.arange(10) % 2), num_classes=2)
    assert np.bincount(data.calibration.label).tolist() == [9, 1]
    digits, even = load("digits"), load("digits", calibration_split="stratified")
    assert digits.fingerprint == load("digits", calibration_split="random").fingerprint != even.fingerprint
    assert stages.dataset(recipes.Data(calibration_split="stratified")).fingerprint == even.fingerprint
    assert recipes.Recipe(data=recipes.Data(calibration_split="")).canonical() == recipes.Recipe().canonical()
    share = np.bincount(np.concatenate([even.train.label, even.calibration.label])) / 10
    assert (np.abs(np.bincount(even.calibration.label) - share) < 1).all()


def test_missing_classes_are_said():
    label = np.concatenate([np.arange(4), np.zeros(96, int)])
    x = RNG.random((100, 4))
    with pytest.warns(UserWarning) as caught:
        from_arrays((x, label), (x[:10] + 1, np.arange(10) % 5), num_classes=5, label_names=list("abcde"))
    sentence = str(caught[0].message)
    assert "1 of 5 classes have no train example (e)" in sentence
    assert "4 of 5 classes have no calibration example (b, c, d, e)" in sentence
    assert "3 classes have one training example in all" in sentence
    with pytest.warns(
        UserWarning, match=r"2 of 7 classes have no example \(5, 6\); 1 of 7 classes have no train example"
    ):
        from_arrays((x, label), (x[:10] + 1, np.arange(10) % 5), num_classes=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("digits")

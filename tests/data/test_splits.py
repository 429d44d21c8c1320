"""Splits are disjoint, cover the source and are shared; fingerprints notice a single byte."""

import numpy as np
import pytest

from kdjax import recipes
from kdjax.data import from_arrays, load, overlap, verify_splits
from kdjax.errors import Refused
from kdjax.parts import parts
from kdjax.prepare import Normalize, Unchanged

RNG = np.random.default_rng(1)
X = RNG.integers(0, 256, (200, 4, 4, 3), np.uint8)
Y = RNG.integers(0, 5, 200)
TEST = (RNG.integers(0, 256, (40, 4, 4, 3), np.uint8), RNG.integers(0, 5, 40))


def built(x=X, y=Y, test=TEST, num_classes=5, **options):
    return from_arrays((x, y), test, num_classes=num_classes, **options)


def members(*splits):
    return np.concatenate([split.index for split in splits])


def test_digits_are_digits():
    data = load("digits")
    assert [len(s.label) for s in (data.train, data.calibration, data.test)] == [900, 100, 797]
    np.testing.assert_array_equal(np.sort(members(data.train, data.calibration, data.test)), np.arange(1797))
    assert data.train.inputs.shape[1:] == (8, 8, 1) and data.train.inputs.dtype == np.float32
    assert data.train.inputs.min() == 0 and data.train.inputs.max() == 1 and data.prepare.scale == 1
    from sklearn.datasets import load_digits

    raw = load_digits()
    for split in (data.train, data.calibration, data.test):
        np.testing.assert_array_equal(split.inputs[..., 0] * 16, raw.images[split.index])
        np.testing.assert_array_equal(split.label, raw.target[split.index])


def test_digits_noise_is_drawn_once():
    clean, noisy = load("digits"), load("digits", noise=0.5)
    assert load("digits", noise=0.5).fingerprint == noisy.fingerprint != clean.fingerprint
    redrawn = load("digits", noise=0.5, noise_seed=1)
    assert redrawn.fingerprint != noisy.fingerprint
    np.testing.assert_array_equal(redrawn.test.index, noisy.test.index)
    difference = noisy.train.inputs - clean.train.inputs
    assert difference.std() == pytest.approx(0.5, rel=0.02) and abs(difference.mean()) < 0.01
    # The noise belongs to the image, so it survives another split and another size.
    other = load("digits", noise=0.5, split_seed=3, train_examples=50)
    shared = np.intersect1d(other.train.index, noisy.train.index)
    assert shared.size > 30
    np.testing.assert_array_equal(
        other.train.inputs[np.searchsorted(other.train.index, shared)],
        noisy.train.inputs[np.searchsorted(noisy.train.index, shared)],
    )


def test_digits_test_split_does_not_depend_on_the_split_seed():
    splits = [load("digits", split_seed=seed) for seed in range(3)]
    for data in splits[1:]:
        np.testing.assert_array_equal(data.test.index, splits[0].test.index)
        assert data.calibration_id != splits[0].calibration_id
    small = load("digits", test_examples=400, calibration_fraction=0.2)
    assert [len(s.label) for s in (small.train, small.calibration, small.test)] == [1118, 279, 400]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.9])
def test_train_and_calibration_partition_the_source(fraction):
    data = built(calibration_fraction=fraction, split_seed=7)
    assert len(data.calibration.label) == round(200 * fraction)
    np.testing.assert_array_equal(np.sort(members(data.train, data.calibration)), np.arange(200))
    for split in (data.train, data.calibration):
        np.testing.assert_array_equal(split.inputs, X[split.index])
        np.testing.assert_array_equal(split.label, Y[split.index])


def test_subsets_are_nested_and_share_the_calibration_split_and_the_constants():
    whole, half, tenth = built(), built(train_examples=90), built(train_examples=18)
    assert set(tenth.train.index) < set(half.train.index) < set(whole.train.index)
    assert len(tenth.train.index) == 18
    for subset in (half, tenth):
        assert subset.calibration_id == whole.calibration_id and subset.fingerprint != whole.fingerprint
        assert subset.prepare == whole.prepare
        verify_splits(whole, subset)
        verify_splits(subset, whole)
    picked = built(test_examples=10)
    assert len(picked.test.label) == 10 and set(picked.test.index) <= set(range(40))


def test_the_split_is_not_sorted_by_position():
    # A hold-out of the first tenth would pass the partition test; this one is spread.
    index = built().calibration.index
    assert index.min() < 50 and index.max() > 150


def flipped(array, position=(0, 0, 0, 0)):
    array = array.copy()
    array[position] ^= 1
    return array


def relabeled(y):
    y = y.copy()
    y[3] = (y[3] + 1) % 5
    return y


@pytest.mark.parametrize(
    "other",
    [
        lambda: built(x=flipped(X, (built().train.index[-1], 3, 3, 2))),
        lambda: built(x=flipped(X, (built().calibration.index[0], 0, 0, 0))),
        lambda: built(test=(flipped(TEST[0]), TEST[1])),
        lambda: built(y=relabeled(Y)),
        lambda: built(test=(TEST[0], relabeled(TEST[1]))),
        lambda: built(num_classes=6),
        lambda: built(normalization="none"),
        lambda: built(split_seed=1),
        lambda: built(calibration_fraction=0.2),
        lambda: built(calibration_split="random"),
        lambda: built(train_weight=np.ones(200)),
        lambda: built(class_weight="balanced"),
        lambda: built(train_examples=100),
        lambda: built(x=X.astype(np.float32), test=(TEST[0].astype(np.float32), TEST[1])),
        lambda: from_arrays((X, Y, np.arange(200) + 1), TEST, num_classes=5),
    ],
)
def test_fingerprint_notices(other):
    assert built().fingerprint == built(x=X.copy()).fingerprint
    assert other().fingerprint != built().fingerprint


def test_calibration_id_is_about_the_calibration_examples_alone():
    base = built()
    outside = built(x=flipped(X, (base.train.index[0], 0, 0, 0)))
    assert outside.calibration_id == base.calibration_id and outside.fingerprint != base.fingerprint
    inside = built(x=flipped(X, (base.calibration.index[0], 0, 0, 0)))
    assert inside.calibration_id != base.calibration_id


def test_own_normalization_is_that_of_the_training_part():
    pixels = built(calibration_fraction=0.5)
    scaled = X[pixels.train.index].astype(np.float64) / 255
    np.testing.assert_allclose(pixels.prepare.mean, scaled.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(pixels.prepare.std, scaled.std((0, 1, 2)), rtol=1e-5)
    assert pixels.prepare.scale == 255
    features = RNG.normal(3.0, 2.0, (200, 6)).astype(np.float64)
    features[:, 2] = 1.5  # constant: must not divide by zero
    data = from_arrays((features, Y), (features[:40] + 1, TEST[1]), num_classes=5)
    np.testing.assert_allclose(data.prepare.mean, features[data.train.index].mean(0), rtol=1e-5)
    assert data.prepare.std[2] == 1.0 and data.prepare.scale == 1.0 and data.train.inputs.dtype == np.float32
    assert data.kind == "features"


def test_a_mapped_file_that_is_cut_short_is_a_sentence_and_a_later_change_changes_nothing(tmp_path):
    """To read it ended the process by SIGBUS."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "test.npy", TEST[0])
    mapped, test = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "test"))
    data = built(x=mapped, test=(test, TEST[1]))
    assert data.fingerprint == built().fingerprint
    with open(tmp_path / "test.npy", "r+b") as file:
        file.truncate(500)
    np.testing.assert_array_equal(data.test.inputs, TEST[0])
    with pytest.raises(Refused, match=r"test\.npy is 500 bytes long and the array that maps it needs 2048"):
        built(x=mapped, test=(test, TEST[1]))


@pytest.mark.parametrize("normalization", ["kdc", "mdistiller"])
def test_published_constants_are_of_values_between_0_and_1(normalization):
    strokes = np.zeros(X.shape, np.float32)  # white on black, a few of each image
    strokes[:, 2, 2] = 255
    for x in (X.astype(np.float32), strokes + X / 255):
        with pytest.raises(
            Refused, match=f"train inputs are floats from .* normalization '{normalization}' takes 1 for"
        ):
            built(x=x, test=(TEST[0].astype(np.float32), TEST[1]), normalization=normalization)
        built(x=x, test=(TEST[0].astype(np.float32), TEST[1]), normalization=((125.0,), (60.0,)))
    noisy = [(x / 255 + np.random.default_rng(5).normal(0, 2, x.shape)).astype(np.float32) for x in (X, TEST[0])]
    assert built(x=noisy[0], test=(noisy[1], TEST[1]), normalization=normalization).prepare.scale == 1


@pytest.mark.parametrize(
    ("transform", "method", "refused"),
    [
        (("flip", "rand_augment"), {}, True),
        (("flip", "two_views"), {}, True),
        ((("two_views", {"strong": ("flip",)}),), {}, False),
        ((("rand_augment", {"high": 255.0}),), {}, False),
        (("flip",), {"distill": recipes.Distill("mlld")}, True),
        (("flip",), {"distill": recipes.Distill("mlld", {"strong": ("flip",)})}, False),
    ],
)
def test_augmentation_of_floats_that_takes_1_for_white(transform, method, refused):
    recipe = recipes.Recipe(model="mlp", transform=transform, batch_size=16, **method)
    up_to_255 = built(x=X.astype(np.float32), test=(TEST[0].astype(np.float32), TEST[1]))
    small = built(x=(X / 255).astype(np.float32), test=((TEST[0] / 255).astype(np.float32), TEST[1]))
    if refused:
        with pytest.raises(
            Refused, match=r"arrays train inputs are floats from 0 to 255, and transform 'rand_augment'"
        ):
            parts(recipe, up_to_255)
    else:
        parts(recipe, up_to_255)
    parts(recipe, small)
    parts(recipe, built())


def test_given_constants_and_calibration_are_kept():
    calibration = (TEST[0][:10] ^ 255, TEST[1][:10])
    data = built(calibration=calibration, normalization=((0.5,) * 3, (0.25,) * 3))
    np.testing.assert_array_equal(data.calibration.inputs, calibration[0])
    assert len(data.train.label) == 200 and data.prepare == Normalize((0.5,) * 3, (0.25,) * 3, 255.0)
    # One pair for all channels is the same.
    assert built(normalization=((0.5,), (0.25,))).prepare == data.prepare
    assert not set(data.calibration.index) & set(data.train.index)


def test_colors_that_are_not_normalized_are_still_scaled():
    """One mean for three channels was refused while the step was traced: nothing could be trained."""
    data = built(normalization="none")
    assert data.prepare == Normalize((0.0,) * 3, (1.0,) * 3, 255.0)
    np.testing.assert_allclose(data.prepare(data.train.inputs), data.train.inputs / 255, rtol=1e-6)
    floats = built(x=X / 255, test=(TEST[0] / 255, TEST[1]), normalization="none")
    assert floats.prepare == Unchanged()


def test_tokens_with_a_mask():
    inputs = {"ids": RNG.integers(0, 50, (60, 7)), "mask": np.ones((60, 7), bool)}
    other = {"ids": inputs["ids"] + 50, "mask": inputs["mask"]}
    data = from_arrays((inputs, Y[:60]), (other, Y[:60]), num_classes=5)
    assert data.train.inputs["ids"].shape == (54, 7) and data.prepare == Unchanged() and data.kind == "text"
    renamed = ({"ids": x["ids"], "valid": x["mask"]} for x in (inputs, other))
    assert data.fingerprint != from_arrays(*((x, Y[:60]) for x in renamed), num_classes=5).fingerprint
    ids = from_arrays((inputs["ids"], Y[:60]), (other["ids"], Y[:60]), num_classes=5)
    assert ids.prepare == Unchanged() and ids.kind == "text"


def test_a_teacher_that_saw_the_calibration_examples_is_refused():
    teacher, student = built(split_seed=1), built(split_seed=0)
    seen = np.isin(student.calibration.index, teacher.train.index).sum()
    assert 0 < seen == overlap(teacher, student)
    with pytest.raises(Refused, match=rf"trained on {seen} of the student's 20 calibration examples .* split_seed"):
        verify_splits(teacher, student)
    assert overlap(student, student) == 0
    # The same leak, through arrays that were cut by hand and numbered anew.
    by_hand = from_arrays((X[50:], Y[50:]), TEST, num_classes=5, calibration=(X[:50], Y[:50]))
    assert overlap(by_hand, student) == (student.calibration.index >= 50).sum()


def test_duplicates_of_the_source_are_no_leak():
    doubled = np.concatenate([X[:100], X[:100]])
    labels = np.concatenate([Y[:100], Y[:100]])
    with pytest.raises(Refused, match="14 of 20 calibration examples also occur in train; 83 of 180 train examples"):
        built(x=doubled, y=labels)
    with pytest.warns(UserWarning, match="14 of 20 calibration examples also occur in train"):
        whole = built(x=doubled, y=labels, allow_overlap=True)
    subset = built(x=doubled, y=labels, train_examples=50, allow_overlap=True)
    verify_splits(whole, subset)


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        (lambda: built(num_classes=6), "has 6 classes and the student's 'arrays' has 5"),
        (lambda: built(x=X ^ 255), "calibration splits of teacher .* differ"),
        (lambda: built(normalization="none"), "normalized"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(teacher, sentence):
    with pytest.raises(Refused, match=sentence):
        verify_splits(teacher(), built())


def test_npz_round_trip(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, train_inputs=X, train_label=Y, test_inputs=TEST[0], test_label=TEST[1], label_names=list("abcde"))
    data = load("arrays", path=path, split_seed=2)
    assert data.fingerprint == built(split_seed=2).fingerprint and data.label_names == tuple("abcde")
    calibration = {"calibration_inputs": TEST[0][:9] ^ 3, "calibration_label": TEST[1][:9]}
    np.savez(path, train_inputs=X, train_label=Y, test_inputs=TEST[0], test_label=TEST[1], num_classes=5, **calibration)
    assert len(load("arrays", path=path).calibration.label) == 9
    # The size of a test split that the file brings along was ignored without a word.
    assert len(load("arrays", path=path, test_examples=7).test.label) == 7


def test_npz_with_one_pool(tmp_path):
    np.savez(tmp_path / "pool.npz", inputs=X, label=Y)
    data = load("arrays", path=tmp_path / "pool.npz", num_classes=5)
    np.testing.assert_array_equal(np.sort(members(data.train, data.calibration, data.test)), np.arange(200))
    assert len(data.test.label) == 40
    again = load("arrays", path=tmp_path / "pool.npz", num_classes=5, split_seed=5, test_examples=40)
    np.testing.assert_array_equal(again.test.index, data.test.index)

"""Geometry and photometry against NumPy, their distributions, dtypes, and independence of the device count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import transforms
from kdjax.errors import Refused
from kdjax.transforms import augment
from kdjax.types import Batch
from tests.processes import slow

KEY = jax.random.key(0)


def pictures(b=6, h=8, w=10, c=3, dtype=np.uint8):
    # No pixel is 0, so that what comes from outside is seen.
    return jnp.asarray(np.random.default_rng(1).integers(1, 256, (b, h, w, c)).astype(dtype))


def run(transform, x, key=KEY):
    return np.asarray(transform(key, Batch(x)).inputs)


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_equals_numpy_at_some_offset_and_offsets_are_uniform(mode, numpy_mode):
    one = np.asarray(pictures(1, 6, 7, 1))[0]
    padded = np.pad(one, ((2, 2), (2, 2), (0, 0)), mode=numpy_mode)
    crops = {(i, j): padded[i : i + 6, j : j + 7] for i in range(5) for j in range(5)}
    got = run(transforms.pad_crop(2, mode), jnp.broadcast_to(one, (5000, *one.shape)))
    assert got.dtype == np.uint8
    counts = {offset: int((got == crop).all((1, 2, 3)).sum()) for offset, crop in crops.items()}
    assert sum(counts.values()) == 5000  # each result is exactly one of the 25 crops
    assert all(130 < n < 275 for n in counts.values())  # 200 each, sd 14


def test_crop_of_padding_zero_is_the_identity():
    np.testing.assert_array_equal(run(transforms.pad_crop(0), pictures()), pictures())


def test_flip_mirrors_half_of_the_images():
    x = pictures(2000, 2, 3, 1)
    got = run(transforms.flip(), x)
    flipped = (got == np.asarray(x)[:, :, ::-1]).all((1, 2, 3))
    kept = (got == np.asarray(x)).all((1, 2, 3))
    assert (flipped | kept).all() and got.dtype == np.uint8
    assert 900 < (flipped & ~kept).sum() < 1100


def test_cutout_is_one_square_that_may_hang_over_the_edge():
    got = run(transforms.cutout(4), pictures(400)) == 0
    assert (got == got[..., :1]).all()  # all channels
    rows, cols = got[..., 0].any(2), got[..., 0].any(1)
    assert (got[..., 0] == rows[:, :, None] & cols[:, None, :]).all()
    assert set(rows.sum(1)) == {2, 3, 4} and set(cols.sum(1)) == {2, 3, 4}


def test_normalize_uses_the_units_of_the_data_set():
    x = pictures(2)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    got = run(transforms.normalize(mean, std, 255), x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (np.asarray(x) / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def test_gaussian_noise_has_the_given_standard_deviation():
    noise = run(transforms.gaussian_noise(0.5), jnp.ones((50, 20, 20))) - 1
    assert abs(noise.std() - 0.5) < 0.01 and abs(noise.mean()) < 0.01


def geometry(name, x, s):
    b = x.shape[0]
    return np.asarray(augment._affine(x, jnp.full(b, augment._OPS.index(name)), jnp.full(b, float(s))))


def values(name, x, sign, f, high=255.0):
    b = x.shape[0]
    op = jnp.full(b, augment._OPS.index(name))
    return np.asarray(augment._photometric(x, op, jnp.full(b, float(sign)), f, high))


def test_rand_augment_geometry():
    x = pictures(2, 9, 9, 1).astype(jnp.float32)
    reference = np.asarray(x)
    np.testing.assert_array_equal(geometry("brightness", x, 1), reference)
    np.testing.assert_array_equal(geometry("rotate", x, 3), np.rot90(reference, -1, (1, 2)))  # 90 degrees
    shift = int(150 / 331 * 9 * 0.5)
    np.testing.assert_array_equal(geometry("translate_x", x, 0.5)[:, :, :-shift], reference[:, :, shift:])
    assert (geometry("translate_x", x, 0.5)[:, :, -shift:] == 0).all()
    np.testing.assert_array_equal(geometry("translate_y", x, -0.5)[:, shift:], reference[:, :-shift])
    sheared = geometry("shear_x", x, 1)  # 0.3 columns per row from the center
    np.testing.assert_array_equal(sheared[:, 4], reference[:, 4])
    np.testing.assert_array_equal(sheared[:, 8, :-1], reference[:, 8, 1:])
    np.testing.assert_array_equal(geometry("shear_y", x, 1)[:, :-1, 8], reference[:, 1:, 8])


@pytest.mark.slow
def test_rand_augment_values():
    x = pictures(2, 4, 4, 3).astype(jnp.float32)
    r = np.asarray(x)
    gray = r @ np.array([0.299, 0.587, 0.114])
    mean = gray.mean((1, 2)).reshape(2, 1, 1, 1)
    expected = {
        "identity": r,
        "rotate": r,
        "brightness": np.clip(1.3 * r, 0, 255),
        "color": np.clip(gray[..., None] + 1.3 * (r - gray[..., None]), 0, 255),
        "contrast": np.clip(mean + 1.3 * (r - mean), 0, 255),
        "posterize": r - r % 2,
        "solarize": np.where(r >= 170, 255 - r, r),
        "autocontrast": (r - r.min((1, 2), keepdims=True)) * 255 / np.ptp(r, axis=(1, 2), keepdims=True),
    }
    for name, want in expected.items():
        np.testing.assert_allclose(values(name, x, 1, 1 / 3), want, rtol=1e-4, atol=1e-3, err_msg=name)
    constant = jnp.full((1, 2, 2, 1), 7.0)
    np.testing.assert_array_equal(values("autocontrast", constant, 1, 0.5), constant)
    for name in ("posterize", "solarize", "brightness"):  # floats in [0, 1] mean the same
        scaled = values(name, x / 255, -1, 1 / 3, 1.0)
        np.testing.assert_allclose(255 * scaled, values(name, x, -1, 1 / 3), atol=1e-2, err_msg=name)


def test_rand_augment_keeps_dtype_and_strength_zero_changes_little():
    x = pictures(64)
    strong = run(transforms.rand_augment(2, 10), x)
    assert strong.dtype == np.uint8
    changed = (strong != np.asarray(x)).any((1, 2, 3)).mean()
    assert 0.8 < changed < 1  # both operations are the identity, or undone, now and then
    np.testing.assert_array_equal(run(transforms.rand_augment(0), x), x)
    floats = run(transforms.rand_augment(2, 30), x.astype(jnp.float32) / 255)
    assert floats.dtype == np.float32 and floats.min() >= 0 and floats.max() <= 1


ALL = {
    "pad_crop": {},
    "flip": {},
    "cutout": {"size": 3},
    "rand_augment": {},
    "gaussian_noise": {"sd": 0.1},
    "normalize": {"mean": (0.5,) * 3, "std": (0.2,) * 3, "scale": 255},
    "mixup": {"alpha": 0.4},
    "two_views": {},
}


def test_every_transform_is_in_the_list_below():
    assert set(ALL) == set(transforms.TRANSFORMS)


@pytest.mark.parametrize("name", ["flip", "mixup", *slow(*(name for name in ALL if name not in ("flip", "mixup")))])
def test_same_numbers_with_and_without_jit_and_on_two_devices(name):
    transform = transforms.build([(name, ALL[name])], num_classes=5)
    batch = Batch(pictures(8), label=jnp.arange(8) % 5, index=jnp.arange(8), weight=jnp.ones(8))
    eager, jitted = transform(KEY, batch), jax.jit(transform)(KEY, batch)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    spread = jax.jit(transform)(KEY, sharded)
    jax.tree.map(np.testing.assert_array_equal, jitted, spread)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 if name != "rand_augment" else 1)
    if name != "normalize":
        other = jax.jit(transform)(jax.random.key(1), batch)
        assert (np.asarray(other.inputs) != np.asarray(jitted.inputs)).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: transforms.pad_crop(-1), "padding is -1; expected an integer of at least 0"),
        (lambda: transforms.pad_crop(2, "wrap"), "mode is 'wrap'"),
        (lambda: transforms.cutout(0), "size is 0"),
        (lambda: transforms.rand_augment(2, 31), r"magnitude is 31; expected a number in \[0.*, 30"),
        (lambda: transforms.gaussian_noise(-1.0), "sd is -1.0"),
        (lambda: transforms.normalize((0.0,), (0.0,)), "std is 0.0"),
        (lambda: run(transforms.flip(), jnp.zeros((4, 8, 8))), r"shape \(4, 8, 8\); expected images"),
        (lambda: run(transforms.flip(), jnp.zeros((4, 8, 8, 1), jnp.int32)), "got int32 inputs"),
        (lambda: transforms.gaussian_noise(1.0)(KEY, Batch({"ids": jnp.zeros(3)})), "are a dict"),
        (lambda: run(transforms.normalize((0.0,) * 2, (1.0,) * 2), pictures()), "2 means .* 3 channels"),
        (lambda: run(transforms.pad_crop(8, "reflect"), pictures()), "reflects 8 pixels of 8x10"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(Refused, match=words):
        make()

"""Mixup, two views, and names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import transforms
from kdjax.errors import Refused
from kdjax.types import Batch

KEY = jax.random.key(0)
K = 4


def batch(b=6, **fields):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.integers(0, 256, (b, 4, 4, 1)).astype(np.uint8))
    return Batch(x, label=jnp.asarray(rng.integers(0, K, b)), index=jnp.arange(b))._replace(**fields)


def test_mixing_is_linear_and_the_target_is_a_distribution():
    before, lam, perm = batch(), 0.3, jnp.array([3, 0, 5, 1, 2, 4])
    after = transforms.mix(before, jnp.float32(lam), perm, K)
    x, t = np.asarray(before.inputs, np.float64), np.eye(K)[np.asarray(before.label)]
    np.testing.assert_allclose(after.inputs, lam * x + (1 - lam) * x[perm], rtol=1e-5)
    np.testing.assert_allclose(after.target, lam * t + (1 - lam) * t[perm], rtol=1e-5)
    np.testing.assert_allclose(after.target.sum(1), 1, rtol=1e-6)
    assert after.label is None and after.weight is None and after.inputs.dtype == jnp.float32
    np.testing.assert_array_equal(after.index, before.index)


def test_soft_targets_are_mixed_as_they_are():
    soft = jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=(6, K))))
    perm = jnp.roll(jnp.arange(6), 1)
    after = transforms.mix(batch(label=None, target=soft), jnp.float32(0.75), perm)
    np.testing.assert_allclose(after.target, 0.75 * soft + 0.25 * soft[perm], rtol=1e-5)


def test_lambda_one_is_the_identity():
    before = batch()
    after = transforms.mixup(0.0, K)(KEY, before)
    np.testing.assert_array_equal(after.inputs, before.inputs)
    np.testing.assert_array_equal(after.target, np.eye(K)[np.asarray(before.label)])
    assert after.label is None


def test_lambda_is_beta_distributed_and_not_folded():
    # Two images, 0 and 1: a mixed first pixel is lambda or 1 - lambda or, when not permuted, 0.
    two = Batch(jnp.array([[0.0], [1.0]]), label=jnp.array([0, 1]))
    mixed = jax.vmap(lambda k: transforms.mixup(0.4, 2)(k, two))(jax.random.split(KEY, 4000))
    swapped = np.asarray(mixed.inputs[:, 0, 0] != 0)
    assert 0.45 < swapped.mean() < 0.55
    lam = 1 - np.asarray(mixed.inputs[:, 0, 0])[swapped]
    assert abs(lam.mean() - 0.5) < 0.03
    assert abs(lam.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01


def test_weighted_mixup_keeps_the_two_term_loss():
    w = jnp.array([1.0, 2.0, 0.5, 3.0, 1.0, 1.0])
    before, lam, perm = batch(weight=w), 0.3, jnp.array([3, 0, 5, 1, 2, 4])
    after = transforms.mix(before, jnp.float32(lam), perm, K)
    nll = np.random.default_rng(3).normal(size=(6, K))  # stands for -log p of the mixed inputs
    label = np.asarray(before.label)
    rows = np.arange(6)
    two_terms = lam * (w * nll[rows, label]).sum() + (1 - lam) * (w[perm] * nll[rows, label[perm]]).sum()
    np.testing.assert_allclose((after.weight[:, None] * after.target * nll).sum(), two_terms, rtol=1e-5)
    np.testing.assert_allclose(after.weight.sum(), w.sum(), rtol=1e-6)


def test_absent_examples_stay_absent_and_leak_nowhere():
    w = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    perm = jnp.array([1, 0, 3, 2, 5, 4])
    clean = batch(weight=w)
    x = clean.inputs.astype(jnp.float32)
    dirty = clean._replace(inputs=jnp.where(w[:, None, None, None] > 0, x, jnp.nan), label=clean.label.at[1].add(1))
    one, two = (transforms.mix(b, jnp.float32(0.3), perm, K) for b in (clean, dirty))
    np.testing.assert_array_equal(one.weight > 0, w > 0)
    present = np.asarray(w > 0)
    np.testing.assert_array_equal(one.inputs[present], two.inputs[present])
    np.testing.assert_array_equal(one.target[present], two.target[present])
    np.testing.assert_array_equal(one.inputs[0], x[0])  # its partner is absent


def test_mixup_refuses_what_it_cannot_mix():
    with pytest.raises(Refused, match=r"no num_classes; expected mixup\(alpha, num_classes=K\)"):
        transforms.mixup(1.0)(KEY, batch())
    with pytest.raises(Refused, match="has neither"):
        transforms.mixup(1.0, K)(KEY, batch(label=None))
    with pytest.raises(Refused, match=r"alpha is -1\.0"):
        transforms.mixup(-1.0)


def test_two_views_stack_weak_then_strong_and_repeat_the_rest():
    weight = jnp.arange(6.0)
    before = batch(weight=weight)
    after = transforms.two_views((), ("pad_crop", ("cutout", {"size": 2})))(KEY, before)
    np.testing.assert_array_equal(after.inputs[:6], before.inputs)
    assert after.inputs.shape == (12, 4, 4, 1) and after.inputs.dtype == jnp.uint8
    assert (np.asarray(after.inputs[6:]) != np.asarray(before.inputs)).any((1, 2, 3)).all()
    for field in ("label", "index", "weight"):
        np.testing.assert_array_equal(getattr(after, field), jnp.tile(getattr(before, field), 2))
    same = transforms.two_views(transforms.flip(), transforms.flip())(KEY, batch(64)).inputs
    assert (same[:64] != same[64:]).any()  # the views are drawn independently
    with pytest.raises(Refused, match="two_views has label and target in one view only"):
        transforms.two_views((), (("mixup", {"alpha": 1.0}),), num_classes=K)(KEY, before)


def test_chain_gives_each_transform_its_own_key():
    assert transforms.chain()(KEY, batch()) is not None
    by_hand = transforms.flip()(jax.random.fold_in(KEY, 1), transforms.pad_crop(1)(jax.random.fold_in(KEY, 0), batch()))
    chained = transforms.build(["pad_crop", "flip"])(KEY, batch())
    assert chained.inputs.shape == by_hand.inputs.shape
    exact = transforms.build([["pad_crop", {"padding": 1}], "flip"])(KEY, batch())
    np.testing.assert_array_equal(exact.inputs, by_hand.inputs)


def test_build_hands_the_class_count_to_those_that_want_it():
    after = transforms.build(["flip", ("mixup", {"alpha": 1.0})], num_classes=K)(KEY, batch())
    assert after.target.shape == (6, K)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("flip", r"type \('flip',\)"),
        (["pad_corp"], "did you mean pad_crop"),
        ([("pad_crop", {"pading": 4})], "did you mean padding"),
        ([("flip", {"p": 0.5})], "it takes none"),
        (["cutout"], r"lacks size; type \('cutout', \{'size': \.\.\.\}\)"),
        ([None], "entry is None; expected a name"),
        ([("flip", {}, 3)], "expected a name or"),
    ],
)
def test_build_refuses(names, words):
    with pytest.raises(Refused, match=words):
        transforms.build(names)


@pytest.mark.parametrize(
    ("entry", "kind", "words"),
    [
        (("mixup", {"alpha": 1.0}), "text", "transform 'mixup' takes images or features, and this data set holds text"),
        ("flip", "text", "transform 'flip' takes images, and this data set holds text; expected one of two_views"),
        ("pad_crop", "features", "'pad_crop' takes images, and this data set holds features; expected one of gaussian"),
        ("two_views", "text", "transform 'pad_crop' takes images, and this data set holds text"),
        (("two_views", {"weak": [], "strong": ["flip"]}), "text", "transform 'flip' takes images"),
    ],
)
def test_a_transform_of_other_inputs_is_refused_by_name(entry, kind, words):
    with pytest.raises(Refused, match=words) as refusal:
        transforms.build([entry], num_classes=K, kind=kind)
    assert "\n" not in str(refusal.value)
    transforms.build([entry], num_classes=K, kind="image")
    transforms.build([entry], num_classes=K)


def test_mixup_refuses_regions():
    with pytest.raises(Refused, match=r"mixup got labels of shape \(6, 2\), of regions"):
        transforms.mixup(1.0, K)(KEY, batch(label=jnp.zeros((6, 2), jnp.int32)))


def drop_words(rate: float = 0.1, num_classes: int | None = None):
    return lambda key, batch: batch._replace(inputs=jnp.where(jax.random.bernoulli(key, rate), 0, batch.inputs))


def test_an_option_of_ones_own_may_share_a_name_with_a_view():
    """`strong` of two views holds transforms, and here two numbers."""

    def jitter(strong: tuple[float, float] = (0.1, 0.2)):
        return lambda key, batch: batch._replace(inputs=batch.inputs * strong[1])

    try:
        transforms.register("jitter", jitter, kind="image")
        for entries in (["jitter"], [("jitter", {"strong": (0.5, 2.0)})]):
            assert transforms.names(entries) == ["jitter"] and transforms.without_white(entries) is None
        assert transforms.without_white(["jitter", "two_views"]) == ("rand_augment", "high")
    finally:
        transforms.TRANSFORMS.pop("jitter", None)


def test_transforms_from_outside():
    try:
        transforms.register("drop_words", drop_words, kind="text")
        assert len(transforms.version("drop_words")) == 64 and transforms.version("flip") == ""
        ids = Batch(jnp.ones((2, 3), jnp.int32))
        after = transforms.build([("drop_words", {"rate": 1.0})], num_classes=K, kind="text")(KEY, ids)
        assert (after.inputs == 0).all()
        with pytest.raises(Refused, match="'drop_words' takes text, and this data set holds images"):
            transforms.build(["drop_words"], kind="image")
        with pytest.raises(Refused, match="has no option 'rat'; did you mean rate"):
            transforms.build([("drop_words", {"rat": 1.0})])
        transforms.register("drop_words", drop_words, kind="any", version="2")
        assert transforms.version("drop_words") == "2"
        entries = ["drop_words", ("two_views", {"weak": [], "strong": ["flip", "drop_words"]})]
        assert transforms.names(entries) == ["drop_words", "two_views", "flip", "drop_words"]
    finally:
        transforms.TRANSFORMS.pop("drop_words", None)
    for arguments, words in [
        (("flip", drop_words), "'flip' exists already"),
        (("a b", drop_words), "registered as 'a b'"),
        (("other", 3), "registered with 3"),
        (("other", drop_words, "words"), "kind is 'words'"),
    ]:
        with pytest.raises(Refused, match=words):
            transforms.register(*arguments)

"""Bins by hand, against a loop, merged, streamed and mapped over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax import metrics
from kdjax.errors import Refused
from kdjax.metrics import Bins, binned


def sample(seed=0, n=200):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 2, n)
    return confidence, rng.random(n) < confidence**1.5


def loop(confidence, correct, bins, inside):
    """(count, confidence, correct) of each bin by definition; `inside(c, m)` says whether c lies in bin m."""
    rows = []
    for m in range(bins):
        members = [i for i, c in enumerate(confidence) if inside(c, m)]
        rows.append((len(members), sum(confidence[i] for i in members), sum(float(correct[i]) for i in members)))
    return np.array(rows, float).T


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equals_a_direct_loop(bins):
    confidence, correct = sample()
    # Edges, both ends and repeated values are where codes differ; random numbers never hit them.
    confidence = np.concatenate([confidence, np.arange(bins + 1) / bins, [1.0, 1.0, 0.0]])
    correct = np.concatenate([correct, np.arange(bins + 4) % 2 == 0])
    right = loop(confidence, correct, bins, lambda c, m: m / bins < c <= (m + 1) / bins or (m == 0 and c == 0))
    left = loop(confidence, correct, bins, lambda c, m: m / bins <= c < (m + 1) / bins or (m == bins - 1 and c == 1))
    np.testing.assert_allclose(np.stack(binned(confidence, correct, bins=bins)), right, rtol=1e-13)
    np.testing.assert_allclose(np.stack(binned(confidence, correct, bins=bins, closed="left")), left, rtol=1e-13)


@pytest.mark.parametrize("xp", [np, jnp])
def test_edges_by_hand(xp):
    confidence = xp.asarray([0.0, 1 / 15, 3 / 15, 7 / 15, 0.99, 1.0])
    hit = xp.ones(6)
    where = {
        ("right", "in"): [0, 0, 2, 6, 14, 14],
        ("right", "extra"): [0, 1, 3, 7, 15, 15],
        ("left", "in"): [0, 1, 3, 7, 14, 14],
        ("left", "extra"): [0, 1, 3, 7, 14, 15],
    }
    for (closed, ends), expected in where.items():
        found = binned(confidence, hit, closed=closed, ends=ends)
        np.testing.assert_array_equal(np.asarray(found.count), np.bincount(expected, minlength=15 + (ends == "extra")))


def test_every_edge_is_exact_in_both_precisions():
    for bins in (10, 15, 30):
        edges = np.arange(1, bins + 1) / bins
        for dtype in (np.float64, np.float32):
            assert (binned(edges.astype(dtype), edges > 0, bins=bins).count == 1).all()
        assert (np.asarray(binned(jnp.asarray(edges, jnp.float32), jnp.ones(bins), bins=bins).count) == 1).all()


def test_merged_bins_are_the_bins_of_the_union():
    confidence, correct = sample()
    whole = binned(confidence, correct)
    merged = binned(confidence[:37], correct[:37]).merge(binned(confidence[37:], correct[37:]))
    np.testing.assert_allclose(np.stack(merged), np.stack(whole), rtol=1e-13)
    np.testing.assert_allclose(merged.ece, metrics.ece(confidence, correct), rtol=1e-13)
    with pytest.raises(Refused, match="cannot be merged"):
        whole.merge(binned(confidence, correct, bins=10))


def test_weight_zero_is_absence_and_two_is_repetition():
    confidence, correct = sample(n=30)
    weight = np.arange(30) % 3
    repeated = np.repeat(np.arange(30), weight)
    for xp in (np, jnp):
        found = binned(xp.asarray(confidence), xp.asarray(correct), weight=xp.asarray(weight))
        expected = binned(confidence[repeated], correct[repeated])
        np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=1e-6)


def test_streaming_under_jit_equals_one_shot():
    confidence, correct = sample()

    @jax.jit
    def stream(confidence, correct):
        def step(bins, batch):
            return bins.add(*batch), None

        return jax.lax.scan(step, Bins.empty(15), (confidence, correct))[0]

    bins = stream(jnp.asarray(confidence.reshape(10, 20)), jnp.asarray(correct.reshape(10, 20)))
    np.testing.assert_allclose(np.stack(bins), np.stack(binned(confidence, correct)), rtol=1e-5)
    np.testing.assert_allclose(bins.ece, metrics.ece(confidence, correct), rtol=1e-5)
    seeds = jax.vmap(lambda c, h: binned(c, h).ece)(jnp.asarray(confidence.reshape(2, 100)), correct.reshape(2, 100))
    np.testing.assert_allclose(seeds[1], metrics.ece(confidence[100:], correct[100:]), rtol=1e-5)


def test_pmap_and_psum_on_two_devices_equal_one_shot():
    assert jax.device_count() >= 2
    confidence, correct = sample()
    split = [jnp.asarray(x.reshape(2, 100)) for x in (confidence, correct)]
    mapped = jax.pmap(lambda c, h: jax.lax.psum(binned(c, h), "data"), axis_name="data", devices=jax.devices()[:2])
    for device in (0, 1):
        bins = jax.tree.map(lambda x, d=device: x[d], mapped(*split))
        np.testing.assert_allclose(np.stack(bins), np.stack(binned(confidence, correct)), rtol=1e-5)


def test_sharded_input_gives_the_global_bins():
    confidence, correct = sample()
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
    bins = jax.jit(binned)(jax.device_put(confidence.astype(np.float32), sharding), jax.device_put(correct, sharding))
    np.testing.assert_allclose(np.stack(bins), np.stack(binned(confidence, correct)), rtol=1e-5)


def test_classwise_bins_stack_the_classes():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), 50)
    hit = np.eye(4)[rng.integers(0, 4, 50)]
    for found in (binned(probs, hit), jax.jit(binned)(probs.astype(np.float32), hit)):
        assert found.count.shape == (4, 15)
        for j in range(4):
            np.testing.assert_allclose(np.stack(found)[:, j], np.stack(binned(probs[:, j], hit[:, j])), rtol=1e-5)
    both = Bins.empty(15, 4).add(probs[:20], hit[:20]).add(probs[20:], hit[20:])
    np.testing.assert_allclose(both.ece, binned(probs, hit).ece, rtol=1e-5)


def test_gradient_free_zero_bins_and_empty_statistic():
    empty = Bins.empty(15)
    for value in (empty.ece, empty.mce, empty.oe, empty.rms, empty.average, empty.over, empty.under):
        assert float(value) == 0.0


def test_top_label_on_host_and_device():
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [-np.inf, 0.0, 0.0]])
    labels = np.array([1, 1, 1])
    confidence, correct = metrics.top_label(logits, labels)
    assert correct.tolist() == [False, True, True] and confidence.dtype == np.float64
    np.testing.assert_allclose(confidence[2], 0.5)
    device = jax.jit(metrics.top_label)(logits.astype(np.float32), labels)
    np.testing.assert_allclose(device[0], confidence, rtol=1e-6)
    assert np.asarray(device[1]).tolist() == correct.tolist()
    half = metrics.top_label(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels))
    assert half[0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((np.zeros(0), np.zeros(0)), "empty"),
        ((np.array([0.5, np.nan]), np.ones(2)), "NaN"),
        ((np.array([0.5, 1.2]), np.ones(2)), r"0\.5 to 1\.2"),
        ((jnp.array([0.5, -0.1]), jnp.ones(2)), "softmax"),
        ((np.ones(3), np.arange(3)), "correct holds 2.0; expected hits, .* predicted == labels"),
        ((jnp.ones(3), jnp.arange(3)), "correct holds 2.0; expected hits"),
        ((np.ones((2, 2)), np.full((2, 2), np.nan)), "correct holds nan; expected hits"),
        ((np.ones(3), np.ones(2)), "same shape"),
        ((np.ones((2, 2, 2)), np.ones((2, 2, 2))), "same shape"),
        ((np.ones(2), np.ones(2), {"weight": np.array([1.0, -1.0])}), "weight holds a negative number or NaN"),
        ((np.ones(2), np.ones(2), {"weight": np.array([1.0, np.nan])}), "weight holds a negative number or NaN"),
        ((np.ones(2), np.ones(2), {"bins": np.array([0, 0.7, 0.3, 1])}), "not in ascending order; sort them"),
    ],
)
def test_refuses(arguments, sentence):
    *positional, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(Refused, match=sentence):
        binned(*positional, **options)


@pytest.mark.parametrize("bins", [0, -3, 2.5, True, "15"])
def test_refuses_bins_below_one(bins):
    with pytest.raises(Refused, match="at least 1"):
        metrics.ece(np.ones(2), np.ones(2), bins=bins)
    with pytest.raises(Refused, match="at least 1"):
        metrics.evaluate(np.eye(2) * 3, np.array([0, 1]), bins=bins)


def test_refuses_unknown_rules_and_weights_of_another_length():
    with pytest.raises(Refused, match="right"):
        binned(np.ones(2), np.ones(2), closed="rigth")
    with pytest.raises(Refused, match="extra"):
        binned(np.ones(2), np.ones(2), ends="drop")
    with pytest.raises(Refused, match="weight has shape"):
        binned(np.ones(2), np.ones(2), weight=np.ones(3))
    with pytest.raises(Refused, match="edges"):
        binned(np.ones(2), np.ones(2), bins=np.array([0.5]))

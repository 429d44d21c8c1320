"""Batch statistics, margin penalties and AdaFocal's bins: weights, ties, chunks, memory. Values: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import Refused

BATCH = {
    "mdca": losses.mdca,
    "dca": losses.dca,
    "mmce": losses.mmce,
    "mmce_weighted": losses.mmce_weighted,
    "mmce_paper": lambda z, y, weight=None: losses.mmce_weighted(z, y, normalization="paper", weight=weight),
}
CRL = {
    kind: lambda z, y, weight=None, kind=kind: losses.crl(z, y / 5.0, confidence=kind, weight=weight)
    for kind in ("softmax", "entropy", "margin")
}


def batch(b=12, k=5, seed=0):
    key, other = jax.random.split(jax.random.key(seed))
    return 2 * jax.random.normal(key, (b, k)), jax.random.randint(other, (b,), 0, k)


@pytest.mark.parametrize("name", [*BATCH, *CRL])
def test_weight_zero_is_absence(name):
    loss = (BATCH | CRL)[name]
    logits, labels = batch()
    kept = jnp.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0], bool)
    spoiled = jnp.where(kept[:, None], logits, jnp.array([1e30, -1e30, -7.0, 1e4, 0.0]))  # finite, as `as_rows` has it
    weight = kept.astype(jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss))
    value, grad = compiled(spoiled, jnp.where(kept, labels, 4), weight=weight)
    wanted, wanted_grad = compiled(logits[kept], labels[kept])
    assert wanted > 0
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grad[kept], wanted_grad, rtol=1e-4, atol=1e-7)
    assert not grad[~kept].any()
    nothing, no_grad = compiled(spoiled, jnp.where(kept, labels, 4), weight=jnp.zeros(12))
    assert nothing == 0 and not no_grad.any()


@pytest.mark.parametrize("name", BATCH)
def test_weight_two_is_repetition_and_order_does_not_matter(name):
    logits, labels = batch()
    weight = jnp.array([2.0, *[1.0] * 10, 2.0])
    again = jnp.array([*range(12), 0, 11])
    loss = jax.jit(BATCH[name])
    once = loss(logits, labels, weight=weight)
    np.testing.assert_allclose(once, loss(logits[again], labels[again]), rtol=1e-5)
    np.testing.assert_allclose(once, loss(logits[::-1], labels[::-1], weight=weight[::-1]), rtol=1e-5)


def test_mmce_weighted_as_the_paper_writes_it():
    with jax.enable_x64(True):
        z, y = (np.asarray(x) for x in batch(10, 3, seed=3))
        z = z.astype(np.float64)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        r, c = p.max(1), (p.argmax(1) == y).astype(float)
        assert 0 < c.sum() < 10
        k = np.exp(-np.abs(r[:, None] - r) / 0.4)
        u, v, m, n = c * (1 - r), (1 - c) * r, c.sum(), 10 - c.sum()
        squared = u @ k @ u / m**2 + v @ k @ v / n**2 - 2 * u @ k @ v / (m * n)
        np.testing.assert_allclose(BATCH["mmce_paper"](z, y), np.sqrt(squared + 1e-10), rtol=1e-10)


@pytest.mark.parametrize("name", ["mmce_weighted", "mmce_paper"])
def test_mmce_weighted_is_zero_when_all_are_right_or_all_wrong(name):
    logits, _ = batch()
    top = jnp.argmax(logits, -1)
    for labels in (top, (top + 1) % 5):
        value, grad = jax.jit(jax.value_and_grad(BATCH[name]))(logits, labels)
        assert value == 0 and not grad.any()


@pytest.mark.parametrize("name", [*BATCH, *CRL])
def test_batch_statistics_are_finite_at_the_edges(name):
    loss = (BATCH | CRL)[name]
    compiled = jax.jit(jax.value_and_grad(loss))
    for rows in ([[0.0, 0.0], [0.0, 0.0]], [[1e4, -1e4], [-1e4, 1e4]], [[1.0, 0.0]], [[1.0, -jnp.inf], [0.0, 2.0]]):
        logits = jnp.asarray(rows, jnp.bfloat16)
        value, grad = compiled(logits, jnp.arange(len(rows)) % 2)
        assert value.dtype == jnp.float32 and jnp.isfinite(value) and jnp.isfinite(grad).all(), rows


def test_mdca_is_bounded_and_zero_where_the_class_means_agree():
    k = 4
    wrong = jnp.full((8, k), -50.0).at[:, 0].set(50.0)
    assert losses.mdca(wrong, jnp.ones(8, jnp.int32)) == pytest.approx(2 / k)
    value, grad = jax.value_and_grad(losses.mdca)(jnp.zeros((4, k)), jnp.arange(k))
    assert value == 0 and not grad.any()


def test_crl_skips_removed_partners_and_may_be_empty_handed():
    logits, history = jnp.array([[3.0, 0.0], [9.0, 0.0], [0.5, 0.0]]), jnp.array([0.2, 0.9, 0.6])
    value = losses.crl(logits, history, weight=jnp.array([1.0, 0.0, 1.0]))
    kappa = jax.nn.sigmoid(jnp.array([3.0, 0.5]))
    # Example 0 is ranked below example 2 by its history and above it by confidence: both pairs pay alike.
    np.testing.assert_allclose(value, kappa[0] - kappa[1] + 0.4, rtol=1e-6)
    assert losses.crl(logits[:1], history[:1]) == 0
    counts = jnp.array([3, 3, 3])
    assert not losses.crl_history(counts, 3, 3).any()


def crl_by_hand(z, counts, span):
    """The authors' arithmetic in NumPy: quotients are computed once, so that equal histories are equal."""
    p = np.exp(z - z.max(1, keepdims=True))
    kappa = (p / p.sum(1, keepdims=True)).max(1)
    u = counts / span
    d = u - np.roll(u, -1)
    gap = -np.sign(d) * (kappa - np.roll(kappa, -1)) + abs(d)
    return np.mean(np.where(d == 0, 0.0, np.maximum(gap, 0.0)))


@pytest.mark.parametrize("span", [2, 3, 7])
def test_crl_never_ranks_equal_counts(span):
    """Compiled quotients n / 3 were rounded differently at the two places that compare them."""
    rng = np.random.default_rng(0)
    compiled = jax.jit(lambda z, n, span: losses.crl(z, n, span=span))
    quotients = jax.jit(lambda z, n, span: losses.crl(z, losses.crl_history(n, 0, span)))
    for counts in ([1, 3, 3, 0], *rng.integers(0, 3, (20, 4))):
        z, n = rng.normal(size=(4, 2)).astype(np.float32), np.minimum(counts, span)
        wanted = crl_by_hand(z, n, span)
        np.testing.assert_allclose(compiled(z, n, span), wanted, rtol=1e-6)
        np.testing.assert_allclose(quotients(z, n, span), wanted, rtol=1e-6)
    assert compiled(z, np.array([0, 1, 2, 0]), 0) == 0 == compiled(z, np.array([2, 2, 2, 2]), span)


def test_ties_send_the_gradient_to_the_first_maximum():
    logits = jnp.array([[2.0, 2.0, -9.0]])
    np.testing.assert_allclose(jax.grad(lambda z: losses.mbls(z, margin=1.0).sum())(logits), [[1 / 3, 0, -1 / 3]])
    # Two tied maxima: the first part counts twice, and its gradient goes to the first alone.
    grad = jax.grad(lambda z: losses.acls(z, margin=1.0, neg_lambda=0.0).sum())(logits)
    np.testing.assert_allclose(grad, [[2 * 2 * (2.0 - 1.0), 0.0, 0.0]])


def test_margins_and_references():
    logits, labels = batch(6, 5)
    assert not losses.mbls(logits, margin=jnp.inf).any()
    shifted = logits + 7.0
    for invariant in (
        lambda z: losses.mbls(z, margin=1.0),
        lambda z: losses.acls(z, margin=1.0, reference="range"),
        lambda z: losses.cpc_discrimination(z, labels),
        lambda z: losses.cpc_exclusion(z, labels),
    ):
        np.testing.assert_allclose(invariant(logits), invariant(shifted), rtol=2e-5)
    assert np.all(losses.acls(shifted, margin=1.0) > losses.acls(logits, margin=1.0))
    with pytest.raises(Refused, match="did you mean max"):
        losses.acls(logits, reference="mean")


def test_a_masked_class_leaves_the_sums_over_classes():
    logits, labels = jnp.array([[0.3, -jnp.inf, 3.0, -2.0, 1.0], [5.0, -jnp.inf, 1.0, 1.5, 2.0]]), jnp.array([0, 2])
    present, moved = jnp.array([0, 2, 3, 4]), jnp.array([0, 1])
    # Each penalty divides by a number of classes or pairs, which a mask leaves as it is: hence K and K - 1.
    for penalty, ratio in (
        (lambda z, y: losses.mbls(z, margin=1.0), 4 / 5),
        (lambda z, y: losses.acls(z, margin=1.0, pos_lambda=0.0), 3 / 4),
        (lambda z, y: losses.acls(z, margin=1.0, neg_lambda=0.0, reference="range"), 1),
        (losses.cpc_discrimination, 3 / 4),
        (losses.cpc_exclusion, 3 / 6),
    ):
        penalty = jax.jit(penalty)
        np.testing.assert_allclose(penalty(logits, labels), ratio * penalty(logits[:, present], moved), rtol=1e-5)


def naive_exclusion(z, y):
    total, count = 0.0, 0
    for j in range(len(z)):
        for k in range(j + 1, len(z)):
            if y not in (j, k):
                total += -0.5 * (jax.nn.log_sigmoid(z[j] - z[k]) + jax.nn.log_sigmoid(z[k] - z[j]))
                count += 1
    return total / count


@pytest.mark.parametrize("elements", [1 << 21, 6 * 7 * 3, 1])
def test_cpc_exclusion_over_pairs_in_any_chunking(elements):
    logits, labels = batch(6, 7)
    value, grad = jax.value_and_grad(lambda z: losses.cpc_exclusion(z, labels, elements=elements).sum())(logits)
    wanted = sum(naive_exclusion(z, int(y)) for z, y in zip(logits, labels, strict=True))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    naive = jax.grad(lambda z: naive_exclusion(z, int(labels[0])))(logits[0])
    np.testing.assert_allclose(grad[0], naive, rtol=1e-4, atol=1e-6)
    cals = losses.cpc_exclusion(logits, labels, normalization="cals", elements=elements)
    pairs = losses.cpc_exclusion(logits, labels)
    np.testing.assert_allclose(cals, 0.5 * pairs + np.log(2) / (2 * 5), rtol=1e-5)


def test_cpc_with_two_classes_is_discrimination_alone():
    logits, labels = jnp.array([[1.0, -1.0], [0.0, 3.0]]), jnp.array([0, 0])
    assert not losses.cpc_exclusion(logits, labels).any()
    np.testing.assert_allclose(losses.cpc_discrimination(logits, labels), losses.nll(logits, labels), rtol=1e-6)
    with pytest.raises(Refused, match=r"normalization is 'mean'"):
        losses.cpc_exclusion(logits, labels, normalization="mean")


def test_adafocal_bins_follow_their_edges():
    edges = jnp.array([0.0, 0.3, 0.3, 0.3, 0.8, 1.0])
    state = losses.AdaFocalState(jnp.arange(5.0), edges[:-1], edges[1:])
    found = losses.adafocal_bin(jnp.array([0.0, 0.29, 0.3, 0.5, 0.8, 1.0]), state)
    # Bins 1 and 2 are empty where edges coincide; below the first and above the last edge the end bins catch all.
    np.testing.assert_array_equal(found, [0, 0, 3, 3, 4, 4])
    start = losses.adafocal_start(num_bins=4)
    np.testing.assert_array_equal(losses.adafocal_bin(jnp.array([0.0, 0.25, 0.49, 1.0]), start), [0, 1, 1, 3])


def test_adafocal_update_switches_and_clips():
    state = losses.adafocal_start(num_bins=1, gamma=0.21)._replace(gamma=jnp.array([0.21]))
    r = jnp.array([0.1, 0.5, 0.6, 0.7])
    under = losses.adafocal_update(state, r, jnp.ones(4, bool))
    assert under.gamma[0] == pytest.approx(-0.2), "an under-confident bin falls below the switch and turns inverse"
    over = losses.adafocal_update(under, r, jnp.zeros(4, bool))
    assert over.gamma[0] == pytest.approx(0.2), "over-confidence shrinks an inverse gamma until it turns back"
    high = losses.adafocal_update(state, r, jnp.zeros(4, bool), lam=100.0)
    assert high.gamma[0] == 20.0
    assert high.gamma.dtype == state.gamma.dtype


MEMORY = {
    "mmce": lambda z, y: losses.mmce(z, y),
    "mmce_weighted": lambda z, y: losses.mmce_weighted(z, y),
    "cpc": lambda z, y: jnp.mean(losses.cpc_discrimination(z, y) + losses.cpc_exclusion(z, y)),
    "crl": lambda z, y: losses.crl(z, losses.crl_history(y, 0, 1000)),
    "crl_margin": lambda z, y: losses.crl(z, losses.crl_history(y, 0, 1000), confidence="margin"),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_a_large_batch_of_many_classes(name):
    logits, labels = jax.ShapeDtypeStruct((1024, 1000), jnp.float32), jax.ShapeDtypeStruct((1024,), jnp.int32)
    used = jax.jit(jax.value_and_grad(MEMORY[name])).lower(logits, labels).compile().memory_analysis()
    total = used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes
    assert 4_096_000 < total < 500e6, f"{total / 1e6:.0f} MB"

"""Laws 1, 2, 3 and 8, each one test over every public metric."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import metrics
from tests.laws.measures import MEASURES, TOOLS, Evaluation, numbers, of_top, value

LAWS = settings(settings.get_profile("laws"))
everyone = pytest.mark.parametrize("name", MEASURES)


@st.composite
def evaluations(draw, scales=(0.1, 2.0, 30.0)):
    seed, scale = draw(st.integers(0, 2**16)), draw(st.sampled_from(scales))
    n, k = draw(st.sampled_from([(1, 2), (7, 3), (40, 10), (64, 4)]))
    rng = np.random.default_rng(seed)
    return Evaluation(scale * rng.normal(size=(n, k)), rng.integers(0, k, n), scale * rng.normal(size=(n, k)))


def close(a, b, rtol=1e-9, atol=1e-9):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=rtol, atol=atol, err_msg=key)


def test_every_public_metric_is_declared():
    new = sorted(set(metrics.__all__) - {*MEASURES, *TOOLS})
    assert not new, (
        f"declare {', '.join(new)} in tests/laws/measures.py: in MEASURES with inputs and range, or in TOOLS."
    )
    assert {*MEASURES, *TOOLS} <= set(metrics.__all__), "a declared metric no longer exists: drop its line."


@everyone
@LAWS
@given(e=evaluations())
def test_law_1_precision_of_the_input(name, e):
    """The same numbers in float32, in bfloat16 where they fit, or as JAX arrays give the same metric; under jit too."""
    e = Evaluation(*(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) if x.dtype.kind == "f" else x for x in e))
    exact = value(name, e)
    if MEASURES[name].inputs(e)[0] is e.logits:
        for dtype in (np.float32, jnp.bfloat16):
            low = e._replace(logits=np.asarray(e.logits, dtype), teacher=np.asarray(e.teacher, dtype))
            close(exact, value(name, low))
    if MEASURES[name].device:
        inputs = [
            jnp.asarray(x, jnp.float32) if x.dtype.kind == "f" else jnp.asarray(x) for x in MEASURES[name].inputs(e)
        ]
        # Confidences are rounded here; one on an edge may change its bin. So they are moved into the middle of theirs.
        if MEASURES[name].bins:
            middle = np.clip((np.floor(np.asarray(inputs[0]) * 15) + 0.5) / 15, 0, 1)
            inputs[0], exact = jnp.asarray(middle, jnp.float32), numbers(getattr(metrics, name)(middle, e.top[1]))
        function = getattr(metrics, name)
        plain, jitted = function(*inputs), jax.jit(function)(*inputs)
        assert all(leaf.dtype in (jnp.float32, bool) for leaf in jax.tree.leaves((plain, jitted)))
        close(numbers(plain), numbers(jitted), rtol=1e-6, atol=1e-6)
        close(numbers(plain), exact, rtol=1e-5, atol=1e-6)


@everyone
@LAWS
@given(e=evaluations(), seed=st.integers(0, 99))
def test_law_2_permuted_examples_and_classes(name, e, seed):
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(len(e.labels)), rng.permutation(e.logits.shape[1])
    plain, moved = value(name, e), value(name, Evaluation(*(x[order] for x in e)))
    close({key: v[order] for key, v in plain.items()} if MEASURES[name].rows else plain, moved)
    renamed = Evaluation(e.logits[:, classes], np.argsort(classes)[e.labels], e.teacher[:, classes])
    close(plain, value(name, renamed))


@pytest.mark.parametrize("name", [name for name in MEASURES if MEASURES[name].shift])
@LAWS
@given(e=evaluations(), seed=st.integers(0, 99))
def test_law_3_shifted_logits(name, e, seed):
    rng = np.random.default_rng(seed)
    up = [rng.choice([-64.0, 32.0, 128.0], (len(e.labels), 1)) for _ in range(2)]
    # Few bits, so that the sums are exact: a confidence that lies on an edge stays there.
    e = Evaluation(np.round(e.logits * 64) / 64, e.labels, np.round(e.teacher * 64) / 64)
    close(value(name, e), value(name, e._replace(logits=e.logits + up[0], teacher=e.teacher + up[1])))


def extremes() -> list[Evaluation]:
    """Confidences of exactly 1 and 1/K, classes of probability exactly 0, one class present, all right, all wrong."""
    labels = np.array([0, 1, 2, 0])
    certain = np.where(np.arange(3) == labels[:, None], 1e4, -1e4)
    masked = np.where(np.arange(3) == ((labels + 1) % 3)[:, None], -np.inf, np.linspace(-1, 1, 3))
    uniform = np.full((4, 3), -7.5)
    found = [Evaluation(x, labels, t) for x in (certain, -certain, uniform, masked) for t in (uniform, certain)]
    return [*found, *(e._replace(labels=np.full(4, 1)) for e in found)]


def in_range(name, e):
    low, high = MEASURES[name].bounds(*e.logits.shape)
    for key, found in value(name, e).items():
        # A label, or a teacher's class, that the model excludes costs an infinite logarithm by definition.
        infinite = {name, key} & {"nll", "kl_to_teacher"} and np.isneginf(e.logits).any()
        assert not np.isnan(found).any() and (infinite or np.isfinite(found).all()), f"{name} {key}: {found}"
        assert (found >= low - 1e-9).all() and (found <= high + 1e-9).all(), f"{name} {key}: {found}, [{low}, {high}]"


@everyone
@LAWS
@given(e=evaluations())
def test_law_8_range(name, e):
    in_range(name, e)


@everyone
def test_law_8_range_at_extremes(name):
    for e in extremes():
        in_range(name, e)


@pytest.mark.parametrize("name", [name for name in MEASURES if MEASURES[name].calibrated])
@pytest.mark.parametrize("bins", [4, 15])
def test_law_8_perfectly_calibrated_is_zero(name, bins):
    """Groups of one prediction each, whose labels come in exactly the predicted proportions."""
    groups = np.array([[12, 5, 3], [5, 2, 13], [2, 16, 2], [20, 0, 0]])
    probs = np.repeat(groups / 20, 20, axis=0)
    labels = np.concatenate([np.repeat(np.arange(3), group) for group in groups])
    function, hits = getattr(metrics, name), probs.argmax(1) == labels
    top_label = MEASURES[name].inputs is of_top
    inputs = (probs.max(1), hits) if top_label else (probs, labels)
    # Adaptive bins cut between distinct values only where their edges fall so: one bin for all is calibrated at large.
    assert float(function(*inputs, bins=bins if name in EQUAL_WIDTH else 1)) == pytest.approx(0, abs=1e-12)
    if top_label and name != "ece_under":
        assert float(function(probs.max(1), ~hits, bins=1)) > 0.1, "and it is not zero when the hits are exchanged"


EQUAL_WIDTH = ("ece", "ece_over", "ece_under", "mce", "oe", "rms", "average_ce", "sce")


@pytest.mark.parametrize("bins", [1, 2, 5, 10, 15, 20])
@pytest.mark.parametrize(("dtype", "device"), [(np.float64, False), (np.float32, False), (np.float32, True)])
def test_law_8_edges_by_hand(bins, dtype, device):
    """Confidence 0 lies in the first bin, j/M in the bin that it closes, 1.0 in the last."""
    confidence = (np.arange(bins + 1) / bins).astype(dtype)
    found = metrics.binned(jnp.asarray(confidence) if device else confidence, np.ones(bins + 1, bool), bins=bins)
    expected = np.ones(bins)
    expected[0] = 2
    np.testing.assert_array_equal(np.asarray(found.count), expected)
    above = np.nextafter(confidence[1:-1], dtype(2))
    if bins > 1:
        after = metrics.binned(jnp.asarray(above) if device else above, np.ones(bins - 1, bool), bins=bins)
        np.testing.assert_array_equal(np.asarray(after.count), [0, *np.ones(bins - 1)])


@LAWS
@given(e=evaluations(), cut=st.floats(0, 1), bins=st.sampled_from([1, 7, 15]))
def test_law_8_merged_bins_are_those_of_the_union(e, cut, bins):
    confidence, correct = e.top
    at = int(cut * len(confidence))
    whole = metrics.binned(confidence, correct, bins=bins)
    parts = [
        metrics.binned(c, h, bins=bins)
        for c, h in ((confidence[:at], correct[:at]), (confidence[at:], correct[at:]))
        if len(c)
    ]
    merged = parts[0] if len(parts) == 1 else parts[0].merge(parts[1])
    close(numbers(whole), numbers(merged), rtol=1e-12, atol=1e-12)
    classes = [metrics.binned(p, np.eye(e.logits.shape[1])[y], bins=bins) for p, y in ((e.probs, e.labels),)]
    assert float(np.mean(classes[0].ece)) == pytest.approx(metrics.sce(e.probs, e.labels, bins=bins), abs=1e-12)
    streamed = metrics.Bins.empty(bins)
    for c, h in zip(confidence, correct, strict=True):
        streamed = streamed.add(jnp.asarray([c], jnp.float32), jnp.asarray([h]))
    assert float(streamed.count.sum()) == len(confidence)


@LAWS
@given(e=evaluations(), bins=st.sampled_from([1, 7, 15]))
def test_law_8_order_of_the_errors(e, bins):
    """Over + under = ECE <= RMS <= MCE; OE <= over; one bin is the gap in the large; AURC is at most the worst risk."""
    found = {name: float(getattr(metrics, name)(*e.top, bins=bins)) for name in EQUAL_WIDTH if name != "sce"}
    assert found["ece"] == pytest.approx(found["ece_over"] + found["ece_under"], abs=1e-15)
    assert found["ece"] <= found["rms"] + 1e-12 and found["rms"] <= found["mce"] + 1e-12
    assert found["oe"] <= found["ece_over"] + 1e-12 and found["average_ce"] <= found["mce"] + 1e-12
    large = abs(e.top[0].mean() - e.top[1].mean())
    assert found["ece"] >= large - 1e-12 and (bins > 1 or found["ece"] == pytest.approx(large, abs=1e-12))
    parts = metrics.brier_decomposition(e.probs, e.labels, bins=bins)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert total == pytest.approx(metrics.brier(e.probs, e.labels), abs=1e-9)
    assert metrics.aurc(*e.top) <= metrics.risk_coverage(*e.top).max() + 1e-12

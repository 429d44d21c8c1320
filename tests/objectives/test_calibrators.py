"""Every calibrator through the door of the Objective: state, weights, identities, refusals. Values: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import objectives
from kdjax.errors import Refused
from kdjax.losses import nll
from kdjax.objectives.calibrators import CALIBRATORS
from kdjax.objectives.rows import as_rows
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at

N, K, B = 10, 4, 6
SPEC = Spec(num_examples=N, num_classes=K, epochs=4)


def batch(seed=0, b=B, **fields):
    logits, label = jax.random.split(jax.random.key(seed))
    label = jax.random.randint(label, (b,), 0, K)
    given = {"label": label, "target": jax.nn.one_hot(label, K), "index": jnp.arange(b) + 2}
    return Batch(None, **{**given, **fields}), 3 * jax.random.normal(logits, (b, K))


def run(objective, batch, logits, state=None, progress=0.6):
    """(loss, gradient, terms, state), jitted."""
    params, first = objective.init(SPEC, KEY)
    state = first if state is None else state

    def loss(z, batch, state, clock):
        terms, new = objective.apply(params, state, *as_rows(batch, Output(z)), clock)
        return terms.total, (terms, new)

    (value, (terms, new)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        logits, batch, state, at(progress, SPEC.epochs)
    )
    return value, grad, terms, new


def shapes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@pytest.mark.slow  # laws 4 and 10 say the same of every method
@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_keeps_its_state_in_shape_and_weight_zero_is_absence(name):
    objective = objectives.build(name)
    state = objective.init(SPEC, KEY)[1]
    full, logits = batch()
    _, _, _, state = run(objective, full, logits, state, progress=0.0)
    kept = jnp.array([1, 0, 1, 1, 0, 1], bool)
    spoiled = jnp.where(kept[:, None], logits, jnp.nan)
    weighted = full._replace(
        label=jnp.where(kept, full.label, -1),
        target=jnp.where(kept[:, None], full.target, jnp.nan),
        weight=kept.astype(jnp.float32),
    )
    value, grad, terms, after = run(objective, weighted, spoiled, state)
    assert shapes(after) == shapes(state)
    assert all(x.shape == () for x in (*terms.losses.values(), *terms.logs.values()))
    fewer = jax.tree.map(lambda x: x[kept], full)
    wanted, wanted_grad, _, wanted_after = run(objective, fewer, logits[kept], state)
    assert value > 0 and value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grad[kept], wanted_grad, rtol=1e-4, atol=1e-7)
    assert not grad[~kept].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, wanted_after)
    if objective.refresh is not None:
        assert shapes(jax.jit(objective.refresh)(state, logits, full.label)) == shapes(state)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": 0.0}),
        ("dual_focal", {"gamma": 0.0}),
        ("label_smoothing", {"alpha": 0.0}),
        ("label_smoothing", {"alpha": 0.0, "form": "uniform"}),
        ("mdca", {"beta": 0.0}),
        ("dca", {"beta": 0.0}),
        ("mmce", {"beta": 0.0}),
        ("cpc", {"lam1": 0.0, "lam2": 0.0}),
        ("crl", {"weight": 0.0}),
        ("mbls", {"margin": float("inf")}),
        ("acls", {"alpha": 0.0}),
        ("adafocal", {"gamma": 0.0}),
        ("pskd", {"alpha_T": 0.0}),
        ("pskd", {}),
        ("mixup", {}),
    ],
)
def test_switched_off_it_is_the_nll(name, options):
    full, logits = batch()
    objective = objectives.build(name, **options)
    state = objective.init(SPEC, KEY)[1]
    if name == "pskd":
        state = state._replace(predictions=jnp.full((N, K), 1 / K))
    value, grad, _, _ = run(objective, full, logits, state, progress=0.0)
    wanted, wanted_grad = jax.value_and_grad(lambda z: nll(z, full.label).mean())(logits)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-4, atol=1e-6)


def test_terms_add_up_and_hyper_parameters_may_be_traced():
    full, logits = batch()
    terms = run(objectives.build("mdca", gamma=2.0, beta=5.0), full, logits)[2]
    assert set(terms.losses) == {"focal", "mdca"}

    @jax.jit
    def traced(gamma, beta):
        objective = objectives.build("mdca", gamma=gamma, beta=beta)
        return objective.apply(*objective.init(SPEC, KEY), full, Output(logits), at(0.0))[0].total

    np.testing.assert_allclose(traced(2.0, 5.0), terms.total, rtol=1e-6)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_missing_field_is_refused_by_the_name_of_the_method(name):
    full, logits = batch()
    objective = objectives.build(name)
    for field in CALIBRATORS[name].needs:
        with pytest.raises(Refused, match=rf"objective '{name}' needs batch\.{field}"):
            objective.apply(*objective.init(SPEC, KEY), full._replace(**{field: None}), Output(logits), at(0.0))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("focal", {"gamma": -1.0}, r"focal\.gamma is -1\.0; expected a number in \[0"),
        ("focal", {"gamma": float("nan")}, r"focal\.gamma is nan"),
        ("flsd", {"gamma": -0.1}, r"flsd\.gamma"),
        ("dual_focal", {"gamma": "five"}, r"dual_focal\.gamma is 'five'; expected a number"),
        ("label_smoothing", {"alpha": 1.0}, r"label_smoothing\.alpha is 1\.0; expected a number in \[0, 1\)"),
        ("label_smoothing", {"form": "unifrom"}, r"did you mean uniform"),
        ("mdca", {"beta": -1}, r"mdca\.beta"),
        ("mdca", {"gamma": 1.0, "alpha": 0.1}, r"set one of them to 0"),
        ("dca", {"beta": -1}, r"dca\.beta"),
        ("mmce", {"width": 0.0}, r"mmce\.width is 0\.0; expected a number in \(0"),
        ("mmce", {"normalization": "codes"}, r"did you mean code"),
        ("mixup", {"alpha": -0.2}, r"mixup\.alpha"),
        ("cpc", {"lam2": -1.0}, r"cpc\.lam2"),
        ("crl", {"confidence": "soft-max"}, r"did you mean softmax"),
        ("crl", {"normalizer": 2.0}, r"crl\.normalizer is 2\.0 and confidence 'softmax', which has none"),
        ("mmce", {"form": "unweighted", "normalization": "paper"}, r"set form='weighted'"),
        ("pskd", {"alpha_T": 1.2}, r"pskd\.alpha_T is 1\.2; expected a number in \[0, 1\]"),
        ("pskd", {"memory": "bfloat16"}, r"did you mean float16"),
        ("adafocal", {"gamma_min": 0.5}, r"adafocal\.gamma_min"),
        ("adafocal", {"gamma": 30.0}, r"adafocal\.gamma is 30\.0"),
        ("adafocal", {"num_bins": 7.5}, r"adafocal\.num_bins is 7\.5; expected an integer"),
        ("mbls", {"margin": -1.0}, r"mbls\.margin"),
        ("acls", {"reference": "min"}, r"acls\.reference"),
        ("mdca", {"gama": 1.0}, r"mdca has no option 'gama'; did you mean gamma"),
    ],
)
def test_out_of_range_is_refused_by_the_builder(name, options, sentence):
    with pytest.raises(Refused, match=sentence):
        objectives.build(name, **options)


def test_adafocal_sum_is_the_mean_times_the_batch():
    full, logits = batch()
    mean = run(objectives.build("adafocal"), full, logits)[0]
    np.testing.assert_allclose(run(objectives.build("adafocal", reduction="sum"), full, logits)[0], B * mean, rtol=1e-6)


def test_adafocal_refresh_raises_gamma_where_the_model_is_over_confident():
    objective = objectives.build("adafocal", num_bins=3)
    state = objective.init(SPEC, KEY)[1]
    logits = jax.random.normal(jax.random.key(1), (300, K)) * 4
    always_wrong = objective.refresh(state, logits, (jnp.argmax(logits, -1) + 1) % K)
    assert (always_wrong.gamma > 1).all() and (jnp.diff(always_wrong.upper) > 0).all()
    always_right = objective.refresh(state, logits, jnp.argmax(logits, -1))
    assert (always_right.gamma < 1).all()


def test_crl_with_an_example_that_never_takes_part_is_crl_without_it():
    """Over epochs too: who is never right because of a weight of 0 does not hold the minimum at 0."""
    objective = objectives.build("crl")
    full, logits = batch(b=4, index=jnp.arange(4))
    label = jnp.argmax(logits, -1)
    here, with_fifth = full._replace(label=label), jnp.concatenate([logits, logits[:1]])
    fifth = Batch(
        None, label=jnp.append(label, 0), index=jnp.arange(5), target=None, weight=jnp.array([1.0, 1, 1, 1, 0])
    )
    here = here._replace(target=None)
    without, beside = (objective.init(Spec(num_examples=n, num_classes=K, epochs=4), KEY)[1] for n in (4, 5))
    for epoch in range(4):
        wrong = logits.at[0].set(-logits[0]) if epoch == 1 else logits
        both = wrong, jnp.concatenate([wrong, with_fifth[4:]])
        wanted, _, _, without = run(objective, here, both[0], without, epoch / 4)
        found, grad, _, beside = run(objective, fifth, both[1], beside, epoch / 4)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert not grad[4].any()


def test_crl_counts_an_example_once_and_survives_a_perfect_model():
    objective = objectives.build("crl")
    state = objective.init(SPEC, KEY)[1]
    label = jnp.zeros(B, jnp.int32)
    right = jnp.zeros((B, K)).at[:, 0].set(5.0)
    twice, _ = batch(label=label, index=jnp.array([0, 0, 1, 2, 3, 4]))
    _, _, _, state = run(objective, twice, right.at[3].set(-right[3]), state, 0.0)
    np.testing.assert_array_equal(state.counts, [1, 1, 0, 1, 1, -1, -1, -1, -1, -1], "-1: not met")
    # Every example always right: the least count is the most there can be, and the reference divides 0 by 0.
    perfect = state._replace(counts=jnp.full(N, 2, jnp.int32))
    value, grad, terms, _ = run(objective, twice, right, perfect, 0.5)
    assert terms.losses["crl"] == 0 and jnp.isfinite(value) and jnp.isfinite(grad).all()


def test_crl_ranks_by_history_from_the_second_epoch_on():
    full, logits = batch()
    objective = objectives.build("crl")
    counts = jnp.zeros(N, jnp.int32).at[full.index].set(jnp.array([0, 1, 0, 1, 1, 0]))
    state = objective.init(SPEC, KEY)[1]._replace(counts=counts)
    assert run(objective, full, logits, state, 0.3)[2].losses["crl"] > 0
    doubled = run(objectives.build("crl", weight=2.0), full, logits, state, 0.3)[2].losses["crl"]
    np.testing.assert_allclose(doubled, 2 * run(objective, full, logits, state, 0.3)[2].losses["crl"], rtol=1e-6)


@pytest.mark.parametrize("memory", ["float32", "float16"])
def test_pskd_remembers_what_it_said(memory):
    full, logits = batch()
    objective = objectives.build("pskd", memory=memory)
    _, _, _, state = run(objective, full, logits, progress=0.0)
    assert state.predictions.dtype == memory
    tolerance = 1e-6 if memory == "float32" else 1e-3
    p = jax.nn.softmax(logits)
    np.testing.assert_allclose(state.predictions[full.index], p, atol=tolerance)
    assert not state.predictions[:2].any() and not state.predictions[8:].any()
    # Epoch 2 of 4: alpha = 0.8 · 3/4. Two of the six examples have not been seen: their target is the label.
    moved = full._replace(index=full.index - 2)
    value, _, terms, _ = run(objective, moved, logits, state, progress=0.5)
    assert terms.logs["pskd_alpha"] == pytest.approx(0.6)
    onehot = jax.nn.one_hot(full.label, K)
    before = jnp.concatenate([onehot[:2], p[:4]])
    wanted = -jnp.sum((0.4 * onehot + 0.6 * before) * jax.nn.log_softmax(logits), -1).mean()
    np.testing.assert_allclose(value, wanted, rtol=max(tolerance, 1e-5))


def test_the_registry_line_is_complete():
    for name, method in CALIBRATORS.items():
        assert method.role == "calibrator" and method.formula and method.source, name
        assert method.verified in ("golden", "law", "paper"), name
        assert bool(method.state) == bool(jax.tree.leaves(method.build().init(SPEC, KEY)[1])), name
    assert callable(CALIBRATORS["mixup"].transform(alpha=0.2, num_classes=K))

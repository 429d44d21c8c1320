"""Law 7: methods that must coincide do, value and gradient; and where the teacher is the student nothing is learned."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses, objectives, transforms
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at
from tests.laws import door, members

INF = float("inf")
SHAPE = (6, 5)
NLL = ("nll", {})

# (method, options) on the left is the one on the right. Every calibrator with a knob that can be turned off is here.
IDENTITIES = [
    (("focal", {"gamma": 0.0}), NLL),
    (("dual_focal", {"gamma": 0.0}), NLL),
    (("label_smoothing", {"alpha": 0.0}), NLL),
    (("label_smoothing", {"alpha": 0.0, "form": "uniform"}), NLL),
    (("label_smoothing", {"alpha": 0.08}), ("label_smoothing", {"alpha": 0.1, "form": "uniform"})),
    (("adafocal", {"gamma": 0.0}), NLL),
    (("adafocal", {"gamma": 2.0}), ("focal", {"gamma": 2.0})),
    (("mbls", {"margin": INF}), NLL),
    (("mbls", {"alpha": 0.0}), NLL),
    (("acls", {"margin": INF}), NLL),
    (("acls", {"alpha": 0.0}), NLL),
    (("mdca", {"beta": 0.0}), NLL),
    (("mdca", {"beta": 0.0, "gamma": 2.0}), ("focal", {"gamma": 2.0})),
    (("mdca", {"beta": 0.0, "alpha": 0.1}), ("label_smoothing", {"alpha": 0.1})),
    (("dca", {"beta": 0.0}), NLL),
    (("mmce", {"beta": 0.0}), NLL),
    (("cpc", {"lam1": 0.0, "lam2": 0.0}), NLL),
    (("crl", {"weight": 0.0}), NLL),
    (("pskd", {"alpha_T": 0.0}), NLL),
    (("dus", {"lambda_ce": 1.0, "lambda_f": 0.0, "lambda_h": 0.0}), NLL),
    (("dus", {"lambda_ce": 0.0, "lambda_f": 1.0, "lambda_h": 0.0, "gamma": 3.0}), ("focal", {"gamma": 3.0})),
    (("rtc", {"T_c": 1.0, "T": 4.0}), ("kd", {})),
    (("rtc", {"T_c": 10.0}), ("ttm", {})),
    (("wttm", {"T_c": 1.0}), ("ttm", {"T_c": 1.0})),
    (("kd", {"weighting": "power_sum", "T": 1.0, "T_c": 10.0}), ("wttm", {})),
    (("lskd", {}), ("kd", {"T": 2.0, "standardize": True})),
    (("cud", {"eta": 1.0, "m": 1.0}), ("knowledge_adjustment", {})),
    (("cud", {"eta": 0.3}), ("kd", {"target": "wclip(eta=0.3)"})),
    (("knowledge_adjustment", {"control": "entropy"}), ("kd", {"target": "swap", "control": "entropy"})),
    (("kd", {"target": "project(far_mass=1.0)"}), ("kd", {})),
    (("kd", {"target": "project(far_mass=1.0, distance='l2')"}), ("kd", {})),
]


def _id(side):
    return members._label(*side)


@functools.cache
def programs(name: str, options: tuple):
    objective = objectives.build(name, **dict(options))

    def total(logits, s, clock):
        batch = Batch(None, s.label, None, s.index, Output(s.teacher), s.weight)
        params, state = objective.init(Spec(door.N, s.logits.shape[-1], door.EPOCHS), KEY)
        return objective.apply(params, state, batch, Output(logits), clock)[0].total

    return jax.jit(jax.value_and_grad(total))


@pytest.mark.parametrize(("left", "right"), IDENTITIES, ids=_id)
def test_identity(left, right):
    with jax.enable_x64(True):
        for seed, scale in enumerate([0.5, 3.0, 12.0]):
            s = door.sample(door.Draw(seed, scale, SHAPE))
            found = [programs(n, tuple(o.items()))(s.logits, s, door.CLOCK) for n, o in (left, right)]
            door.same(*found, rtol=1e-9, atol=1e-12)


def test_no_memory_of_an_earlier_epoch_is_the_nll():
    """PSKD in its first epoch, whatever it remembers."""
    (member,) = (m for m in members.of_method("pskd") if m.id == "pskd")
    (nll,) = members.of_method("nll")
    with jax.enable_x64(True):
        s = door.sample(door.Draw(2, 2.0, SHAPE))
        state = door.history(member, SHAPE[1])
        for progress in (0.0, 0.99 / door.EPOCHS):
            found = door.run(member, s, state, at(progress, door.EPOCHS))
            door.same(found[:2], door.run(nll, s, (), at(progress, door.EPOCHS))[:2], rtol=1e-6, atol=1e-7)
        later = door.run(member, s, state, at(1 / door.EPOCHS, door.EPOCHS))
        assert abs(float(later.value - found.value)) > 1e-3, "and from the second epoch on it is not"


# These move the teacher's mass also where it is right: to a near set, a floor of entropy, a margin; or compare features
# of unequal width.
MOVES = {m.id for m in members.methods() if any(part in m.id for part in ("margin(", "project(", "layers="))}
DISTILLERS = [m for m in members.methods() if objectives.METHODS[m.name].role == "distiller" and m.id not in MOVES]


@pytest.mark.parametrize("member", DISTILLERS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_teacher_equal_to_student_has_no_gradient(member, scale):
    """Labels are the teacher's own predictions, so that a target that mends mistakes leaves it as it is."""
    with jax.enable_x64(True):
        s = door.sample(door.Draw(4, scale, SHAPE), member.views)
        # A teacher that is tempered first agrees where its logits are that much larger.
        sharp = float(objectives.options(member.name).get("T_c", 1.0))
        right = np.argmax(s.logits, -1).astype(np.int32)
        s = s._replace(teacher=sharp * s.logits, teacher_features=s.features, label=right)
        found = door.run(member, s)
        for leaf in jax.tree.leaves(found.gradient):
            assert np.abs(leaf).max() <= 1e-11
        other = door.run(member, s._replace(teacher=s.logits[::-1], teacher_features=s.features[::-1]))
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(other.gradient)) > 1e-6, "another teacher teaches"


@pytest.mark.parametrize(("divergence", "factor"), [("forward", 1.0), ("reverse", 1.0), ("js", 0.25)])
def test_kd_at_infinite_temperature_matches_centered_logits(divergence, factor):
    """T² D -> factor · ||z' - t'||² / (2K), z' and t' centered (Hinton et al. 2015, section 2.1)."""
    with jax.enable_x64(True):
        s = door.sample(door.Draw(6, 2.0, SHAPE))

        def total(z):
            return jnp.sum(losses.distillation.kd(z, s.teacher, T=1e5, divergence=divergence))

        value, gradient = jax.value_and_grad(total)(jnp.asarray(s.logits))
        gap = s.logits - s.logits.mean(-1, keepdims=True) - s.teacher + s.teacher.mean(-1, keepdims=True)
        np.testing.assert_allclose(value, factor * np.sum(gap**2) / (2 * SHAPE[1]), rtol=1e-3)
        np.testing.assert_allclose(gradient, factor * gap / SHAPE[1], rtol=1e-3, atol=1e-3)


def test_dkd_with_the_teachers_own_weight_is_kd():
    """alpha = 1 and beta = the teacher's 1 - p_y at temperature T put the two halves together again."""
    with jax.enable_x64(True):
        s = door.sample(door.Draw(7, 2.0, SHAPE))
        p_y = np.take_along_axis(np.asarray(jax.nn.softmax(jnp.asarray(s.teacher) / 4.0)), s.label[:, None], 1)[:, 0]
        both = losses.distillation.dkd(s.logits, s.teacher, s.label, alpha=1.0, beta=1 - p_y, T=4.0)
        door.same(both, losses.distillation.kd(s.logits, s.teacher, T=4.0), rtol=1e-9)


@settings(settings.get_profile("laws"))
@given(
    seed=st.integers(0, 999), scale=st.sampled_from([0.1, 2.0, 1e4]), shape=st.sampled_from([(1, 2), SHAPE, (3, 40)])
)
def test_mdca_is_at_most_two_over_k(seed, scale, shape):
    s = door.sample(door.Draw(seed, scale, shape), dtype=np.float32)
    assert 0 <= float(losses.mdca(s.logits, s.label)) <= 2 / shape[1] + 1e-7
    wrong = np.where(np.arange(shape[1]) == 0, 1e4, 0.0) + np.zeros(shape)
    assert float(losses.mdca(wrong, np.ones(shape[0], int))) == pytest.approx(2 / shape[1])


@pytest.mark.slow
def test_mixup_without_mixing_is_the_nll():
    s = door.sample(door.Draw(8, 2.0, SHAPE), dtype=np.float32)
    batch = Batch(jnp.asarray(s.features), jnp.asarray(s.label), weight=jnp.asarray(s.weight))
    mixed = transforms.mix(batch, jnp.float32(1.0), jnp.roll(jnp.arange(SHAPE[0]), 1), SHAPE[1])
    np.testing.assert_array_equal(mixed.inputs, batch.inputs)
    assert mixed.label is None
    values = [
        objectives.build(name).apply((), (), b, Output(jnp.asarray(s.logits)), door.CLOCK)[0].total
        for name, b in (("mixup", mixed), ("nll", batch))
    ]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)

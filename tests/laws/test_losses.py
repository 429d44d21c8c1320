"""Laws 1 to 6, each one test over every method (with variants) through its door, and over every public loss."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses, objectives
from kdjax.errors import Refused
from kdjax.types import Spec
from tests.clocks import KEY, at
from tests.laws import door, laws, members

LAWS = settings(settings.get_profile("laws"))
SHAPE = (6, 5)
draws = st.builds(door.Draw, st.integers(0, 2**16), st.sampled_from([0.1, 1.0, 4.0, 12.0]), st.just(SHAPE))
# Of module scope, so that pytest runs all laws of a member together and its compiled programs are at hand.
everyone = pytest.mark.parametrize("member", members.everyone(), ids=str, scope="module")


def test_every_public_loss_is_declared():
    known = {*members.LOSSES, *members.NOT_LOSSES}
    new = sorted({*members.public_losses(), *losses.__all__} - known)
    assert not new, (
        f"declare {', '.join(new)} in tests/laws/members.py: in LOSSES with its arguments, or in NOT_LOSSES."
    )
    gone = sorted(known - {*members.public_losses(), *losses.__all__})
    assert not gone, f"{', '.join(gone)} of tests/laws/members.py no longer exist: drop the lines."


def test_every_declared_name_exists():
    names = {m.id for m in members.everyone()}
    assert {name for _, name in members.EXCEPTIONS} <= names and {*members.CONDITION} <= names
    assert {law for law, _ in members.EXCEPTIONS} <= set(laws.LAWS)
    assert {*members.VARIANTS, *members.VIEWS} <= set(objectives.METHODS)


@pytest.mark.parametrize(("law", "name"), members.EXCEPTIONS, ids=str)
def test_every_exception_is_one(law, name):
    """A member that is let off must break the law somewhere, or its line is dropped."""
    (member,) = (m for m in members.everyone() if m.id == name)
    with pytest.raises(AssertionError):
        for seed, scale in enumerate([2.0, 2.0, 12.0, 12.0]):
            laws.LAWS[law](member, door.Draw(seed, scale, SHAPE), strict=True)


class Law1(chex.TestCase):
    """jit = no jit = arrays on the device = arrays on the host = pmap on two devices."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True, with_pmap=True)
    @parameterized.named_parameters((str(m), m) for m in members.everyone() if "(" not in m.id)
    def test_variants_agree(self, member):
        assert jax.device_count() > 1, "chex skips the pmap variant on one device; tests/conftest.py forces two"
        s = door.sample(door.Draw(1, 2.0, SHAPE), member.views, np.float32)
        state = door.history(member, SHAPE[1])
        found = self.variant(lambda state, s: door.evaluate(member, state, s)[:3])(state, s)
        door.same(found, door.run(member, s, state)[:3], rtol=1e-5, atol=1e-6)


@everyone
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_law_1_precisions(member, scale):
    laws.precisions(member, door.Draw(11, scale, SHAPE))


@everyone
@LAWS
@given(draw=draws)
def test_law_2_permuted_examples_and_classes(member, draw):
    laws.examples_permute(member, draw)
    laws.classes_permute(member, draw)


@everyone
@LAWS
@given(draw=draws)
def test_law_3_shifted_logits(member, draw):
    laws.shifts(member, draw)


@everyone
@LAWS
@given(draw=draws)
def test_law_4_absent_examples(member, draw):
    laws.absence(member, draw)


@everyone
@pytest.mark.parametrize("shape", [(1, 2), SHAPE, (2, 1000)], ids=str)
def test_law_5_finite_at_extremes(member, shape):
    laws.finite(member, shape)


@everyone
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_law_6_finite_differences(member, scale):
    laws.slopes(member, door.Draw(21, scale, SHAPE))


@pytest.mark.parametrize("member", members.pure_losses(), ids=str)
def test_a_pure_loss_keeps_its_signature(member):
    """[B] in the order of the batch or a scalar, in float32 from bfloat16 logits; and its method exists."""
    declared = members.LOSSES[member.name]
    s = door.sample(door.Draw(3, 2.0, SHAPE), member.views, np.float32)
    order = np.concatenate([np.roll(np.arange(SHAPE[0]), 1) + view * SHAPE[0] for view in range(member.views)])
    found = member.raw(*door.doors(member, s))
    assert found.dtype == np.float32 and found.shape == (() if declared.coupled else s.label.shape)
    half = s._replace(logits=jnp.asarray(s.logits, jnp.bfloat16), teacher=jnp.asarray(s.teacher, jnp.bfloat16))
    half = member.raw(*door.doors(member, half))
    assert half.dtype == np.float32 and np.isfinite(half).all()
    moved = member.raw(*door.doors(member, door.taken(s, np.roll(np.arange(SHAPE[0]), 1), member.views)))
    if not declared.coupled:
        door.same(found[order], moved, rtol=1e-5, atol=1e-6)
    assert declared.through is None or declared.through in objectives.METHODS


@pytest.mark.parametrize("name", objectives.METHODS)
def test_a_missing_field_is_refused_by_name(name):
    member = members.of_method(name)[0]
    s = door.sample(door.Draw(0, 1.0, SHAPE), member.views, np.float32)
    params, state = member.objective.init(Spec(door.N, SHAPE[1], door.EPOCHS), KEY)
    for field in member.fields:
        batch, output = door.doors(member, s)
        with pytest.raises(Refused, match=rf"needs batch\.{field}"):
            jax.eval_shape(
                lambda b, o: member.objective.apply(params, state, b, o, at(0.0)),
                batch._replace(**{field: None}),
                output,
            )

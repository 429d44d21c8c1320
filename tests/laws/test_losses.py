"""Laws 1 to 6, each one test over every method (with variants) through its door, and over every public loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses, objectives
from kdjax.errors import Refused
from tests.clocks import at
from tests.laws import door, laws, members

LAWS = settings(settings.get_profile("laws"))
SHAPE = (6, 5)
draws = st.builds(door.Draw, st.integers(0, 2**16), st.sampled_from([0.1, 1.0, 4.0, 12.0]), st.just(SHAPE))
# Of module scope, so that pytest runs all laws of a member together and its compiled programs are at hand.
everyone = pytest.mark.parametrize("member", members.but_variants_slowly(members.everyone()), ids=str, scope="module")


def test_the_arguments_of_every_public_loss_are_known():
    for name in members.public_losses():
        unknown = set(members.loss_of(name).arguments) - members.ARGUMENTS.keys()
        assert not unknown, f"say in tests/laws/members.py what the argument {unknown} of the loss {name!r} is made of."
    assert {*members.SPECIAL} <= {*members.public_losses()} and members.public_losses().keys() & {*losses.__all__}
    assert all(members.loss_of(name).through in ("", *objectives.METHODS) for name in members.public_losses())


def test_every_declared_name_exists():
    names = {m.id for m in members.everyone()}
    assert {name for _, name in members.EXCEPTIONS} <= names and {*members.CONDITION} <= names
    assert {law for law, _ in members.EXCEPTIONS} <= set(laws.LAWS)
    assert {*members.VARIANTS, *members.VIEWS, *members.REVERSED} <= set(objectives.METHODS)


@pytest.mark.parametrize(("law", "name"), members.EXCEPTIONS, ids=str)
def test_every_exception_is_one(law, name):
    """A member that is let off must break the law somewhere, or its line is dropped."""
    (member,) = (m for m in members.everyone() if m.id == name)
    with pytest.raises(AssertionError):
        for seed, scale in enumerate([2.0, 2.0, 12.0, 12.0]):
            laws.LAWS[law](member, door.Draw(seed, scale, SHAPE), strict=True)


@pytest.mark.parametrize("member", members.but_few_slowly(members.by_default()), ids=str, scope="module")
def test_law_1_eager_on_devices_and_in_half_precision(member):
    """jit on host arrays = jit on device arrays = no jit, from bfloat16 logits, without weights = pmap."""
    assert jax.device_count() > 1, "tests/conftest.py forces two devices"
    k = SHAPE[1]
    s = door.sample(door.Draw(1, 2.0, SHAPE), member.views, np.float32)
    s = s._replace(**{name: laws.short(getattr(s, name)) for name in ("logits", "teacher")})
    s = s._replace(weight=np.ones_like(s.weight))
    params, state = door.params_of(member, k), door.history(member, k)
    result = door.run(member, s, state)
    door.same(door.run(member, jax.device_put(s, jax.devices()[0]), state), result, rtol=0, atol=0)
    half = {name: jnp.asarray(getattr(s, name), jnp.bfloat16) for name in ("logits", "teacher")}
    eager = door.evaluate(member, params, state, s._replace(weight=None, **half))
    assert result.value.dtype == eager.value.dtype == np.float32, "a loss is float32, whatever comes in"
    eager = eager._replace(gradient=(eager.gradient[0].astype(np.float32), eager.gradient[1]))
    coarse = eager.gradient[0], laws.short(result.gradient[0])  # the gradient of bfloat16 logits is bfloat16
    np.testing.assert_allclose(*coarse, rtol=2**-7, atol=1e-5)
    door.same(eager._replace(gradient=eager.gradient[1]), result._replace(gradient=result.gradient[1]), 1e-5, 1e-6)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), (params, state, s))
    mapped = jax.pmap(lambda *given: door.evaluate(member, *given)[:4])(*both)
    door.same(jax.tree.map(lambda x: x[1], mapped), result[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", members.but_few_slowly(members.everyone()), ids=str, scope="module")
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_law_1_precisions(member, scale):
    laws.precisions(member, door.Draw(11, scale, SHAPE))


@pytest.mark.parametrize("member", members.but_few_slowly(members.everyone()), ids=str, scope="module")
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


@pytest.mark.parametrize("member", members.but_few_slowly(members.everyone()), ids=str, scope="module")
@LAWS
@given(draw=draws)
def test_law_4_absent_examples(member, draw):
    laws.absence(member, draw)


# Objectives of logits alone: a memory numbers examples, features and views belong to whole examples.
ROWS = [m for m in members.everyone() if m.views == 1 and "index" not in m.fields and not members.on_features(m)]


@pytest.mark.slow
@pytest.mark.parametrize("member", members.but_variants_slowly(ROWS), ids=str, scope="module")
def test_law_4_regions_that_do_not_exist(member):
    laws.regions(member, door.Draw(31, 2.0, SHAPE))


@pytest.mark.parametrize("member", members.but_few_slowly(members.everyone()), ids=str, scope="module")
@pytest.mark.parametrize("shape", [(1, 2), SHAPE], ids=str)
def test_law_5_finite_at_extremes(member, shape):
    laws.finite(member, shape)


@pytest.mark.slow
@pytest.mark.parametrize("member", members.by_default(), ids=str, scope="module")
def test_law_5_finite_at_extremes_of_many_classes(member):
    laws.finite(member, (2, 1000))


@everyone
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_law_6_finite_differences(member, scale):
    laws.slopes(member, door.Draw(21, scale, SHAPE))


@pytest.mark.parametrize("member", members.but_few_slowly(members.pure_losses()), ids=str)
def test_a_pure_loss_keeps_its_signature(member):
    """[B] in the order of the batch or a scalar, in float32 from bfloat16 logits."""
    declared = members.loss_of(member.name)
    s = door.sample(door.Draw(3, 2.0, SHAPE), member.views, np.float32)
    order = np.concatenate([np.roll(np.arange(SHAPE[0]), 1) + view * SHAPE[0] for view in range(member.views)])
    result = member.raw(*door.doors(member, s))
    assert result.dtype == np.float32 and result.shape == (() if declared.coupled else s.label.shape)
    half = s._replace(logits=jnp.asarray(s.logits, jnp.bfloat16), teacher=jnp.asarray(s.teacher, jnp.bfloat16))
    half = member.raw(*door.doors(member, half))
    assert half.dtype == np.float32 and np.isfinite(half).all()
    moved = member.raw(*door.doors(member, door.taken(s, np.roll(np.arange(SHAPE[0]), 1), member.views)))
    if not declared.coupled:
        door.same(result[order], moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", objectives.METHODS)
def test_a_missing_field_is_refused_by_name(name):
    member = members.of_method(name)[0]
    s = door.sample(door.Draw(0, 1.0, SHAPE), member.views, np.float32)
    params, state = door.begin(member, SHAPE[1])
    for field in member.fields:
        batch, output = door.doors(member, s)
        with pytest.raises(Refused, match=rf"needs batch\.{field}"):
            jax.eval_shape(
                lambda b, o: member.objective.apply(params, state, b, o, at(0.0)),
                batch._replace(**{field: None}),
                output,
            )

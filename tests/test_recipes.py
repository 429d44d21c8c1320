"""What a recipe's numbers mean once they are functions: epochs become steps, alpha the share of the teacher."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, losses
from kdjax.errors import Refused
from kdjax.parts import Parts, parts
from kdjax.recipes import Distill, Optimizer, Recipe
from kdjax.types import Batch, Output, Spec
from tests import tiny
from tests.clocks import KEY, at


def made(recipe: Recipe) -> Parts:
    """On 64 training examples: 4 steps an epoch."""
    own = data.from_arrays(
        train=tiny.arrays(64, 0), calibration=tiny.arrays(16, 1), test=tiny.arrays(20, 2), num_classes=tiny.CLASSES
    )
    return parts(recipe, own)


def rates(**fields) -> list[float]:
    schedule = made(tiny.recipe("", epochs=3, optimizer=Optimizer(lr=0.1, **fields))).schedule
    return [float(schedule(step)) for step in range(12)]


def test_milestones_and_warm_up_are_in_epochs():
    assert rates(schedule="multistep", milestones=(1.0, 2.5)) == pytest.approx([0.1] * 4 + [0.01] * 6 + [0.001] * 2)
    assert rates(schedule="constant", warmup_epochs=0.5) == pytest.approx([0.0, 0.05] + [0.1] * 10)
    assert rates(schedule="linear")[-1] == pytest.approx(0.1 / 12)


@pytest.mark.parametrize(("changes", "hard", "soft"), [({"alpha": 0.25}, 0.75, 0.25), ({"weights": (1.0, 3.0)}, 1, 3)])
def test_alpha_is_the_teachers_share_and_weights_are_hard_then_soft(changes, hard, soft):
    recipe = tiny.student("", options={"T": 2.0})
    recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, **{"alpha": 0.9, **changes}))
    objective = made(recipe).objective
    z, t = jax.random.normal(jax.random.key(0), (2, 16, tiny.CLASSES))
    label = jnp.arange(16) % tiny.CLASSES
    batch = Batch(inputs=jnp.zeros((16, 1)), label=label, index=jnp.arange(16), teacher=Output(t))
    terms, _ = objective.apply(*objective.init(Spec(64, tiny.CLASSES), KEY), batch, Output(z), at(0.0))
    expected = hard * losses.nll(z, label).mean() + soft * losses.kd(z, t, T=2.0).mean()
    np.testing.assert_allclose(terms.total, expected, rtol=1e-5)


@pytest.mark.parametrize("made", [np.float32, np.int64, np.longdouble, np.array, jnp.float32, jnp.bfloat16])
def test_numbers_of_numpy_and_jax_are_the_numbers_they_hold(made):
    plain = Recipe(method="focal", options={"gamma": 2}, optimizer=Optimizer(lr=4), batch_size=32)
    same = Recipe(method="focal", options={"gamma": made(2)}, optimizer=Optimizer(lr=made(4)), batch_size=np.int32(32))
    assert (same, hash(same), same.canonical()) == (plain, hash(plain), plain.canonical())
    soft = Distill("kd", {"T": made(3)}, alpha=made(0), weights=())
    assert soft == Distill("kd", {"T": 3.0}, alpha=0.0) and type(soft.options["T"]) is float
    assert Distill("kd", weights=map(made, (1, 2))).weights == Distill("kd", weights=np.array([1, 2])).weights == (1, 2)


def test_a_traced_number_is_no_part_of_a_recipe():
    with pytest.raises(Refused, match=r"distill\.options\.T is a traced value; .* outside of jit"):
        jax.eval_shape(lambda T: Distill("kd", {"T": T}).alpha, 2.0)

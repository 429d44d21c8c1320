"""What a recipe's numbers mean once they are functions: epochs become steps, alpha the share of the teacher."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, losses
from kdjax.parts import Parts, parts
from kdjax.recipes import Optimizer, Recipe
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

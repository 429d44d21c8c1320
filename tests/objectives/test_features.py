"""Objectives on features: layers by name, and learned projections where widths differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.losses import features
from kdjax.objectives import build
from kdjax.types import Output
from tests.clocks import KEY, at
from tests.objectives.test_distillers import RNG, SPEC, B, G, H, T, Z, batch, run


@pytest.mark.parametrize("name", ["hidden_state", "attention", "attention_transfer", "pkd"])
def test_feature_methods_pick_layers_by_name(name):
    summed = {"pkd": {"kd": 0.0, "normalization": "paper"}}.get(name, {})
    value, _, _, _ = run(build(name, **summed))
    twice = run(build(name, layers=("stage", "stage:stage"), **summed))[0]
    np.testing.assert_allclose(twice, 2 * value, rtol=1e-6)
    with pytest.raises(Refused, match="did you mean stage"):
        run(build(name, layers=("stagge",)))
    if name.startswith("attention"):
        with pytest.raises(Refused, match="4 axes"):
            flat = Output(T, {"stage": G[:, 0, 0]})
            student = Output(Z, {"stage": H[:, 0, 0]})
            build(name, layers=("stage",)).apply((), (), batch()._replace(teacher=flat), student, at(0.0))
    nothing = batch()._replace(teacher=Output(T))
    with pytest.raises(Refused, match="share none"):
        run(build(name), data=nothing)


WIDER = {
    "hidden_state": ((B, 3, 3, 5), (B, 3, 3, 7)),
    "attention": ((B, 2, 4, 4), (B, 3, 4, 4)),
}


@pytest.mark.parametrize("name", WIDER)
def test_features_of_unequal_width_meet_through_a_learned_matrix(name):
    student, teacher = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in WIDER[name])
    shapes = [{"stage": jax.ShapeDtypeStruct(x.shape, x.dtype)} for x in (student, teacher)]
    objective = build(name)
    params, state = objective.init(SPEC._replace(student_features=shapes[0], teacher_features=shapes[1]), KEY)
    axis = 1 if name == "attention" else -1
    assert jax.tree.map(jnp.shape, params) == {"stage_to_stage": (student.shape[axis], teacher.shape[axis])}
    data = batch()._replace(teacher=Output(T, {"stage": teacher}))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return objective.apply(params, state, data, Output(Z, {"stage": student}), at(0.0))[0].total

    matrix = params["stage_to_stage"]
    projected = jnp.moveaxis(jnp.moveaxis(student, axis, -1) @ matrix, -1, axis)
    value, grad = loss(params)
    np.testing.assert_allclose(value, jnp.mean(getattr(features, name)(projected, teacher)), rtol=1e-5)
    for _ in range(30):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, loss(params)[1])
    assert loss(params)[0] < value and np.isfinite(grad["stage_to_stage"]).all(), "it is trained"
    with pytest.raises(Refused, match="they must agree"):
        objective.apply((), state, data, Output(Z, {"stage": student}), at(0.0))
    equal = SPEC._replace(student_features=shapes[0], teacher_features=shapes[0])
    assert objective.init(equal, KEY) == ((), ()), "equal widths need no parameters"

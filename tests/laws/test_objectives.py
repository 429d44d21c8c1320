"""Law 10, over the registry: an objective's state keeps its shape, its step is traced once and resumes exactly, and the
number of devices changes nothing. Every row of the table of methods trains on digits from its config line."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

from kdjax import layout, objectives, step
from kdjax.tasks import train_program
from kdjax.trainer import Trainer
from tests.laws import door, members, training
from tests.processes import slow

METHODS = pytest.mark.parametrize("name", objectives.METHODS)


@pytest.mark.parametrize("member", members.methods(), ids=str)
def test_state_keeps_structure_shapes_and_dtypes(member):
    objective = member.objective
    params, state = door.begin(member, 5)
    s = door.sample(door.Draw(0, 1.0, (6, 5)), member.views, np.float32)
    new = jax.eval_shape(lambda state, s: door.evaluate(member, params, state, s).state, state, s)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
    if objective.refresh is not None:
        # Logits of another split: neither its size nor float64 from the host may leave a trace in the state.
        new = jax.eval_shape(objective.refresh, state, np.zeros((9, 5), np.float32), np.zeros(9, np.int32))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
        assert jax.tree.leaves(state), "an objective without memory has nothing to refresh"
    assert all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(state)), "state leaves are arrays"
    line = objectives.METHODS[member.name]
    assert bool(jax.tree.leaves(state)) == bool(line.state), "the registry names the state"
    assert line.params or not jax.tree.leaves(params), "the registry names what is trained"
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def host(tree):
    return jax.tree.map(np.array, tree)


# One of each kind in `make test`: no state, memory by example, refresh, a teacher, two views, features, own parameters.
KINDS = ("nll", "crl", "adafocal", "kd", "mlld", "ctkd", "hidden_state")


@pytest.mark.parametrize("name", [*KINDS, *slow(*(name for name in objectives.METHODS if name not in KINDS))])
def test_trains_on_digits_in_one_trace_resumes_exactly_and_shards(name):
    chosen = training.recipe(name)
    method, options = (
        (chosen.distill.method, chosen.distill.options) if chosen.distill else (chosen.method, chosen.options)
    )
    own_choice = method in ("mdca", "kd")  # whose options the digits family sets itself
    assert method == name and (own_choice or dict(options) == objectives.options(name))
    task = training.of(name)
    trainer = Trainer(task, devices=1)
    start = host(trainer.init())
    whole, logs = training.train(trainer)
    assert int(whole.step) == 2 * task.steps_per_epoch and task.steps_per_epoch == 3
    for key, values in logs.items():
        assert np.isfinite(values).all(), f"{key} of {name}: {values}"
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(*map(jax.tree.leaves, (start.params, host(whole.params))), strict=True)
    ]
    assert max(moved) > 1e-3 and (logs["grad_norm"] > 0).all(), f"{name} trains nothing"
    own = [key for key in logs if key not in ("loss", "grad_norm", "accuracy", "nll")]
    assert own or name == "nll", f"{name} logs no term of its own"

    program = train_program([trainer.task], trainer.mesh)
    assert program.traces == 1, f"{name} was traced {program.traces} times over two epochs"
    if task.parts.objective.refresh is not None:
        assert step.refresh_step(objective=task.parts.objective, mesh=trainer.mesh).traces == 1

    if jax.tree.leaves(start.objective):
        half, _ = training.train(trainer, stop=task.steps_per_epoch + 1)
        saved = jax.device_put(host(half), layout.replicated(trainer.mesh))
        resumed, _ = training.train(trainer, saved)
        chex.assert_trees_all_equal(host(whole), host(resumed))
        assert program.traces == 1

    # One step to 1e-6; afterwards what rounding is left grows with training, as it does between any two orders of sums.
    pair = [training.train(t, stop=1) for t in (trainer, Trainer(task, devices=2))]
    (one, first), (two, sharded) = pair
    assert len(jax.tree.leaves(two.params)[0].sharding.device_set) == 2
    np.testing.assert_allclose(sharded["loss"], first["loss"], rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(host(one), host(two), rtol=1e-5, atol=1e-6)
    _, sharded = training.train(Trainer(task, devices=2), two, stop=task.steps_per_epoch)
    np.testing.assert_allclose(sharded["loss"], logs["loss"][1 : task.steps_per_epoch], rtol=1e-3, atol=1e-4)

"""The one train step: traced once, exact under resume, the same on one device, two devices and two processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import numpy as np
import pytest

from kdjax import data, layout, objectives, programs, step, teachers
from kdjax.errors import Refused
from kdjax.options import Options
from kdjax.parts import parts
from kdjax.tasks import Task, example, train_program, variables_program
from kdjax.trainer import Diverged, Trainer, fit
from kdjax.types import Dataset
from tests import tiny
from tests.processes import both


def dataset() -> Dataset:
    return data.from_arrays(
        train=tiny.arrays(64, 0), calibration=tiny.arrays(16, 1), test=tiny.arrays(20, 2), num_classes=tiny.CLASSES
    )


def task(**changes) -> Task:
    own = dataset()
    recipe = tiny.recipe("", **{"transform": ("pad_crop", "flip"), **changes})
    return Task(parts(recipe, own), own, None, recipe.epochs, recipe.batch_size, recipe.seed)


KD = Options(T=2.0)


def taught(method: str = "kd", options: Any = KD, **changes) -> Task:
    """A student of a random but fixed teacher."""
    own = dataset()
    recipe = tiny.student("", method=method, options=options, **changes)
    pieces = parts(recipe, own)
    teacher = fit(Trainer(task(seed=7, epochs=8, transform=()), devices=1))
    frozen = teachers.frozen(pieces.model, jax.tree.map(np.asarray, teacher.variables))
    return Task(pieces, own, frozen, recipe.epochs, recipe.batch_size, recipe.seed)


def run(trainer: Trainer, state=None, stop: int | None = None):
    """States and losses, step by step, through all epochs."""
    state = trainer.init() if state is None else state
    losses = []
    total = trainer.task.epochs * trainer.task.steps_per_epoch if stop is None else stop
    while int(state.step) < total:
        for state, logs in trainer.steps(state, stop=stop):
            losses.extend(np.asarray(logs["loss"]))
        if int(state.step) % trainer.task.steps_per_epoch == 0:
            state, _ = trainer.refreshed(state)
    return state, np.array(losses)


def test_one_trace_per_stage_and_split():
    trainer = Trainer(task(method="adafocal", epochs=3, seed=11, batch_size=32), devices=1)
    state, losses = run(trainer)
    trainer.predict(state.variables, trainer.task.dataset.test)
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert train_program([trainer.task], trainer.mesh).traces == 1
    assert step.refresh_step(objective=trainer.task.parts.objective, mesh=trainer.mesh).traces == 1
    # calibration and test differ in size here, so prediction is compiled once for each.
    assert trainer._predict.traces == 2


def test_recipes_of_a_network_share_the_program_of_its_initial_variables():
    programs.forget_programs()
    trainers = [Trainer(task(method=method, seed=seed), devices=1) for method, seed in (("nll", 0), ("adafocal", 5))]
    states = [trainer.init() for trainer in trainers]
    (program,) = {id(p): p for p in (variables_program(t.task, t.mesh) for t in trainers)}.values()
    assert program.traces == 1
    for trainer, state in zip(trainers, states, strict=True):
        pieces, seed = trainer.task.parts, trainer.task.seed
        expected = pieces.model.init(jax.random.key(seed), pieces.prepare(example(trainer.task.dataset.train)))
        chex.assert_trees_all_close(state.variables, expected, rtol=1e-5)
    assert not np.array_equal(*(jax.tree.leaves(state.params)[-1] for state in states))


@pytest.mark.slow
@pytest.mark.fused
@pytest.mark.parametrize("model", ["conv_tiny", "resnet8"])
def test_initial_variables_do_not_depend_on_how_far_their_program_is_optimized(model, as_users_compile):
    alone = task(model=model)
    about, mesh = example(alone.dataset.train), layout.mesh(1)
    programs.forget_programs()
    light = variables_program(alone, mesh)
    usual = programs.Program(light.function)
    for seed in range(5):
        chex.assert_trees_all_equal(light(np.uint32(seed), about), usual(np.uint32(seed), about))


def test_only_what_a_start_leaves_out_is_initialized():
    programs.forget_programs()
    scratch = Trainer(task(seed=3, model="conv_tiny"), devices=1)
    given = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), scratch.abstract().variables)
    program = variables_program(scratch.task, scratch.mesh)
    before = program.traces  # of shapes alone, for `abstract`

    state = Trainer(scratch.task._replace(start=lambda: given), devices=1).init()
    chex.assert_trees_all_equal(state.variables, given)
    assert program.traces == before

    state = Trainer(scratch.task._replace(start=lambda: {"params": given["params"]}), devices=1).init()
    chex.assert_trees_all_equal(state.params, given["params"])
    assert program.traces == before + 1
    chex.assert_trees_all_equal(state.batch_stats, scratch.init().batch_stats)


@pytest.mark.parametrize("make", [task, taught], ids=["alone", "taught"])
def test_training_learns(make):
    trainer = Trainer(make(epochs=12, transform=()), devices=1)  # a flip would swap the quadrants
    _, losses = run(trainer)
    assert losses[-4:].mean() < 0.8 * losses[:4].mean()


def test_steps_per_call_changes_nothing():
    one, losses_one = run(Trainer(task(), devices=1, steps_per_call=1))
    three, losses_three = run(Trainer(task(), devices=1, steps_per_call=3))
    chex.assert_trees_all_close(one, three, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses_one, losses_three, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("nll", "conv_tiny"),
        *(pytest.param(name, "mlp", marks=pytest.mark.slow) for name in ("crl", "mdca", "mmce", "pskd", "adafocal")),
    ],
)
def test_two_devices_give_the_single_device_numbers(method, model):
    """Also BatchNorm, losses of the whole batch, which shards would change, and per-example memory."""
    one, losses_one = run(Trainer(task(method=method, model=model), devices=1))
    two, losses_two = run(Trainer(task(method=method, model=model), devices=2))
    assert len(jax.tree.leaves(two.params)[0].sharding.device_set) == 2
    np.testing.assert_allclose(losses_one, losses_two, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(np.asarray, one), jax.tree.map(np.asarray, two), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "model"), [("nll", "conv_tiny"), ("adafocal", "mlp"), ("crl", "mlp"), ("pskd", "mlp")]
)
def test_resume_is_exact_at_every_position(method, model):
    trainer = Trainer(task(method=method, model=model), devices=1)
    whole, _ = run(trainer)
    for stop in range(1, 8):
        half, _ = run(trainer, stop=stop)
        again = jax.tree.map(np.array, half)  # what a checkpoint would hold
        rest, _ = run(trainer, state=jax.device_put(again, layout.replicated(trainer.mesh)))
        chex.assert_trees_all_equal(jax.tree.map(np.asarray, whole), jax.tree.map(np.asarray, rest))


def test_training_moves_the_running_statistics_and_prediction_uses_them():
    trainer = Trainer(task(model="conv_tiny", epochs=1, transform=()), devices=1)
    before = jax.tree.map(np.asarray, trainer.init().batch_stats)
    state, _ = run(trainer)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, jax.tree.map(np.asarray, state.batch_stats))
    assert jax.tree.leaves(moved) and all(jax.tree.leaves(moved))
    # In evaluation an example's logits do not depend on its neighbors.
    single = Trainer(trainer.task, devices=1, eval_batch_size=1)
    split = trainer.task.dataset.test
    together, apart = trainer.predict(state.variables, split), single.predict(state.variables, split)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)
    # It is the model on normalized inputs, as in training, and without augmentation.
    x = trainer.task.dataset.prepare(split.inputs)
    expected = trainer.task.parts.model.apply(state.variables, x, train=False)[0].logits
    np.testing.assert_allclose(together, expected, rtol=1e-3, atol=1e-4)


def test_every_step_and_every_seed_draws_anew():
    """Randomness is a function of (seed, step): no step repeats another's, and a repetition repeats all."""

    def drawn(key, batch):
        return batch._replace(inputs=batch.inputs * 0 + jax.random.uniform(key))

    objective = objectives.stateless("drawn", lambda b, output, _: output.logits.sum(-1) * 0 + b.inputs.mean())
    made = task(epochs=2)
    made = made._replace(parts=made.parts._replace(objective=objective, transform=drawn))
    losses = [run(Trainer(made._replace(seed=seed), devices=1))[1] for seed in (0, 1, 0)]
    assert len({*losses[0], *losses[1]}) == 16
    np.testing.assert_array_equal(losses[0], losses[2])


def test_every_epoch_has_an_order_of_its_own():
    objective = objectives.stateless("seen", lambda b, output, _: output.logits.sum(-1) * 0 + b.index)
    made = task(epochs=2, transform=())
    _, seen = run(Trainer(made._replace(parts=made.parts._replace(objective=objective)), devices=1))
    first, second = seen[:4], seen[4:]  # each a mean over its batch: N - 1 over two on the whole, whatever the order
    np.testing.assert_allclose([first.mean(), second.mean()], 63 / 2)
    assert not np.array_equal(first, second) and not np.array_equal(np.sort(first), np.sort(second))


def test_teacher_is_never_changed_and_sees_the_students_pixels():
    made = taught(transform=("pad_crop", "flip"))
    before = jax.tree.map(np.array, made.teacher.variables)
    seen = []

    def spy(variables, batch):
        seen.append(batch)
        return made.teacher.apply(variables, batch)

    trainer = Trainer(made._replace(teacher=made.teacher._replace(apply=spy)), devices=1)
    run(trainer)
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, trainer.teacher_variables.at(0)))
    assert len(seen) == 1, "the teacher is traced once inside the step"
    assert seen[0].inputs.dtype == np.float32 and seen[0].label is not None


def test_teacher_equal_to_student_gives_no_gradient_at_alpha_one():
    own = dataset()
    recipe = tiny.student("", optimizer=tiny.Optimizer(lr=0.1, schedule="constant", weight_decay=0.0))
    recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, alpha=1.0))
    pieces = parts(recipe, own)
    variables = Trainer(Task(pieces, own, None, 1, 16, 0)._replace(teacher=_dummy(pieces)), devices=1).init().variables
    # A teacher in training mode, on purpose: evaluation mode would differ where a network has BatchNorm.
    same = teachers.Teacher(lambda v, batch: pieces.model.apply(v, batch.inputs, train=True)[0], variables)
    trainer = Trainer(Task(pieces, own, same, 1, 16, 0), devices=1)
    _, logs = next(trainer.steps(trainer.init()))
    assert abs(float(logs["kd"][0])) < 1e-6 and float(logs["grad_norm"][0]) < 1e-5


def _dummy(pieces):
    return teachers.remembered(np.zeros((64, tiny.CLASSES), np.float32))


def test_dispatch_refusals_name_field_and_remedy():
    with pytest.raises(Refused, match=r"'mdca' needs batch\.label.*mixup"):
        pieces = parts(tiny.recipe("", method="mdca"), dataset())
        mixup = objectives.METHODS["mixup"].transform(num_classes=tiny.CLASSES, alpha=1.0)
        pieces = pieces._replace(transform=mixup)
        trainer = Trainer(Task(pieces, dataset(), None, 1, 16, 0), devices=1)
        next(trainer.steps(trainer.init()))
    with pytest.raises(Refused, match=r"needs batch\.teacher.*no teacher"):
        trainer = Trainer(Task(parts(tiny.student(""), dataset()), dataset(), None, 1, 16, 0), devices=1)
        next(trainer.steps(trainer.init()))
    with pytest.raises(Refused, match="15 is not a multiple of 2 devices; set it to 14 or 16"):
        Trainer(task(batch_size=15), devices=2)
    with pytest.raises(Refused, match=r"run\.devices is 5, and 2 exist"):
        Trainer(task(), devices=5)


def test_a_loss_that_is_not_finite_is_named():
    poisoned = dataset()
    made = task()

    def nan_at_third(batch, output, clock):
        loss = output.logits.sum(-1) * 0.0 + 1.0
        return jax.numpy.where(clock.step >= 2, jax.numpy.nan, loss)

    objective = objectives.stateless("odd", nan_at_third)
    trainer = Trainer(made._replace(parts=made.parts._replace(objective=objective), dataset=poisoned), devices=1)
    with pytest.raises(Diverged, match="term 'odd' is nan at step 3"):
        fit(trainer)


PROCESS = """
import sys, jax
port, rank = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
assert jax.device_count() == 2 and jax.local_device_count() == 1
from tests import test_step
from kdjax.trainer import Trainer
for make in (lambda: test_step.task(method="mdca"), lambda: test_step.task(method="adafocal")):
    state, losses = test_step.run(Trainer(make()))
    print("LOSSES", rank, *(repr(float(x)) for x in losses), flush=True)
"""


@pytest.mark.slow
def test_two_processes_give_the_single_device_numbers():
    printed = both(lambda port, rank: ["-c", PROCESS, port, str(rank)])
    lines = [[li.split()[2:] for li in out if li.startswith("LOSSES")] for out in printed]
    assert lines[0] == lines[1] and len(lines[0]) == 2
    for found, method in zip(lines[0], ("mdca", "adafocal"), strict=True):
        _, alone = run(Trainer(task(method=method), devices=1))
        np.testing.assert_allclose(np.array(found, float), alone, rtol=1e-5, atol=1e-6)

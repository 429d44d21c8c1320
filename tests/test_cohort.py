"""Students that share every step: each ends with the numbers it has when trained alone, has its own folder, and resumes
to the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from kdjax import (
    checkpoints,
    cohort_stages,
    console,
    data,
    grouping,
    limits,
    planning,
    ray_cluster,
    runs,
    stages,
    teachers,
    worker_count,
)
from kdjax.cohort import Cohort, Diverged
from kdjax.errors import Refused
from kdjax.grouping import groups, refuse_large
from kdjax.options import Options
from kdjax.recipes import Recipe
from kdjax.settings import Interrupted, Settings
from kdjax.stages import Stage
from kdjax.tasks import Task, task
from kdjax.trainer import Trainer
from tests import tiny

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""How closely a member ends to itself trained alone: XLA may fuse otherwise in a larger program."""
HUGE = tiny.Optimizer(lr=1e30, schedule="constant")


def changed(recipe: Recipe, **distill) -> Recipe:
    """The recipe with another distillation term."""
    return dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, **distill))


NARROW = Options(widths=(16,))
KD = tiny.student("", transform=("flip",), model_options=NARROW)
# Another temperature, weight and network, with a refresh once an epoch; then an objective that trains a parameter.
OTHERS = [
    changed(
        dataclasses.replace(KD, model_options=Options(widths=(8, 8)), method="adafocal"),
        options=Options(T=8.0),
        alpha=0.5,
    ),
    changed(KD, method="ctkd", options=Options()),
]


@pytest.fixture(scope="module")
def made():
    """Recipe -> a task of it on one data set with one teacher."""
    dataset = data.from_arrays(
        train=tiny.arrays(64, 0), calibration=tiny.arrays(16, 1), test=tiny.arrays(20, 2), num_classes=tiny.CLASSES
    )
    first = task(tiny.recipe("", model_options=NARROW), dataset)
    variables = jax.tree.map(np.asarray, Trainer(first, devices=1).init().variables)
    teacher = teachers.frozen(first.parts.model, variables)

    def make(recipe: Recipe) -> Task:
        return task(recipe, dataset, teacher)

    return make


def members(made, recipes, **how) -> list[Trainer]:
    first = Trainer(made(recipes[0]), devices=1, **how)
    return [first, *(Trainer(made(recipe), beside=first) for recipe in recipes[1:])]


def last(epochs):
    """What the last epoch yields; its states are kept by nobody else."""
    *_, progress = epochs
    return progress


@pytest.mark.parametrize(
    ("recipes", "steps_per_call"), [([KD, OTHERS[0]], 1), pytest.param([OTHERS[1], KD], 3, marks=pytest.mark.slow)]
)
def test_each_member_ends_as_it_would_alone(made, recipes, steps_per_call):
    cohort = Cohort(members(made, recipes, steps_per_call=steps_per_call))
    together = last(cohort.epochs())
    assert cohort.members[1].feed is cohort.members[0].feed, "the data are on the device once"
    for recipe, one in zip(recipes, together, strict=True):
        alone = last(Trainer(made(recipe), devices=1, steps_per_call=steps_per_call).epochs())
        chex.assert_trees_all_close(jax.device_get(one.state), jax.device_get(alone.state), **CLOSE)
        assert one.logs.keys() == alone.logs.keys() and one.step == alone.step == 8 and one.ended
        for name in one.logs:
            np.testing.assert_allclose(one.logs[name], alone.logs[name], **CLOSE, err_msg=name)


@pytest.mark.slow
def test_a_member_that_diverges_is_reported_and_the_others_go_on(made):
    trainers = members(made, [dataclasses.replace(KD, optimizer=HUGE), OTHERS[1]])
    broken, one = last(Cohort(trainers).epochs(every=3))
    alone = last(Trainer(made(OTHERS[1]), devices=1).epochs(every=3))
    assert isinstance(broken, Diverged) and "at step 2 at learning rate 1e+30" in str(broken)
    chex.assert_trees_all_close(jax.device_get(one.state), jax.device_get(alone.state), **CLOSE)
    every = [*Cohort(members(made, [dataclasses.replace(KD, optimizer=HUGE)] * 2)).epochs()]
    assert len(every) == 1 and all(isinstance(outcome, Diverged) for outcome in every[0]), "nobody is left"


def test_members_that_differ_in_what_is_shared_are_refused_with_it(made):
    first = Trainer(made(KD), devices=1)
    for change, sentence in (
        ({"batch_size": 32}, r"student 1 and student 2 differ in batch_size \(16 and 32\); set it alike"),
        ({"seed": 4}, r"differ in seed \(0 and 4\)"),
        ({"epochs": 5}, r"differ in epochs \(2 and 5\)"),
        ({"transform": ()}, "differ in transform; set it alike, or train them apart"),
        ({"method": "mixup", "options": Options(alpha=0.2)}, "differ in transform"),
    ):
        with pytest.raises(Refused, match=sentence):
            Trainer(made(dataclasses.replace(KD, **change)), beside=first)
    again = task(KD, first.task.dataset, first.task.teacher)
    assert len(Cohort([first, Trainer(again, devices=1)]).members) == 2, "as a step takes it, it is the same teacher"
    other = task(KD, first.task.dataset, teachers.scaled(first.task.teacher, 2.0))
    with pytest.raises(Refused, match="differ in teacher; set"):
        Cohort([first, Trainer(other, devices=1)])
    with pytest.raises(Refused, match=r"differ in devices \(1 and 2\)"):
        Cohort([first, Trainer(made(KD), devices=2)])
    with pytest.raises(Refused, match="a cohort has no members"):
        Cohort([])
    later = first.init()._replace(step=np.int32(3))
    with pytest.raises(Refused, match=r"a cohort of 2 got 2 states at steps \[0, 3\]; expected one for each"):
        next(Cohort(members(made, [KD, OTHERS[1]])).epochs([first.init(), later]))


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    return tiny.npz(tmp_path_factory.mktemp("data"))


def grid(npz: str, *recipes: Recipe, **common) -> list[Stage]:
    """Students of one teacher on the file."""
    base = tiny.recipe(npz, model_options=NARROW)
    teacher = Stage(base, name="teacher")
    common = {"data": base.data, **common}
    return [Stage(dataclasses.replace(r, **common), teacher, name=f"student {n}") for n, r in enumerate(recipes)]


def test_only_students_that_share_teacher_and_data_form_cohorts(npz):
    same = grid(npz, KD, *OTHERS, changed(KD, alpha=0.1))
    teacher = same[0].teacher
    apart = [
        *grid(npz, KD, seed=1),
        *grid(npz, KD, batch_size=32),
        *grid(npz, changed(KD, posthoc="temperature")),
        *grid(npz, dataclasses.replace(KD, transform=())),
        Stage(same[0].recipe, teacher, as_soft_as=Stage(tiny.recipe(npz, seed=9))),
        Stage(same[0].recipe, Stage(tiny.recipe(npz, seed=2), name="another")),
    ]
    queue = [teacher, *same, *apart]
    assert groups(queue, 1) == [(stage,) for stage in queue]
    assert groups(queue, 3) == [(teacher,), tuple(same[:3]), (same[3],), *((stage,) for stage in apart)]
    with pytest.raises(Refused, match="student 0 and stage differ in teacher .'teacher' and 'another'.; set it"):
        runs.run_cohort([same[0], apart[-1]], Settings(), console.Silent())
    rows = [planning.Planned(stage, "missing", 10**6, 1.0, 0) for stage in queue]
    assert (worker_count.independent(rows), worker_count.independent(rows, 2)) == (9, 7), "a worker takes a cohort"
    mlld = [changed(KD, method="mlld", options=Options(T_c=T)) for T in (1.0, 2.0)]
    assert len(groups(grid(npz, *mlld), 2)) == 1, "both methods bring the same two views"


def test_a_cohort_that_does_not_fit_says_how_many_would(npz, monkeypatch):
    group = grid(npz, KD, *OTHERS)
    state = grouping._bytes(stages.abstract_state(group[0].recipe.kind(), stages.taught_by(group[0])))
    monkeypatch.setattr(limits, "memory", lambda: 3 * state)
    refuse_large(group[:2])
    with pytest.raises(Refused, match=r"a cohort of 4 students and their teacher take .* set run.cohort to at most 2"):
        refuse_large([group[0]] * 4)


def test_what_a_cohort_cannot_be_run_with(npz):
    with pytest.raises(Refused, match=r"run\.cohort is 0; expected a number in \["):
        Settings(cohort=0).check()
    with pytest.raises(Refused, match="run.writer is 'wandb', .* and run.cohort is 2; set run.cohort to 1"):
        Settings(cohort=2, writer="wandb").check()
    with pytest.raises(Refused, match="run.cohort is 2, and --executor=ray makes every stage a task of its own"):
        ray_cluster.run_all([], Settings(cohort=2), console.Silent())


class Listener(console.Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, position: int, total: int, epochs: int, note: str = "") -> None:
        self.said.append(f"[{position}/{total}] {name}{': ' if note else ''}{note}")

    def message(self, text: str) -> None:
        self.said.append(text)


def run(workdir: Path, targets: list[Stage], **how) -> tuple[runs.Outcome, list[str]]:
    listener = Listener()
    given = Settings(**{"workdir": str(workdir), "checkpoint_epochs": 1, "devices": 1, "cohort": 3, **how})
    return runs.run_all(targets, given, listener), listener.said


def files(outcome: runs.Outcome, targets: list[Stage]) -> list[bytes]:
    """All that finished stages say of themselves, but where and how long they ran."""
    content = []
    for stage in targets:
        directory = outcome.results[stage.id].directory
        assert checkpoints.verify_manifest(directory, stage.owner) == []
        content += [(directory / name).read_bytes() for name in ("metrics.jsonl", "result.json", "recipe.json")]
        content += [outcome.results[stage.id].logits(split)[0].tobytes() for split in ("calibration", "test")]
    return content


@pytest.fixture(scope="module")
def begun(npz, tmp_path_factory):
    """A new work directory in which the teacher is finished."""
    done = tmp_path_factory.mktemp("done")
    run(done, [grid(npz, KD)[0].teacher])

    def make() -> Path:
        return Path(shutil.copytree(done, tmp_path_factory.mktemp("begun") / "runs"))

    return make


@pytest.fixture(scope="module")
def whole(npz, begun) -> tuple[list[Stage], runs.Outcome, list[str]]:
    """A cohort of three that nobody disturbed."""
    targets = grid(npz, KD, *OTHERS)
    return targets, *run(begun(), targets)


@pytest.fixture(scope="module")
def alone(whole, begun) -> runs.Outcome:
    """The same stages, each alone."""
    return run(begun(), whole[0], cohort=1)[0]


@pytest.mark.slow
def test_every_member_has_a_folder_as_if_alone_and_is_reused(whole, alone):
    targets, outcome, said = whole
    assert said[1:] == ["[2/4] 3 in one step: student 0, student 1, student 2"]
    for stage in targets:
        one, other = outcome.results[stage.id], alone.results[stage.id]
        names = [sorted(p.name for p in result.directory.iterdir()) for result in (one, other)]
        assert names[0] == names[1] and one.epoch == other.epoch
        np.testing.assert_allclose(one.logits("test")[0], other.logits("test")[0], **CLOSE)
        (session,) = json.loads((one.directory / "environment.json").read_text())["sessions"]
        assert session["cohort"] == [member.id for member in targets]
    again, said = run(outcome.results[targets[0].id].directory.parent, targets)
    assert all(again.results[stage.id].reused for stage in targets) and sum("reused" in text for text in said) == 4


def killed(workdir: Path, targets: list[Stage], member: int, step: int) -> None:
    """Runs until a member is to save a step, which it does no more; those before it have saved it."""
    dies = targets[member].directory(workdir) / "checkpoints"
    original = checkpoints.Checkpoints.save

    def save(self, at, *rest, **more):
        if self.directory == dies and at == step:
            raise KeyboardInterrupt  # as a kill: nobody handles it
        return original(self, at, *rest, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.Checkpoints, "save", save)
        run(workdir, targets)


@pytest.mark.slow
@pytest.mark.parametrize(("member", "step", "left"), [(1, 8, 4), (2, 4, None)])
def test_killed_between_the_saves_of_two_members_all_go_back_to_the_step_before(whole, begun, member, step, left):
    targets, outcome, _ = whole
    workdir = begun()
    killed(workdir, targets, member, step)
    again, said = run(workdir, targets)
    expected = [] if left is None else [f"student {n}: resumed at step {left}" for n in range(3)]
    assert [text for text in said if "resumed" in text] == expected
    assert files(again, targets) == files(outcome, targets)


@pytest.mark.slow
def test_a_signal_saves_all_and_one_that_was_begun_alone_ends_alone(whole, alone, begun, monkeypatch):
    targets, outcome, _ = whole
    original = Cohort.steps

    def steps(self, states, **how):
        for count, item in enumerate(original(self, states, **how), 1):
            if len(self.members) == size and count == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    monkeypatch.setattr(Cohort, "steps", steps)
    workdir, size = begun(), 3
    with pytest.raises(Interrupted, match="student 0, student 1, student 2: stopped at step 2 and saved; run the same"):
        run(workdir, targets)
    size = 0
    again, said = run(workdir, targets)
    assert [text for text in said if "resumed" in text] == [f"student {n}: resumed at step 2" for n in range(3)]
    assert files(again, targets) == files(outcome, targets)

    # Begun alone, it goes on alone; the others, which were not begun, begin as a cohort of two.
    workdir, size, one = begun(), 1, targets[:1]
    with pytest.raises(Interrupted):
        run(workdir, one)
    size = 0
    mixed, said = run(workdir, targets)
    assert said[1:] == ["[2/4] student 0", "student 0: resumed at step 2", "[3/4] 2 in one step: student 1, student 2"]
    assert files(mixed, one) == files(alone, one)


@pytest.mark.slow
def test_a_member_that_diverges_fails_alone_and_is_not_waited_for_after_a_kill(npz, alone, begun):
    targets = grid(npz, KD, dataclasses.replace(OTHERS[0], optimizer=HUGE), OTHERS[1])
    clean, said = run(begun(), targets)
    assert clean.failures.keys() == {targets[1].id} and "learning rate 1e+30" in clean.failures[targets[1].id]
    assert said[-2:] == [
        f"student 1: {clean.failures[targets[1].id]}",
        "2 others of its cohort go on without it; their numbers stay the same to rounding.",
    ]
    rest = [targets[0], targets[2]]
    for stage in rest:
        pair = [outcome.results[stage.id].logits("test")[0] for outcome in (clean, alone)]
        np.testing.assert_allclose(*pair, **CLOSE)
    workdir = begun()
    killed(workdir, targets, 2, 8)
    again, said = run(workdir, targets)
    assert "student 0: resumed at step 4" in said and again.failures == clean.failures
    assert files(again, rest) == files(clean, rest)


@pytest.mark.slow
def test_a_member_that_another_process_holds_is_left_out(npz, begun, monkeypatch):
    """Its holder may be taking all of them, so that at first nobody is begun."""
    monkeypatch.setattr(runs, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(cohort_stages, "SETTLED", 1e9)
    targets = grid(npz, *[changed(KD, alpha=alpha) for alpha in (0.2, 0.4, 0.6)], epochs=1)
    workdir, original = begun(), runs._wait
    lock, waits = checkpoints.Lock(targets[1].directory(workdir)), []

    def wait(asked, seconds):
        waits.append([stages.status(stage, workdir) for stage in targets])
        monkeypatch.setattr(cohort_stages, "SETTLED", 0.0)
        if waits[-1][0] == "done":
            lock.__exit__(None, None, None)
        original(asked, seconds)

    monkeypatch.setattr(runs, "_wait", wait)
    with lock:
        outcome, said = run(workdir, targets)
    assert waits[0] == ["missing"] * 3 and waits[-1] == ["done", "missing", "done"]
    assert len(outcome.results) == 4 and "[2/4] 2 in one step: student 0, student 2" in said

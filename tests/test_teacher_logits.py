"""A teacher's logits kept by epoch: the same bits as the live teacher's, computed once for all who see the same."""

import dataclasses

import jax
import numpy as np
import pytest

from kdjax import outputs, planning, results, runs, stages, teacher_logits, teacher_pass, teachers
from kdjax.errors import Refused
from kdjax.options import Options
from kdjax.recipes import Distill
from kdjax.settings import Settings
from kdjax.stages import Stage
from kdjax.tasks import task
from kdjax.trainer import Trainer
from tests import tiny

NOISE = (("gaussian_noise", {"sd": 0.1}),)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.npz(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def dataset(path):
    return stages.dataset(tiny.recipe(path).data)


@pytest.fixture(scope="module")
def live(path, dataset):
    made = Trainer(task(tiny.recipe(path, seed=9), dataset))
    return teachers.frozen(made.task.parts.model, jax.tree.map(np.asarray, made.init().variables))


def by_epoch(live, dataset, kept, **more):
    shape = len(dataset.train.label), dataset.num_classes
    return teachers.remembered_by_epoch(live, *shape, kept.get, kept.__setitem__, **more)


def trained(recipe, dataset, teacher, *, at=0, state=None, **settings):
    """(losses, last parameters) of a run, from a state on; or the state at step `at`."""
    trainer, losses = Trainer(task(recipe, dataset, teacher), **settings), []
    for progress in trainer.epochs(state, every=at):
        losses.append(progress.logs["loss"])
        if at and progress.step == at:
            return progress.state
    return np.concatenate(losses), jax.tree.map(np.asarray, progress.state.params)


def same(one, other):
    return np.array_equal(one[0], other[0]) and jax.tree.all(jax.tree.map(np.array_equal, one[1], other[1]))


@pytest.mark.fused
@pytest.mark.parametrize("method", ["nll", pytest.param("mixup", marks=pytest.mark.slow)])
def test_the_bits_of_the_live_teacher_read_again_composed_and_resumed(path, dataset, live, method):
    recipe, kept = dataclasses.replace(tiny.student(path, transform=NOISE), method=method), {}
    whole = trained(recipe, dataset, live)
    teacher = by_epoch(live, dataset, kept)
    assert same(trained(recipe, dataset, teacher), whole), "computed as they are needed"
    assert sorted(kept) == [0, 1] and not np.array_equal(kept[0], kept[1]), "the inputs of each epoch are others"
    assert same(trained(recipe, dataset, teacher), whole), "read again"
    assert same(
        trained(recipe, dataset, teachers.scaled(teacher, 3.0)), trained(recipe, dataset, teachers.scaled(live, 3.0))
    )
    middle = trained(recipe, dataset, teacher, at=6)
    assert same((whole[0][6:], trained(recipe, dataset, teacher, state=middle)[1]), (whole[0][6:], whole[1]))
    streamed = trained(recipe, dataset, by_epoch(live, dataset, {}), feed="streamed")
    np.testing.assert_allclose(streamed[0], whole[0], rtol=1e-5)


def test_half_the_room_within_its_rounding_and_refused_beyond_its_range(path, dataset, live):
    recipe, full, half = tiny.student(path, transform=NOISE), {}, {}
    trained(recipe, dataset, by_epoch(live, dataset, full))
    trained(recipe, dataset, by_epoch(live, dataset, half, dtype=np.float16))
    assert half[0].dtype == np.float16 and half[0].nbytes * 2 == full[0].nbytes
    assert np.nanmax(np.abs(half[0] - full[0]) - np.abs(full[0]) / 2048) <= 3e-8
    with pytest.raises(Refused, match="a logit of the teacher is 70000 and float16 ends at 65504; expected"):
        teacher_pass.narrowed(np.float32([[np.nan, 7e4]]), np.dtype(np.float16))
    with pytest.raises(Refused, match="a logit of the teacher is 100000"):
        teacher_pass.narrowed(np.float32([[-np.inf, 1e5]]), np.dtype(np.float16))
    with pytest.raises(Refused, match="expected float32 or float16"):
        by_epoch(live, dataset, {}, dtype=np.int8)
    for wrong in (by_epoch(live, dataset, {}), teachers.remembered(np.zeros((64, 4), np.float32))):
        with pytest.raises(Refused, match="remembered already"):
            by_epoch(wrong, dataset, {})
    with pytest.raises(Refused, match="remember the ensemble instead"):
        teachers.ensemble(by_epoch(live, dataset, {}), live)


def test_two_views_of_an_example_are_refused_before_anything_is_compiled(path, dataset, live):
    teacher = Stage(tiny.recipe(path), name="teacher")
    views = (("two_views", {"weak": NOISE, "strong": NOISE}),)
    student = Stage(tiny.student(path, transform=views, teacher_outputs="stored"), teacher, name="student")
    says = r"leaves indices \(32,\) and the teacher returns logits \(32, 4\); expected \(16,\) and \(16, 4\)"
    with pytest.raises(Refused, match=says):
        stages.rehearse(student)
    with pytest.raises(Refused, match=says):
        Trainer(task(student.recipe, dataset, by_epoch(live, dataset, {})))


@pytest.fixture(scope="module")
def finished(path, tmp_path_factory):
    """(work directory, students with stored and with live outputs, how often an epoch's logits were computed)."""
    workdir, counted = tmp_path_factory.mktemp("runs"), []
    with pytest.MonkeyPatch.context() as patch:
        original = teacher_pass.TeacherVariables._computed

        def computed(variables, epoch):
            counted.append(epoch)
            return original(variables, epoch)

        patch.setattr(teacher_pass.TeacherVariables, "_computed", computed)
        runs.run_all([s for pair in students(path) for s in pair], Settings(workdir=str(workdir)))
    return workdir, counted


def students(path):
    teacher = Stage(tiny.recipe(path, seed=5), name="teacher")
    for T in (1.0, 4.0):
        recipe = tiny.student(path, options=Options(T=T), transform=NOISE)
        recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, posthoc="temperature"))
        yield tuple(
            Stage(dataclasses.replace(recipe, teacher_outputs=how), teacher, name=f"T {T} {how}")
            for how in ("stored", "live")
        )


@pytest.mark.slow
@pytest.mark.fused
def test_students_share_them_in_a_work_directory_and_equal_live_ones(finished, path):
    workdir, counted = finished
    assert counted == [0, 1], "the first student computes each epoch, the second reads it"
    (first, live), (second, other) = students(path)
    assert teacher_logits.key_of(first) == teacher_logits.key_of(second) and first.id != live.id
    for stored, computed in ((first, live), (second, other)):
        for split in ("calibration", "test"):
            logits = [results.stored_logits(s.directory(workdir), split)[0] for s in (stored, computed)]
            assert np.array_equal(*logits)
    assert teacher_logits.epochs_kept(second, workdir) == 2
    for changes in (
        {"seed": 1},
        {"batch_size": 32},
        {"transform": (("gaussian_noise", {"sd": 0.2}),)},
        {"teacher_outputs": "stored:float16"},
    ):
        changed = Stage(dataclasses.replace(first.recipe, **changes), first.teacher)
        assert teacher_logits.key_of(changed) != teacher_logits.key_of(first), changes
    mixed = dataclasses.replace(first.recipe, method="mixup")
    assert teacher_logits.key_of(Stage(mixed, first.teacher)) != teacher_logits.key_of(first)


@pytest.mark.slow
@pytest.mark.fused
def test_damaged_ones_are_computed_again_and_another_keys_refused(finished, path):
    workdir, _ = finished
    (first, _), _ = students(path)
    teacher = results.teacher_of(first, workdir)
    folder = workdir / teacher_logits.FOLDER / teacher_logits.key_of(first)
    kept = teacher.by_epoch.read(0)
    file = folder / "0" / "logits.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert teacher.by_epoch.read(0) is None and teacher_logits.epochs_kept(first, workdir) == 2, "sizes are right"
    teacher.by_epoch.write(0, np.array(kept))
    assert np.array_equal(teacher.by_epoch.read(0), kept, equal_nan=True)
    (folder / "2").mkdir()
    for name in ("logits.npy", "manifest.json"):
        (folder / "2" / name).write_bytes((folder / "1" / name).read_bytes())
    with pytest.raises(Refused, match="written for epoch 1, and here is epoch 2"):
        teacher.by_epoch.read(2)
    (folder / "3").symlink_to(folder / "1")
    with pytest.raises(Refused, match="symbolic link"):
        teacher.by_epoch.write(3, np.array(kept))
    assert teacher.by_epoch.read(7) is None


def test_the_plan_counts_them_once_and_says_from_how_many_students_on_they_pay(path, tmp_path):
    pairs = list(students(path))
    stored, live = ([pair[k] for pair in pairs] for k in (0, 1))
    planned = {row.stage.name: row for row in planning.plan([*stored, *live], tmp_path)}
    (first, second), (one, _) = stored, live
    teacher_flops = planned[one.name].flops - planned[second.name].flops
    assert teacher_flops > 0 and planned[first.name].flops == planned[one.name].flops
    (line,) = planning.shared_logits(planned.values(), tmp_path)
    key = teacher_logits.key_of(first)
    assert line.startswith(
        f"Teacher logits by epoch, {tmp_path / teacher_logits.FOLDER / key}: 2 students of 'teacher'"
    )
    assert "0.002 MB" in line and "computed once instead of 2 times" in line
    (line,) = planning.shared_logits([planned[first.name]], tmp_path)
    assert line.endswith("one student alone gains nothing: type teacher_outputs=live, or plan the others with it.")


def test_what_a_recipe_says(path, dataset):
    def how(method="nll", outputs_are="auto", **changes):
        recipe = tiny.student(path, teacher_outputs=outputs_are, **changes)
        return outputs.how(dataclasses.replace(recipe, method=method), dataset)

    assert how(transform=NOISE) == "live" and how("nll", "stored", transform=NOISE) == "by epoch"
    assert how("nll", "stored:float16") == "stored" and how("mixup", "stored") == "by epoch"
    with pytest.raises(Refused, match="expected 'auto', 'live', 'stored', 'stored:float16', or 'crossfit:5'"):
        how("nll", "stored:float8")
    with pytest.raises(Refused, match=r"teacher_outputs is 'stored' and the method reads the teacher's features"):
        outputs.how(dataclasses.replace(tiny.student(path, teacher_outputs="stored"), distill=Distill("pkd")), dataset)

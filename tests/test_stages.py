"""Stages: ids are content, plans cost nothing, generations chain."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kdjax import planning, programs, results, runs, settings, stages, step
from kdjax.errors import Refused
from kdjax.stages import Stage, generations
from tests import tiny


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> str:
    return tiny.npz(tmp_path_factory.mktemp("data"))


def test_the_id_is_what_is_computed_and_nothing_else(npz, tmp_path, monkeypatch):
    recipe = tiny.recipe(npz)
    base = Stage(recipe, name="a")
    assert base.id == Stage(recipe, name="b").id and len(base.id) == 12 and int(base.id, 16) >= 0
    changed = {
        "seed": tiny.recipe(npz, seed=1),
        "epochs": tiny.recipe(npz, epochs=3),
        "method": tiny.recipe(npz, method="focal"),
        "option": tiny.recipe(npz, method="focal", options={"gamma": 2.0}),
        "split": tiny.recipe(npz, data=dataclasses.replace(recipe.data, split_seed=1)),
        "content": tiny.recipe(tiny.npz(tmp_path, seed=5)),
    }
    ids = {name: Stage(r).id for name, r in changed.items()}
    assert len({base.id, *ids.values()}) == len(ids) + 1
    # A default that is named, or a whole number for a float, is the same computation.
    assert Stage(tiny.recipe(npz, method="focal", options={"gamma": 3})).id == ids["method"]
    assert Stage(tiny.recipe(npz, method="focal", options={"gamma": 2})).id == ids["option"]
    # The same file elsewhere is the same content.
    assert Stage(tiny.recipe(tiny.npz(tmp_path, "copy.npz"))).id == base.id
    student = tiny.student(npz)
    assert Stage(student, base).id != Stage(student, Stage(changed["seed"])).id
    before = base.id
    monkeypatch.setattr(stages, "FORMAT", stages.FORMAT + 1)
    assert Stage(recipe).id != before == base.id


def test_ids_do_not_move_between_releases(npz):
    """A golden id: if it changes, every stored result is orphaned; bump FORMAT on purpose or mend the code."""
    recipe = tiny.recipe(npz)
    content = [recipe.canonical(), [], "f" * 64, 2]
    import hashlib
    import json

    digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:12]
    assert digest == "8eadda44ccdf", recipe.canonical()


def test_generations_chain(npz):
    start = Stage(tiny.recipe(npz))
    chain = generations(Stage(tiny.student(npz), start, name="s"), 3)
    assert [s.teacher for s in chain] == [None, *chain[:-1]]
    assert len({s.id for s in chain}) == 4
    assert [s.id for s in stages.order(chain)] == [s.id for s in chain]
    with pytest.raises(Refused, match="generation 0"):
        generations(start, 2)
    with pytest.raises(Refused, match="at least 1"):
        generations(Stage(tiny.student(npz), start), 0)


def test_the_plan_runs_nothing_and_tells_what_is_done(npz, tmp_path):
    teacher = Stage(tiny.recipe(npz, method="pskd"), name="teacher")
    student = Stage(tiny.student(npz), teacher, name="student")
    rows = planning.plan([student, teacher], tmp_path)
    assert [r.stage.name for r in rows] == ["teacher", "student"]
    assert [r.status for r in rows] == ["missing", "missing"] and not any(tmp_path.iterdir())
    assert rows[0].steps == 8 and rows[0].flops > 1e6
    assert rows[1].flops > rows[0].flops, "a student also pays its teacher's forward pass"
    assert rows[0].state_bytes >= 64 * tiny.CLASSES * 2, "PSKD remembers N x K"
    runs.run_all([teacher], settings.Settings(workdir=str(tmp_path), devices=1))
    rows = planning.plan([student], tmp_path)
    assert [(r.status, r.steps) for r in rows] == [("done", 0), ("missing", 8)]


def test_a_chain_from_teacher_to_student_shares_the_teacher(npz, tmp_path):
    teacher = Stage(tiny.recipe(npz))
    students = [Stage(tiny.student(npz, options={"T": t}), teacher, name=f"T={t}") for t in (1.0, 4.0)]
    outcome = runs.run_all(students, settings.Settings(workdir=str(tmp_path), devices=1)).results
    assert len(outcome) == 3 == sum(p.is_dir() for p in tmp_path.iterdir())
    for result in outcome.values():
        logits, labels = result.logits("test")
        assert logits.shape == (40, tiny.CLASSES) and logits.dtype == np.float32
        assert result.metrics["test"]["top1"] == pytest.approx((logits.argmax(1) == labels).mean())


def test_a_post_hoc_calibrated_teacher_teaches_softer(npz, tmp_path):
    teacher = Stage(tiny.recipe(npz, epochs=6))
    plain = tiny.student(npz)
    scaled = dataclasses.replace(plain, distill=dataclasses.replace(plain.distill, posthoc="temperature"))
    run = settings.Settings(workdir=str(tmp_path), devices=1)
    runs.run_all([teacher], run)
    ordinary = results.teacher_of(Stage(plain, teacher), tmp_path)
    fitted = results.teacher_of(Stage(scaled, teacher), tmp_path)
    from kdjax.types import Batch

    x = Batch(inputs=np.asarray(tiny.arrays(8, 9)[0]))
    a = np.asarray(ordinary.apply(ordinary.variables, x).logits)
    b = np.asarray(fitted.apply(fitted.variables, x).logits)
    ratio = (a[:, 0] - a[:, 1]) / (b[:, 0] - b[:, 1])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert abs(ratio[0] - 1) > 1e-3


def test_a_students_result_says_what_a_refit_leaves_and_how_faithful_it_is(npz, tmp_path):
    teacher = Stage(tiny.recipe(npz))
    student = Stage(tiny.student(npz), teacher)
    outcome = runs.run_all([student], settings.Settings(workdir=str(tmp_path), devices=1)).results
    own, theirs = outcome[student.id], outcome[teacher.id]
    found = own.metrics["test"]
    predicted, taught = (r.logits("test")[0].argmax(1) for r in (own, theirs))
    assert found["agreement"] == pytest.approx((predicted == taught).mean())
    assert found["temperature"] > 0 and found["kl_to_teacher"] >= 0 and 0 <= found["ece_refit"] <= 1
    assert "agreement" not in theirs.metrics["test"] and "temperature" not in own.metrics["calibration"]


def test_old_results_are_measured_again_when_the_metrics_have_changed(npz, tmp_path, monkeypatch):
    teacher = Stage(tiny.recipe(npz))
    student = Stage(tiny.student(npz), teacher)
    outcome = runs.run_all([student], settings.Settings(workdir=str(tmp_path), devices=1)).results
    monkeypatch.setattr(results.metrics, "evaluate", lambda logits, labels: {"ece": -1.0, "top1": 0.0})
    assert results.read(student, tmp_path).metrics == outcome[student.id].metrics, "the same code: what was stored"
    monkeypatch.setattr(results, "metrics_source_hash", lambda: "another")
    again = results.read(student, tmp_path).metrics
    assert (
        again["test"]["ece"] == -1.0 and again["test"]["agreement"] == outcome[student.id].metrics["test"]["agreement"]
    )


def test_seeds_share_a_compiled_step_that_is_dropped_after_the_last_of_them(npz, tmp_path, monkeypatch):
    """Rows of other methods between two seeds, as in a table; nothing stays when the table is done."""
    made: list[tuple[int, programs.Program]] = []
    original = step.train_step

    def train_step(**pieces):
        program = original(**pieces)
        made.append((id(pieces["students"][0].objective), program))
        return program

    monkeypatch.setattr(step, "train_step", train_step)
    rows = [tiny.recipe(npz, method=method, seed=seed, epochs=1) for seed in (0, 1) for method in ("nll", "brier")]
    programs.forget_programs()
    outcome = runs.run_all([Stage(recipe) for recipe in rows], settings.Settings(workdir=str(tmp_path), devices=1))
    assert len(outcome.results) == 4
    assert len({objective for objective, _ in made}) == 2
    # A rehearsal looks at the same program, which counts as no trace.
    assert sum(program.traces for program in {id(program): program for _, program in made}.values()) == 2
    assert not any(key[0] in ("train_step", "init_step") for key in programs._PROGRAMS)

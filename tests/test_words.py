"""Words that are typed at the tables: a slip of the keyboard ends in one sentence, and nothing is trained."""

from __future__ import annotations

import pytest

from experiments import ablation, common, correlation, cud, distill, drift, quickstart, sweep, table1, table3

MODULES = {
    "ablation": ablation,
    "correlation": correlation,
    "cud": cud,
    "digits": distill,
    "drift": drift,
    "quickstart": quickstart,
    "sweep": sweep,
    "table1": table1,
    "table3": table3,
}


TREC = ("--config.recipe.sets=('trec',)", "--config.recipe.sensitivity_set=")


@pytest.fixture(autouse=True)
def nothing_prepared(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("nothing")))


def refused(capsys, folder, name: str, *words: str) -> str:
    """The sentence of an experiment that must refuse its words."""
    module = MODULES[name]
    default = f"configs/{name if name not in ('quickstart', 'sweep') else 'digits'}.py"
    how = {"read": sweep.read} if module is sweep else {"ignored": getattr(module, "IGNORED", common.ONLY)}
    code = common.call(module.run, ["x", "--plan", f"--workdir={folder}", *words], default, **how)
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(said) == 1 and said[0].startswith("refused: "), said
    assert not any(folder.iterdir())
    return said[0]


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("digits", ["--config.recipe.student.distil.options.T=1"], "no field 'distil'; did you mean distill"),
        ("table1", ["--config.recipe.student.distil.options.T=1"], "no field 'distil'; did you mean distill"),
        ("digits", ["--config.recipe.foo.options.bar=1"], "no field 'foo'"),
        ("digits", ["--config.recipe.options.T=3"], "no field 'options'"),
        ("digits", ["--config.recipe.student.optimizer.options.T=3"], "no field 'options'"),
        ("digits", ["--config.recipe.teacher.options.gama=3"], "the method 'mdca' has no option 'gama'"),
        ("cud", ["--config=configs/cud.py:cpu", "--config.recipe.sizes.trek.options.max_length=1"], "no field 'trek'"),
        ("cud", ["--config=configs/cud.py:cpu", "--config.recipe.sizes.trec.options.max_lenght=1"], "mean max_length"),
        ("cud", [*TREC, "--config.recipe.sizes.trec.options.max_lenght=1"], "did you mean max_length"),
        ("cud", [*TREC, "--config.recipe.sizes.trec.options=5"], "sizes.trec.options is 5; expected fields, like"),
        ("cud", ["--config=configs/cud.py:cpu", "--config.recipe.sizes.trec=1"], "recipe.sizes.trec"),
        ("cud", ["--config.recipe.sets=('trek',)"], "config.recipe.sets is 'trek', which does not exist; did you mean"),
        ("sweep", ["--sweep.recipe.student.distil.options.T=1,2"], "no field 'distil'; did you mean distill"),
    ],
)
def test_a_misspelled_part_before_its_options(capsys, tmp_path, name, words, sentence):
    assert sentence in refused(capsys, tmp_path, name, *words)


@pytest.mark.parametrize(
    ("name", "other"),
    [("table1", "pairs.py:cpu"), ("ablation", "digits.py"), ("drift", "table1.py:cpu"), ("cud", "table1.py:cpu")],
)
def test_the_configuration_of_another_experiment(capsys, tmp_path, name, other):
    said = refused(capsys, tmp_path, name, f"--config=configs/{other}")
    assert "which this experiment reads" in said and f"Type --config=configs/{name}.py" in said


def test_a_list_that_is_typed_twice(capsys, tmp_path):
    said = refused(capsys, tmp_path, "digits", "--config.seeds=(0,1,2)", "--config.seeds=(3,)")
    assert "--config.seeds is typed 2 times; expected once, with all values: --config.seeds=(3,)" in said
    # Of one number the last counts, as everywhere.
    given = ["x", "--config.recipe.student.epochs=3", "--config.recipe.student.epochs=4"]
    assert common.command.read(given, default="configs/digits.py").config.recipe.student.epochs == 4

"""Odd flags and files at the door: one sentence, exit code 2, and nothing compiled."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from configs import digits
from experiments import calibrate, common, distill, loading, quickstart
from kdjax import console, data, transforms, workers
from kdjax.errors import Refused
from kdjax.options import Options
from kdjax.parts import parts
from kdjax.recipes import Data, Distill, Optimizer, Recipe, from_dict
from kdjax.runs import run_all
from kdjax.stages import Stage
from tests import tiny
from tests.processes import ROOT, environment


def refused(*flags: str, cwd=ROOT) -> str:
    """The sentence of a command that must be refused, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.distill", "--plan", *flags],
        cwd=cwd,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr and lines[-1].startswith("refused: "), done.stderr
    return lines[-1]


@pytest.mark.parametrize(
    ("module", "flag", "sentence"),
    [
        (distill, "--config.seeds=()", "config.seeds is (); expected one or more different ints"),
        (distill, "--config.seeds=(0,0)", "config.seeds is (0, 0); expected one or more different ints"),
        (distill, "--config.recipe.data.noise=nan", "noise is nan"),
        (distill, "--config=configs/base.py", "a file without get_config"),
        (distill, "--config=", "--config names no file; expected a configuration such as configs/digits.py"),
        (distill, "--config=configs", "--config names no file"),
        (distill, "--config.recipe.student.epoch=3", "did you mean epochs"),
        (distill, "--config=configs/digits.py:mdcaa", "did you mean mdca"),
        (distill, "--config=configs/nothing.py", "configs/nothing.py does not exist"),
        (distill, "--config.recipe.student.distill.alpha=1.5", "alpha is 1.5; expected a number in [0, 1]"),
        (distill, "--config.recipe.student.distill.options.T=0.0", "T is 0.0"),
        (distill, "--config.recipe.student.epochs=many", "many"),
        (distill, "--confg=x", "confg"),
        (distill, "extra", "'extra' is no flag"),
        (distill, "--distributed=host", "expected auto, or the coordinator's HOST:PORT"),
        (distill, "--distributed=host:1,2", "expected auto, or the coordinator's HOST:PORT"),
        (distill, "--distributed=host:1,2,2", "expected auto, or the coordinator's HOST:PORT"),
        (distill, "--config.run.devices=64", "run.devices is 64, and"),
        (distill, "--config.recipe.student.batch_size=7000", "7000"),
        (distill, "--config.recipe.generations=3", "only experiments.generations counts generations"),
        (calibrate, "--config=configs/digits.py:kd", "'kd' in the config string would change nothing here"),
        (calibrate, "--config=configs/digits.py:conv,mdca,conv_tiny", "'conv_tiny' in the config string would change"),
        (calibrate, "--config.recipe.student.epochs=3", "trains the teacher alone"),
        (quickstart, "--config.recipe.temperatures=()", "config.recipe.temperatures is ()"),
        (quickstart, "--config.recipe.student.distill.method=", "set config.recipe.student.distill.method"),
        (quickstart, "--config.recipe.student.distill.options.T=2.0", "compares the temperatures"),
    ],
)
def test_flags_are_refused_in_a_sentence(tmp_path, capsys, module, flag, sentence):
    ignored = getattr(module, "IGNORED", common.ONLY)
    words = ["x", "--plan", f"--workdir={tmp_path}", flag]
    assert common.call(module.run, words, "configs/digits.py", ignored=ignored) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert sentence in errors[-1] and errors[-1].startswith("refused: ") and len(errors) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("values", [(), (1.0, 1.0), ("a",), (True,)])
def test_settings_that_are_compared_are_distinct_numbers(values):
    config = digits.get_config()
    with config.unlocked():
        config.recipe.temperatures = values
    with pytest.raises(Refused, match="config.recipe.temperatures is .*; expected one or more different floats"):
        quickstart.rows(config)
    common.distinct("it", (1, 4.0), float)


def test_configs_are_found_from_any_directory(tmp_path):
    """An installed project is used from elsewhere: the default and every `configs/...` are the project's own."""
    assert "'mdcaa' in the config string" in refused("--config=configs/digits.py:mdcaa", cwd=tmp_path)


def test_a_config_of_the_current_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loading.located("configs/digits.py") == ROOT / "configs" / "digits.py"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").touch()
    for path in ("configs/digits.py", "configs/nothing.py", "mine.py"):
        assert str(loading.located(path)) == path


STEPS = {"schedule": "multistep", "lr": 0.1}
CASES = {
    "learning rate": (lambda: {"optimizer": Optimizer(lr=float("nan"))}, "lr is nan; expected a number in"),
    "infinite": (lambda: {"optimizer": Optimizer(lr=float("inf"))}, "lr is inf; expected a finite number"),
    "option": (lambda: {"method": "mdca", "options": {"beta": float("nan")}}, r"beta is nan"),
    "noise": (lambda: {"data": Data(noise=float("inf"))}, r"data\.noise is inf; expected a finite number"),
    "late milestone": (
        lambda: {"optimizer": Optimizer(milestones=(100.0,), **STEPS)},
        r"the 'mlp' recipe's optimizer.milestones is \(100.0,\) and its epochs is 2; expected epochs in \(0, 2\)",
    ),
    "late milestones of a student": (
        lambda: {"optimizer": Optimizer(milestones=(100.0, 150.0), **STEPS), "distill": Distill("kd")},
        r"the student's optimizer.milestones is \(100.0, 150.0\) .* to \(1.0, 1.5\) perhaps",
    ),
    "early milestone": (
        lambda: {"optimizer": Optimizer(milestones=(-1.0,), **STEPS)},
        r"milestones is -1.0; .* in \(0, 2\)",
    ),
    "warm-up": (
        lambda: {"optimizer": Optimizer(warmup_epochs=9.0)},
        r"warmup_epochs is 9.0; expected a number in \[0, 2\)",
    ),
    "distiller": (lambda: {"method": "kd"}, "'kd' is a distiller and stands where a calibrator is expected"),
}


@pytest.mark.parametrize("case", CASES)
def test_recipes_are_refused_in_the_units_they_are_written_in(case):
    changes, sentence = CASES[case]
    with pytest.raises(Refused, match=sentence):
        tiny.recipe("", **changes())


def test_a_recipe_that_is_not_finite_has_no_id():
    with pytest.raises(Refused, match=r"optimizer\.lr is nan"):
        tiny.recipe("", optimizer=Optimizer(lr=float("nan"))).canonical()


def test_weights_of_zero_are_refused():
    recipe = tiny.student("")
    with pytest.raises(Refused, match=r"distill.weights is \(0.0, 0.0\), a loss of zero"):
        dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, weights=(0.0, 0.0)))


def test_transforms_take_options_through_a_recipe():
    """A recipe is hashed, so it holds Options where JSON and Python have a dict."""
    recipe = from_dict(Recipe, {"transform": [["pad_crop", {"padding": 2}], "flip"], "batch_size": 16})
    assert recipe.transform == (("pad_crop", Options(padding=2)), "flip")
    own = data.from_arrays(train=tiny.arrays(40, 0), test=tiny.arrays(8, 1), num_classes=tiny.CLASSES)
    assert parts(recipe, own).transform is parts(recipe, own).transform
    assert transforms.build((("pad_crop", (("padding", 2),)),))
    with pytest.raises(Refused, match="has no option 'paddin'; did you mean padding"):
        transforms.build((("pad_crop", (("paddin", 2),)),))


def test_an_unreadable_npz_is_not_answered_by_advice_to_unpickle_it(tmp_path):
    path = tmp_path / "junk.npz"
    path.write_bytes(b"hello")
    with pytest.raises(Refused, match="is not an .npz of plain arrays; expected a file written by np.savez") as found:
        data.load("arrays", path=str(path), num_classes=2)
    assert "allow_pickle" not in str(found.value)


def test_a_path_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(Refused, match="there is no file"):
        data.load("arrays", path=os.fspath(tmp_path), num_classes=2)
    np.savez(tmp_path / "one.npz", inputs=np.ones((3, 4), np.float32), label=np.zeros(3, np.int64))
    with pytest.raises(Refused, match="does not say how many classes"):
        data.load("arrays", path=str(tmp_path / "one.npz"))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Stage("teacher", Recipe()), r"got a str as recipe; type Stage\(Recipe\(...\), name='teacher'\)"),
        (lambda: Stage(Recipe(), "teacher"), "got a str as teacher"),
        (lambda: Stage(Recipe(), as_soft_as=Recipe()), "got a Recipe as as_soft_as"),
        (lambda: run_all([Stage(Recipe())], "runs"), r"got a str as settings; type kdjax.Settings\(workdir='runs'\)"),
        (lambda: workers.run_all([Stage(Recipe())], "runs", console.Silent(), 2), "got a str as settings"),
    ],
)
def test_arguments_in_another_order_are_refused(call, sentence):
    with pytest.raises(Refused, match=sentence):
        call()

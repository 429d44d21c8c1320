"""`python -m experiments.prepare`, with the download replaced: no network, no TensorFlow."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from experiments.prepare import main
from tests.data import tiny

SPLITS = {"train": [tiny.arrays(30, 0), tiny.arrays(10, 1)], "test": [tiny.arrays(15, 2)]}


class FakeBuilder:
    """Stands for tfds's builder; records how it was asked."""

    calls: list = []  # noqa: RUF012

    def __init__(self, name, *, data_dir, file_format):
        self.asked = (name, data_dir, file_format)

    def download_and_prepare(self):
        FakeBuilder.calls.append(self.asked)
        tiny.write(Path(self.asked[1]), splits=SPLITS)


@pytest.fixture
def tensorflow(monkeypatch):
    """Pretends that TensorFlow is installed (or, called with False, that it is not)."""
    genuine = importlib.util.find_spec

    def pretend(installed):
        spec = genuine("json") if installed else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: spec if name == "tensorflow" else genuine(name, *rest)
        )

    monkeypatch.setattr(tfds, "builder", FakeBuilder)
    FakeBuilder.calls = []
    pretend(True)
    return pretend


def test_prepares_once_and_verifies(tensorflow, tmp_path, capsys):
    arguments = ["tiny", "--data_dir", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "tiny prepared, verified: 36 train, 4 calibration, 15 test examples in 3 classes; fingerprint " in first
    assert FakeBuilder.calls == [("tiny", str(tmp_path / "data"), "array_record")]
    tensorflow(False)  # what is prepared needs no TensorFlow any more
    assert main(arguments) == 0
    second = capsys.readouterr().out
    assert "was there already" in second and second.split()[-1] == first.split()[-1]
    assert len(FakeBuilder.calls) == 1


def test_absent_tensorflow_is_said_in_one_sentence(tensorflow, tmp_path, capsys):
    tensorflow(False)
    assert main(["tiny", "--data_dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "needs TensorFlow" in captured.err and "pip install 'kdjax[prepare]'" in captured.err
    assert FakeBuilder.calls == [] and list(tmp_path.iterdir()) == []


def test_failures_have_their_exit_codes(tensorflow, tmp_path, monkeypatch, capsys):
    tiny.write(tmp_path / "old", splits=SPLITS, file_format="tfrecord")
    assert main(["tiny", "--data_dir", str(tmp_path / "old")]) == 2
    assert "prepared as tfrecord" in capsys.readouterr().err and FakeBuilder.calls == []

    def offline(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(FakeBuilder, "download_and_prepare", offline)
    assert main(["tiny", "--data_dir", str(tmp_path / "new")]) == 74
    assert "could not be downloaded or written: no route to host" in capsys.readouterr().err


def test_command_line(tmp_path):
    tiny.write(tmp_path / "data", splits=SPLITS)
    command = [sys.executable, "-m", "experiments.prepare", "tiny", "--data_dir", str(tmp_path / "data")]
    done = subprocess.run(
        [*command, "--cache_dir", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.startswith("prepare: tiny was there already, verified: 36 train")

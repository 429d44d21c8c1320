"""Numbers that were changed after they were measured: found where they are read, whoever made the file look whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments import results, stored
from kdjax import report, runs
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A work directory with one finished stage and the JSON of its table."""
    folder = tmp_path_factory.mktemp("runs")
    stage = Stage(tiny.recipe(tiny.npz(folder)))
    done = runs.run_all([stage], Settings(workdir=str(folder), devices=1))
    row = report.Row("teacher", [dict(done.results[stage.id].metrics["test"])])
    content = {"command": "python -m experiments.x", "rows": [row._asdict()], "stages": {"teacher": [stage.id]}}
    stored.write(folder / "results.json", content)
    return folder


def test_a_table_as_it_was_written_is_read(finished):
    assert stored.read(finished / "results.json")["rows"][0]["name"] == "teacher"


@pytest.mark.parametrize("sealed", [True, False])
def test_an_edited_value_is_refused(finished, tmp_path, sealed):
    """Also where the file's own hash was made to fit: the logits are there."""
    folder = shutil.copytree(finished, tmp_path / "runs")
    content = stored.read(folder / "results.json")
    content["rows"][0]["metrics"][0]["ece"] = 0.001
    if sealed:
        stored.write(folder / "results.json", content)
        sentence = (
            r"says ece 0\.001 for 'teacher', and the logits of stage \w+ say 0\.\d+; run its command again: python"
        )
    else:
        path = folder / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "rows": content["rows"]}))
        sentence = "was changed after the experiment wrote it; run its command again: python -m experiments.x"
    with pytest.raises(Refused, match=sentence):
        stored.read(folder / "results.json")


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": 3}', '{"rows": []}', '{"rows": [], "sha256": 0}'])
def test_a_file_that_no_experiment_wrote_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(Refused, match="holds no rows|was changed after"):
        stored.read(tmp_path / "x.json")


def test_the_published_results_are_as_they_were_written():
    for path in sorted(results.STORE.glob("*.json")):
        if "rows" in json.loads(path.read_text()):
            assert stored.read(path)["rows"]

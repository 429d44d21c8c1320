"""Data sets from outside the package: by name, with their options, and with their code in the fingerprint."""

import importlib.util
import sys

import numpy as np
import pytest

from kdjax import data
from kdjax.errors import Refused
from kdjax.source_code import source_version

MODULE = """
import numpy as np
from kdjax import data

OFFSET = {offset}


def source(*, path=None, length=6):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (50, length))
    text = {{"ids": ids, "mask": ids > 5}}
    more = {{"ids": ids[:9] + 50, "mask": ids[:9] > 5}}
    names = np.array(["no", "yes"])[np.arange(50) % 2]
    return data.as_source("toy_text", {{"train": (text, names), "test": (more, names[:9])}}, None)
"""


@pytest.fixture
def module(tmp_path):
    def make(offset, name="toy"):
        path = tmp_path / f"{name}_{offset}.py"
        path.write_text(MODULE.format(offset=offset))
        spec = importlib.util.spec_from_file_location(name, path)
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
        return made

    yield make
    for name in ("toy_text", "toy_images"):
        data.SOURCES.pop(name, None)
        data._VERSIONS.pop(name, None)


def test_a_registered_set_is_loaded_with_its_options(module):
    data.register("toy_text", module(0).source)
    loaded = data.load("toy_text", length=4, class_weight="balanced", split_seed=1)
    assert loaded.kind == "text" and loaded.train.inputs["ids"].shape == (45, 4) and loaded.label_names == ("no", "yes")
    assert data.options_of("toy_text") == {"path", "length"} and len(data.version("toy_text")) == 64
    for options, sentence in [
        ({"lenght": 4}, "has no option 'lenght'; did you mean length"),
        ({"noise": 1.0}, "data set 'toy_text' has no such option"),
    ]:
        with pytest.raises(Refused, match=sentence):
            data.load("toy_text", **options)


def test_changed_code_is_another_data_set(module):
    prints = []
    for offset in (0, 0, 1):
        data.register("toy_text", module(offset).source)
        prints.append(data.load("toy_text").fingerprint)
    assert prints[0] == prints[1] != prints[2]
    data.register("toy_text", module(1).source, version="1.0")
    assert data.version("toy_text") == "1.0" and data.version("digits") == ""
    with pytest.raises(Refused, match="data set 'toy_text' exists already"):
        data.register("toy_text", module(1, name="another").source)


def test_refusals(module):
    source = module(0).source
    for arguments, sentence in [
        (("digits", source), "data set 'digits' exists already"),
        (("my set", source), "registered as 'my set'"),
        (("toy_text", 3), "registered with 3"),
        (("toy_text", source, 1), "version of data set 'toy_text' is 1"),
        (("toy_text", np.sum.__call__), "the source code of data set 'toy_text' cannot be found"),
    ]:
        with pytest.raises(Refused, match=sentence):
            data.register(*arguments)
    data.register("toy_images", lambda: (1, 2), version="1")
    with pytest.raises(Refused, match="returned a tuple; expected a kdjax.data.Source"):
        data.load("toy_images")


def test_the_version_of_a_function_is_that_of_its_module(module):
    first, second = module(0, name="first"), module(1, name="second")
    assert source_version("it", first.source) != source_version("it", second.source)
    assert source_version("it", first.source) == source_version("it", module(0, name="third").source)

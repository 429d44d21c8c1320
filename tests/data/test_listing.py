"""Images listed in a table, with names, splits and weights."""

import warnings

import numpy as np
import pytest
from PIL import Image

from kdjax.data import load
from kdjax.errors import Refused

RNG = np.random.default_rng(0)
NAMES = ("cat", "dog", "eel")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(30):
        Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def table(folder, header="path,label", row=lambda i: f"photos/{i}.png,{NAMES[i % 3]}", n=30, name="mine.csv"):
    (folder / name).write_text("\n".join([header, *(row(i) for i in range(n))]) + "\n", encoding="utf-8-sig")
    return {"path": folder / name, "cache_dir": folder / "cache"}


def test_names_are_numbered_and_a_fifth_is_for_testing(folder):
    one, two = (load("files", **table(folder), feed=feed) for feed in ("resident", "streamed"))
    assert one.label_names == NAMES and one.fingerprint == two.fingerprint
    assert [np.bincount(s.label).tolist() for s in one[2:5]] == [[7] * 3, [1] * 3, [2] * 3]
    np.testing.assert_array_equal(one.train.inputs, two.train.inputs.gather(np.arange(21)))


def test_splits_weights_and_numbers(folder):
    splits = ["train"] * 20 + ["val"] * 4 + ["test"] * 6
    where = table(folder, "label,path,weight,split", lambda i: f'{i % 2},"photos/{i}.png",{i + 1},{splits[i]}')
    data = load("files", **where, num_classes=2)
    assert [len(split.label) for split in data[2:5]] == [20, 4, 6]
    np.testing.assert_array_equal(data.train.weight, np.arange(20) + 1)
    np.testing.assert_array_equal(data.test.weight, np.arange(25, 31))
    assert len(load("files", **where, num_classes=2, test_examples=4).test.label) == 4
    assert np.asarray(Image.open(folder / "photos" / "24.png")).tolist() == data.test.inputs[0].tolist()


def test_parquet_is_the_same(folder):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    columns = {"path": [f"photos/{i}.png" for i in range(30)], "label": [NAMES[i % 3] for i in range(30)]}
    parquet.write_table(pyarrow.table({**columns, "more": list(range(30))}), folder / "mine.parquet")
    with pytest.warns(UserWarning, match="also holds 'more', which nothing uses"):
        data = load("files", path=folder / "mine.parquet", cache_dir=folder / "cache")
    assert data.fingerprint == load("files", **table(folder)).fingerprint
    spaced = {**columns, "label": [f"{name}{' ' * (i % 2)}" for i, name in enumerate(columns["label"])]}
    parquet.write_table(pyarrow.table(spaced), folder / "mine.parquet")
    assert load("files", path=folder / "mine.parquet", cache_dir=folder / "cache").label_names == NAMES
    parquet.write_table(pyarrow.table({**columns, "label": [1.0] * 29 + [np.nan]}), folder / "mine.parquet")
    with pytest.raises(Refused, match="has no label in row 30; fill it in"):
        load("files", path=folder / "mine.parquet")
    (folder / "mine.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(Refused, match="cannot be read as Parquet"):
        load("files", path=folder / "mine.parquet")


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"header": "file,label"}, r"has the columns file, label and lacks path; "),
        ({"header": "path,label,more"}, "2 values in row 1 and 3 columns"),
        ({"header": "path,path"}, "a column twice"),
        ({"n": 0}, "a header and no rows"),
        ({"row": lambda i: f"photos/{i}.png,"}, "no label in row 1"),
        ({"row": lambda i: f"photos/{i}.png,{i % 3}"}, "does not say how many classes"),
        ({"row": lambda i: f"absent/{i}.png,{'--1' if i % 2 else '1'}"}, r"absent/\d+.png cannot be read"),
        ({"row": lambda i: f"absent/{i}.png,{NAMES[i % 3]}"}, r"absent/\d+.png cannot be read .No such file"),
        ({"row": lambda i: f"photos/{i}\0.png,{NAMES[i % 3]}"}, "cannot be read"),
        (
            {"header": "path,label,split", "row": lambda i: f"photos/{i}.png,{NAMES[i % 3]},trian"},
            "split named 'trian'; did you mean train",
        ),
        (
            {"header": "path,label,split", "row": lambda i: f"photos/{i}.png,{NAMES[i % 3]},train"},
            "no row whose split is test",
        ),
        (
            {"header": "path,label,weight", "row": lambda i: f"photos/{i}.png,{NAMES[i % 3]},much"},
            "a weight that is no number",
        ),
        ({"name": "mine.txt"}, "neither .csv nor .parquet"),
        ({"row": lambda i: f"photos/{i}.png,class {i}"}, "each of the 30 examples in .* is alone in its class"),
        (
            {"row": lambda i: f"absent/{i}.png,{NAMES[i % 3]}", "skip_bad": True},
            r"none of the 24 train images can be read .*, the first is absent/0\.png in ",
        ),
        (
            {
                "header": "path,label,split",
                "row": lambda i: (
                    f"{'photos' if i < 20 else 'a'}/{i}\0.png,{NAMES[i % 3]},{'train' if i < 20 else 'test'}"
                ),
                "skip_bad": True,
            },
            "none of the 20 train images can be read",
        ),
        (
            {
                "header": "path,label,split",
                "row": lambda i: (
                    f"{'photos' if i < 20 else 'a'}/{i}.png,{NAMES[i % 3]},{'train' if i < 20 else 'test'}"
                ),
                "skip_bad": True,
            },
            "none of the 10 test images can be read",
        ),
    ],
)
def test_refused(folder, form, sentence):
    form, options = dict(form), {}
    if "skip_bad" in form:
        options["skip_bad"] = form.pop("skip_bad")
    with pytest.raises(Refused, match=sentence) as refusal:
        load("files", **table(folder, **form), **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name, meant", [("Split", "split"), ("weights", "weight"), ("Labels", "label")])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_that_is_nearly_one_of_ours_is_refused(folder, name, meant, ending):
    where = table(folder, f"path,label,{name}", lambda i: f"photos/{i}.png,{NAMES[i % 3]},1")
    if ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        where["path"] = folder / "mine.parquet"
        parquet.write_table(pyarrow.table({"path": ["photos/0.png"], "label": ["cat"], name: ["1"]}), where["path"])
    with pytest.raises(Refused, match=f"has a column '{name}', .*expected {meant}, .*: rename it"):
        load("files", **where)


def test_columns_that_nothing_reads_are_named(folder):
    where = table(folder, "path,author,label", lambda i: f"photos/{i}.png,somebody,{NAMES[i % 3]}")
    with pytest.warns(UserWarning, match="also holds 'author', which nothing uses"):
        load("files", **where)
    index = table(folder, ",path,label", lambda i: f"{i},photos/{i}.png,{NAMES[i % 3]}")
    with warnings.catch_warnings(action="error", category=UserWarning):
        load("files", **index)


def test_files_that_are_no_tables(folder):
    (folder / "latin.csv").write_bytes(b"path,label\nphotos/0.png,k\xe4fer\n")
    with pytest.raises(Refused, match="cannot be read as CSV"):
        load("files", path=folder / "latin.csv")
    for path, sentence in ((None, "needs a table"), (3, "data.path is 3"), (folder, "there is no file")):
        with pytest.raises(Refused, match=sentence):
            load("files", path=path)

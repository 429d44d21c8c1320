"""Every wrong file gets one sentence that says what to do; nothing is executed, inflated or written."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdjax.cli import main
from kdjax.cli.predictions import How, read
from kdjax.errors import Refused
from tests.cli import files
from tests.cli.files import LABELS, LOGITS, PROBS, K, N, header, npz, probabilities, safetensors, sparse, table


def raw(path, data):
    path.write_bytes(data)
    return path


def torn(path):
    npz(path, logits=LOGITS, labels=LABELS)
    return raw(path, path.read_bytes()[:-100])


def twice(path):
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("logits.npy", header("(1, 2)") + bytes(16))
    return path


def changed(path):
    """A flipped byte in the array's data."""
    data = bytearray(npz(path, logits=LOGITS, labels=LABELS).read_bytes())
    data[400] ^= 255
    return raw(path, bytes(data))


def objects(path):
    np.save(path, np.array([[files.Executed(path.parent / "executed"), 1.0]], dtype=object), allow_pickle=True)
    return path


def spoiled(row, value, base=LOGITS):
    array = base.copy()
    array[row, 1] = value
    return array


def beside(path, head, column, scores=PROBS):
    """A table of scores with one more column of numbers."""
    rows = [[*s, one, y] for s, one, y in zip(scores, column, LABELS, strict=True)]
    return table(path, ["p_cat", "p_dog", "p_cow", head, "label"], rows)


WRONG = {
    "empty.csv": (lambda p: raw(p, b""), "is empty; save the predictions again"),
    "empty.npz": (lambda p: raw(p, b""), "is empty"),
    "heading.csv": (lambda p: table(p, ["p_a", "p_b", "label"], []), "empty but for its heading"),
    "no_examples.npz": (lambda p: npz(p, logits=LOGITS[:0], labels=LABELS[:0]), r"shape \[0, 3\], and so no example"),
    "nan.npz": (lambda p: npz(p, logits=spoiled(7, np.nan), labels=LABELS), "example 7 .* holds NaN; drop the example"),
    "inf.npz": (lambda p: npz(p, logits=spoiled(7, np.inf), labels=LABELS), "example 7 .* an infinity"),
    "nan.csv": (lambda p: probabilities(p, probs=spoiled(3, np.nan, PROBS)), "example 3 .* holds NaN"),
    "one_class.npz": (lambda p: npz(p, logits=LOGITS, labels=0 * LABELS), "every label is class 0; .*several classes"),
    "one_column.npy": (lambda p: raw(p, header("(3, 1)") + bytes(24)), r"one column of scores; .*np.stack"),
    "one_axis.npz": (lambda p: npz(p, probs=PROBS[:, 0], labels=LABELS), "one column of scores"),
    "labels_short.npz": (lambda p: npz(p, logits=LOGITS, labels=LABELS[:-1]), "60 examples and 59 labels"),
    "sums.csv": (lambda p: probabilities(p, probs=spoiled(5, 0.0, PROBS) * 0.9), r"sums to .* and not to 1"),
    "percent.csv": (lambda p: probabilities(p, probs=100 * PROBS), "percentages .*; divide them by 100"),
    "sigmoid.npz": (lambda p: npz(p, probs=1 / (1 + np.exp(-LOGITS)), labels=LABELS), "sigmoid outputs?"),
    "float_labels.npz": (lambda p: npz(p, logits=LOGITS, labels=LABELS * 1.0), r"labels are float64 .*astype\(int\)"),
    "soft_labels.npz": (lambda p: npz(p, logits=LOGITS, labels=LABELS * 0.3), "regression target"),
    "float_labels.csv": (lambda p: probabilities(p, labels=LABELS * 1.0), "labels are float64"),
    "one_hot.npz": (lambda p: npz(p, logits=LOGITS, labels=np.eye(K)[LABELS]), r"labels.argmax\(axis=1\)"),
    "strange_string.csv": (
        lambda p: probabilities(p, labels=np.where(LABELS == 1, "do\x1bg", "cat")),
        r"'do\\x1bg' names no class \(the classes are cat, dog, cow\)",
    ),
    "unnamed_strings.npz": (
        lambda p: npz(p, logits=LOGITS, labels=np.where(LABELS == 1, "b", "a")),
        "there are 3 classes without names",
    ),
    "negative.npz": (lambda p: npz(p, logits=LOGITS, labels=LABELS - 1), "label -1 of example .* expected 0 to 2"),
    "beyond.npz": (lambda p: npz(p, logits=LOGITS, labels=LABELS + 2), "label 4 of example"),
    "zero_and_k.npz": (lambda p: npz(p, logits=LOGITS, labels=np.arange(N) % 4), r"label 3 .*\(or 1 to 3\)"),
    "objects.npy": (objects, "holds Python objects, whose pickle could run code"),
    "pickle.pkl": (
        lambda p: raw(p, pickle.dumps(files.Executed(p.parent / "executed"))),
        r"is a pickle, .*np.savez",
    ),
    "pickle.npy": (lambda p: raw(p, pickle.dumps(files.Executed(p.parent / "executed"))), "not a NumPy array"),
    "model.pt": (lambda p: raw(p, b"PK"), "is a pickle"),
    "code.npy": (lambda p: raw(p, header("__import__('os').abort()")), "not a NumPy array that can be read"),
    "structured.npy": (lambda p: np.save(p, np.zeros(3, [("a", "f8")])) or p, "expected numbers"),
    "torn.npz": (torn, "not a whole .npz file"),
    "torn.npy": (lambda p: raw(p, header("(60, 3)") + bytes(99)), "is cut off after"),
    "changed.npz": (changed, "'logits' is (damaged|not a NumPy array)"),
    "twice.npz": (twice, "holds the array 'logits' twice"),
    "bomb.npz": (lambda p: files.bomb(p), "would inflate .* times to 0.3 GiB"),
    "lying_bomb.npz": (files.lying_bomb, r"takes 14.9 GiB, and at most 4 are read; .*--max-gb 15"),
    "huge_zip.npz": (lambda p: sparse(p, b"PK\x03\x04", 10 * 2**30), "not a whole .npz file"),
    "sparse.npy": (lambda p: sparse(p, header("(10000000, 134)"), 10 * 2**30), "takes 10.0 GiB"),
    "sparse.csv": (lambda p: sparse(p, b"p_a,p_b,label\n", 10 * 2**30), "takes 10.0 GiB"),
    "sparse.safetensors": (lambda p: sparse(p, bytes(8), 10 * 2**30), "not readable as safetensors"),
    "torn.safetensors": (
        lambda p: safetensors(p, {"logits": {"dtype": "F32", "shape": [60, 3], "data_offsets": [0, 720]}}, bytes(9)),
        "not readable as safetensors",
    ),
    "torn.parquet": (lambda p: raw(p, b"PAR1" + bytes(50) + b"PAR1"), "not readable as Parquet"),
    "text.csv": (
        lambda p: table(p, ["p_a", "p_b", "label"], [[0.5, 0.5, 0]] * 300 + [[0.5, "half", 1]]),
        "line 302, column 'p_b', holds 'half'; expected a number",
    ),
    "ragged.csv": (
        lambda p: table(p, ["p_a", "p_b", "label"], [[0.5, 0.5, 0], [0.5, 0.5]]),
        "line 3, has 2 cells; expected 3",
    ),
    "comma.csv": (
        lambda p: raw(p, b'p_a;p_b;label\n"0,5";"0,5";0\n'),
        "no columns of numbers besides the labels; its columns: p_a, p_b, label",
    ),
    "binary.csv": (lambda p: raw(p, b"a,b\n\x00\x01\x02,1\n"), "not a table of text"),
    "latin.csv": (lambda p: raw(p, "p_é,p_b,label\n0.5,0.5,0\n".encode("latin-1")), "not UTF-8 text"),
    "no_heading.csv": (lambda p: raw(p, b"0.5,0.5\n0.4,0.6\n"), "holds no labels .*; type --labels"),
    "no_labels.npy": (lambda p: np.save(p, LOGITS) or p, "holds no labels .*; type --labels"),
    "two_labels.csv": (
        lambda p: table(p, ["p_a", "p_b", "label", "target"], [[0.5, 0.5, 0, 0]]),
        "several columns that may be the labels .*--labels label",
    ),
    "prediction.csv": (lambda p: beside(p, "pred", PROBS.argmax(1)), "column 'pred' of numbers, .*type --scores with"),
    "image.csv": (
        lambda p: beside(p, "image_id", np.arange(N), LOGITS),
        "column 'image_id' of numbers, which may be no",
    ),
    "beside.csv": (
        lambda p: beside(p, "seconds", np.arange(N) + 7.0),
        "without the column 'seconds' every row is a prob",
    ),
    "zero_one.csv": (lambda p: raw(p, b"0,1\n1,0\n0,1\n"), "begins with the line 0,1, which may be a heading or an ex"),
    "which.npz": (lambda p: npz(p, a=LOGITS, b=LOGITS), r"which are the scores\? Type --scores NAME"),
    "same_name.csv": (lambda p: table(p, ["p", "p", "label"], [[0.5, 0.5, 0]]), "names the column 'p' twice"),
    "picture.png": (lambda p: raw(p, b"\x89PNG"), r"ends in '.png'; expected one of .npy"),
    "folder.csv": (lambda p: p.mkdir() or p, "is a directory"),
    "absent.csv": (lambda p: p, "does not exist"),
}


@pytest.mark.parametrize("command", ["audit", "calibrate"])
@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(name, command, tmp_path, monkeypatch, capsys):
    make, sentence = WRONG[name]
    path = make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["audit", str(path)] if command == "audit" else ["calibrate", "--fit", str(path)]) == 2
    out, err = capsys.readouterr()

    assert re.search(sentence, err), err
    assert out == "" and err.count("\n") == 1 and len(err) < 500 and "Traceback" not in err and "\x1b" not in err
    assert sorted(tmp_path.iterdir()) == before, "something was executed or written"


CALIBRATE = {
    "few": (lambda p: npz(p, logits=LOGITS[:20], labels=LABELS[:20]), [], "20 examples; expected at least 50"),
    "-inf": (lambda p: npz(p, logits=spoiled(7, -np.inf), labels=LABELS), [], "logits of -inf; .*-100 excludes"),
    "method": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--methods=temprature"], "did you mean temperature"),
    "out": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--out=x.txt"], "expected a name that ends in .json"),
    "folder": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--out=no/x.json"], "does not exist; make it first"),
    "test is fit": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--test=x.npz"], "hold the same examples"),
    "test of other K": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--test=y.npz"], "has 3 classes .* has 2"),
    "flag": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--bin=3"], "unrecognized arguments: --bin=3; see kdjax"),
    "import": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--import=no_such"], "no module of that name"),
    "import file": (
        lambda p: npz(p, logits=LOGITS, labels=LABELS),
        ["--import=./my.py"],
        "is './my.py'; expected the name of a module: type --import=my\\.$",
    ),
    "import nothing": (
        lambda p: npz(p, logits=LOGITS, labels=LABELS),
        ["--import="],
        "is ''; expected .* such as my_m",
    ),
    "import above": (lambda p: npz(p, logits=LOGITS, labels=LABELS), ["--import=../x"], "is '../x'; .* such as my_m"),
    "import raises": (
        lambda p: (p.parent / "broken_import.py").write_text("1 / 0") and npz(p, logits=LOGITS, labels=LABELS),
        ["--import=json,broken_import"],
        "--import=broken_import failed in broken_import.py, line 1, with ZeroDivisionError",
    ),
    "import no Python": (
        lambda p: (p.parent / "broken_syntax.py").write_text("def") and npz(p, logits=LOGITS, labels=LABELS),
        ["--import=broken_syntax"],
        "--import=broken_syntax failed with SyntaxError",
    ),
}


@pytest.mark.parametrize("case", CALIBRATE)
def test_calibrate_refuses(case, tmp_path, monkeypatch, capsys):
    make, more, sentence = CALIBRATE[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.npz")
    npz(tmp_path / "y.npz", logits=LOGITS[:, :2], labels=LABELS % 2)
    assert main(["calibrate", "--fit", "x.npz", *more]) == 2

    err = capsys.readouterr().err
    assert re.search(sentence, err) and err.count("\n") == 1, err


def test_apply_and_compare_refuse(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    npz(tmp_path / "x.npz", logits=LOGITS, labels=LABELS)
    assert main(["calibrate", "--fit", "x.npz", "--methods=vector"]) == 0
    npz(tmp_path / "probs.npz", probs=PROBS, labels=LABELS)
    npz(tmp_path / "other.npz", logits=LOGITS, labels=LABELS[::-1])
    npz(tmp_path / "two.npz", logits=LOGITS[:, :2], labels=LABELS % 2)
    npz(tmp_path / "z.npz", logits=LOGITS)
    np.save(tmp_path / "y.npy", LABELS)
    (tmp_path / "bad.json").write_text('{"kind": "kdjax calibrator"}')
    capsys.readouterr()
    for arguments, sentence in (
        (["apply", "calibrator.json", "x.npz", "--out=x.doc"], "expected a name that ends in .csv"),
        (["apply", "bad.json", "x.npz", "--out=y.npz"], "of format None"),
        (["apply", "x.npz", "x.npz", "--out=y.npz"], "is not a calibrator"),
        (["apply", "calibrator.json", "two.npz", "--out=y.npz"], "has 2 classes and the calibrator 3"),
        (["apply", "calibrator.json", "probs.npz", "--out=y.npz"], "vector scaling does not take for the same"),
        (["apply", "calibrator.json", "x.npz", "--out=./x.npz"], "which is read as well .*--out x_calibrated.npz"),
        (["apply", "calibrator.json", "z.npz", "--labels=y.npy", "--out=y.npy"], "'y.npy', which is read as well"),
        (["compare", "x.npz", "other.npz"], "labels, the first at example"),
        (["compare", "x.npz", "two.npz"], r"shape \[60, 3\] and two.npz \[60, 2\]"),
        (["audit", "x.npz", "--bins=0"], "'0' is no integer from 1"),
        (["audit", "x.npz", "--labels=lables"], "has no array 'lables' .*did you mean labels"),
        (["audit", "x.npz", "--labels=absent.npy"], "a file that does not exist"),
        (["audit", "x.npz", "--probabilities"], "are no probabilities; type --logits"),
        (["audit", "x.npz", "--out=x.pdf"], "ends in .html"),
        (["audit"], "required: FILE"),
        (["adit"], "invalid choice: 'adit'"),
        ([], "required: COMMAND"),
    ):
        assert main(arguments) == 2, arguments
        err = capsys.readouterr().err
        assert re.search(sentence, err) and err.count("\n") == 1, err


@pytest.mark.parametrize("command", ["audit a.npz --out x.html", "calibrate --fit a.npz --out x.json"])
@pytest.mark.parametrize("content", ['{"model": "mlp", "kdjax": "0.1.0"}', "[]", "{"])
def test_json_of_another_kind_is_left_alone(command, content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    npz(tmp_path / "a.npz", logits=LOGITS, labels=LABELS)
    Path("x.json").write_text(content)
    assert main(command.split()) == 2
    assert "a file of another kind already; give another name" in capsys.readouterr().err
    assert Path("x.json").read_text() == content and not Path("x.html").exists()
    Path("x.json").unlink()
    assert main(command.split()) == main(command.split()) == 0, "its own is written anew"


def test_a_full_disk_is_not_the_users_fault(tmp_path, monkeypatch, capsys):
    npz(tmp_path / "x.npz", logits=LOGITS, labels=LABELS)
    monkeypatch.chdir(tmp_path)

    def full(path, data):
        raise OSError(28, "No space left on device while writing", str(path))

    monkeypatch.setattr("kdjax.files.write_bytes", full)
    assert main(["calibrate", "--fit", "x.npz", "--methods=temperature"]) == 74
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npz", "npy", "csv", "safetensors", "parquet"])
def test_changed_and_torn_bytes_are_read_or_refused(ending, tmp_path):
    """Nothing else is raised, wherever the fault lies."""
    from safetensors.numpy import save

    good = tmp_path / f"good.{ending}"
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({f"p_{k}": PROBS[:, k] for k in range(K)} | {"label": LABELS}), good)
    elif ending == "safetensors":
        good.write_bytes(save({"logits": LOGITS, "labels": LABELS}))
    elif ending == "npy":
        np.save(good, LOGITS)
    else:
        npz(good, logits=LOGITS, labels=LABELS) if ending == "npz" else probabilities(good)
    data, rng = good.read_bytes(), np.random.default_rng(0)
    bad, outcomes = tmp_path / f"bad.{ending}", set()
    for _ in range(60):
        changed = bytearray(data)
        at = int(rng.integers(min(len(data), rng.choice([200, len(data)]))))
        if rng.random() < 0.6:
            changed[at] = int(rng.integers(256))
        elif rng.random() < 0.5:
            del changed[max(at, 1) :]
        else:
            changed[at : at + 9] = rng.bytes(int(rng.integers(20)))
        bad.write_bytes(changed)
        try:
            read(bad, How())
            outcomes.add("read")
        except Refused:
            outcomes.add("refused")
    assert "refused" in outcomes

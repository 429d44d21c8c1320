"""An `.npz` is looked through before a byte of it is unpacked."""

import io
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import load
from kdjax.errors import Refused

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
N, K = 30, 3
X, Y = RNG.random((N, 4)), np.arange(N) % K
X2, Y2 = RNG.random((9, 4)), np.arange(9) % K
GOOD = {"train_inputs": X, "train_label": Y, "test_inputs": X2, "test_label": Y2, "num_classes": K}


def npy(array, shape=None) -> bytes:
    """The bytes of a `.npy`; with `shape`, under a header that says something else."""
    file = io.BytesIO()
    np.save(file, array)
    content = file.getvalue()
    if shape is None:
        return content
    header = f"{{'descr': '{np.asarray(array).dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return content[:8] + struct.pack("<H", len(header)) + header + np.ascontiguousarray(array).tobytes()


def write(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def members(**changes):
    return [(f"{name}.npy", npy(np.asarray(array))) for name, array in {**GOOD, **changes}.items()]


def test_the_good_file_is_read(tmp_path):
    data = load("arrays", path=write(tmp_path / "mine.npz", members()))
    assert len(data.test.label) == 9 and data.num_classes == K and data.kind == "features"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ([("train_inputs.npy", npy(X, (10**12, 4)))], r"says it has shape \(1000000000000, 4\).* its member has 960"),
        ([("train_inputs.npy", npy(X, (2**70, 4)))], "says it has shape"),
        ([("train_inputs.npy", npy(X, (-30, 4)))], "says it has shape|no readable header"),
        ([("train_inputs.npy", npy(X)[:100])], "no readable header|its member has"),
        ([("train_inputs.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 99)], "no readable header"),
        ([("train_inputs.npy", b"")], "no readable header"),
        ([*members(), ("train_label.npy", npy(Y))], "has the array 'train_label' twice"),
        ([*members(), ("../evil.npy", npy(Y))], r"a member named '\.\./evil\.npy'; expected the name of an array"),
        ([*members(), ("a/b.npy", npy(Y))], "a member named 'a/b.npy'"),
        ([*members(), ("C:\\b.npy", npy(Y))], "a member named"),
        ([*members(), ("\x1b[31mred.npy", npy(Y))], r"a member named '\\x1b\[31mred.npy'"),
        ([*members(), ("readme.txt", b"hello")], "a member named 'readme.txt'"),
        ([*members(), ("n" * 5000 + ".npy", npy(Y))], "name is 5000 characters long"),
        ([*members(), *((f"n{i}.npy", b"") for i in range(1001))], "1006 members"),
        (members(label_names="abc"), r"label_names of shape \(\) and type <U3"),
        (members(label_names=np.array([b"caf\xe9", b"b", b"c"])), "label_names in bytes that are not UTF-8"),
        (members(label_names=np.zeros(3)), r"label_names of shape \(3,\) and type float64"),
        (members(val_inputs=X2, val_label=Y2, calibration_inputs=X2, calibration_label=Y2), "calibration_.* and val_"),
        (members(val_inputs=X2), "lacks val_label"),
        (members(train_label=Y[:5]), r"train_inputs \(30, 4\), train_label \(5,\); expected one leading axis"),
        (members(train_inputs=np.zeros((N, 8, 8))), "expected rank 4"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refused(tmp_path, change, sentence):
    given = {name for name, _ in change}
    rest = [] if len(change) > 1 else [(name, content) for name, content in members() if name not in given]
    path = write(tmp_path / "mine.npz", [*rest, *change])
    with pytest.raises(Refused, match=sentence) as refusal:
        load("arrays", path=path)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_bomb_is_refused_without_being_unpacked(tmp_path):
    """Three GB of zeros in 3 MB: reading them took 23 s and 3.3 GB before the lack of num_classes was noticed."""
    path, block = tmp_path / "bomb.npz", bytes(1 << 20)
    size = 3000 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members():
            if name != "train_inputs.npy":
                archive.writestr(name, content)
        with archive.open("train_inputs.npy", "w", force_zip64=True) as file:
            head = npy(np.zeros((0,), np.uint8), (N, size // N))
            file.write(head)
            left = size // N * N
            while left:
                left -= file.write(block[: min(left, len(block))])
    program = f"""
    import resource
    from kdjax.data import load
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load("arrays", path={str(path)!r})
    except ValueError as refusal:
        print(refusal)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "times as much, which no real data does" in done.stdout


@pytest.mark.parametrize("name", ["calibration", "val", "valid", "validation"])
def test_a_validation_split_is_the_calibration_split_under_any_of_its_names(tmp_path, name):
    """`val_*` was ignored without a word, and another calibration split held out of train."""
    path = write(tmp_path / "mine.npz", members(**{f"{name}_inputs": X2 + 1, f"{name}_label": Y2}))
    data = load("arrays", path=path)
    np.testing.assert_array_equal(data.calibration.inputs, (X2 + 1).astype(np.float32))
    assert len(data.train.label) == N


def test_names_in_bytes_are_read_as_text(tmp_path):
    names = ["café", "thé", "b"]
    path = write(tmp_path / "mine.npz", members(label_names=np.array([name.encode() for name in names])))
    assert load("arrays", path=path).label_names == tuple(names)


def test_names_weights_and_token_ids(tmp_path):
    names = np.array(["no", "yes", "maybe"])
    ids, ids2 = RNG.integers(0, 90, (N, 6)), RNG.integers(0, 90, (9, 6))
    arrays = {
        "train_ids": ids,
        "train_mask": ids > 9,
        "train_label": names[Y],
        "train_weight": np.arange(N) + 1.0,
        "test_ids": ids2,
        "test_mask": ids2 > 9,
        "test_label": names[Y2],
    }
    np.savez(tmp_path / "text.npz", **arrays, comment="tokenized")
    with pytest.warns(UserWarning, match="also holds comment, which nothing uses"):
        data = load("arrays", path=tmp_path / "text.npz")
    assert data.kind == "text" and data.label_names == ("maybe", "no", "yes")
    assert data.train.inputs.keys() == {"input_ids", "attention_mask"}, "what networks for texts take"
    np.testing.assert_array_equal(data.train.inputs["input_ids"], ids[data.train.index])
    np.testing.assert_array_equal(data.train.weight, data.train.index + 1)
    np.savez(tmp_path / "text.npz", **{**arrays, "test_ids": -ids2})
    with pytest.raises(Refused, match="test has .* token ids outside the vocabulary"):
        load("arrays", path=tmp_path / "text.npz")
    del arrays["train_mask"]
    np.savez(tmp_path / "text.npz", **arrays)
    with pytest.raises(Refused, match="lacks train_mask; .* of texts train_ids and train_mask in place of"):
        load("arrays", path=tmp_path / "text.npz")

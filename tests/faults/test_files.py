"""Locks, manifests, JSON and safetensors under bad input: said in words, opened nowhere else, whole or not there."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import files, manifests
from kdjax.checkpoints import Checkpoints
from kdjax.errors import Refused
from kdjax.files import Damaged
from kdjax.locks import Lock
from kdjax.manifests import verify_manifest
from kdjax.variables import load_variables, save_variables
from tests.faults.test_checkpoints import same


def test_stage_manifest(tmp_path):
    """The manifest of a whole directory: checkpoints inside it included, the lock and itself not."""
    assert verify_manifest(tmp_path / "absent") == verify_manifest(tmp_path) == ["no manifest"]
    with Lock(tmp_path):
        Checkpoints(tmp_path / "checkpoints").save(1, {"x": jnp.ones(2)})
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        manifest = manifests.write_manifest(tmp_path)
    assert manifest["format"] == files.FORMAT
    assert {"metrics.jsonl", "checkpoints/1/manifest.json"} < manifest["files"].keys()
    assert manifest["files"]["metrics.jsonl"]["size"] == 3
    assert verify_manifest(tmp_path) == []
    with Lock(tmp_path):
        assert verify_manifest(tmp_path) == []
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("x")
    (tmp_path / "more").write_text("")
    assert verify_manifest(tmp_path) == ["metrics.jsonl has 4 bytes instead of 3", "more is not in the manifest"]


def test_json_is_atomic_canonical_and_finite(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"b": np.float32(0.5), "a": [jnp.int32(1), tmp_path]})
    assert path.read_text() == f'{{\n  "a": [\n    1,\n    "{tmp_path}"\n  ],\n  "b": 0.5\n}}\n'
    before = path.read_bytes()
    for value, where in (({"m": {"ece": float("nan")}}, "m.ece"), ([1.0, np.float64("inf")], r"\[1\]")):
        with pytest.raises(Refused, match=f"{where} is not finite"):
            files.write_json(path, value)
    with pytest.raises(Refused, match="object is not a number"):
        files.write_json(path, {"x": object()})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    for text in ('{"a": NaN}', "{", "\xff", "[" * 100_000):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(Damaged, match=r"result\.json is not readable as JSON"):
            files.read_json(path)
    with pytest.raises(OSError, match=r"while writing 3 bytes.*absent"):
        files.write_json(tmp_path / "absent" / "x.json", {})


def test_variables_round_trip(tmp_path):
    variables = {
        "params": {"conv": {"kernel": jnp.linspace(-1, 1, 18).reshape(3, 3, 2), "scale": jnp.bfloat16(0.1)}},
        "batch_stats": {},
        "more": {"half": jnp.ones(3, jnp.float16), "none": jnp.zeros((0, 2)), "int": jnp.arange(3)},
    }
    path = tmp_path / "variables.safetensors"
    save_variables(path, variables)
    same(load_variables(path), variables)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(Refused, match="params is a tuple; expected nested dicts of arrays"):
        save_variables(path, {"params": (jnp.ones(1),)})
    for torn in (path.read_bytes()[:-1], path.read_bytes()[:20], b"", b"junk" * 10):
        path.write_bytes(torn)
        with pytest.raises(Damaged, match=r"variables\.safetensors is not readable as safetensors"):
            load_variables(path)
    with pytest.raises(Refused, match="is not a file"):
        load_variables(tmp_path / "absent")


def test_float64_keeps_its_bits(tmp_path):
    """What a post-hoc fit returns; JAX without x64 would round it."""
    fitted = {"T": np.float64(1.0) / 3, "w": np.linspace(0, 1, 4) / 7, "count": np.array([2**40])}
    save_variables(tmp_path / "x.safetensors", fitted)
    loaded = load_variables(tmp_path / "x.safetensors")
    for name, array in fitted.items():
        assert loaded[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(loaded[name], array)


def craft(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one(shape: list[int], end: int = 4) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a/../b", "", ".", "a\\b", "a\x00b", "a\nb"])
def test_crafted_names(tmp_path, name):
    with pytest.raises(Refused, match="holds the name"):
        load_variables(craft(tmp_path / "x", {name: one([1])}, b"0000"))
    about = {"__metadata__": {"format": "1", "empty": json.dumps([name])}}
    with pytest.raises(Refused, match="holds the name"):
        load_variables(craft(tmp_path / "x", about))


def test_crafted_headers(tmp_path):
    for shape, end in (([2**62], 4), ([2**62, 4], 4), ([2], 4), ([0, 2**62], 0), ([1], 400)):
        with pytest.raises(Damaged):
            load_variables(craft(tmp_path / "x", {"a": one(shape, end)}, b"0" * min(end, 4)))
    clash = {"a": one([1]), "a/b": {**one([1]), "data_offsets": [4, 8]}}
    with pytest.raises(Refused, match=r"has an array at 'a' and another below it|has 'a' twice"):
        load_variables(craft(tmp_path / "x", clash, b"0" * 8))
    with pytest.raises(Refused, match="is of format 3, and this kdjax reads format 2"):
        load_variables(craft(tmp_path / "x", {"__metadata__": {"format": "3"}, "a": one([1])}, b"0000"))
    with pytest.raises(Damaged):
        load_variables(craft(tmp_path / "x", {"__metadata__": {"empty": "{"}, "a": one([1])}, b"0000"))

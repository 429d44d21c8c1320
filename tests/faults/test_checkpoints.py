"""Checkpoints under every fault of bytes, processes and disks: named, passed over or refused, never restored wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from kdjax import files, manifests
from kdjax.checkpoints import Checkpoints, Damaged, verify_manifest
from kdjax.errors import Refused
from tests.faults import saver
from tests.processes import slow

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "golden" / "checkpoint_format_1"
GOLDEN_2 = GOLDEN.with_name("checkpoint_format_2")


class State(NamedTuple):
    step: Any
    params: Any
    batch_stats: Any
    opt: Any
    objective: Any


class Trace(NamedTuple):
    trace: Any


def state(step: int = 7, examples: int = 6) -> State:
    """Every kind of leaf and node that a training state holds."""
    params = {"conv": {"kernel": jnp.linspace(-1, 1, 18).reshape(3, 3, 2) * step}, "head": {"bias": jnp.ones(2)}}
    return State(
        step=jnp.int32(step),
        params=params,
        batch_stats={},
        opt=(Trace(jax.tree.map(lambda x: x * 0.5, params)), (), Trace(jnp.int32(step))),
        objective=(
            (),
            {"history": jnp.full((examples, 3), step / 3, jnp.float16), "gamma": jnp.full(5, step / 7, jnp.bfloat16)},
            jnp.zeros((0, 4)),
        ),
    )


def same(a: Any, b: Any) -> None:
    assert str(jax.tree.structure(a)) == str(jax.tree.structure(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def store(tmp_path) -> Checkpoints:
    """Steps 7 and 14, both good."""
    store = Checkpoints(tmp_path / "checkpoints")
    store.save(7, state(7), {"window": {"loss": [0.1, np.float32(0.5)]}})
    store.save(14, state(14), {"window": {}})
    return store


def stored(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_round_trip_into_the_same_structure(store):
    restored = store.restore(jax.eval_shape(lambda: state()))
    assert (restored.step, restored.skipped, restored.extra) == (14, (), {"window": {}})
    assert type(restored.tree) is State and type(restored.tree.opt[0]) is Trace
    same(restored.tree, state(14))
    older = store.restore(state(), step=7)
    same(older.tree, state(7))
    assert older.extra == {"window": {"loss": [0.1, 0.5]}}


def test_nothing_there_is_none_and_a_step_that_is_not_there_is_refused(store, tmp_path):
    assert Checkpoints(tmp_path / "new").restore(state()) is None
    with pytest.raises(Refused, match=r"no checkpoint of step 9; it has \[7, 14\]"):
        store.restore(state(), step=9)


def test_keeps_the_newest_and_drops_what_came_after_the_step_saved(store):
    store.save(21, state(21))
    assert store.steps() == [14, 21]
    store.rewind(14)
    assert store.steps() == [14]
    store.save(9, state(9))
    assert store.steps() == [9]


def test_same_step_twice(store):
    before = {path: path.stat().st_mtime_ns for path in stored(store.directory)}
    store.save(14, state(14), {"window": {}})
    assert before == {path: path.stat().st_mtime_ns for path in stored(store.directory)}
    for other, extra in ((state(15), {"window": {}}), (state(14), {}), (state(14, examples=5), {"window": {}})):
        with pytest.raises(Refused, match=r"14 exists and holds other values; call rewind\(13\)"):
            store.save(14, other, extra)
    same(store.restore(state()).tree, state(14))
    store.rewind(13)
    store.save(14, state(15))
    same(store.restore(state()).tree, state(15))


@pytest.mark.parametrize("devices", [(1, 2), (2, 1)])
def test_another_device_count(tmp_path, devices):
    """Batch-wise arrays are sharded on two devices and whole on one; the bytes are the same."""
    assert jax.device_count() >= 2

    def sharding(count: int, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("data",)), spec)

    specs = {"weights": PartitionSpec(), "history": PartitionSpec("data")}
    tree = {"weights": jnp.arange(6.0), "history": jnp.arange(8.0).reshape(4, 2)}
    before, after = devices
    store = Checkpoints(tmp_path)
    store.save(1, {name: jax.device_put(tree[name], sharding(before, specs[name])) for name in tree})
    like = {
        name: jax.ShapeDtypeStruct(tree[name].shape, tree[name].dtype, sharding=sharding(after, specs[name]))
        for name in tree
    }
    restored = store.restore(like).tree
    same(restored, tree)
    assert {name: restored[name].sharding for name in tree} == {name: like[name].sharding for name in tree}


def test_a_leaf_without_sharding_goes_to_the_default_device(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, {"x": jax.device_put(jnp.ones(3), jax.devices()[1]), "y": np.arange(2, dtype=np.int32)})
    restored = store.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32), "y": np.zeros(2, np.int32)})
    assert restored.tree["x"].sharding == restored.tree["y"].sharding == SingleDeviceSharding(jax.devices()[0])


def test_one_flipped_byte_in_every_file_in_turn(store):
    """First, middle and last byte of each file of step 14: named, and step 7 is used."""
    paths = stored(store.directory / "14")
    assert {path.name for path in paths} >= {"manifest.json", "checkpoint.json", "_METADATA", "manifest.ocdbt"}
    for path in paths:
        whole = path.read_bytes()
        for at in sorted({0, len(whole) // 2, len(whole) - 1} & set(range(len(whole)))):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            name = path.relative_to(store.directory / "14").as_posix()
            restored = store.restore(state())
            assert restored.step == 7, name
            (message,) = restored.skipped
            assert name in message and message.endswith("; falling back to step 7.")
            path.write_bytes(whole)
        same(store.restore(state()).tree, state(14))


def test_every_byte_of_the_manifest_counts(store):
    """Whatever single bit changes in it, the manifest does not verify as it stands, or is the same JSON."""
    path = store.directory / "7" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 2, 32):
            changed = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
            path.write_bytes(changed)
            if not verify_manifest(store.directory / "7"):
                assert json.loads(changed) == json.loads(whole)
        if at > 400:  # format, seal and the first entries; the rest repeats them
            break


@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated(store, keep):
    path = max(stored(store.directory / "14"), key=lambda path: path.stat().st_size)
    size = path.stat().st_size
    os.truncate(path, int(size * keep))
    restored = store.restore(state())
    same(restored.tree, state(7))
    name = path.relative_to(store.directory / "14").as_posix()
    if path.name == "manifest.json":
        assert "manifest.json is not readable" in restored.skipped[0]
    else:
        assert f"{name} has {int(size * keep)} bytes instead of {size}" in restored.skipped[0]


def test_removed_added_and_linked_files(store, tmp_path):
    directory = store.directory / "14"
    for path in stored(directory):
        path.rename(tmp_path / "aside")
        wanted = "no manifest" if path.name == "manifest.json" else f"{path.relative_to(directory)} is missing"
        assert wanted in store.restore(state()).skipped[0]
        if path.name == "manifest.json":
            assert store.steps() == [7]
        (tmp_path / "aside").rename(path)
    (directory / "state" / "more").write_text("")
    assert "state/more is not in the manifest" in store.restore(state()).skipped[0]
    (directory / "state" / "more").unlink()
    (directory / "outside").symlink_to("/")
    assert "outside is not in the manifest" in store.restore(state()).skipped[0]
    (directory / "outside").unlink()
    (directory / "checkpoint.json").rename(tmp_path / "aside")
    (directory / "checkpoint.json").symlink_to(tmp_path / "aside")
    assert "checkpoint.json is not a plain file" in store.restore(state()).skipped[0]


def test_nothing_left_to_fall_back_to_stops(store):
    for step in store.steps():
        (store.directory / str(step) / "checkpoint.json").unlink()
    with pytest.raises(
        Damaged, match=r"/14 is damaged: checkpoint.json is missing; .*/7 is damaged.*delete .* to begin"
    ):
        store.restore(state())


def test_a_damaged_step_is_replaced_when_it_is_reached_again(store):
    (store.directory / "14" / "checkpoint.json").write_text("{}")
    assert store.restore(state()).step == 7
    store.save(14, state(14))
    restored = store.restore(state())
    assert (restored.step, restored.skipped) == (14, ())


def test_another_structure_is_refused_in_a_sentence(store):
    """Fault 28: an objective without its state or with another N; a fallback would not help and is not tried."""
    bare = state()._replace(objective=())
    with pytest.raises(
        Refused, match=r"/14 does not fit this run: it has objective/1/gamma \(and 2 more\), which is not"
    ):
        store.restore(bare)
    with pytest.raises(Refused, match=r"objective/1/history is float16\[6, 3\] there and float16\[5, 3\] here"):
        store.restore(state(examples=5))
    with pytest.raises(Refused, match=r"it lacks params/head/kernel"):
        store.restore(state()._replace(params={**state().params, "head": {"kernel": jnp.ones(2)}}))
    with pytest.raises(Refused, match=r"step is int32\[\] there and float32\[\] here"):
        store.restore(state()._replace(step=jnp.float32(0)))


def test_what_cannot_come_back_is_refused_before_anything_is_written(tmp_path):
    store = Checkpoints(tmp_path / "c")
    for tree, message in (
        ({"rate": 0.1}, r"rate is 0.1, a float; expected an array"),
        ({"x": np.zeros(2)}, r"x has dtype float64"),
        ({"key": jax.random.key(0)}, r"key has dtype key<fry>"),
        ({"a/b": jnp.ones(1)}, r"hold a slash"),
        (jnp.ones(1), r"names must not be empty"),
    ):
        with pytest.raises(Refused, match=message):
            store.save(1, tree)
    with pytest.raises(Refused, match=r"extra\.window\[1\] is not finite"):
        store.save(1, {"x": jnp.ones(1)}, {"window": [0.0, float("nan")]})
    assert store.steps() == [] and list(tmp_path.glob("c/*")) == []
    with pytest.raises(Refused, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


def run_saver(directory: Path, when: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.saver", str(directory), when],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )


KILLS = {
    "before": 2,
    "during:0.005": 2,
    "during:0.02": 2,
    "written": 2,
    "described": 2,
    "manifest": 2,
    "renamed": 3,
    "dropping": 3,
}


@pytest.mark.parametrize("when", ["described", *slow(*sorted(KILLS.keys() - {"described"}))])
def test_kill_9_anywhere_in_a_save(tmp_path, when):
    """The step that is found is the previous one until the rename, the new one after it; what is left over goes."""
    child = run_saver(tmp_path, when)
    out, err = child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL, (out, err)
    left = [path.name for path in tmp_path.iterdir() if not path.name.isdecimal()]
    assert bool(left) == (when != "renamed"), left
    store = Checkpoints(tmp_path)
    assert all(path.name.isdecimal() for path in tmp_path.iterdir())
    restored = store.restore(saver.tree(0))
    assert (restored.step, restored.skipped) == (KILLS[when], ())
    same(restored.tree, saver.tree(KILLS[when]))
    store.save(3, saver.tree(3))
    assert store.steps() == [2, 3]


def test_a_living_process_keeps_its_half_written_checkpoint(store):
    mine = store.directory / files.temporary_name("21")
    mine.mkdir()
    elsewhere = store.directory / "21.tmp-another-host-1"
    elsewhere.mkdir()
    again = Checkpoints(store.directory)
    assert mine.is_dir() and elsewhere.is_dir() and again.steps() == [7, 14]


@pytest.mark.parametrize("limit", [60_000, *slow(600)])
def test_disk_full(tmp_path, limit):
    """RLIMIT_FSIZE strikes in the arrays or in a small file; the sentence names directory, need and fallback."""
    child = run_saver(tmp_path / "full", f"room:{limit}")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 74, (out, err)
    assert f"step 3 could not be written to {tmp_path / 'full'} (needs 0.1 MiB, " in out
    assert "File too large" in out and "the checkpoint of step 2 is intact" in out
    assert "Traceback" not in err
    store = Checkpoints(tmp_path / "full")
    restored = store.restore(saver.tree(0))
    assert restored.step == 2 and all(path.name.isdecimal() for path in store.directory.iterdir())
    same(restored.tree, saver.tree(2))


GOLDEN_TREE = {
    "step": np.int32(3),
    "params": {"conv": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "opt": {"0": {"trace": np.full(2, 0.5, ml_dtypes.bfloat16)}, "1": np.full((), 0.25, np.float16)},
}


def test_golden_checkpoint_of_format_1():
    """Written once by `Checkpoints(...).save(3, GOLDEN_TREE, {"note": "format 1"})`; must load for ever."""
    restored = Checkpoints(GOLDEN).restore(GOLDEN_TREE)
    assert (restored.step, restored.extra, restored.skipped) == (3, {"note": "format 1"}, ())
    same(restored.tree, GOLDEN_TREE)
    assert json.loads((GOLDEN / "3" / "checkpoint.json").read_text())["leaves"] == {
        "opt/0/trace": ["bfloat16", [2]],
        "opt/1": ["float16", []],
        "params/conv/kernel": ["float32", [2, 3]],
        "step": ["int32", []],
    }


def test_golden_checkpoint_of_format_2():
    """As format 1, with `owner={"stage": "golden"}`: for that owner, or for whoever does not ask."""
    for owner in ({}, {"stage": "golden"}):
        restored = Checkpoints(GOLDEN_2, owner=owner).restore(GOLDEN_TREE)
        assert (restored.step, restored.extra, restored.skipped) == (3, {"note": "format 2"}, ())
        same(restored.tree, GOLDEN_TREE)
    with pytest.raises(Refused, match="3 is written for stage golden, and here is stage other; move it back"):
        Checkpoints(GOLDEN_2, owner={"stage": "other"}).restore(GOLDEN_TREE)
    with pytest.raises(Damaged, match="manifest.json does not say what it belongs to"):
        Checkpoints(GOLDEN, owner={"stage": "golden"}).restore(GOLDEN_TREE)


def test_a_checkpoint_under_another_step_or_owner_is_refused_and_kept(tmp_path):
    """Copied from the next run, or renamed from an earlier step; refused wherever it would be read or removed."""
    stores = [Checkpoints(tmp_path / name, owner={"stage": name}) for name in "ab"]
    for store in stores:
        for step in (7, 14):
            store.save(step, state(step))
    a, b = (store.directory for store in stores)
    shutil.rmtree(b / "14")
    shutil.copytree(a / "14", b / "14")
    for act in (
        lambda: stores[1].restore(state()),
        lambda: stores[1].restore(state(), step=14),
        lambda: stores[1].rewind(7),
        lambda: stores[1].save(14, state(14)),
        lambda: stores[1].save(8, state(8)),
    ):
        with pytest.raises(Refused, match="14 is written for stage a, and here is stage b; move it back"):
            act()
    assert "written for stage a" in stores[1].problems(14)[0] and verify_manifest(b / "14") == []
    shutil.rmtree(a / "14")
    (a / "7").rename(a / "14")
    with pytest.raises(Refused, match="14 is written for step 7, and here is step 14"):
        stores[0].restore(state())
    with pytest.raises(Damaged, match="14 holds the checkpoint of step 7; rename it, or delete it"):
        Checkpoints(a).restore(state())


def reseal(path: Path, **changes: Any) -> None:
    body = {**json.loads(path.read_text()), **changes}
    del body["sha256"]
    path.write_text(json.dumps({**body, "sha256": manifests._seal(body)}))


def test_a_newer_format_is_refused_and_not_passed_over(store):
    """Nor is it dropped, written over, or left for an older one by any door."""
    reseal(store.directory / "14" / "manifest.json", format=3, more=["unknown", "here"])
    before = {path: path.read_bytes() for path in stored(store.directory)}
    for act in (
        lambda: store.restore(state()),
        lambda: store.save(14, state(14)),
        lambda: store.rewind(7),
        lambda: store.save(8, state(8)),
    ):
        with pytest.raises(Refused, match=r"14 is written in format 3, and this kdjax reads format 2; upgrade"):
            act()
    assert {path: path.read_bytes() for path in stored(store.directory) if path in before} == before


def test_a_crafted_manifest_opens_nothing_outside(store, tmp_path):
    (tmp_path / "secret").write_text("x")
    entry = {"size": 1, "sha256": manifests._entry(tmp_path / "secret")["sha256"]}
    path = store.directory / "14" / "manifest.json"
    reseal(path, files={**json.loads(path.read_text())["files"], "../../secret": entry})
    assert "../../secret is missing" in store.restore(state()).skipped[0]
    for value in ([], None, {"format": 1}, {"format": 1, "files": [], "sha256": ""}):
        path.write_text(json.dumps(value))
        assert "manifest.json" in store.restore(state()).skipped[0]


NONSENSE = (
    {"files": []},
    {"files": None},
    {"files": {"checkpoint.json": []}},
    {"files": {"checkpoint.json": {"size": "1", "sha256": ""}}},
    {"format": "2"},
    {"format": 2.5},
    {"format": True},
    {"format": -1},
    {"format": None},
    {"owner": []},
    {"owner": None},
    {"more": 1},
)


@pytest.mark.parametrize("change", NONSENSE, ids=str)
def test_a_sealed_manifest_that_makes_no_sense_is_damage(store, change):
    """Its own SHA-256 is right, so that only its form can be wrong."""
    reseal(store.directory / "14" / "manifest.json", **change)
    restored = store.restore(state())
    assert restored.step == 7 and "14 is damaged: manifest.json" in restored.skipped[0]


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": 14, "leaves": [], "extra": {}}', '{"step": "x"}'])
def test_a_sealed_description_that_makes_no_sense_is_one_sentence(store, text):
    (store.directory / "14" / "checkpoint.json").write_text(text)
    manifests.write_manifest(store.directory / "14")
    with pytest.raises(Damaged, match=r"14/checkpoint.json does not describe a checkpoint; delete .*/14 to do"):
        store.restore(state())


def test_a_file_whose_name_is_two_lines_is_named_on_one(store):
    for step in ("7", "14"):
        (store.directory / step / "state" / "a\nb\x1b[31m").touch()
    with pytest.raises(Damaged) as raised:
        store.restore(state())
    assert r"state/a\nb\x1b[31m is not in the manifest" in str(raised.value) and "\n" not in str(raised.value)


def test_absurd_shapes_are_refused_before_allocation(store):
    """A checkpoint whose manifest verifies and whose own description asks for 2**62 numbers."""
    path = store.directory / "14" / "checkpoint.json"
    text = json.loads(path.read_text())
    text["leaves"]["params/head/bias"] = ["float32", [2**62]]
    path.write_text(json.dumps(text))
    manifests.write_manifest(store.directory / "14")
    with pytest.raises(Refused, match=rf"params/head/bias is float32\[{2**62}\] there and float32\[2\] here"):
        store.restore(state())


def test_the_golden_checkpoint_is_not_touched(tmp_path):
    """Reading leaves no trace: no temporary file, no dropped step."""
    copied = shutil.copytree(GOLDEN, tmp_path / "golden")
    before = {path: path.stat().st_mtime_ns for path in stored(copied)}
    Checkpoints(copied, keep=1).restore(GOLDEN_TREE)
    assert before == {path: path.stat().st_mtime_ns for path in stored(copied)}

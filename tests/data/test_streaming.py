"""A stream gives the batches of the resident loop, from any step, on any number of processes."""

import importlib.util
import re
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import (
    Lazy,
    as_source,
    assemble,
    epoch_order,
    eval_batches,
    from_arrays,
    is_lazy,
    load,
    one_example,
    prediction_batches,
    streamed,
    take,
)
from kdjax.errors import Refused
from tests.data import tiny

grain = pytest.importorskip("grain", reason="the extra kdjax[grain] is not installed")

ROOT = Path(__file__).parents[2]
SPLITS = {"train": [tiny.arrays(30, 0), tiny.arrays(10, 1)], "test": [tiny.arrays(15, 2)]}
B, SEED, STOP = 8, 5, 10  # 36 training examples: 4 steps an epoch, 4 examples dropped


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same prepared set in memory and on disk."""
    root = tmp_path_factory.mktemp("sets")
    tiny.write(root / "data", splits=SPLITS)
    folders = {"data_dir": root / "data", "cache_dir": root / "cache"}
    return [load("tiny", feed=feed, **folders) for feed in ("resident", "streamed")]


def steps(data, **options):
    return list(streamed(data.train, B, seed=SEED, **{"start_step": 0, "stop_step": STOP, "readers": 3} | options))


def test_the_set_on_disk_is_the_set_in_memory(sets):
    resident, lazy = sets
    assert is_lazy(lazy.train) and is_lazy(lazy.calibration) and is_lazy(lazy.test) and not is_lazy(resident.train)
    assert lazy.fingerprint == resident.fingerprint and lazy.calibration_id == resident.calibration_id
    assert lazy.prepare == resident.prepare and lazy.kind == resident.kind
    np.testing.assert_array_equal(lazy.test.inputs.gather(np.arange(15)), resident.test.inputs)
    assert one_example(lazy.train).shape == one_example(resident.train).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("feed", [0, 1], ids=["resident", "streamed"])
def test_batches_are_those_of_the_resident_loop(sets, feed):
    data = sets[0]
    batches = steps(sets[feed])
    assert len(batches) == STOP
    for s, batch in enumerate(batches):
        position = epoch_order(36, B, seed=SEED, epoch=s // 4)[s % 4]
        np.testing.assert_array_equal(batch.index, position)
        np.testing.assert_array_equal(batch.inputs, data.train.inputs[position])
        np.testing.assert_array_equal(batch.label, data.train.label[position])
        assert batch.inputs.dtype == np.uint8 and batch.label.dtype == batch.index.dtype == np.int32
        assert batch.weight is None


def test_a_stream_starts_at_any_step(sets):
    from_zero = steps(sets[1])
    for start in range(STOP + 1):
        rest = steps(sets[1], start_step=start, readers=start % 3)
        assert [b.index.tolist() for b in rest] == [b.index.tolist() for b in from_zero[start:]]


def test_processes_share_the_global_batch(sets):
    parts = [steps(sets[1], process_index=p, process_count=4) for p in range(4)]
    for s, batch in enumerate(steps(sets[1])):
        np.testing.assert_array_equal(np.concatenate([part[s].inputs for part in parts]), batch.inputs)
        np.testing.assert_array_equal(np.concatenate([part[s].index for part in parts]), batch.index)


def test_epochs_differ(sets):
    seen = [np.concatenate([b.index for b in steps(sets[1], start_step=e * 4, stop_step=e * 4 + 4)]) for e in range(3)]
    assert all((a != b).any() for a, b in pairwise(seen)) and all(len(set(a)) == 32 for a in seen)


def test_weights_regions_and_trees_are_streamed_as_they_are():
    rng = np.random.default_rng(0)
    inputs = {"ids": rng.integers(0, 9, (30, 5)), "mask": np.ones((30, 5), bool)}
    label, weight = rng.integers(-1, 3, (30, 2)), rng.random(30)
    label[:, 0] = np.arange(30) % 3
    test = ({"ids": inputs["ids"][:6] + 9, "mask": inputs["mask"][:6]}, label[:6])
    data = from_arrays((inputs, label), test, num_classes=3, train_weight=weight)
    for batch in streamed(data.train, 4, seed=0, start_step=3, stop_step=5):
        np.testing.assert_array_equal(batch.inputs["ids"], data.train.inputs["ids"][batch.index])
        np.testing.assert_array_equal(batch.label, data.train.label[batch.index])
        np.testing.assert_array_equal(batch.weight, data.train.weight[batch.index])


def test_prediction_covers_a_split_in_order(sets):
    resident, lazy = sets
    positions, weight = eval_batches(15, 4)
    for data in (resident, lazy):
        batches = list(prediction_batches(data.test, positions))
        inputs = np.concatenate([batch.inputs for batch in batches])[:15]
        np.testing.assert_array_equal(inputs, resident.test.inputs)
        assert len(batches) == len(weight) == 4


def test_a_stream_that_is_left_early_ends(sets):
    stream = streamed(sets[1].train, B, seed=0, start_step=0, stop_step=10**6)
    first = next(stream)
    stream.close()
    np.testing.assert_array_equal(first.index, epoch_order(36, B, seed=0, epoch=0)[0])


def test_parts_and_classes_of_a_lazy_split(sets, tmp_path):
    resident, lazy = sets
    rows = np.array([5, 0, 17])
    np.testing.assert_array_equal(take(lazy.train, rows).inputs.gather(np.arange(3)), take(resident.train, rows).inputs)
    tiny.write(tmp_path, splits=SPLITS)
    options = {"data_dir": tmp_path, "cache_dir": tmp_path, "classes": ("cat", "ant"), "resolution": 4, "split_seed": 3}
    one, two = (load("tiny", feed=feed, train_examples=12, **options) for feed in ("resident", "streamed"))
    assert one.fingerprint == two.fingerprint and one.prepare == two.prepare and one.label_names == ("cat", "ant")
    np.testing.assert_array_equal(one.train.inputs, two.train.inputs.gather(np.arange(12)))
    assert one.train.inputs.shape == (12, 4, 4, 3) and set(one.train.label) == {0, 1}
    whole = load("tiny", data_dir=tmp_path, cache_dir=tmp_path, normalization="none")
    images, label = (np.concatenate(pair) for pair in zip(*SPLITS["train"], strict=True))
    means = images[one.train.index].reshape(12, 4, 2, 4, 2, 3).mean((2, 4))
    assert np.abs(one.train.inputs - means).max() <= 0.5
    np.testing.assert_array_equal(np.array([2, 0])[one.train.label], label[one.train.index])
    assert whole.num_classes == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_records_that_change_during_the_run_are_named(tmp_path, damage):
    folder = tiny.write(tmp_path / "data", splits=SPLITS)
    data = load("tiny", data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", feed="streamed")
    shard = folder / "tiny-test.array_record-00000-of-00001"
    content = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(content[: len(content) // 4])
    elif damage == "gone":
        shard.unlink()
    else:
        middle = content.index(b"PNG") + 60
        shard.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
        read = data.test.inputs.gather(np.arange(15))
    except Refused as refusal:
        assert re.search(r"tiny.1\.0\.0.*(cannot be read|is not the one that was indexed)", str(refusal))
    else:  # what the open file still gives, verified
        assert damage != "flipped"
        np.testing.assert_array_equal(read, SPLITS["test"][0][0])


class Noise(Lazy):
    """A source from outside: images made from their number."""

    def __init__(self, n: int, fail_at: int = -1):
        import jax

        self.shape_of_one = jax.ShapeDtypeStruct((4, 4, 1), np.uint8)
        self.all_contents = np.random.default_rng(n).integers(0, 256, (n, 16), np.uint8)
        self.positions = np.arange(n)
        self.fail_at = fail_at

    def read(self, position):
        if position == self.fail_at:
            raise Refused(f"file {position} is gone")
        return np.full((4, 4, 1), position % 256, np.uint8)


def test_a_lazy_source_of_ones_own():
    label = np.arange(60) % 3
    source = as_source("noise", {"train": (Noise(60), label), "test": (Noise(30), label[:30])}, 3)
    with pytest.raises(
        Refused, match="normalization is 'own', and this data set stays on disk and knows no statistics"
    ):
        assemble(source)
    data = assemble(source, normalize="none")
    for batch in streamed(data.train, 9, seed=0, start_step=0, stop_step=12):
        np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], data.train.index[batch.index])
    with pytest.raises(Refused, match="60 inputs and 59 labels"):
        as_source("noise", {"train": (Noise(60), label[1:]), "test": (Noise(30), label[:30])}, 3)


@pytest.mark.parametrize("readers", [0, 2])
def test_a_refusal_of_the_source_reaches_the_loop(readers):
    label = np.arange(60) % 3
    source = as_source("noise", {"train": (Noise(60, fail_at=30), label), "test": (Noise(30), label[:30])}, 3)
    data = assemble(source, normalize="none")
    with pytest.raises(Refused, match="file 30 is gone"):
        list(streamed(data.train, 9, seed=0, start_step=0, stop_step=12, readers=readers))


@pytest.mark.slow
def test_a_set_larger_than_its_memory_is_read_batch_by_batch(tmp_path):
    """216 MB of pixels; the process may grow by 100 MB while it indexes, loads and visits all of them."""
    program = f"""
    import resource
    from pathlib import Path
    from PIL import Image
    import grain
    from kdjax import data

    root = Path({str(tmp_path)!r})
    for split, count in (("train", 160), ("test", 16)):
        for i in range(count):
            folder = root / "set" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (640, 640), (i % 256, i // 256, split == "test")).save(folder / f"{{i}}.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = data.load("folder", path=root / "set", feed="streamed", cache_dir=root / "cache")
    seen = 0
    for batch in data.streamed(loaded.train, 8, seed=0, start_step=0, stop_step=17, readers=2):
        seen += batch.inputs.nbytes
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert seen == 17 * 8 * 640 * 640 * 3 and grown < 100_000, (seen, grown)
    """
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_refusals(sets, monkeypatch):
    data = sets[1]
    with pytest.raises(Refused, match="process 0 of 3 cannot take an equal share of a batch of 8"):
        steps(data, process_count=3)
    with pytest.raises(Refused, match="process 2 of 2"):
        steps(data, process_index=2, process_count=2)
    with pytest.raises(Refused, match="steps from 3 to 2"):
        steps(data, start_step=3, stop_step=2)
    with pytest.raises(Refused, match="readers is -1"):
        steps(data, readers=-1)
    with pytest.raises(Refused, match="batch of 50 is larger than the 36"):
        streamed(data.train, 50, seed=0, start_step=0, stop_step=1)
    genuine = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "grain" else genuine(name))
    with pytest.raises(Refused, match=r"pip install 'kdjax\[grain\]'"):
        steps(data)

"""A stream gives the batches of the in-memory loop, from any step, on any number of processes."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest

from kdjax.data import epoch_order, load
from kdjax.data.streaming import Records, stream
from kdjax.errors import Refused
from tests.data import tiny

grain = pytest.importorskip("grain", reason="the extra kdjax[grain] is not installed")

SPLITS = {"train": [tiny.arrays(30, 0), tiny.arrays(10, 1)], "test": [tiny.arrays(15, 2)]}
B, SEED, STOP = 8, 5, 10  # 36 training examples: 4 steps an epoch, 4 examples dropped


@pytest.fixture
def sets(tmp_path):
    tiny.write(tmp_path / "data", splits=SPLITS)
    return load("tiny", data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"), Records(
        "tiny", data_dir=tmp_path / "data"
    )


def steps(sets, **options):
    data, records = sets
    return list(stream(records, B, seed=SEED, positions=data.train.index, num_threads=3, **{"stop": STOP} | options))


def test_streamed_batches_are_those_of_memory(sets):
    data, records = sets
    assert len(records) == 40
    batches = steps(sets)
    assert len(batches) == STOP
    for s, batch in enumerate(batches):
        position = epoch_order(36, B, seed=SEED, epoch=s // 4)[s % 4]
        np.testing.assert_array_equal(batch.index, position)
        np.testing.assert_array_equal(batch.inputs, data.train.inputs[position])
        np.testing.assert_array_equal(batch.label, data.train.label[position])
        assert batch.inputs.dtype == np.uint8 and batch.label.dtype == batch.index.dtype == np.int32


def test_a_stream_starts_at_any_step(sets):
    whole = steps(sets)
    for start in range(STOP + 1):
        rest = steps(sets, start=start)
        assert [b.index.tolist() for b in rest] == [b.index.tolist() for b in whole[start:]]


def test_processes_share_the_global_batch(sets):
    parts = [steps(sets, process_index=p, process_count=4) for p in range(4)]
    for s, batch in enumerate(steps(sets)):
        np.testing.assert_array_equal(np.concatenate([part[s].inputs for part in parts]), batch.inputs)
        np.testing.assert_array_equal(np.concatenate([part[s].index for part in parts]), batch.index)


def test_epochs_differ(sets):
    seen = [np.concatenate([b.index for b in steps(sets, start=e * 4, stop=e * 4 + 4)]) for e in range(3)]
    assert all((a != b).any() for a, b in pairwise(seen)) and all(len(set(a)) == 32 for a in seen)


def test_refusals(sets, tmp_path, monkeypatch):
    with pytest.raises(Refused, match="process 0 of 3 cannot take an equal share of a batch of 8"):
        steps(sets, process_count=3)
    with pytest.raises(Refused, match="process 2 of 2"):
        steps(sets, process_index=2, process_count=2)
    with pytest.raises(Refused, match="steps from 3 to 2"):
        steps(sets, start=3, stop=2)
    with pytest.raises(Refused, match="batch of 50 is larger than the 40"):
        stream(sets[1], 50, seed=0, stop=1)
    with pytest.raises(Refused, match="has no split 'val'; expected one of train, test"):
        Records("tiny", "val", data_dir=tmp_path / "data")
    genuine = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "grain" else genuine(name))
    with pytest.raises(Refused, match=r"pip install 'kdjax\[grain\]'"):
        stream(sets[1], B, seed=0, stop=1)

"""The benchmark of the metrics measures what it prints; no test asserts a time."""

import json

import numpy as np
import pytest

from experiments import benchmark_metrics as benchmark


@pytest.mark.parametrize("call", ["binned_errors", "evaluate"])
def test_measure(call):
    found = benchmark.measure(call, 500, repeats=3)
    assert 0 < found["min_s"] <= found["median_s"] <= found["max_s"]
    assert found["repeats"] == 3 and found["examples"] == 500 and found["extra_mb"] >= 0
    assert found["input_mb"] == pytest.approx(500 * 100 * 4 / 1e6)


@pytest.mark.slow
def test_run_prints_and_returns_rows_from_children(monkeypatch, capsys):
    child = benchmark._child
    monkeypatch.setattr(benchmark, "_child", lambda call, _, *rest: {**child(call, 300, *rest), "examples": 100_000})
    found = benchmark.run(["--quick", "--repeats", "2", "--threads", "1"])
    assert json.loads(json.dumps(found)) == found
    assert {"binned_errors", "evaluate"} <= {row["call"] for row in found["rows"]}
    printed = capsys.readouterr().out
    assert "binned_errors" in printed and "1 of" in found["hardware"]


@pytest.mark.slow
def test_a_child_does_not_inherit_the_peak_of_its_parent():
    """`ru_maxrss` does on Linux, and would hide all growth below what the parent once held."""
    held = np.ones(60_000_000)  # 480 MB
    found = benchmark._child("binned_errors", 20_000, 1, 1)
    assert held.nbytes > 400e6 and 0 < found["extra_mb"] < 400


def test_run_refuses_zero_repeats():
    with pytest.raises(SystemExit):
        benchmark.run(["--repeats", "0"])

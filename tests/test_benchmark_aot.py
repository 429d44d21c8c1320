"""What a compiled program's text is counted as, and the steps compiled for accelerators that are not here."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments import benchmark_aot, benchmark_hlo, benchmark_tables, benchmark_targets
from kdjax.errors import Refused

LOOP = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused_add (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%param_0, %param_0)
}

%gather (param_1: f32[8], param_2: u8[1000,4], param_3: s32[]) -> f32[8] {
  %param_1 = f32[8]{0} parameter(0)
  %param_2 = u8[1000,4]{1,0} parameter(1)
  %param_3 = s32[] parameter(2)
  %rows = u8[2,4]{1,0} dynamic-slice(%param_2, %param_3, %param_3), dynamic_slice_sizes={2,4}
  %flat = u8[8]{0} bitcast(%rows)
  %floats = f32[8]{0} convert(%flat)
  ROOT %add.2 = f32[8]{0} add(%param_1, %floats)
}

%body (arg: (s32[], f32[8], u8[1000,4])) -> (s32[], f32[8], u8[1000,4]) {
  %arg = (s32[], f32[8]{0}, u8[1000,4]{1,0}) parameter(0)
  %gte.0 = s32[] get-tuple-element(%arg), index=0
  %gte.1 = f32[8]{0} get-tuple-element(%arg), index=1
  %gte.2 = u8[1000,4]{1,0} get-tuple-element(%arg), index=2
  %gathered = f32[8]{0} fusion(%gte.1, %gte.2, %gte.0), kind=kLoop, calls=%gather
  %conv.1 = (f32[8]{0}, u8[0]{0}) custom-call(%gathered), custom_call_target="__cudnn$convForward"
  %conv = f32[8]{0} get-tuple-element(%conv.1), index=0
  %sum = (f32[8]{0}, f32[2]{0}) all-reduce-start(%conv, %conv), replica_groups={}, to_apply=%fused_add
  %sum.done = (f32[8]{0}, f32[2]{0}) all-reduce-done(%sum)
  %summed = f32[8]{0} get-tuple-element(%sum.done), index=0
  ROOT %out = (s32[], f32[8]{0}, u8[1000,4]{1,0}) tuple(%gte.0, %summed, %gte.2)
}

%condition (arg.1: (s32[], f32[8], u8[1000,4])) -> pred[] {
  %arg.1 = (s32[], f32[8]{0}, u8[1000,4]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%arg.1, %arg.1), direction=LT
}

ENTRY %main.9 (p: f32[8], images: u8[1000,4], zero: s32[]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %images = u8[1000,4]{1,0} parameter(1)
  %zero = s32[] parameter(2)
  %copy.1 = f32[8]{0:T(8,128)S(1)} copy(%p)
  %start = (s32[], f32[8]{0}, u8[1000,4]{1,0}) tuple(%zero, %copy.1, /*index=2*/%images)
  %while.1 = (s32[], f32[8], u8[1000,4]) while(%start), condition=%c, body=%body, config={"known_trip_count":{"n":"3"}}
  %token = token[] after-all()
  %log = (f32[8]{0}, u32[], token[]) outfeed(%p, %token)
  ROOT %out.1 = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""


def test_kernels_and_bytes_are_counted_as_often_as_loops_run():
    """Of the array that is sliced inside a fusion, the slice counts."""
    counts = benchmark_hlo.count(LOOP)
    assert counts.kernels == {"copy": 1, "gathered": 3, "cudnn convForward": 3, "all-reduce": 3, "outfeed": 1}
    assert counts.bytes["copy"] == 32, "and nothing for the result, which lies on the chip"
    assert counts.bytes["gathered"] == 3 * (32 + 32 + 8 + 4)
    assert counts.collectives == {"all-reduce": 3} and counts.collective_bytes == 3 * 40
    assert counts.host_transfers == 1


def test_a_loop_that_does_not_say_how_often_it_runs():
    """A TPU's compiler leaves the count to the condition: there it is read, or the loop is said to be counted once."""
    told = 'config={"known_trip_count":{"n":"3"}}'
    assert benchmark_hlo.count(LOOP).loops == 0
    assert benchmark_hlo.count(LOOP.replace(told, "x=1")).kernels["gathered"] == 1
    assert benchmark_hlo.count(LOOP.replace(told, "x=1")).loops == 1
    silent = LOOP.replace(told, "x=1").replace("condition=%c,", "condition=%condition,")
    silent = silent.replace(
        "  ROOT %less = pred[] compare(%arg.1, %arg.1), direction=LT",
        "  %end = s32[]{:T(128)} constant(7)\n  %at = s32[] get-tuple-element(%arg.1), index=0\n"
        "  ROOT %less = pred[] compare(%at, %end), direction=LT",
    )
    assert benchmark_hlo.count(silent).loops == 1, "where it starts is an argument"
    silent = silent.replace("%zero = s32[] parameter(2)", "%two = s32[] constant(2)\n  %zero = s32[] copy(%two)")
    counts = benchmark_hlo.count(silent)
    assert counts.kernels["gathered"] == counts.collectives["all-reduce"] == 5 and counts.loops == 0


def test_a_loop_that_was_counted_once_is_told_under_the_table():
    said = [benchmark_tables.compiled_note([{"programs": [{"loops_counted_once": n}, {}]}]) for n in (0, 1)]
    assert "counted once" not in said[0] and said[1].startswith(said[0])
    assert said[1].endswith("could not be read: 1; more is executed.")


def test_a_copy_that_is_begun_moves_its_source_once():
    """Into the chip's own memory: 32 bytes read; out of it: 32 bytes written."""
    text = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %in = (f32[8]{0:T(256)S(1)}, f32[8]{0:T(256)}, u32[]{:S(2)}) copy-start(%p)
  %inside = f32[8]{0:T(256)S(1)} copy-done(%in)
  %out = (f32[8]{0:T(256)}, f32[8]{0:T(256)S(1)}, u32[]{:S(2)}) copy-start(%inside)
  ROOT %done = f32[8]{0:T(256)} copy-done(%out)
}
"""
    counts = benchmark_hlo.count(text)
    assert counts.kernels == {"copy": 2} and counts.bytes == {"copy": 64}


def test_shapes_are_measured_as_they_are_printed():
    assert benchmark_hlo.size("f32[128,10]{1,0}") == 5120
    assert benchmark_hlo.size("(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[5]{0}, token[], s32[])") == 12 + 5 + 4
    assert benchmark_hlo.size("f8e4m3fn[16]{0}") == 16
    assert benchmark_hlo.size("(f32[8]{0:T(256)S(1)}, f32[2]{0:T(256)})") == 8
    assert benchmark_hlo.size("(f32[8]{0:T(256)S(1)}, f32[2]{0:T(256)})", on_chip=True) == 40


def test_the_text_of_a_real_program_is_read():
    """On the CPU: a loop of seven products, compiled here, is seven products."""
    x = jnp.ones((64, 64))

    def seven(x):
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=7)[0]

    counts = benchmark_hlo.count(jax.jit(seven).lower(x).compile().as_text())
    products = [n for kind, n in counts.kernels.items() if "dot" in kind or "atmul" in kind or "fusion" in kind]
    assert sum(products) % 7 == 0 and sum(products) > 0


def test_an_unknown_target_is_refused():
    with pytest.raises(Refused, match="--target.*h1000.*h100"):
        benchmark_targets.find("h1000")


@pytest.mark.parametrize("name, extra", [("h100", "cuda"), ("v5e:2x2", "tpu")])
def test_a_missing_compiler_is_refused_with_what_installs_it(name, extra, monkeypatch):
    target = benchmark_targets.TARGETS[name]._replace(package="no_such_package.compiler")
    monkeypatch.setattr(benchmark_targets, "TARGETS", {name: target})
    with pytest.raises(Refused, match=rf"pip install 'kdjax\[{extra}\]'"):
        benchmark_aot.section(benchmark_aot.Settings(targets=(name,)))


SMALL = benchmark_aot.Settings(
    teacher="wrn_10_1", student="wrn_10_1", size=8, precision="bfloat16", steps_per_call=2, batch=64
)


def _needs(name):
    """A mark that skips where the compiler of a target is not installed."""
    package = benchmark_targets.TARGETS[name].package
    return pytest.mark.skipif(not benchmark_targets.installed(package), reason=f"{package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=_needs(name)) for name in ("h100x8", "v5e:2x2")])
def test_the_steps_compile_for_accelerators_that_are_not_here(name, capsys):
    """Groups of BatchNorm that are aligned with devices leave the reduction of gradients and of logs."""
    outcome = benchmark_aot.section(dataclasses.replace(SMALL, targets=(name,)))["targets"][0]
    ungrouped, aligned, predict = outcome["programs"]
    assert (ungrouped["program"], aligned["program"], predict["program"]) == (
        "train",
        f"train, norm_group {64 // outcome['devices']}",
        "predict",
    )
    for row in (ungrouped, aligned, predict):
        assert row["kernels"] > 0 and row["gigabytes"] > 0 and row["fits"] and row["host_transfers"] == 0
        assert row["floor_ms"] == max(row["floors_ms"].values()) > 0
        assert row["loops_counted_once"] == 0
    # The body of the loop over the steps of a call was counted as often as it runs.
    assert all(float(n).is_integer() for row in (ungrouped, aligned) for n in row["collectives"].values())
    assert sum(aligned["collectives"].values()) <= 3 < sum(ungrouped["collectives"].values())
    assert json.loads(json.dumps(outcome)) == outcome
    assert f"compiled for {name}" in capsys.readouterr().out

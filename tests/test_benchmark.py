"""The benchmark compares equal work, alternates, counts as it says and writes what it promises; no time is judged."""

from __future__ import annotations

import dataclasses
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import (
    benchmark,
    benchmark_dispatch,
    benchmark_memory,
    benchmark_sections,
    benchmark_settings,
    benchmark_step,
    benchmark_sweep,
    benchmark_tables,
    benchmark_text,
    benchmark_workers,
    peers,
    results,
)
from experiments.benchmark_step import Settings
from kdjax import models
from kdjax.errors import Refused

TINY = Settings(
    teacher="conv_small",
    student="conv_tiny",
    batch=8,
    rounds=2,
    seconds=0.01,
    examples=64,
    calls=20,
    matmul=32,
    size=8,
    num_classes=5,
    torch=False,
)


@pytest.fixture(scope="module")
def work():
    return benchmark_step.work(TINY)


@pytest.mark.slow
def test_hand_written_step_is_the_same_step(work):
    """Same parameters, same order, same crops: the same losses, and the same parameters after three steps."""
    ours, plain = work.ours(), work.plain(transforms=True)
    losses = [(ours.advance(1), plain.advance(1)) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    assert losses[0][0] != losses[1][0]
    chex.assert_trees_all_close(ours.state.params, plain.state[0], rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(ours.state.batch_stats, plain.state[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_hand_written_step_without_transforms(work):
    """It gets the batch that the Trainer's first step makes for itself, so its first loss is the Trainer's."""
    plain = work.plain(transforms=False)
    first = plain.advance(1)
    assert first == pytest.approx(work.ours().advance(1), rel=1e-4)
    assert plain.advance(1) != first


def test_torch_peer_is_the_same_network():
    """The same numbers in both frameworks: one batch, one loss, student in training mode, teacher in evaluation."""
    torch = pytest.importorskip("torch")
    work = benchmark_step.work(dataclasses.replace(TINY, teacher="wrn_10_2", student="wrn_10_1"))
    one = work.torch()
    initial = work.trainer.init().variables
    _load(torch, one.student, initial)
    _load(torch, one.teacher, work.teacher_variables)
    assert one.advance(1) == pytest.approx(work.plain(transforms=False).advance(1), rel=1e-3)


def _load(torch, network, variables):
    """Copies parameters by order: PyTorch registers a block's layers as norm1, norm2, conv1, conv2, shortcut."""
    params = variables["params"]

    def norm(layer, p):
        layer.weight.data, layer.bias.data = torch.tensor(np.array(p["scale"])), torch.tensor(np.array(p["bias"]))

    def conv(layer, p):
        layer.weight.data = torch.tensor(np.array(p["kernel"]).transpose(3, 2, 0, 1))

    conv(network.stem, params["stem"])
    norm(network.norm, params["norm"])
    network.head.weight.data = torch.tensor(np.array(params["head"]["kernel"]).T)
    network.head.bias.data = torch.tensor(np.array(params["head"]["bias"]))
    names = sorted(n for n in params if n.startswith("stage"))
    assert len(names) == len(network.blocks)
    for name, block in zip(names, network.blocks, strict=True):
        for layer, p in params[name].items():
            (norm if layer.startswith("norm") else conv)(getattr(block, layer), p)


@pytest.mark.parametrize("name, millions", [("wrn_40_1", 83.3), ("wrn_40_2", 327.6), ("resnet8", 12.5)])
def test_macs(name, millions):
    """Sums over the layers of the published architectures, worked out apart from this code."""
    model = models.build(name, num_classes=100)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert peers.macs(model, variables, image) / 1e6 == pytest.approx(millions, abs=0.06)


def test_contest_alternates_and_refuses_nonsense():
    turns = []

    class Fake:
        def __init__(self, name, loss=1.0):
            self.name, self.loss = name, loss

        def advance(self, n):
            turns.append(self.name)
            return self.loss

    measured = benchmark_step.contest({"a": Fake("a"), "b": Fake("b")}, TINY)
    assert turns[-4:] == ["a", "b", "a", "b"] and len(measured["a"]["seconds"]) == TINY.rounds
    benchmark_step.contest({"a": Fake("a"), "b": Fake("b")}, TINY, backwards=True)
    assert turns[-4:] == ["a", "b", "b", "a"]
    with pytest.raises(FloatingPointError, match="b has loss nan"):
        benchmark_step.contest({"a": Fake("a"), "b": Fake("b", math.nan)}, TINY)


def test_sign_test():
    """Chance of at most k heads in n throws: 1/32 for 0 of 5; (1 + 5)/32 for 1 of 5."""
    assert benchmark_step.p_slower([0.9] * 5) == pytest.approx(1 / 32)
    assert benchmark_step.p_slower([0.9] * 4 + [1.1]) == pytest.approx(6 / 32)
    assert benchmark_step.p_slower([1.0] * 5) == 1


def test_empty_model_has_the_leaves_it_says():
    rows = benchmark_dispatch.dispatch(7, calls=5, warmup=2)
    assert [row["model_leaves"] for row in rows] == [7, 7, 7]
    assert all(row["state_leaves"] >= 14 and row["done_us"].n == 5 for row in rows)
    assert all(row["done_us"].median >= row["returns_us"].min > 0 for row in rows)
    assert [row["ours"] for row in rows] == [False, True, True]


@pytest.mark.slow
def test_json_has_what_is_promised(tmp_path, monkeypatch, capsys):
    path = tmp_path / "deep" / "benchmark.json"
    monkeypatch.setenv("OUT", str(path.parent))
    monkeypatch.setattr(benchmark_settings, "settings", lambda: TINY)
    monkeypatch.setattr(benchmark_dispatch, "LEAVES", (1, 3))
    monkeypatch.setattr(benchmark_memory, "imports", lambda n, run=benchmark_memory.imports: run(1))
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        benchmark.run(["benchmark", "step"])
    written = json.loads(path.read_text())
    assert {"command", "hardware", "step"} <= written.keys()
    assert all(written["hardware"][key] for key in ("text", "cpu", "cpus", "device", "versions"))
    section = written["step"]
    # A student that shares its teacher's network shares its program for prediction.
    counts = [(row["program"], row["traces"]) for row in section["traces"]]
    assert len(counts) == 8 and all(n == 1 or (n == 0 and name == "predict_step") for name, n in counts)
    assert [row["heavy"] for row in section["import"]] == [[], []]
    for row in section["dispatch"]:
        assert row["returns_us"]["n"] == row["done_us"]["n"] == TINY.calls
    step = section["distillation"]
    contestants = step["contestants"]
    assert contestants.keys() == {benchmark_step.OURS, benchmark_step.PLAIN, benchmark_step.AUGMENTED}
    for one in contestants.values():
        assert len(one["seconds"]) == one["images_per_s"]["n"] == one["ours_over_this"]["n"] == TINY.rounds
        speed, share = one["images_per_s"]["median"] * step["gflop_per_image"], one["share_of_matmul"]
        assert one["gflop_per_s"] == pytest.approx(speed)
        assert share == pytest.approx(speed / step["matmul_gflop_per_s"]["median"])
        assert one["first_call_s"] > 0
    printed = capsys.readouterr().out
    assert "kdjax ÷ this" in printed and "written to" in printed and written["hardware"]["text"] in printed


@pytest.mark.slow
def test_memory_without_the_data_set_is_skipped_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    sentence = benchmark_memory.peak("configs/cifar100.py:resnet8", 1)
    assert isinstance(sentence, str) and str(tmp_path) in sentence and "prepare" in sentence


@pytest.mark.slow
def test_peak_memory_grows_with_what_is_held():
    before = benchmark_memory.peak_mb()
    held = np.ones(int(before * 1e6 / 8) + 10_000_000)
    assert benchmark_memory.peak_mb() >= 8 * held.size / 1e6 > before


def test_unknown_section_is_refused():
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        with pytest.raises(Refused, match="did you mean metrics"):
            benchmark.run(["benchmark", "metric"])


def test_unknown_network_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(benchmark, "SECTIONS", {"step": lambda: pytest.fail("the section ran")})
    with flagsaver.flagsaver(student="wrn_41_2"):
        flags.FLAGS.mark_as_parsed()
        with pytest.raises(Refused, match="d = 6n"):
            benchmark.run(["benchmark", "step"])


def test_quick_keeps_the_networks_that_were_named():
    with flagsaver.flagsaver(quick=True, student="wrn_10_1", repeats=3):
        flags.FLAGS.mark_as_parsed()
        chosen = benchmark_settings.settings()
    assert (chosen.teacher, chosen.student, chosen.rounds) == ("resnet8", "wrn_10_1", 3)


def test_unknown_configuration_is_refused():
    with pytest.raises(Refused, match="there is no configuration configs/cifar1000.py"):
        benchmark_memory.child("configs/cifar1000.py:cpu", 1, "")


TEXT = benchmark_text.Settings(
    teacher="bert_1l_16",
    student="bert_1l_8",
    batch=4,
    rounds=2,
    seconds=0.01,
    examples=16,
    matmul=32,
    num_classes=5,
    length=8,
    vocab_size=20,
    dropout=0.0,
    torch=False,
)


def test_operations_of_a_text_step_are_counted_from_shapes():
    s = dataclasses.replace(TEXT, teacher="bert_2l_128", student="bert_1l_64", length=32, vocab_size=200)
    work = benchmark_text.work(s)

    def macs(layers, width):
        inner = layers * (2 * (4 * width**2 + 8 * width**2) + 4 * 32 * width) / 2
        return inner + (width**2 + 5 * width) / 32

    wanted = {False: 3 * macs(1, 64), True: 3 * macs(1, 64) + macs(2, 128)}
    for living, count in wanted.items():
        assert benchmark_text.gflop_per_token(work, living=living) == pytest.approx(2e-9 * count)


@pytest.mark.slow
def test_texts_are_measured_with_a_living_and_with_a_stored_teacher():
    measured = benchmark_text.distillation_step(TEXT)
    assert {*measured["contestants"]} == {benchmark_text.OURS, benchmark_text.STORED}
    for one in measured["contestants"].values():
        assert len(one["seconds"]) == one["tokens_per_s"].n == 2 and one["share_of_matmul"] > 0
    json.dumps(benchmark.plain(measured))
    benchmark_text.show_section(measured)


def test_the_torch_peer_of_texts_is_the_same_step():
    """Without dropout: the same losses from the same parameters on one batch, over three steps of AdamW."""
    pytest.importorskip("torch")
    work = benchmark_text.work(dataclasses.replace(TEXT, examples=4))
    peer, ours = work.torch(), benchmark_step.Ours(work.living)
    for _ in range(3):
        assert peer.advance(1) == pytest.approx(ours.advance(1), rel=1e-4)


def test_workers_of_another_table_are_measured_on_one_seed_of_it():
    commands = []
    for name in ("cud", None):
        with flagsaver.flagsaver(table=name):
            flags.FLAGS.mark_as_parsed()
            commands.append(benchmark_settings.workers_settings().command)
    assert commands[0] == ["experiments.cud", "--config=configs/cud.py:cpu", "--config.seeds=(0,)"]
    assert commands[1][0] == "experiments.quickstart"
    for given, says in (
        ({"table": "cudd"}, "did you mean cud"),
        ({"table": "cud", "quick": True}, "leave one of them"),
    ):
        with flagsaver.flagsaver(**given):
            flags.FLAGS.mark_as_parsed()
            with pytest.raises(Refused, match=says):
                benchmark_settings.workers_settings()


def test_workers_are_measured_in_turns_on_equal_numbers(monkeypatch, capsys):
    order: list[int] = []

    def timed(settings, count):
        order.append(count)
        return 3.0 / count, 3.6, "the same" if count < 4 else "others"

    monkeypatch.setattr(benchmark_workers, "_timed", timed)
    settings = benchmark_workers.Settings(rounds=3)
    measured = benchmark_workers.measure(settings, (1, 2))
    assert order == [1, 2, 2, 1, 1, 2]
    assert [row["times_faster"].median for row in measured["rows"]] == [1.0, 2.0]
    assert [row["busy"].median for row in measured["rows"]] == pytest.approx([1.2, 2.4])
    shown = benchmark_workers.table({**measured, "processors": 2})
    assert [row[4] for row in shown] == ["1.00", "1.67"]
    json.dumps(benchmark.plain(measured))
    benchmark_workers.show_section(measured)
    stored = {
        "workers": json.loads(json.dumps(benchmark.plain(measured))),
        "command": "typed",
        "hardware": {"text": "x"},
    }
    assert "| workers | seconds | times faster | processors busy | at most | n |" in results.shared_out(stored)
    assert "experiments.quickstart" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="wrote 2 different results"):
        benchmark_workers.measure(settings, (1, 4))
    assert benchmark_workers.measure(settings, (1, 1)) == "there is one processor, and nothing to share out"


@pytest.mark.slow
def test_pairs_are_measured_beside_pytorch_where_it_is(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_step, "PAIRS", (("conv_small", "conv_tiny", 8), ("mlp", "mlp", 8)))
    for settings in (TINY, dataclasses.replace(TINY, torch=True)):
        monkeypatch.setattr(benchmark_settings, "settings", lambda settings=settings: settings)
        measured = benchmark_sections.pairs_section()
        assert [(pair["teacher"], pair["size"]) for pair in measured["pairs"]] == [("conv_small", 8), ("mlp", 8)]
        assert all([*pair["contestants"]] == [benchmark_step.OURS] for pair in measured["pairs"]), "no such peers"
        shown = capsys.readouterr().out
        assert "conv_small → conv_tiny, 8x8" in shown
    assert "skipped" in shown
    stored = {"pairs": json.loads(json.dumps(benchmark.plain(measured))), "command": "typed", "hardware": {"text": "x"}}
    assert "| mlp → mlp, 8x8 |" in results.paired(stored)


def test_a_pair_is_told_alike_from_a_file():
    """Where its contestants are sorted by name, and PyTorch comes first."""
    rows = {benchmark_step.OURS: [0.5, 0.4], benchmark_step.TORCH: [0.25, 0.25]}
    contestants = {
        name: {"seconds": seconds, "share_of_matmul": 0.5, "first_call_s": 1.0} for name, seconds in rows.items()
    }
    pair = {"teacher": "a", "student": "b", "size": 8, "batch": 10, "contestants": contestants}
    (told,) = benchmark_tables.pair_rows([pair])
    assert benchmark_tables.pair_rows([json.loads(json.dumps(pair, sort_keys=True))]) == [told]
    assert told[1:4] == ("22 (20 … 25)", "40 (40 … 40)", "0.56 (0.50 … 0.62)")


@pytest.mark.parametrize(
    ("section", "given", "says"),
    [
        ("pairs", {"teacher": "resnet8"}, "--teacher was given, which pairs does not read.* type one of step, text"),
        ("step", {"target": ["v5e"]}, "--target was given, which step does not read.* type one of aot"),
        ("all", {"norm_group": 128}, "--norm_group was given, which metrics, memory, step and text do not read"),
        ("workers", {"torch": False}, "--torch was given"),
        ("text", {"student": "wrn_40_1"}, "does not read texts"),
        ("step", {"student": "bert_2l_128"}, "does not read images"),
        ("step", {"repeats": -1}, "--repeats"),
        ("metrics", {"repeats": -1}, "--repeats"),
        ("aot", {"target": ["h100", "v6e"]}, "--target is 'v6e'"),
        ("aot", {"config": "configs/cifar1000.py:cpu"}, "no configuration configs/cifar1000.py"),
        ("aot", {"config": "configs/cifar100.py:resnet8", "student": "resnet8"}, "leave one of them out"),
        ("memory", {"memory_config": "configs/cifar1000.py:cpu"}, "no configuration configs/cifar1000.py"),
    ],
)
def test_what_a_section_would_not_run_with_is_refused_by_its_plan(section, given, says):
    with flagsaver.flagsaver(plan=True, **given):
        flags.FLAGS.mark_as_parsed()
        with pytest.raises(Refused, match=says):
            benchmark.run(["benchmark", section])


def test_every_plan_says_what_would_be_measured(capsys):
    for section in benchmark_settings.PLANS:
        with flagsaver.flagsaver(plan=True):
            flags.FLAGS.mark_as_parsed()
            benchmark.run(["benchmark", section])
        assert capsys.readouterr().out.startswith(f"{section}: ")
    with flagsaver.flagsaver(plan=True, student="bert_2l_128"):
        flags.FLAGS.mark_as_parsed()
        benchmark.run(["benchmark"])
    shown = capsys.readouterr().out
    assert "bert_4l_256 → bert_2l_128" in shown and "wrn_40_2 → wrn_40_1" in shown


def test_the_sections_read_the_flags_that_they_say():
    sections = {*benchmark_sections.SECTIONS, *benchmark_sections.ON_REQUEST}
    assert sections == benchmark_settings.READS.keys() == benchmark_settings.PLANS.keys()
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[benchmark_settings.__name__]}
    assert own == {name for reads in benchmark_settings.READS.values() for name in reads}


SWEEP = benchmark_sweep.Settings(
    teacher="mlp",
    student="mlp",
    temperatures=(1.0, 4.0),
    alphas=(0.9,),
    batch=8,
    size=8,
    num_classes=5,
    examples=16,
    rounds=2,
    seconds=0.001,
    torch=False,
)


@pytest.mark.slow
def test_a_grid_is_measured_as_a_cohort_and_one_after_another(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_settings, "sweep_settings", lambda: SWEEP)
    monkeypatch.setattr(benchmark_sweep.provenance, "cpus", lambda: 2)
    measured = benchmark_sections.sweep_section()
    assert measured["students"] == 2 and measured["steps_of_a_run"] == 60 * 2
    assert {*measured["contestants"]} == {benchmark_sweep.COHORT, benchmark_sweep.ALONE, benchmark_sweep.ABREAST}
    for one in measured["contestants"].values():
        assert len(one["seconds"]) == one["cohort_times_faster"].n == 2 and one["first_call_s"] > 0
        assert one["training_s"] == pytest.approx(120 * one["step_s"].median)
    assert "2 students mlp of one mlp, T in 1, 4, alpha in 0.9, 8x8, batch 8" in capsys.readouterr().out
    stored = {"sweep": json.loads(json.dumps(benchmark.plain(measured))), "command": "typed", "hardware": {"text": "x"}}
    assert "| kdjax, one after another |" in results.swept(stored)
    made = benchmark_sweep.trainers(SWEEP)
    contestants = benchmark_sweep.Together(made), benchmark_sweep.Each([benchmark_step.Ours(one) for one in made])
    for _ in range(2):  # over the end of an epoch
        np.testing.assert_allclose(*(contestant.advance(3) for contestant in contestants), rtol=1e-5)


@pytest.mark.slow
def test_the_torch_grid_takes_the_same_steps():
    """The same losses from the same parameters and pixels, over an epoch."""
    torch = pytest.importorskip("torch")
    s = dataclasses.replace(SWEEP, teacher="wrn_10_1", student="resnet8", temperatures=(4.0,))
    made = benchmark_sweep.trainers(s)
    grid = benchmark_sweep.torch_grid(s, made[0])
    for trainer, peer in zip(made, grid.members, strict=True):
        _load_by_name(torch, peer.student, trainer.init().variables["params"])
        _load_by_name(torch, peer.teacher, trainer.task.given.variables["params"])
        ours = benchmark_step.Ours(trainer)
        for _ in range(2):
            assert peer.advance(1) == pytest.approx(ours.advance(1), rel=2e-3)


def _load_by_name(torch, network, params):
    """Copies parameters; a block of PyTorch's sequence is the next `stage<s>_block<b>`."""
    blocks = zip(network.blocks, sorted(name for name in params if name.startswith("stage")), strict=True)
    modules = [(network, params), *((module, params[block]) for module, block in blocks)]
    for layer, p in (
        (x, held[name]) for module, held in modules for name, x in module.named_children() if name in held
    ):
        if "scale" in p:
            layer.weight.data, layer.bias.data = torch.tensor(np.array(p["scale"])), torch.tensor(np.array(p["bias"]))
        elif np.ndim(p["kernel"]) == 4:
            layer.weight.data = torch.tensor(np.array(p["kernel"]).transpose(3, 2, 0, 1))
        else:
            layer.weight.data, layer.bias.data = (
                torch.tensor(np.array(p["kernel"]).T),
                torch.tensor(np.array(p["bias"])),
            )

"""What the benchmark prints: a table a section, each number beside its target."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.spread import spread

DISPATCH_US, MEMORY_MB = 1500, 2000
"""Targets: microseconds of one call with nothing to compute, and peak resident memory of a CIFAR-100 run."""

Rows = list[tuple[str, ...]]


def show(title: str, columns: Sequence[str], rows: Rows, note: str = "") -> None:
    """A table on the terminal, numbers to the right; in a pipe it is 140 wide."""
    table = Table(title=title, title_justify="left", caption=note or None, caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def between(s: Any, digits: int = 0) -> str:
    """median (min … max)."""
    return f"{s.median:,.{digits}f} ({s.min:,.{digits}f} … {s.max:,.{digits}f})"


def verdict(held: bool, text: str) -> str:
    return f"[green]{text} ✓" if held else f"[red]{text} ✗"


def show_imports(rows: list[dict[str, Any]]) -> None:
    show(
        "import in a fresh process",
        ("module", "seconds", "n", "heavy packages", "target"),
        [
            (
                row["module"],
                between(row["seconds"], 2),
                str(row["seconds"].n),
                ", ".join(row["heavy"]) or "none",
                verdict(not row["heavy"], "none"),
            )
            for row in rows
        ],
    )


def show_dispatch(rows: list[dict[str, Any]]) -> None:
    show(
        "one call with nothing to compute, microseconds: median (min … max)",
        ("call", "model leaves", "state leaves", "until it returns", "until it is done", "n", "target"),
        [
            (
                row["what"],
                str(row["model_leaves"]),
                str(row["state_leaves"]),
                between(row["returns_us"]),
                between(row["done_us"]),
                str(row["done_us"].n),
                verdict(row["done_us"].median < DISPATCH_US, f"< {DISPATCH_US}") if row["ours"] else "",
            )
            for row in rows
        ],
    )


def show_traces(rows: list[dict[str, Any]]) -> None:
    show(
        "compiles in a stage of two epochs",
        ("stage", "split", "program", "compiles", "target"),
        [
            (row["stage"], row["split"], row["program"], str(row["traces"]), verdict(row["traces"] == 1, "1"))
            for row in rows
        ],
    )


def show_distillation(section: dict[str, Any]) -> None:
    rows: Rows = []
    for name, one in section["contestants"].items():
        ratio = one["ours_over_this"]
        rows.append(
            (
                name,
                between(one["images_per_s"], 1),
                between(ratio, 2) if one["is_peer"] else "",
                f"{one['gflop_per_s']:.1f}",
                f"{one['share_of_matmul']:.0%}",
                f"{one['first_call_s']:.1f}",
                str(ratio.n),
                verdict(one["p_slower"] >= 0.05, f"no slower, p = {one['p_slower']:.2f}") if one["must_match"] else "",
            )
        )
    absent = "".join(f"\n{name}: {why}." for name, why in section["absent"].items())
    rate = section["matmul_gflop_per_s"]
    show(
        f"distillation step {section['teacher']} → {section['student']}, batch {section['batch']}, "
        f"{section['precision']}, {section['steps_per_call']} step(s) a call",
        ("contestant", "images/s", "kdjax ÷ this", "GFLOP/s", "of matmul", "first call s", "n", "target"),
        rows,
        f"{section['gflop_per_image']:.3f} GFLOP an image, counted from shapes; {section['matmul']}² matmul: "
        f"{between(rate)} GFLOP/s, n = {rate.n}; rounds alternate, "
        f"median (min … max); p: sign test over rounds that kdjax is as fast, missed below 0.05.{absent}",
    )


TRAINER = "kdjax Trainer"
PAIR_COLUMNS = ("pair", "kdjax images/s", "PyTorch images/s", "times PyTorch's", "of matmul", "first call s", "n")


def pair_rows(measured: Sequence[Mapping[str, Any]]) -> Rows:
    """A row for each pair, in the order of PAIR_COLUMNS; the ratio is taken round by round."""
    rows: Rows = []
    for pair in measured:
        # By name: in a file the contestants are in alphabetical order.
        contestants = dict(pair["contestants"])
        ours, peers = contestants.pop(TRAINER), [*contestants.values()]
        images = [spread([pair["batch"] / seconds for seconds in one["seconds"]]) for one in (ours, *peers)]
        ratios = [[t / o for t, o in zip(one["seconds"], ours["seconds"], strict=True)] for one in peers]
        rows.append(
            (
                f"{pair['teacher']} → {pair['student']}, {pair['size']}x{pair['size']}",
                between(images[0]),
                between(images[1]) if peers else "-",
                between(spread(ratios[0]), 2) if peers else "-",
                f"{ours['share_of_matmul']:.0%}",
                f"{ours['first_call_s']:.1f}",
                str(images[0].n),
            )
        )
    return rows


def pair_title(measured: Sequence[Mapping[str, Any]]) -> str:
    first = measured[0]
    return f"distillation step, batch {first['batch']}, {first['precision']}, beside PyTorch eager (channels last)"


def pair_note(measured: Sequence[Mapping[str, Any]]) -> str:
    """How the table is to be read."""
    first = measured[0]
    absent = "".join(f" {name}: skipped, {why}." for name, why in first["absent"].items())
    return (
        f"Median (min … max); rounds alternate, and a ratio is within a round. Of matmul: the share of the rate of a "
        f"{first['matmul']}² matrix product. First call: trace and compile.{absent}"
    )


def show_pairs(measured: Sequence[Mapping[str, Any]]) -> None:
    show(pair_title(measured), PAIR_COLUMNS, pair_rows(measured), pair_note(measured))


AOT_COLUMNS = (
    "one step of",
    "kernels",
    "GB moved",
    "GFLOP",
    "peak MB",
    "collectives",
    "to host",
    "compile s",
    "floor ms",
)


def compiled_rows(one: dict[str, Any]) -> Rows:
    """A row for every program of a target, in the order of AOT_COLUMNS."""
    return [
        (
            row["program"] if row["program"].startswith("train") else f"{row['program']}, {row['examples']:,} examples",
            f"{row['kernels']:,.0f}",
            f"{row['gigabytes']:.2f}",
            f"{row['gflop']:,.1f}" if row["gflop"] else "",
            f"{row['peak_mb']:,.0f}" if row["fits"] else f"{row['peak_mb']:,.0f}, too much",
            ", ".join(f"{n:.3g} {name}" for name, n in row["collectives"].items()) or "none",
            str(row["host_transfers"]),
            f"{row['compile_s']:.0f}",
            f"{row['floor_ms']:.2f} ({row['bound_by']})",
        )
        for row in one["programs"]
    ]


def compiled_title(one: dict[str, Any]) -> str:
    pair = one["student"] if one["teacher"] is None else f"{one['teacher']} → {one['student']}"
    calls = one["programs"][0]["steps_per_call"]
    what = f"{one['target']}: {pair}, {one['method']}, batch {one['batch']}, {one['precision']}"
    return f"{what}, {calls} training step{'s' if calls > 1 else ''} a call"


COMPILED_NOTE = (
    "Kernels, bytes and memory are of one device, FLOP of all. Nothing ran: the floor is what the device needs by its "
    "data sheet for the bytes, the FLOP or the launches, whichever is most."
)


def compiled_note(targets: list[dict[str, Any]]) -> str:
    """What the columns are, and whether a loop was counted once because its length could not be read."""
    loops = sum(program.get("loops_counted_once", 0) for one in targets for program in one["programs"])
    unknown = f" Loops counted once, because their length could not be read: {loops}; more is executed."
    return COMPILED_NOTE + (unknown if loops else "")


def show_compiled(one: dict[str, Any]) -> None:
    show(f"compiled for {compiled_title(one)}", AOT_COLUMNS, compiled_rows(one), compiled_note([one]))

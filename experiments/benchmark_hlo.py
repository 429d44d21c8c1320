"""What a compiled program does, counted from its text: kernels, bytes, collectives, transfers to the host.

A kernel is every instruction that is executed and moves data, wherever it stands: in the entry computation, or in the
body of a loop, as often as the loop runs. Parameters, tuples and their elements, constants and bitcasts are no kernels,
and what happens inside a fusion is one kernel. The bytes of a kernel are its operands' and its result's; of an operand
of which it takes slices or gathers rows alone, the bytes of these. So they are an upper limit: what stays in a cache is
counted as moved, but for what the compiler itself keeps in a TPU's own memory.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id")
"""Instructions that launch nothing."""
PARTIAL = ("slice", "dynamic-slice", "gather")
"""Instructions that read of their first operand what they return."""
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
HOST = ("send", "recv", "infeed", "outfeed")

_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%?([\w.\-]+)$")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")
_ON_CHIP = "S(1)"
"""How a layout says that an array lies in a TPU's own memory, and not in the one that `bandwidth` is of."""


class Instruction(NamedTuple):
    """One line of a computation; `shape` and `attributes` are as the compiler prints them."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str


class Counts(NamedTuple):
    """What one call of a program does.

    Attributes:
      kernels: name of a kind -> how many are executed.
      bytes: name of a kind -> bytes of operands and results.
      collectives: opcode -> how many are executed.
      collective_bytes: of their results.
      host_transfers: instructions that talk to the host in the middle of the program.
      loops: that were counted once, because the text does not say how often they run.
    """

    kernels: Counter[str]
    bytes: Counter[str]
    collectives: Counter[str]
    collective_bytes: float
    host_transfers: int
    loops: int


def size(shape: str, *, on_chip: bool = False) -> float:
    """Bytes of a shape as it is printed, tuples included: "f32[128,10]{1,0}" is 5120.

    What lies in a TPU's own memory counts only with `on_chip`.
    """
    total = 0.0
    for match in _SHAPE.finditer(shape):
        if match[3] and _ON_CHIP in match[3] and not on_chip:
            continue
        bits = 8 if match[1] == "pred" else int(re.search(r"\d+", match[1])[0])  # type: ignore[index]
        total += math.prod(int(n) for n in match[2].split(",") if n) * bits / 8
    return total


def computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """(name of the entry computation, the instructions of each) of a program's text."""
    entry, current = "", ""
    by_name: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if (header := _HEADER.match(line)) is not None:
            current = header[2]
            by_name[current] = []
            entry = current if header[1] else entry
        elif (start := _INSTRUCTION.match(line)) is not None and current:
            by_name[current].append(_instruction(start[1], line[start.end() :]))
    return entry, by_name


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    names = (_NAME.search(word.strip()) for word in _split(rest[opening + 1 : closing]))
    operands = tuple(match[1] for match in names if match)
    return Instruction(name, rest[:opening], shape, operands, rest[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis closes that opens there."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError(f"no parenthesis closes in {text[opening : opening + 80]!r}")


def _split(text: str) -> Iterator[str]:
    """The operands of a list, which may print shapes with commas of their own."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def count(text: str) -> Counts:
    """Counts what one call of a compiled program executes, from its `compiled.as_text()`."""
    entry, by_name = computations(text)
    return _count(entry, by_name, 1, Counts(Counter(), Counter(), Counter(), 0.0, 0, 0))


def _count(name: str, by_name: Mapping[str, list[Instruction]], times: int, totals: Counts) -> Counts:
    shapes = {one.name: one.shape for one in by_name[name]}
    for one in by_name[name]:
        opcode = one.opcode
        if opcode in FREE or opcode.endswith("-done"):
            continue
        if opcode in ("while", "call", "conditional"):
            trips = _trips(one, by_name[name], by_name) if opcode == "while" else 1
            if trips is None:
                totals = totals._replace(loops=totals.loops + 1)
            for callee in _called(one):
                totals = _count(callee, by_name, times * (1 if trips is None else trips), totals)
            continue
        kind = _kind(one)
        moved = _written(one) + sum(_read(one, k, shapes, by_name) for k in range(len(one.operands)))
        totals.kernels[kind] += times
        totals.bytes[kind] += round(times * moved)
        if opcode.removesuffix("-start") in COLLECTIVES:
            totals.collectives[opcode.removesuffix("-start")] += times
            totals = totals._replace(collective_bytes=totals.collective_bytes + times * size(one.shape, on_chip=True))
        if opcode.removesuffix("-start") in HOST or "callback" in _target(one):
            totals = totals._replace(host_transfers=totals.host_transfers + times)
    return totals


def _trips(loop: Instruction, around: list[Instruction], by_name: Mapping[str, list[Instruction]]) -> int | None:
    """How often a loop runs: as the text says, or what its counter is compared with less where it starts.

    JAX's loops of known length count up by one. None where neither can be read.
    """
    if said := _TRIPS.search(loop.attributes):
        return int(said[1])
    named = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
    condition = by_name.get(named[1], []) if named else []
    if not condition or condition[-1].opcode != "compare" or "direction=LT" not in condition[-1].attributes:
        return None
    counter, limit = ({i.name: i for i in condition}.get(operand) for operand in condition[-1].operands)
    index = re.search(r"\bindex=(\d+)", counter.attributes) if counter else None
    outer = {i.name: i for i in around}
    carried = outer.get(loop.operands[0])
    if limit is None or limit.opcode != "constant" or index is None or carried is None or carried.opcode != "tuple":
        return None
    start = outer.get(carried.operands[int(index[1])])
    while start is not None and start.opcode in ("copy", "bitcast"):
        start = outer.get(start.operands[0])
    return int(limit.operands[0]) - int(start.operands[0]) if start and start.opcode == "constant" else None


def _written(one: Instruction) -> float:
    """Bytes of the result; what a copy begins names its source too."""
    return size(next(_split(one.shape[1:-1]))) if one.opcode == "copy-start" else size(one.shape)


def _read(one: Instruction, k: int, shapes: Mapping[str, str], by_name: Mapping[str, list[Instruction]]) -> float:
    """Bytes that an instruction reads of its operand number k."""
    if one.opcode in PARTIAL and k == 0:
        return size(one.shape)
    inside = re.search(r"\bcalls=%?([\w.\-]+)", one.attributes) if one.opcode == "fusion" else None
    if inside:
        body = by_name[inside[1]]
        names = {i.name for i in body if i.opcode == "parameter" and i.operands == (str(k),)}
        for i in body:  # operands come first
            names |= {i.name} if i.opcode in ("bitcast", "convert") and names & {*i.operands} else set()
        users = [i for i in body if names & {*i.operands} and i.name not in names]
        if users and all(i.opcode in PARTIAL and i.operands[0] in names for i in users):
            return sum(size(i.shape) for i in users)
    return size(shapes.get(one.operands[k], ""))


def _called(one: Instruction) -> list[str]:
    """The computations that a loop, a call or a branch executes; of a loop's condition nothing is a kernel of ours."""
    if one.opcode == "while":
        return re.findall(r"\bbody=%?([\w.\-]+)", one.attributes)
    if one.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        listed = branches[1].split(",") if branches else re.findall(r"true_computation=%?([\w.\-]+)", one.attributes)
        return [listed[0].strip().lstrip("%")]
    return re.findall(r"\bto_apply=%?([\w.\-]+)", one.attributes) if one.opcode == "call" else []


def _target(one: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    return match[1] if match else ""


def _kind(one: Instruction) -> str:
    """What people call it: the target of a library's kernel, the kind of a fusion, else the opcode."""
    if target := _target(one):
        return target.strip("_").replace("$", " ")
    if one.opcode != "fusion":
        return one.opcode.removesuffix("-start")
    name = re.sub(r"[.\d]+$", "", one.name).replace("_", " ").replace("-", " ").strip()
    return name

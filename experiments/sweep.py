"""Fields of a configuration crossed, over seeds, in one table; every cell is an ordinary stage and is reused.

python -m experiments.sweep --sweep.recipe.student.distill.options.T=1,2,4 --sweep.recipe.student.optimizer.lr=0.02,0.05
python -m experiments.sweep --config=configs/cifar100.py:cpu --sweep.recipe.teacher.method=nll,mdca,adafocal --plan

A value is what `--config.FIELD=` would take, so that a method brings its own options; values that hold commas stand in
brackets. Rows are the students of every combination, after the teachers that differ; with
`--config.recipe.student.distill.method=` there are teachers alone. Seeds are those of `--config.seeds`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import command, common, tables, words
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Row
from kdjax.errors import Refused
from kdjax.stages import Stage

MOST = 10_000
"""Combinations; a sweep of more is a slip of the keyboard."""


@dataclasses.dataclass(frozen=True)
class Sweep(Command):
    """A command and what it crosses.

    Attributes:
      crossed: dotted field -> its values, as typed.
      cells: "T=2, lr=0.05" -> the command with these fields set.
    """

    crossed: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    cells: Mapping[str, Command] = dataclasses.field(default_factory=dict)


def read(argv: Sequence[str], **how: Any) -> Sweep:
    """The command, and one for every combination of the crossed fields.

    Raises:
      Refused: what `command.read` refuses, of any combination; nothing to cross; a field without values, with one
        twice, set elsewhere as well, or that is no part of a recipe; more than `MOST` combinations.
    """
    fields = [match[1] for word in argv if (match := re.match(r"--?sweep\.([^=]+)", word))]
    plain = words.without(argv, *(f"sweep.{field}" for field in fields))
    given = command.read(plain, **how)
    crossed = {field: _values(field, words.flag_values(argv, f"sweep.{field}")) for field in fields}
    if not crossed:
        raise Refused("nothing is crossed; type for instance --sweep.recipe.student.distill.options.T=1,2,4.")
    for field in crossed:
        if not field.startswith("recipe."):
            raise Refused(f"--sweep.{field} crosses no field of a recipe; seeds are --config.seeds=(0,1,2).")
        if f"--config.{field}" in given.fields.values():
            raise Refused(f"--config.{field} and --sweep.{field} both set one field; leave one out.")
    combinations = list(itertools.islice(itertools.product(*crossed.values()), MOST + 1))
    if len(combinations) > MOST:
        raise Refused(f"the crossed fields make more than {MOST:,} combinations; cross fewer values.")
    names = _short(list(crossed))
    cells = {}
    for values in combinations:
        typed = [f"--config.{field}={value}" for field, value in zip(crossed, values, strict=True)]
        name = ", ".join(f"{short}={value}" for short, value in zip(names, values, strict=True))
        cells[name] = command.read([*plain, *typed], **how)
    base = {field.name: getattr(given, field.name) for field in dataclasses.fields(Command)}
    text = " ".join([words.program(), *words.without(argv[1:], *command.PLACES)])
    return Sweep(**{**base, "text": text}, crossed=crossed, cells=cells)


def _values(field: str, typed: Sequence[str]) -> list[str]:
    """The values of a field, separated by commas outside of brackets."""
    if len(typed) > 1:
        raise Refused(f"--sweep.{field} is typed {len(typed)} times; expected once, with all values: a,b,c.")
    values = [value.strip() for value in re.split(r",(?![^(\[{]*[)\]}])", typed[0])]
    if not all(values) or len({*values}) < len(values):
        raise Refused(f"--sweep.{field} is {typed[0]!r}; expected different values, separated by commas: a,b,c.")
    return values


def _short(fields: Sequence[str]) -> list[str]:
    """Each field by as many of its last parts as tell it from the others."""
    names = []
    for field in fields:
        parts = field.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alike = {tail: sum(f".{other}".endswith(f".{tail}") for other in fields) for tail in tails}
        names.append(next(tail for tail in tails if alike[tail] == 1))
    return names


def rows(given: Sweep) -> dict[str, Row]:
    """The teachers that differ, then a student for every combination.

    Raises:
      Refused: a combination that is the same as another; what a recipe refuses, with the combination's name.
    """
    teachers: dict[Stage, str] = {}
    students: dict[Stage, str] = {}
    for name, cell in given.cells.items():
        try:
            teacher, student = common.pair(cell.config, 0)
        except Refused as error:
            raise Refused(f"{name}: {error}") from error
        teachers.setdefault(dataclasses.replace(teacher, name=f"teacher {name}"), name)
        stage = dataclasses.replace(teacher if student.recipe.distill is None else student, name=name)
        if stage in students:
            raise Refused(f"{name} is the same as {students[stage]}; leave one of them out.")
        students[stage] = name
    alone = all(stage.teacher is None for stage in students)
    made = {} if alone else {f"teacher: {_which(given, name)}": Row(stage) for stage, name in teachers.items()}
    return made | {name: Row(stage) for stage, name in students.items()}


def _which(given: Sweep, name: str) -> str:
    """Of a combination's name what a teacher differs by."""
    parts = zip(given.crossed, re.split(r", (?=[\w.]+=)", name), strict=True)
    kept = [part for field, part in parts if not field.startswith("recipe.student.")]
    return ", ".join(kept) or common.label(common.recipe(given.cells[name].config, "teacher", 0))


def run(given: Sweep) -> None:
    declared = rows(given)
    finished = tables.run(given, declared)
    if finished is None:
        return
    best, nll = _best(finished)
    sentence = "No seed finished."
    if best:
        sentence = f"Lowest NLL on the calibration split: {best} ({nll:.3f})."
    tables.publish(
        given,
        "sweep",
        Sheet(finished.lines, tables.COLUMNS),
        finished,
        title=f"{len(given.cells)} combinations of {', '.join(_short(list(given.crossed)))}",
        summary=[sentence],
        crossed={field: list(values) for field, values in given.crossed.items()},
    )


def _best(finished: tables.Finished) -> tuple[str, float]:
    """The combination of the lowest mean NLL on the calibration split, by which hyper-parameters may be chosen."""
    nll = {
        name: [finished.results[stage.id].metrics["calibration"]["nll"] for stage in members]
        for name, members in finished.groups.items()
        if not name.startswith("teacher: ") and all(stage.id in finished.results for stage in members)
    }
    means = {name: sum(values) / len(values) for name, values in nll.items()}
    best = min(means, key=lambda name: means[name], default="")
    return best, means.get(best, float("nan"))


if __name__ == "__main__":
    common.main(run, "configs/digits.py", workdir="runs/sweep", read=read)

"""`kdjax show`: what a run is, its table and its lineage as a tree, read from its files alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdjax.cli import sign, words
from kdjax.errors import Refused
from kdjax.files import Damaged, read_json
from kdjax.manifests import verify_manifest
from kdjax.recipes import Recipe, from_dict
from kdjax.report import COLUMNS, Grid

_MOST = 10_000


def show(run: str, verify_with: str = "") -> list[str]:
    """The lines that describe a stage's directory, or the tree of all stages in a workdir.

    Args:
      verify_with: a public key whose owner must have signed all that is shown.

    Raises:
      Refused: neither a run nor a directory of runs; not signed, or not by that key.
    """
    signed = sign.verify(run, verify_with) if verify_with else []
    try:
        return [*signed, *_shown(run)]
    except Refused:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            f"a JSON file of {run} holds what no run holds ({type(error).__name__}: {error}); run the stage again."
        ) from error


def _shown(run: str) -> list[str]:
    directory = Path(run)
    if not directory.is_dir():
        raise Refused(f"{run} is no directory; expected a run such as runs/0123456789ab, or the workdir that holds it.")
    if not (directory / "recipe.json").is_file():
        stages = _stages(directory)
        if not stages:
            raise Refused(f"{run} holds no recipe.json and no runs; expected a run such as runs/0123456789ab.")
        roots = [name for name in stages if not any(parent in stages for parent in _parents(stages[name]))]
        return [line for root in roots for line in _tree(root, stages, "", "", set())]
    directory = directory.resolve()
    stages = _stages(directory.parent)
    name = directory.name
    root, seen = name, {name}
    while parents := [parent for parent in _parents(stages[root]) if parent in stages and parent not in seen]:
        root = parents[0]
        seen.add(root)
    tree = list(_tree(root, stages, "", "", set(), marked=name))
    return [*_about(directory), "", *_table(directory), "", "lineage (test split):", *tree]


def _stages(workdir: Path) -> dict[str, Path]:
    """Every stage's directory below a workdir, by id."""
    return {p.name: p for p in sorted(workdir.iterdir())[:_MOST] if (p / "recipe.json").is_file()}


def _parents(directory: Path) -> list[str]:
    stored = _read(directory / "parents.json", [])
    return [str(one) for one in stored] if isinstance(stored, list) else []


def _read(path: Path, missing: Any) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        return missing
    except Damaged as error:
        raise Refused(f"{path} is damaged ({error}); run the stage again.") from error


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _recipe(directory: Path) -> Mapping[str, Any]:
    """The stored recipe, and of its fields and options those that differ from their default: as canonical text has it.

    A method from outside that is not imported has no known defaults: then every option is shown.
    """
    stored = _mapping(_read(directory / "recipe.json", {}))
    brief: dict[str, Any] = {}
    with contextlib.suppress(Refused, KeyError, TypeError, AttributeError, ImportError):
        brief = json.loads(from_dict(Recipe, stored).canonical())
    if not brief:
        return stored
    narrow = {name: brief.get(name, {}) for name in ("options", "model_options", "optimizer", "data")}
    if stored.get("distill"):
        narrow["distill"] = {**stored["distill"], "options": _mapping(brief.get("distill")).get("options", {})}
    complete = {name: _mapping(stored.get(name)) for name in ("optimizer", "data")}
    for name, fields in complete.items():
        narrow[name] = {"name": fields.get("name"), **narrow[name]}
    narrow["optimizer"] = {"name": None, "lr": complete["optimizer"].get("lr"), **narrow["optimizer"]}
    return {**stored, **narrow}


def _about(directory: Path) -> list[str]:
    recipe = _recipe(directory)
    environment, result = (_mapping(_read(directory / f"{n}.json", {})) for n in ("environment", "result"))
    model = _mapping(_read(directory / "model.json", {}))
    problems = verify_manifest(directory)
    state = "not finished, or damaged: " + problems[0] if problems else "finished; every file verified"
    if "epoch" in result:
        state += f"; epoch {result['epoch']} selected"
    optimizer = _mapping(recipe.get("optimizer"))
    teachers = [name if (directory.parent / name).is_dir() else f"{name} (elsewhere)" for name in _parents(directory)]
    data = _mapping(recipe.get("data"))
    schedule = f"{recipe.get('epochs')} epochs of batches of {recipe.get('batch_size')}, seed {recipe.get('seed')}"
    rows = [
        ("run", str(directory)),
        ("state", state),
        ("data", f"{data.get('name')}{_options(data, without=('name', 'num_classes'))}"),
        (
            "network",
            f"{recipe.get('model')}{_options(_mapping(recipe.get('model_options')))}, {recipe.get('precision')}",
        ),
        ("method", _method(recipe)),
        *([("taught by", ", ".join(teachers))] if teachers else []),
        ("training", f"{schedule}; {optimizer.get('name')}{_options(optimizer, without=('name',))}"),
    ]
    if model:
        names = ", ".join(map(str, model.get("label_names", [])[:8])) or f"{model.get('num_classes')} without names"
        rows += [
            ("classes", names),
            ("temperature", f"{model.get('temperature', 1.0):.4g}, fitted on the calibration split"),
        ]
    if environment:
        versions = _mapping(environment.get("versions"))
        made = f"kdjax {versions.get('kdjax')} ({str(environment.get('commit'))[:12]}), jax {versions.get('jax')}"
        rows.append(("made by", f"{made}, on {environment.get('device')}, in {environment.get('seconds')} s"))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {text}" for name, text in rows]


def _method(recipe: Mapping[str, Any]) -> str:
    hard = f"{recipe.get('method')}{_options(_mapping(recipe.get('options')))}"
    distill = _mapping(recipe.get("distill"))
    if not distill:
        return hard
    soft = f"{distill.get('method')}{_options(_mapping(distill.get('options')))}"
    share = f"weights {distill['weights']}" if distill.get("weights") else f"alpha {distill.get('alpha')}"
    return f"{hard} + {soft}, {share}"


def _options(options: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    said = [f"{name}={value}" for name, value in options.items() if name not in without]
    return f"({', '.join(said)})" if said else ""


def _table(directory: Path) -> list[str]:
    scores = _mapping(_mapping(_read(directory / "result.json", {})).get("metrics"))
    splits = [split for split in ("calibration", "test") if isinstance(scores.get(split), dict)]
    if not splits:
        return ["no results yet"]
    shown = ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "smece", "sce", "aurc", "temperature", "ece_refit")
    names = [name for name in (*shown, "agreement") if any(name in scores[split] for split in splits)]
    rows = [[COLUMNS[name].head, *(_cell(name, scores[split]) for split in splits)] for name in names]
    return words.aligned(Grid(("metric", *splits), rows)).splitlines()


def _cell(name: str, scores: Mapping[str, Any]) -> str:
    value, column = scores.get(name), COLUMNS[name]
    return f"{column.scale * value:.{column.digits}f}" if isinstance(value, int | float) else "-"


def _tree(
    name: str, stages: Mapping[str, Path], first: str, rest: str, seen: set[str], marked: str = ""
) -> Iterator[str]:
    """A stage and, below it, the students it taught."""
    recipe = _recipe(stages[name])
    test = _mapping(_mapping(_mapping(_read(stages[name] / "result.json", {})).get("metrics")).get("test"))
    numbers = "not finished"
    if isinstance(test.get("top1"), float) and isinstance(test.get("ece"), float):
        numbers = f"top-1 {100 * test['top1']:.2f} %, ECE {100 * test['ece']:.2f} %"
    here = "  <- this run" * (name == marked)
    yield f"{first}{name}  {recipe.get('model')}, {_method(recipe)}: {numbers}{here}"
    if name in seen:  # no run teaches itself, but files may say so
        return
    seen.add(name)
    students = [one for one in stages if name in _parents(stages[one])]
    for i, one in enumerate(students):
        last = i == len(students) - 1
        yield from _tree(
            one, stages, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), seen, marked
        )

"""A finished run in another place as a teacher: what its folder says, checked against the data at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax import outputs
from kdjax.errors import Refused, printable
from kdjax.files import Damaged, read_json
from kdjax.manifests import verify_manifest
from kdjax.predictor import TOKENIZER
from kdjax.recipes import Data, Recipe, from_dict
from kdjax.stages import Stage


def finished(directory: str | Path, data: Data) -> Stage:
    """The stage of a finished run, wherever it lies; `Stage.directory` is that folder and it is never trained again.

        teacher = elsewhere.finished("/models/runs/0123456789ab", student.data)
        stage = Stage(student, teacher)

    Its id is what it would be here, so that a student has one id whether its teacher lies in its own work directory or
    elsewhere.

    Args:
      directory: a stage's directory, with all that its manifest lists; the runs that taught it lie beside it.
      data: the student's; gives the place of the teacher's data where both are of one set.

    Raises:
      Refused: no run, an unfinished or changed one, one of a newer kdjax or of code that is not imported; a
        network that begins with a folder of weights; data that are not those it was trained on.
    """
    top = Path(directory).expanduser().resolve()
    stages: dict[Path, Stage] = {}
    pending = [top]
    while pending:
        folder = pending[-1]
        parents = [top.parent / name for name in _parents(folder)]
        missing = [parent for parent in parents if parent not in stages]
        if not missing:
            stages[folder] = _stage(folder, [stages[parent] for parent in parents], data)
            pending.pop()
        elif not missing[0].is_dir():
            raise Refused(
                f"the teacher {folder} was taught by {missing[0].name}, which is not beside it; copy that too."
            )
        elif missing[0] in pending:
            raise Refused(f"the teacher {missing[0]} is said to have taught itself; expected a run of this kdjax.")
        else:
            pending.append(missing[0])
    return stages[top]


def _parents(folder: Path) -> list[str]:
    """The ids of the runs that must lie beside the one in a folder: its teacher, and the run whose entropy its teacher
    is matched to. Cross-fitted teachers follow from the recipe.

    Raises:
      Refused: no run, an unfinished or changed one.
    """
    if not folder.is_dir():
        raise Refused(f"the teacher {folder} is no folder; expected a finished run, such as runs/0123456789ab.")
    if not (folder / "recipe.json").is_file():
        runs = sorted(path.name for path in folder.iterdir() if (path / "recipe.json").is_file())
        hint = f"it holds the runs {', '.join(runs[:4])}: give one of them" if runs else "it is no run"
        raise Refused(f"the teacher {folder} has no recipe.json; expected a finished run ({hint}).")
    if problems := verify_manifest(folder):
        raise Refused(f"the teacher {folder} is not finished or not intact ({problems[0]}); finish that run first.")
    parents = [str(name) for name in _read(folder, "parents.json", list)]
    try:
        parts = outputs.folds(str(_read(folder, "recipe.json", dict).get("teacher_outputs", outputs.AUTO)))
    except Refused as error:
        raise Refused(f"the teacher {folder} cannot be used here: {error}") from error
    needed = parents[: max(0, len(parents) - parts)]
    if len(needed) > 2:
        raise Refused(f"the teacher {folder} is said to have {len(parents)} parents; expected a run of this kdjax.")
    return needed


def _stage(folder: Path, parents: Sequence[Stage], data: Data) -> Stage:
    teacher, as_soft_as = (*parents, None, None)[:2]
    owner, recipe = (_read(folder, name, dict) for name in ("owner.json", "recipe.json"))
    try:
        made = from_dict(Recipe, {**recipe, "data": _data(recipe, data, folder)}, f"{folder}/recipe.json")
        stage = Stage(made, teacher, f"teacher in {folder.name}", as_soft_as, place=folder)
        identity = stage.id
    except Refused as error:
        raise Refused(f"the teacher {folder} cannot be used here: {error}") from error
    if owner.get("stage") != identity:
        raise Refused(
            f"the teacher {folder} is stage {printable(str(owner.get('stage')), 20)}, and its recipe on the data here "
            f"would be {identity}; expected the data that it was trained on, and the code of its time."
        )
    return stage


def _read(folder: Path, name: str, kind: type) -> Any:
    try:
        content = read_json(folder / name)
    except (FileNotFoundError, Damaged) as error:
        raise Refused(f"the teacher {folder} has no readable {name}; expected a finished run.") from error
    if not isinstance(content, kind):
        raise Refused(f"the teacher {folder} has a {name} of another form; expected a run of this kdjax.")
    return content


def _data(recipe: Mapping[str, Any], data: Data, folder: Path) -> dict[str, Any]:
    """The stored data section with what it does not store: where the data lie, and the vocabulary."""
    fields = dict(recipe.get("data") or {})
    if fields.get("name") == data.name and data.path:
        fields["path"] = data.path
    if (folder / TOKENIZER).is_dir():
        fields["options"] = {**fields.get("options", {}), "tokenizer": str(folder / TOKENIZER)}
    return {key: value for key, value in fields.items() if key in {f.name for f in dataclasses.fields(Data)}}

"""No golden case is left out in silence."""

import importlib
import json
from pathlib import Path

from tests.parity import golden

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py") if path.stem != "test_complete")


def test_every_golden_variant_is_declared_exactly_once():
    owners: dict[tuple[str, str], list[str]] = {}
    for name in MODULES:
        covers = importlib.import_module(f"tests.parity.{name}").COVERS
        for objective, variants in covers.items():
            for variant in variants:
                owners.setdefault((objective, variant), []).append(name)
    known = {(o, v) for o in golden.objectives() for v in golden.variants(o)}
    assert not known - owners.keys(), f"compared by no module: {sorted(known - owners.keys())}"
    assert not owners.keys() - known, f"declared but unknown to the index: {sorted(owners.keys() - known)}"
    twice = {key: names for key, names in owners.items() if len(names) > 1}
    assert not twice, f"declared twice: {twice}"


def test_the_index_files_hold_as_many_cases_as_they_say():
    for objective in golden.objectives():
        said = json.loads((golden.ROOT / f"{objective}.json").read_text())["n_cases"]
        ids = {case.id for case in golden.cases(objective)}
        assert len(ids) == len(golden.cases(objective)) == said, objective

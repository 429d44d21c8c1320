"""Golden vectors: what the authors' own code returns, and how kdjax is held against it.

The numbers live in `tests/parity/golden` (format in its README), or in the folder named by `KDJAX_GOLDEN`.

    COVERS = {"focal": {"focal_mean", "focal_sum"}}           # every parity module declares what it compares

    @pytest.mark.parametrize("variant", sorted(COVERS["focal"]))
    def test_focal(variant):
        def check(case):
            loss, grad = jax.value_and_grad(total)(case["logits"], case["labels"], **case.hparams)
            golden.match(case, loss)                          # against expected["loss"]
            golden.match_gradient(case, grad)                 # against expected["grad_logits"]
        golden.sweep("focal", variant, check)

- `sweep(objective, variant, check)` runs `check` on each case of one variant, with 64-bit on exactly when the
  case is float64, collects the failures into one message, and fails when a case was not compared at all, or holds
  a hyper-parameter or an expected value that the check did not read.
- `case.hparams` and `case.expected` are mappings that record what is read. `**case.hparams` reads everything, so
  pass it only to a function that takes every entry. `only(case, name=value)` is for an entry that the library has
  no option for: it fails when the case holds another value; `not_ours(case, *names)` is for entries that describe the
  reference's own search.
- `case[name]` is an input array, cast to the case's dtype (integers to int32); `case.steps` the resolved steps
  of a stateful case; `case.get(key)` other entries.
- `match(case, found, name="loss")` compares within the case's tolerance (`rtol=`, `atol=` override it; an
  array instead of a name is compared as it is); where the authors' code is not finite, finiteness counts.
- `match_gradient(case, found, name="grad_logits")` uses the wider tolerance of the README, understands
  `grad_rows`, and asks only for finiteness where the gradient hangs on ties (`ties=True` compares there too).
- `compared(case)` counts a case checked by other means. The summary line of a run says how many were.
- `module.COVERS` maps an objective to the variants which that module compares; `test_complete.py` holds
  their union against the index files.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

ROOT = Path(os.environ.get("KDJAX_GOLDEN") or Path(__file__).parent / "golden")

# objective -> ids of the cases compared in this process; `counter.py` merges it over processes.
COMPARED: dict[str, set[str]] = {}


@functools.cache
def _archive(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / name, allow_pickle=False) as data:
        return dict(data)


def _resolve(value: Any) -> Any:
    """Array references (`file.npz:key`) anywhere in a tree of lists and dicts become arrays."""
    if isinstance(value, dict):
        return {key: _resolve(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v) for v in value]
    if isinstance(value, str) and ".npz:" in value:
        name, key = value.split(":", 1)
        return _archive(name)[key]
    return value


class Recorded(Mapping[str, Any]):
    """A mapping that remembers which of its entries were read."""

    def __init__(self, entries: Mapping[str, Any]):
        self.entries = dict(entries)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self.entries[name]
        self.read.add(name)
        return _resolve(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    @property
    def unread(self) -> set[str]:
        return self.entries.keys() - self.read


class Case(NamedTuple):
    """One entry of an index file, with the file's own defaults under it."""

    objective: str
    entry: dict[str, Any]
    hparams: Recorded
    expected: Recorded

    @property
    def id(self) -> str:
        return self.entry["id"]

    @property
    def variant(self) -> str:
        return self.entry["variant"]

    @property
    def dtype(self) -> str:
        return self.entry.get("dtype", "float64")

    @property
    def steps(self) -> list[dict[str, Any]]:
        return _resolve(self.entry["steps"])

    def get(self, key: str, default: Any = None) -> Any:
        return self.entry.get(key, default)

    def has(self, name: str) -> bool:
        return name in self.entry.get("inputs", {})

    def __getitem__(self, name):  # a case is read like a mapping of its inputs
        return self.cast(_resolve(self.entry["inputs"][name]))

    def cast(self, value: Any) -> np.ndarray:
        value = np.asarray(value)
        return value.astype(self.dtype if np.issubdtype(value.dtype, np.floating) else np.int32)


@functools.cache
def _index(objective: str) -> tuple[Case, ...]:
    index = json.loads((ROOT / f"{objective}.json").read_text())
    shared = {key: index[key] for key in ("dtype", "rtol", "atol") if key in index}
    return tuple(
        Case(
            objective, {**shared, **entry}, Recorded(entry.get("hparams") or {}), Recorded(entry.get("expected") or {})
        )
        for entry in index["cases"]
    )


def objectives() -> list[str]:
    """Every objective that has an index file."""
    return sorted(path.stem for path in ROOT.glob("*.json"))


def variants(objective: str) -> set[str]:
    return {case.variant for case in _index(objective)}


def cases(objective: str, variant: str | None = None) -> list[Case]:
    """The cases of an objective, in the order of its index file."""
    return [case for case in _index(objective) if variant in (None, case.variant)]


def only(case: Case, **fixed: Any) -> None:
    """Asserts that entries which the library cannot vary hold the one value it has, where the case names them."""
    for name, value in fixed.items():
        if name in case.hparams:
            assert case.hparams[name] == value, f"{name} is {case.hparams[name]!r}; kdjax has {value!r} only"


def not_ours(case: Case, *names: str) -> None:
    """Entries that say how the reference searched, and that no value compared here depends on."""
    for name in names:
        case.hparams.get(name)


def compared(case: Case) -> None:
    """Counts the case as compared."""
    COMPARED.setdefault(case.objective, set()).add(case.id)


def _close(found: np.ndarray, wanted: np.ndarray, rtol: float, atol: float, what: str) -> None:
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}"
    assert np.all(np.isfinite(found)), f"{what}: not finite"
    error = np.abs(found - wanted)
    worst = float(np.max(error - (atol + rtol * np.abs(wanted)), initial=-np.inf))
    assert worst <= 0, f"{what}: largest error {error.max():.3e} is beyond atol {atol:g} + rtol {rtol:g}"


def match(case: Case, found: Any, name: Any = "loss", *, rtol: float | None = None, atol: float | None = None) -> None:
    """Asserts that `found` is the expected value called `name` (or is close to the array `name`)."""
    found = np.asarray(found, np.float64)
    compared(case)
    if case.get("official_nonfinite"):
        assert np.all(np.isfinite(found)), f"{name}: not finite"
        return
    what, wanted = (name, case.expected[name]) if isinstance(name, str) else ("value", name)
    rtol = case.get("rtol", 1e-9) if rtol is None else rtol
    atol = case.get("atol", 1e-12) if atol is None else atol
    _close(found, np.asarray(wanted, np.float64), rtol, atol, what)


def match_gradient(case: Case, found: Any, name: str = "grad_logits", *, ties: bool = False) -> None:
    """Asserts that `found` is the expected gradient called `name`."""
    found = np.asarray(found, np.float64)
    compared(case)
    assert np.all(np.isfinite(found)), f"{name}: not finite"
    expected = case.expected
    parts = [part for part in (name, "grad_rows", "grad_l2") if part in expected]
    if case.get("official_nonfinite") or (case.get("grad_tie_sensitive") and not ties):
        for part in parts:
            expected.get(part)
        return
    rtol, atol = 100 * case.get("rtol", 1e-9), 1e-9 if case.dtype == "float64" else 1e-5
    rows = expected.get("grad_rows")
    if rows is not None:
        norm = np.asarray(np.linalg.norm(found))
        _close(norm, np.asarray(expected["grad_l2"], np.float64), rtol, atol, f"2-norm of {name}")
        found = found[np.asarray(rows)]
    _close(found, np.asarray(expected[name], np.float64), rtol, atol, name)


def sweep(objective: str, variant: str, check: Callable[[Case], None]) -> None:
    """Runs `check` on every case of one variant and fails once, naming all cases that failed."""
    failures = []
    for case in cases(objective, variant):
        case.hparams.read.clear()
        case.expected.read.clear()
        try:
            with jax.enable_x64(case.dtype == "float64"):
                check(case)
            if case.id not in COMPARED.get(objective, set()):
                failures.append(f"{case.id}: nothing was compared")
            if case.hparams.unread:
                failures.append(f"{case.id}: hyper-parameters {sorted(case.hparams.unread)} were not read")
            if case.expected.unread and not case.get("official_nonfinite"):
                failures.append(f"{case.id}: expected values {sorted(case.expected.unread)} were not read")
        except AssertionError as error:
            failures.append(f"{case.id}: {str(error).splitlines()[0] if str(error) else 'assertion failed'}")
    assert not failures, f"{len(failures)} of {len(cases(objective, variant))} cases:\n" + "\n".join(failures)

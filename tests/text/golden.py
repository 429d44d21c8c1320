"""Golden values of text models: where they lie, what must be compared, and what was.

Set in `tests/text/golden`, or in the folder named by `KDJAX_GOLDEN_TEXT`. What is compared is counted beside the golden
cases of the losses (`tests/parity/golden.py`), and `tests/parity/counter.py` prints both.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import golden

ROOT = Path(os.environ.get("KDJAX_GOLDEN_TEXT") or Path(__file__).parent / "golden")
DTYPES = ("float64", "float32")
FILES = ("vocab.txt", "tokenizer.json")


@functools.cache
def index() -> dict[str, Any]:
    return json.loads((ROOT / "index.json").read_text())


@functools.cache
def read(path: str) -> dict[str, Any]:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


@functools.cache
def arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / path, allow_pickle=False) as data:
        return dict(data)


def cases() -> dict[str, list[str]]:
    """Every case by its kind, from the index files alone."""
    loading = read(index()["loading"])["cases"]
    return {
        "text models": [f"{model['name']}-{dtype}" for model in index()["models"] for dtype in DTYPES],
        "text training": [f"training-{dtype}" for dtype in DTYPES],
        "text tokenizers": [f"{entry['name']}-{file}" for entry in index()["tokenizers"] for file in FILES],
        "text folders": [case["folder"] for case in loading],
    }


def compared(kind: str, case: str) -> None:
    """Counts a case; it must be one of the index."""
    assert case in cases()[kind], f"{case} is no case of {kind}"
    golden.COMPARED.setdefault(kind, set()).add(case)


def close(found: Any, wanted: Any, what: str, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}"
    assert np.isfinite(found).all(), f"{what}: not finite"
    error = np.abs(found - wanted)
    assert (error <= atol + rtol * np.abs(wanted)).all(), f"{what}: largest error {error.max():.3e}"

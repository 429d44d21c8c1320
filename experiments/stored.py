"""What an experiment leaves behind as JSON, and how it is read: never with a number that its stages did not measure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax import metrics
from kdjax.errors import Refused
from kdjax.files import canonical, read_json, write_json
from kdjax.manifests import MANIFEST, verify_manifest


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the content and, as `sha256`, the hash of its canonical text."""
    write_json(path, {**content, "sha256": _digest(content)})


def read(path: Path) -> dict[str, Any]:
    """The content of a file that `write` wrote.

    Where the stages that its rows name lie beside it, each row is compared with their logits. Copied elsewhere, it must
    at least be as it was written.

    Raises:
      Refused: it was changed since, or a row holds other numbers than its stage.
      OSError: it cannot be read.
    """
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("rows"), list):
        raise Refused(f"{path} holds no rows; expected the JSON that an experiment wrote.")
    content = {key: value for key, value in stored.items() if key != "sha256"}
    if stored.get("sha256") != _digest(content):
        raise Refused(f"{path} was changed after the experiment wrote it; run its command again: {_command(content)}.")
    _compare(path, content)
    return content


def _compare(path: Path, content: Mapping[str, Any]) -> None:
    """Refuses rows that differ from what the logits of finished stages beside the file say."""
    for row in content["rows"]:
        for seed, stage in enumerate(content.get("stages", {}).get(row["name"], [])):
            directory = path.parent / str(stage)
            if not (directory / MANIFEST).is_file() or verify_manifest(directory):
                continue
            with np.load(directory / "logits" / "test.npz", allow_pickle=False) as file:
                measured = metrics.evaluate(file["logits"], file["label"])
            for name, value in row["metrics"][seed].items():
                if name in measured and not math.isclose(measured[name], value, rel_tol=1e-9, abs_tol=1e-12):
                    raise Refused(
                        f"{path} says {name} {value!r} for {row['name']!r}, and the logits of stage {stage} say "
                        f"{measured[name]!r}; run its command again: {_command(content)}."
                    )


def _command(content: Mapping[str, Any]) -> str:
    return str(content.get("command", "the experiment"))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(content)).encode()).hexdigest()

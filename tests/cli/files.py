"""Files of predictions for the tests of the command line: right ones, and wrong ones of every kind."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np

N, K = 60, 3
RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=(N, K))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LABELS = (LOGITS / 1.5 + RNG.gumbel(size=(N, K))).argmax(1)


def npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def table(path: Path, heads, rows) -> Path:
    path.write_text("\n".join([",".join(heads), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def probabilities(path: Path, heads=("p_cat", "p_dog", "p_cow"), labels=LABELS, head="label", probs=PROBS) -> Path:
    return table(
        path, [*heads, head], [[*(f"{p:.9f}" for p in row), one] for row, one in zip(probs, labels, strict=True)]
    )


class Executed:
    """A pickle that would leave a file behind if anybody opened it."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def sparse(path: Path, start: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def bomb(path: Path, size: int = 17 * 2**24) -> Path:
    """Zeros that inflate a thousandfold, under a header that is right."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("logits.npy", "w", force_zip64=True) as file:
            file.write(header(f"({size // 80}, 10)"))
            for _ in range(size // 2**24):
                file.write(bytes(2**24))
        with archive.open("labels.npy", "w") as file:
            file.write(header("(5,)", "<i8") + bytes(40))
    return path


def lying_bomb(path: Path) -> Path:
    """A directory of the archive that declares less than its header of the array does."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", header("(200000000, 10)") + bytes(1000))
        archive.writestr("labels.npy", header("(3,)", "<i8") + bytes(24))
    path.write_bytes(memory.getvalue())
    return path


def safetensors(path: Path, declared: dict, data: bytes = b"") -> Path:
    text = json.dumps(declared).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path

"""`kdjax sign`: signatures of finished runs, and `kdjax show --verify-with`, which checks them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdjax.errors import Refused
from kdjax.signing import Key, Public


def sign(runs: Sequence[str], key: str) -> list[str]:
    """Signs runs, or all those of a workdir, and returns the lines to print.

    Raises:
      Refused: no such key; a run that is not finished or damaged, before which the earlier ones are signed.
    """
    secret, directories = Key(key), [directory for run in runs for directory in run_directories(run)]
    for directory in directories:
        secret.sign(directory)
    return [f"signed {directory}" for directory in directories] + [f"by {key} ({secret.public.fingerprint})"]


def verify(run: str, key: str) -> list[str]:
    """Checks the signature and every file of a run, or of all those of a workdir; the line to print.

    Raises:
      Refused: the first that is not what was signed.
    """
    public, directories = Public.read(key), run_directories(run)
    for directory in directories:
        public.verify(directory)
    return [f"signed by {key} ({public.fingerprint}): {len(directories)} run{'s' * (len(directories) > 1)}", ""]


def run_directories(run: str) -> list[Path]:
    """A run's directory itself, or those in a workdir.

    Raises:
      Refused: neither.
    """
    directory = Path(run)
    if (directory / "recipe.json").is_file():
        return [directory]
    directories = sorted(path.parent for path in directory.glob("*/recipe.json")) if directory.is_dir() else []
    if not directories:
        raise Refused(f"{run} holds no recipe.json and no runs; expected a run such as runs/0123456789ab.")
    return directories

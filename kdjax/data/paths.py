"""The path that a data set is read from, checked once for every source; names of a calibration split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdjax.errors import Refused

CALIBRATION = ("calibration", "val", "valid", "validation")


def existing(path: Any, *, expected: str, example: str, folder: bool = False) -> Path:
    """The path as an existing file, or folder.

    Args:
      path: what was typed as data.path.
      expected: what has to be there, for the sentence: "an .npz written by np.savez".
      example: what to type, such as "mine.npz".

    Raises:
      Refused: no text, no path that this system can have, or nothing there.
    """
    kind = "folder" if folder else "file"
    if not isinstance(path, str | os.PathLike):
        raise Refused(f"data.path is {path!r}; expected the path of {expected} as text: set data.path={example}.")
    try:
        place = Path(path).expanduser()
        exists = place.is_dir() if folder else place.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        shown = str(path) if len(str(path)) < 100 else f"{str(path)[:100]}..."
        raise Refused(f"{shown!r} is no path of a {kind} ({error}); expected {expected}: correct data.path.") from error
    if not exists:
        raise Refused(f"there is no {kind} {place}; expected {expected}: correct data.path.")
    return place

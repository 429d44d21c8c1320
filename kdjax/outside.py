"""Modules from outside the package that a command names by --import."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from kdjax.errors import Refused

_NAME = re.compile(r"\w+(\.\w+)*")


def imports(values: Sequence[str]) -> list[str]:
    """Imports the modules named by --import, one or several separated by commas, and returns their names.

    Raises:
      Refused: naming the module and what it raised.
    """
    # As `python -m` has it: the command's own folder is what Python gives a program that is installed.
    if values and not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())
    names = [part.strip() for value in values for part in value.split(",")]
    for name in names:
        if not _NAME.fullmatch(name) or name.endswith(".py"):
            module = re.sub(r"[/\\]", ".", name.removeprefix("./").removesuffix(".py"))
            like = f"type --import={module}" if _NAME.fullmatch(module) else "such as my_methods or lab.losses"
            raise Refused(f"--import is {name!r}; expected the name of a module: {like}.")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise Refused(f"--import={name}: the module needs {error.name!r}, which is not installed.") from error
            raise Refused(
                f"--import={name}: there is no module of that name; expected one that is installed, or a file "
                f"{name.replace('.', '/')}.py in the current folder."
            ) from error
        except Refused as error:
            raise Refused(f"--import={name}: {error}") from error
        except Exception as error:
            place = _place(error)
            raise Refused(f"--import={name} failed{place} with {type(error).__name__}: {error}") from error
    return names


def _place(error: Exception) -> str:
    """Where the imported file itself went wrong."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and "importlib" not in file and file != __file__:
            place = f" in {Path(file).name}, line {trace.tb_lineno},"
        trace = trace.tb_next
    return place

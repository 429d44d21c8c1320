"""Modules that a command names: those of --import, and the configuration's file."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import configs
from kdjax.errors import Refused


def imports(values: Sequence[str]) -> list[str]:
    """Imports the modules named by --import, one or several separated by commas, and returns their names.

    Raises:
      Refused: naming the module and what it raised.
    """
    names = [part.strip() for value in values for part in value.split(",")]
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise Refused(f"--import is {name!r}; expected the name of a module, such as my_methods or lab.losses.")
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


def load(path: str) -> ModuleType:
    """The configuration file as a module; `configs/...` falls back to the project's own where it is installed.

    Raises:
      Refused: no such file, a folder, a file without get_config, or one that cannot be imported.
    """
    expected = "expected a configuration such as configs/digits.py"
    place = located(path)
    if not path or place.is_dir():
        raise Refused(f"--config names no file; {expected}.")
    if not place.is_file():
        raise Refused(f"{path} does not exist; {expected}.")
    specification = importlib.util.spec_from_file_location("kdjax_configuration", place)
    if specification is None or specification.loader is None:
        raise Refused(f"{path} is no Python file; {expected}.")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{path} failed with {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_config", None)):
        raise Refused(f"--config names a file without get_config; {expected}.")
    return module


def located(path: str) -> Path:
    """A file of the current folder, or else, for `configs/...`, of the project."""
    installed = Path(configs.__file__).parents[1] / path
    ours = path.startswith("configs/") and not Path(path).exists() and installed.exists()
    return installed if ours else Path(path)

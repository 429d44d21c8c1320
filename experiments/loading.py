"""Modules that a command names: those of --import, and the configuration's file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import configs
from kdjax.errors import Refused
from kdjax.outside import imports

__all__ = ["imports", "load", "located"]


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

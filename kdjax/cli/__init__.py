"""The command `kdjax`: audit a model's confidence, calibrate it, apply the calibrator, compare two models.

`kdjax --help` lists the commands; `kdjax COMMAND --help` its flags. Nothing here trains.
"""

from kdjax.cli.main import main

__all__ = ["main"]

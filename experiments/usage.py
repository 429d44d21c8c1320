"""What --help prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import command, loading, words

HELP = ("-h", "--h", "-help", "--help", "-helpfull", "--helpfull", "-helpshort", "--helpshort")


def help_text(argv: Sequence[str], documentation: str, *, default: str, workdir: str = "runs") -> str:
    """What --help prints: the experiment, its flags, and every field of the configuration with its value.

    Raises:
      Refused: what `read` refuses about imports and the configuration.
    """
    loading.imports(words.flag_values(argv, "import"))
    path, _, names = [default, *words.flag_values(argv, "config")][-1].partition(":")
    module = loading.load(path)
    config = command.configuration(module, path, names)
    sizes = ", ".join(command.presets(module)) or "none"
    lines = [documentation.strip(), "", "Flags:"]
    lines += [
        "  --config=FILE:NAMES",
        f"      A configuration and names, comma-separated; default {default}. Presets of {path}: {sizes}.",
        "      Then teacher, its calibrator, student, its calibrator, distillation method, post-hoc calibrator.",
        "  --import=MODULE",
        "      Import modules of your own first, comma-separated, so that what they register can be named.",
    ]
    values = command.defined()
    for name in values:
        lines += [f"  --{name}", f"      {values[name].help}{f' Default {workdir}.' * (name == 'workdir')}"]
    lines += ["", f"Fields of {path}{':' + names if names else ''}, each a flag:"]
    lines += [f"  --config.{name}={value!r}" for name, value in flat(config)]
    return "\n".join(lines)


def flat(config: ConfigDict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every field."""
    pairs: list[tuple[str, Any]] = []
    for name, value in config.items():
        dotted = f"{prefix}{name}"
        pairs += flat(value, f"{dotted}.") if isinstance(value, ConfigDict) else [(dotted, value)]
    return pairs


def wants_help(argv: Sequence[str]) -> bool:
    return any(word in HELP for word in argv[1:])

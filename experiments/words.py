"""Words of a command line: the values of a flag, the fields that are typed, the words as a shell reads them back."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

from absl import flags


def flag_values(argv: Sequence[str], name: str) -> list[str]:
    """Every value given to a flag, as --name=value or --name value."""
    pattern = re.compile(rf"--?{re.escape(name)}(?:=(.*))?", re.DOTALL)
    values: list[str] = []
    for position, word in enumerate(argv):
        if match := pattern.fullmatch(word):
            following = argv[position + 1] if position + 1 < len(argv) else ""
            values.append(following if match[1] is None else match[1])
    return values


def underscored(word: str, known: flags.FlagValues) -> str:
    """--sign-with as --sign_with: absl has one spelling, people have two."""
    name, equals, value = word.partition("=")
    spelled = f"--{name.lstrip('-').replace('-', '_')}"
    return f"{spelled}{equals}{value}" if name.startswith("--") and spelled[2:].removeprefix("no") in known else word


def without(argv: Sequence[str], *names: str) -> list[str]:
    """The words without those flags and their values."""
    kept, skip = [], False
    for word in argv:
        flag, equals, _ = word.partition("=")
        named = flag.startswith("-") and flag.lstrip("-") in names
        if not skip and not named:
            kept.append(word)
        skip = named and not equals
    return kept


def fields(argv: Sequence[str]) -> list[str]:
    """The dotted fields that are typed, in order."""
    matches = (re.match(r"--?(?:no)?config\.([^=]+)", word) for word in argv)
    return [match[1] for match in matches if match]


def quoted(word: str) -> str:
    """The word as a shell reads it back, in double quotes where it holds single ones."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def program() -> str:
    """`python -m experiments.NAME`, as the running module was started."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {specification.name if specification else 'experiments'}"

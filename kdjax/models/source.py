"""What stands for the code of a network from outside the package: changed code or attributes give another text."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from kdjax.errors import Refused


def source_hash(thing: Any, what: str, *described: str) -> str:
    """SHA-256 of the source of the modules that define `thing`, of its attributes, and of the texts in `described`.

    Args:
      thing: a class, a function, a `functools.partial` of one, or a Linen module.
      what: how a refusal names it.

    Raises:
      Refused: if the source cannot be read, or an attribute has no text that is the same in every process.
    """
    digest = hashlib.sha256()
    for module in sorted(_modules(thing, what)):
        digest.update(_source(module, what).encode())
    for text in (_text(thing, what), *described):
        digest.update(b"\0" + text.encode())
    return digest.hexdigest()


def author_version(version: Any, what: str) -> str:
    """Returns a version that the author gives, if it is a text."""
    if not isinstance(version, str) or not version:
        raise Refused(f"the version of {what} is {version!r}; expected a text, such as '1.0'.")
    return version


def _modules(thing: Any, what: str) -> set[str]:
    if isinstance(thing, functools.partial):
        return _modules(thing.func, what).union(*(_modules(v, what) for v in thing.keywords.values() if callable(v)))
    if isinstance(thing, nn.Module):
        inner = (getattr(thing, name, None) for name in _fields(thing))
        return {type(thing).__module__}.union(*(_modules(v, what) for v in inner if isinstance(v, nn.Module)))
    return {getattr(thing, "__module__", None) or type(thing).__module__}


def _source(module: str, what: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError) as error:
        raise Refused(
            f"the source of {what} cannot be read (module {module!r}), so no id could tell when it changes; "
            "put it into a file, or give version='...' and change that whenever the code changes."
        ) from error


def _fields(module: nn.Module) -> list[str]:
    return sorted(set(module.__dataclass_fields__) - {"parent", "name"})


def _text(value: Any, what: str) -> str:
    """A text that is the same in every process."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_text(v, what) for v in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {_text(value[k], what)}' for k in sorted(value))}}}"
    if isinstance(value, nn.Module):
        attributes = (f"{name}={_text(getattr(value, name, None), what)}" for name in _fields(value))
        return f"{type(value).__qualname__}({', '.join(attributes)})"
    if isinstance(value, functools.partial):
        return f"{_text(value.func, what)}({_text(value.args, what)}, {_text(value.keywords, what)})"
    if inspect.isfunction(value) and value.__closure__:
        inside = inspect.getclosurevars(value).nonlocals
        return f"{value.__module__}.{value.__qualname__}{_text(inside, what)}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "dtype") and not hasattr(value, "shape"):
        return str(value)
    raise Refused(
        f"{what} holds a {type(value).__name__}, which has no text that is the same in every process; "
        "give version='...' and change that whenever the network changes."
    )

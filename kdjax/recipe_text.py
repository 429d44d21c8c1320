"""A recipe as plain values: what is stored of it, and what of that goes into an id.

Where things lie is in neither: what they hold is hashed instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from kdjax import models, objectives, posthoc, starts, transforms
from kdjax.options import Options, frozen
from kdjax.options import plain as plain_options


def forget_places(fields: dict[str, Any]) -> dict[str, Any]:
    """The plain fields of a recipe without where data and a tokenizer lie; a folder of weights becomes its hash."""
    data = fields.get("data", {})
    data.pop("path", None)
    options = data.get("options", {})
    if options.pop("tokenizer", None) is not None and not options:
        del data["options"]
    if fields.get("init"):
        fields["init"] = starts.identity(fields["init"])
    return fields


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return plain_options(value)


def given(recipe: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their default, and of options those that differ from the method's."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "options" and hasattr(recipe, "method"):
            usual = objectives.options(recipe.method)
            value = Options({name: v for name, v in value.items() if name not in usual or v != frozen(usual[name])})
        if dataclasses.is_dataclass(value):
            inner = given(value)
            if inner or field.default is None:
                fields[field.name] = inner
        elif value != field.default:
            fields[field.name] = plain(value)
    return fields


def versions(recipe: Any) -> Iterator[tuple[str, str]]:
    """(name, version) of every registered piece of the recipe; "" for those of the package itself."""
    yield f"method {recipe.method}", objectives.METHODS[recipe.method].version
    yield f"model {recipe.model}", models.version(recipe.model)
    for name in transforms.names(recipe.transform):
        yield f"transform {name}", transforms.version(name)
    if recipe.distill is not None:
        yield f"method {recipe.distill.method}", objectives.METHODS[recipe.distill.method].version
        if recipe.distill.posthoc:
            calibrator = posthoc.POSTHOC[recipe.distill.posthoc]
            yield f"posthoc {recipe.distill.posthoc}", "" if calibrator.form else calibrator.version


def numbers(value: Any, name: str = "recipe") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every float in nested mappings and sequences."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from numbers(inner, name)

"""Batch transforms, (key, Batch) -> Batch: pure, on device, jitted with the step.

    transform = chain(pad_crop(4), flip())
    batch = transform(jax.random.fold_in(key, step), batch)

All randomness comes from the key, drawn per example of the global batch; so a transform gives the same numbers under
`jit`, without it, and on any number of devices. Transforms see raw inputs: what the data set does to them (`prepare`,
such as normalization) comes afterwards. Geometry and photometry keep the dtype of the images (uint8 stays uint8);
`normalize`, `gaussian_noise` and `mixup` write float32.

`TRANSFORMS` names every factory and what inputs it takes; `build` turns names into one transform; `register` adds one
from outside. A factory with a keyword `num_classes` or `kind` is given what is known of the data set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.errors import Refused, nearest, one_of
from kdjax.source_code import identity, replaces, source_version
from kdjax.transforms.augment import rand_augment
from kdjax.transforms.mixing import mix, mixup
from kdjax.transforms.pixels import cutout, flip, gaussian_noise, normalize, pad_crop
from kdjax.types import Batch, Key, Transform

__all__ = [
    "KINDS",
    "TRANSFORMS",
    "Registered",
    "build",
    "chain",
    "cutout",
    "flip",
    "gaussian_noise",
    "mix",
    "mixup",
    "names",
    "normalize",
    "pad_crop",
    "rand_augment",
    "register",
    "two_views",
    "version",
]

Entry = str | Sequence[Any]

KINDS = ("image", "text", "features")
"""What inputs can be: images [B, H, W, C]; token ids, with a mask or without; features [B, D]."""


def chain(*transforms: Transform) -> Transform:
    """Applies them in order; the i-th gets `fold_in(key, i)`. `chain()` is the identity."""

    def apply(key: Key, batch: Batch) -> Batch:
        for i, transform in enumerate(transforms):
            batch = transform(jax.random.fold_in(key, i), batch)
        return batch

    return apply


WEAK: tuple[Entry, ...] = ("pad_crop", "flip")
STRONG: tuple[Entry, ...] = ("pad_crop", "flip", ("rand_augment", {"num_ops": 2, "magnitude": 10}))


def two_views(
    weak: Transform | Sequence[Entry] = WEAK,
    strong: Transform | Sequence[Entry] = STRONG,
    num_classes: int | None = None,
    kind: str | None = None,
) -> Transform:
    """Both views of every example, stacked along the batch axis: B weak ones first, then B strong ones.

    Labels, targets, indices and weights are repeated. The views are drawn independently, each from the batch as
    it comes; the batch doubles, and so does the cost of the step. The defaults are MLLD's recipe for CIFAR.

    Args:
      weak, strong: transforms, or entries for `build`.
      num_classes, kind: handed to those entries that want them, as in `build`.

    Raises:
      Refused: what `build` refuses; while tracing, if one view has a field that the other lacks (mixup in one of them).
    """
    views = [view if callable(view) else build(view, num_classes=num_classes, kind=kind) for view in (weak, strong)]

    def apply(key: Key, batch: Batch) -> Batch:
        a, b = (view(jax.random.fold_in(key, i), batch) for i, view in enumerate(views))
        uneven = [f for f, u, v in zip(Batch._fields, a, b, strict=True) if (u is None) != (v is None)]
        if uneven:
            raise Refused(f"two_views has {' and '.join(uneven)} in one view only; expected mixup in both or none.")
        return jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)

    return apply


class Registered(NamedTuple):
    """A line of the registry.

    Attributes:
      factory: keyword options -> `Transform`.
      kinds: what inputs it takes, of `KINDS`.
      version: stands for code from outside the package in a stage's id; "" for the package's own.
      white: the name of the option that sets the value of white, if the factory takes 1 for white in float images
        where the option is None; "" for others.
    """

    factory: Callable[..., Transform]
    kinds: tuple[str, ...] = KINDS
    version: str = ""
    white: str = ""


TRANSFORMS: dict[str, Registered] = {
    "pad_crop": Registered(pad_crop, ("image",)),
    "flip": Registered(flip, ("image",)),
    "cutout": Registered(cutout, ("image",)),
    "rand_augment": Registered(rand_augment, ("image",), white="high"),
    "gaussian_noise": Registered(gaussian_noise, ("image", "features")),
    "normalize": Registered(normalize, ("image", "features")),
    "mixup": Registered(mixup, ("image", "features")),
    "two_views": Registered(two_views),
}


def register(name: str, factory: Callable[..., Transform], kind: str = "any", version: str = "") -> None:
    """Makes a transform of your own usable by name in a recipe.

        def invert():
            return lambda key, batch: batch._replace(inputs=255 - batch.inputs)

        transforms.register("invert", invert, kind="image")

    Args:
      factory: called with the options of an entry, and with `num_classes=K` if it has that keyword; returns
        (key, Batch) -> Batch, pure and traceable.
      kind: "image", "text", "features", or "any".
      version: goes into the ids of stages that use it; by default the SHA-256 of the source code of its module.

    Raises:
      Refused: a name that is taken; a factory that cannot be called; an unknown kind; code that cannot be found,
        without a version.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise Refused(f"a transform is registered as {name!r}; expected a name such as 'invert'.")
    known = TRANSFORMS.get(name)
    if known is not None and (not known.version or identity(known.factory) != identity(factory)):
        raise Refused(f"transform {name!r} exists already; register another name.")
    if not callable(factory):
        raise Refused(f"transform {name!r} is registered with {factory!r}; expected a function that makes a transform.")
    kinds = KINDS if one_of("kind", kind, (*KINDS, "any")) == "any" else (kind,)
    if known is not None:
        replaces(known.factory, factory)
    TRANSFORMS[name] = Registered(factory, kinds, source_version(f"transform {name!r}", factory, version))


def version(name: str) -> str:
    """What stands for the code of a transform from outside the package in a stage's id; "" for the package's own."""
    return TRANSFORMS[one_of("transform", name, TRANSFORMS, registered=True)].version


def names(entries: Sequence[Entry]) -> list[str]:
    """The names of the transforms that the entries build, those inside two views included."""
    return [name for name, _ in _inside(entries)]


def without_white(entries: Sequence[Entry]) -> tuple[str, str] | None:
    """The first transform of the entries, those inside two views included, that takes 1 for white in float images: its
    name, and that of the option that would set another value. None if there is no such transform."""
    for name, options in _inside(entries):
        option = TRANSFORMS[name].white if name in TRANSFORMS else ""
        if option and options.get(option) is None:
            return name, option
    return None


def _inside(entries: Sequence[Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options) of every entry; after an entry with views come the entries of its views, given or default."""
    for entry in entries:
        name, options = _parse(entry)
        yield name, options
        taken = inspect.signature(TRANSFORMS[name].factory).parameters if name in TRANSFORMS else {}
        for view in ("weak", "strong"):
            inside = options.get(view, taken[view].default if view in taken else ())
            # In a transform from outside, an option of this name may be anything else, such as two numbers.
            if isinstance(inside, list | tuple) and all(map(_is_entry, inside)):
                yield from _inside(inside)


def _is_entry(value: Any) -> bool:
    name = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(name, str) and name in TRANSFORMS


def build(entries: Sequence[Entry], *, num_classes: int | None = None, kind: str | None = None) -> Transform:
    """One transform from entries `"flip"` or `("pad_crop", {"padding": 4})`, in order.

    Args:
      entries: lists serve as tuples, so that JSON does.
      num_classes: K, handed to those factories that take it and are not given another.
      kind: what the data set's inputs are, "image", "text" or "features"; None leaves that unchecked.

    Raises:
      Refused: for an unknown name or option (with the nearest ones), a missing option, a value out of range, or a
        transform of other inputs.
    """
    if isinstance(entries, str):
        raise Refused(f"transforms are {entries!r}; expected a sequence of entries: type ({entries!r},).")
    return chain(*(_make(entry, num_classes, kind) for entry in entries))


def _make(entry: Entry, num_classes: int | None, kind: str | None) -> Transform:
    name, options = _parse(entry)
    factory, kinds, *_ = TRANSFORMS[one_of("transform", name, TRANSFORMS, registered=True)]
    if kind is not None and kind not in kinds:
        others = [other for other, registered in TRANSFORMS.items() if kind in registered.kinds]
        raise Refused(
            f"transform {name!r} takes {_shown(kinds)}, and this data set holds {_shown((kind,))}; expected one of "
            f"{', '.join(others)}: remove it from transform."
        )
    taken = inspect.signature(factory).parameters
    for option in options:
        if option not in taken:
            hint = nearest(option, taken) if taken else "it takes none."
            raise Refused(f"transform {name!r} has no option {option!r}; {hint}")
    if "num_classes" in taken:
        options = {"num_classes": num_classes, **options}
    if "kind" in taken:
        options = {"kind": kind, **options}
    missing = [p.name for p in taken.values() if p.default is p.empty and p.name not in options]
    if missing:
        hint = f"({name!r}, {{{missing[0]!r}: ...}})"
        raise Refused(f"transform {name!r} lacks {', '.join(missing)}; type {hint}.")
    return factory(**options)


def _parse(entry: Entry) -> tuple[str, dict[str, Any]]:
    pair = (entry,) if isinstance(entry, str) else entry
    name, options = (*pair, {})[:2] if isinstance(pair, list | tuple) and len(pair) in (1, 2) else (None, {})
    if isinstance(options, list | tuple) and all(isinstance(o, list | tuple) and len(o) == 2 for o in options):
        options = dict(options)  # pairs, as a hashable recipe may hold them
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise Refused(f"transform entry is {entry!r}; expected a name or (name, {{option: value}}).")
    return name, dict(options)


def _shown(kinds: Sequence[str]) -> str:
    return " or ".join({"image": "images"}.get(kind, kind) for kind in kinds)

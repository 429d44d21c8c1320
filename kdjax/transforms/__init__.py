"""Batch transforms, (key, Batch) -> Batch: pure, on device, jitted with the step (floor 1).

    transform = chain(pad_crop(4), flip(), normalize(mean, std, scale=255))
    batch = transform(jax.random.fold_in(key, step), batch)

All randomness comes from the key, drawn per example of the global batch; so a transform gives the same
numbers under `jit`, without it, and on any number of devices. Geometry and photometry keep the dtype of the
images (uint8 stays uint8) and belong before `normalize`; `normalize`, `gaussian_noise` and `mixup` write
float32.

`TRANSFORMS` names every factory, `build` turns names into one transform. A method that brings its own
transform is called with `num_classes=K` beside its options: `mixup` and `two_views` therefore take that
keyword.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.errors import Refused, nearest, one_of
from kdjax.transforms.augment import rand_augment
from kdjax.transforms.mixing import mix, mixup
from kdjax.transforms.pixels import cutout, flip, gaussian_noise, normalize, pad_crop
from kdjax.types import Batch, Key, Transform

__all__ = [
    "TRANSFORMS",
    "build",
    "chain",
    "cutout",
    "flip",
    "gaussian_noise",
    "mix",
    "mixup",
    "normalize",
    "pad_crop",
    "rand_augment",
    "two_views",
]

Entry = str | Sequence[Any]


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
) -> Transform:
    """Both views of every example, stacked along the batch axis: B weak ones first, then B strong ones.

    Labels, targets, indices and weights are repeated. The views are drawn independently, each from the batch as
    it comes; the batch doubles, and so does the cost of the step. The defaults are MLLD's recipe for CIFAR.

    Args:
      weak, strong: transforms, or entries for `build`.
      num_classes: K, handed to those entries that want it.

    Raises:
      Refused: while tracing, if one view has a field that the other lacks (mixup in one of them).
    """
    views = [view if callable(view) else build(view, num_classes=num_classes) for view in (weak, strong)]

    def apply(key: Key, batch: Batch) -> Batch:
        a, b = (view(jax.random.fold_in(key, i), batch) for i, view in enumerate(views))
        uneven = [f for f, u, v in zip(Batch._fields, a, b, strict=True) if (u is None) != (v is None)]
        if uneven:
            raise Refused(f"two_views has {' and '.join(uneven)} in one view only; expected mixup in both or none.")
        return jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)

    return apply


TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    "pad_crop": pad_crop,
    "flip": flip,
    "cutout": cutout,
    "rand_augment": rand_augment,
    "gaussian_noise": gaussian_noise,
    "normalize": normalize,
    "mixup": mixup,
    "two_views": two_views,
}


def names(entries: Sequence[Entry]) -> list[str]:
    """The names of the transforms that the entries build."""
    return [entry if isinstance(entry, str) else entry[0] for entry in entries]


def version(name: str) -> str:
    """What stands for the code of a transform from outside the package in a stage's id; "" for the package's own."""
    return ""


def build(names: Sequence[Entry], *, num_classes: int | None = None, kind: str | None = None) -> Transform:
    """One transform from entries `"flip"` or `("pad_crop", {"padding": 4})`, in order.

    Args:
      names: the entries; lists serve as tuples, so that JSON does.
      num_classes: K, handed to those factories that take it and are not given another.
      kind: what the data set's inputs are, "image", "text" or "features".

    Raises:
      Refused: for an unknown name or option (with the nearest ones), a missing option, or a value out of
      range.
    """
    if isinstance(names, str):
        raise Refused(f"transforms are {names!r}; expected a sequence of entries: type ({names!r},).")
    return chain(*(_make(entry, num_classes) for entry in names))


def _make(entry: Entry, num_classes: int | None) -> Transform:
    pair = (entry,) if isinstance(entry, str) else entry
    name, options = (*pair, {})[:2] if isinstance(pair, list | tuple) and len(pair) in (1, 2) else (None, {})
    if isinstance(options, list | tuple) and all(isinstance(o, list | tuple) and len(o) == 2 for o in options):
        options = dict(options)  # pairs: a recipe holds no dict, because it is hashed
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise Refused(f"transform entry is {entry!r}; expected a name or (name, {{option: value}}).")
    factory = TRANSFORMS[one_of("transform", name, TRANSFORMS)]
    taken = inspect.signature(factory).parameters
    for option in options:
        if option not in taken:
            hint = nearest(option, taken) if taken else "it takes none."
            raise Refused(f"transform {name!r} has no option {option!r}; {hint}")
    if "num_classes" in taken:
        options = {"num_classes": num_classes, **options}
    missing = [p.name for p in taken.values() if p.default is p.empty and p.name not in options]
    if missing:
        hint = f"({name!r}, {{{missing[0]!r}: ...}})"
        raise Refused(f"transform {name!r} lacks {', '.join(missing)}; type {hint}.")
    return factory(**options)

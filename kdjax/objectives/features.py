"""Objectives on intermediate features, with learned projections where student and teacher differ in width."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import Refused, nearest
from kdjax.losses import features
from kdjax.objectives.core import Objective, Terms, weighted_mean
from kdjax.objectives.rows import example_weight
from kdjax.objectives.terms import teacher_logits
from kdjax.options import hyper
from kdjax.types import Batch, Key, Spec

Pair = tuple[str, str]
Usual = Callable[[Mapping[str, Any], Mapping[str, Any]], list[Pair]]
"""(student's features, teacher's features) -> pairs to compare where none are named."""


def layer_names(what: str, given: Any) -> Any:
    """The check of `layers`: names, or pairs "student:teacher"."""
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, tuple | list) or not all(isinstance(e, str) and e.count(":") < 2 for e in entries):
        raise Refused(f"{what} is {given!r}; expected names of features, or pairs such as 'stage2:stage3'.")
    return given


def evenly(method: str, kind: str, first: int, *, last: bool = True, option: str = "layers") -> Usual:
    """Pairs of numbered features, the student's layer l and the teacher's l·L_t/L_s; none where one has no such layers.

    Args:
      kind: what the features are called before their number, such as "layer" in "layer0" to "layer<L>".
      first: the student's first layer that is compared; 0 is the embedding.
      last: whether its last one is compared.
      option: the method's option that names such pairs.

    Raises:
      Refused: while tracing, if L_s does not divide L_t, or no layer is left.
    """

    def pairs(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Pair]:
        depth_s, depth_t = _depth(kind, student), _depth(kind, teacher)
        if not (depth_s and depth_t):
            return []
        example = f"set {option}, e.g. {option}=('{kind}{depth_s}:{kind}{depth_t}',)"
        if depth_t % depth_s:
            raise Refused(
                f"{method} compares the student's layer l with the teacher's l·L_t/L_s, and {depth_s} layers do not "
                f"divide {depth_t}; {example}."
            )
        made = [(f"{kind}{i}", f"{kind}{i * depth_t // depth_s}") for i in range(first, depth_s + last)]
        if not made:
            raise Refused(f"{method} leaves the student's last layer out, and it has no other; {example}.")
        return made

    return pairs


def _depth(kind: str, features: Mapping[str, Any]) -> int:
    depth = 0
    while f"{kind}{depth + 1}" in features:
        depth += 1
    return depth


def _pairs(
    method: str,
    layers: Any,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    axes: int | None,
    usual: Usual | None = None,
) -> list[Pair]:
    """(student's feature, teacher's feature) as `layers` names them; without layers those of `usual`, and else all
    common names, of arrays with that many axes if `axes` is given.

    Raises:
      Refused: a feature that does not exist, or none in common.
    """
    entries = [layers] if isinstance(layers, str) else layers
    pairs = [(names[0], names[-1]) for names in (entry.split(":") for entry in entries)]
    for pair in pairs:
        for name, whose, offered in zip(pair, ("student", "teacher"), (student, teacher), strict=True):
            if name not in offered:
                hint = nearest(name, offered) if offered else "it offers none."
                raise Refused(f"{method} wants the feature {name!r} of the {whose}; {hint}")
    if not pairs and usual is not None:
        pairs = usual(student, teacher)
    if not pairs:
        common = sorted(set(student) & set(teacher))
        pairs = [(name, name) for name in common if axes in (None, len(student[name].shape))]
    if not pairs:
        raise Refused(
            f"{method} compares features, and student ({', '.join(sorted(student)) or 'none'}) and teacher "
            f"({', '.join(sorted(teacher)) or 'none'}) share none that fits; set layers, e.g. ('stage3:stage3',)."
        )
    return pairs


def on_features(
    method: str,
    loss: Callable,
    layers: Any,
    *,
    axes: int | None = None,
    width: int | None = -1,
    usual: Usual | None = None,
    shared: bool = False,
    average: bool = False,
    optional: bool = False,
) -> Objective:
    """A feature loss summed over pairs of layers.

    A loss that takes `mask` is given which tokens are real, where the inputs have a mask and the feature an entry for
    each token.

    Args:
      axes: how many axes the features must have.
      width: the axis along which a student's feature is multiplied by a learned matrix, where its size is not the
        teacher's; None: the sizes must agree.
      usual: the pairs where `layers` names none; None: all common names.
      shared: one learned matrix for all pairs of the same two widths, instead of one for each pair.
      average: the mean over pairs, instead of the sum.
      optional: a loss of 0 where `usual` knows no pairs.
    """
    masked = "mask" in inspect.signature(loss).parameters

    def pairs_of(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Pair]:
        if optional and usual is not None and not layers and not usual(student, teacher):
            return []
        return _pairs(method, layers, student, teacher, axes, usual)

    def parameter(pair: Pair, shape: tuple[int, int]) -> str:
        return f"{shape[0]}_to_{shape[1]}" if shared else f"{pair[0]}_to_{pair[1]}"

    def init(spec: Spec, key: Key) -> tuple:
        student, teacher = spec.student_features, spec.teacher_features
        if width is None or not (student and teacher):
            return (), ()
        params: dict[str, Array] = {}
        for i, (s, t) in enumerate(pairs_of(student, teacher)):
            if axes not in (None, len(student[s].shape)) or axes not in (None, len(teacher[t].shape)):
                continue  # the loss names what it expects
            shape = student[s].shape[width], teacher[t].shape[width]
            name = parameter((s, t), shape)
            if shape[0] != shape[1] and name not in params:
                noise = jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)
                params[name] = noise / shape[0] ** 0.5
        return params or (), ()

    def apply(params, state, batch, output, clock):
        teacher_logits(batch, output, method)
        student, teacher = output.features, batch.teacher.features

        def value(pair: Pair) -> Array:
            x, y = student[pair[0]], teacher[pair[1]]
            if width is not None and x.ndim == y.ndim and params:
                name = parameter(pair, (x.shape[width], y.shape[width]))
                x = _multiplied(x, params[name], width) if name in params else x
            more = {"mask": _real(batch, pair[0], x)} if masked else {}
            return loss(x, y, **more)

        pairs = pairs_of(student, teacher)
        if not pairs:
            return Terms({}), state
        values = sum(value(pair) for pair in pairs) / (len(pairs) if average else 1)
        return Terms({method: weighted_mean(values, example_weight(batch.weight, values.shape[0]))}), state

    return Objective(init, apply)


def _real(batch: Batch, name: str, x: Array) -> Array | None:
    """[B, S], true for real tokens, where the feature of that name has an entry for each token of the batch's texts."""
    mask = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
    # "cls" is [B, L+1, H]: an entry for each layer, of which there may be as many as tokens.
    if mask is None or name == "cls" or x.ndim < 3 or mask.shape != (x.shape[0], x.shape[-2]):
        return None
    return mask != 0


def _multiplied(x: Float[Array, "B ..."], matrix: Float[Array, "S T"], axis: int) -> Array:
    """x with its axis of size S turned into one of size T."""
    return jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ matrix.astype(x.dtype), -1, axis)


@hyper(layers=layer_names)
def hidden_state(*, layers: tuple[str, ...] = ()) -> Objective:
    """Mean squared difference of features; `layers` holds "student:teacher" or common names, () all common ones.

    Where the last axes differ, the student's feature is multiplied by a learned matrix first, as in TinyBERT. Of texts
    the real tokens are compared, and padding is not; TinyBERT's code compares padding too.
    """
    return on_features("hidden_state", features.hidden_state, layers)


@hyper(layers=layer_names)
def attention(*, layers: tuple[str, ...] = ()) -> Objective:
    """TinyBERT's attention loss on features [B, heads, S, S]; `layers` as for hidden_state.

    Where the numbers of heads differ, a learned matrix mixes the student's heads. Queries and keys that are padding do
    not count.
    """
    return on_features("attention", features.attention, layers, axes=4, width=1)


@hyper(layers=layer_names)
def attention_transfer(*, layers: tuple[str, ...] = ()) -> Objective:
    """Attention transfer on convolutional features [B, H, W, C]; `layers` as for hidden_state. C may differ."""
    return on_features("attention_transfer", features.attention_transfer, layers, axes=4, width=None)

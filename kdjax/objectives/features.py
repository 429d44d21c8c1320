"""Objectives on intermediate features, with learned projections where student and teacher differ in width."""

from __future__ import annotations

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
from kdjax.types import Key, Spec

Pair = tuple[str, str]


def _layers(what: str, given: Any) -> Any:
    """The check of `layers`: names, or pairs "student:teacher"."""
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, tuple | list) or not all(isinstance(e, str) and e.count(":") < 2 for e in entries):
        raise Refused(f"{what} is {given!r}; expected names of features, or pairs such as 'stage2:stage3'.")
    return given


def _pairs(
    method: str, layers: Any, student: Mapping[str, Any], teacher: Mapping[str, Any], axes: int | None
) -> list[Pair]:
    """(student's feature, teacher's feature) as `layers` names them; without layers all common names, of arrays with
    that many axes if `axes` is given.

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
    method: str, loss: Callable, layers: Any, *, axes: int | None = None, width: int | None = -1
) -> Objective:
    """A feature loss summed over pairs of layers.

    Args:
      axes: how many axes the features must have.
      width: the axis along which a student's feature is multiplied by a learned matrix, where its size is not the
        teacher's; None: the sizes must agree.
    """

    def init(spec: Spec, key: Key) -> tuple:
        student, teacher = spec.student_features, spec.teacher_features
        if width is None or not (student and teacher):
            return (), ()
        params = {}
        for i, (s, t) in enumerate(_pairs(method, layers, student, teacher, axes)):
            if axes not in (None, len(student[s].shape)) or axes not in (None, len(teacher[t].shape)):
                continue  # the loss names what it expects
            shape = student[s].shape[width], teacher[t].shape[width]
            if shape[0] != shape[1]:
                noise = jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)
                params[_parameter((s, t))] = noise / shape[0] ** 0.5
        return params or (), ()

    def apply(params, state, batch, output, clock):
        teacher_logits(batch, output, method)
        student, teacher = output.features, batch.teacher.features

        def projected(pair: Pair) -> Array:
            x = student[pair[0]]
            if width is None or not params or _parameter(pair) not in params:
                return x
            return _multiplied(x, params[_parameter(pair)], width)

        pairs = _pairs(method, layers, student, teacher, axes)
        values = sum(loss(projected(pair), teacher[pair[1]]) for pair in pairs)
        value = weighted_mean(values, example_weight(batch.weight, values.shape[0]))
        return Terms({method: value}), state

    return Objective(init, apply)


def _parameter(pair: Pair) -> str:
    return f"{pair[0]}_to_{pair[1]}"


def _multiplied(x: Float[Array, "B ..."], matrix: Float[Array, "S T"], axis: int) -> Array:
    """x with its axis of size S turned into one of size T."""
    return jnp.moveaxis(jnp.moveaxis(x, axis, -1) @ matrix.astype(x.dtype), -1, axis)


@hyper(layers=_layers)
def hidden_state(*, layers: tuple[str, ...] = ()) -> Objective:
    """Mean squared difference of features; `layers` holds "student:teacher" or common names, () all common ones.

    Where the last axes differ, the student's feature is multiplied by a learned matrix first, as in TinyBERT.
    """
    return on_features("hidden_state", features.hidden_state, layers)


@hyper(layers=_layers)
def attention(*, layers: tuple[str, ...] = ()) -> Objective:
    """TinyBERT's attention loss on features [B, heads, S, S]; `layers` as for hidden_state.

    Where the numbers of heads differ, a learned matrix mixes the student's heads.
    """
    return on_features("attention", features.attention, layers, axes=4, width=1)


@hyper(layers=_layers)
def attention_transfer(*, layers: tuple[str, ...] = ()) -> Objective:
    """Attention transfer on convolutional features [B, H, W, C]; `layers` as for hidden_state. C may differ."""
    return on_features("attention_transfer", features.attention_transfer, layers, axes=4, width=None)


@hyper(layers=_layers)
def pkd(*, layers: tuple[str, ...] = ()) -> Objective:
    """Patient KD on hidden states of the classification token, [B, D] each; `layers` as for hidden_state."""
    return on_features("pkd", features.pkd, layers)

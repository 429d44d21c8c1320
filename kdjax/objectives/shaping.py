"""What KD is composed of besides a divergence: shaped targets, controls and weightings, by name or as functions.

    target="wclip"    target="wclip(eta=0.3, m=0.7)"    target=functools.partial(kdjax.targets.wclip, eta=0.3)

A target is a function (logits [M, K], labels [M]) -> log-probabilities [M, K], or a pair of these and {name: [M]} to
log, as in `kdjax.targets`. Each takes its own options, and refuses those of another.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax import targets
from kdjax.errors import Refused, one_of
from kdjax.losses.distillation import power_sum
from kdjax.objectives.core import weighted_mean
from kdjax.objectives.terms import is_number
from kdjax.options import at_least, between, choice, defaults, hyper, resolve
from kdjax.types import Scalar

_IMPOSSIBLE = -27.6  # log 1e-12: Euclidean projections write exact zeros, which a reverse divergence cannot take


def moved(log_q: Array, log_p: Array) -> Array:
    """[M], True where shaping changed the row by more than rounding."""
    rounding = 16 * jnp.finfo(log_p.dtype).eps * (1 + jnp.abs(log_p))
    return jnp.any(jnp.abs(log_q - log_p) > rounding, axis=-1)


def _neighbors(near: Any, k: int) -> Array:
    """[K, K] booleans from the option; every class is near itself.

    Raises:
      Refused: while tracing, another shape.
    """
    itself = jnp.eye(k, dtype=bool)
    if not len(near):
        return itself
    if np.shape(near) != (k, k):
        raise Refused(
            f"near has shape {list(np.shape(near))}; expected {[k, k]}, row y the classes that mean what y does."
        )
    return jnp.asarray(near, bool) | itself


@hyper(
    near_mass=between(0, 1),
    far=choice("mistake", "rest"),
    far_mass=between(0, 1),
    floor=between(0, 1),
    ceiling=between(0, 1, open_low=True),
    distance=choice("kl", "l2"),
)
def project(
    logits: Array,
    labels: Array,
    *,
    near: Any = (),
    near_mass: Scalar = 0.0,
    far: str = "mistake",
    far_mass: Scalar = 0.1,
    floor: Scalar = 0.0,
    ceiling: Scalar = 1.0,
    distance: str = "kl",
) -> tuple[Array, Mapping[str, Array]]:
    """CUD's constraints solved exactly (`kdjax.targets.project`).

    Args:
      near: N: [K, K] booleans, row y the classes that share y's meaning; (): the class alone.
      near_mass, far_mass: q(N) >= near_mass, q(W) <= far_mass.
      far: W: "mistake", the teacher's wrong top class (as CUD uses it), or "rest", everything outside N.
      floor: H(q) >= floor (1 - p_y) log K: doubt in proportion to difficulty; in [0, 1].
      ceiling: H(q) <= ceiling log K; in (0, 1]. Rows where it cannot hold are counted in `ceiling_failed`.
      distance: "kl", or "l2" (masses only, floored at 1e-12).

    Raises:
      Refused: floor or ceiling with "l2", where they would have no effect.
    """
    if distance == "l2" and not (is_number(floor, 0) and is_number(ceiling, 1)):
        raise Refused("distance 'l2' handles masses only; leave floor and ceiling at 0 and 1, or use distance='kl'.")
    k = logits.shape[-1]
    near = _neighbors(near, k)[labels]
    top = targets.top(logits)
    mistake = jax.nn.one_hot(top, k, dtype=bool) & (top != labels)[:, None]
    log_p = targets.temper(logits, 1.0)
    bounds: dict[str, Any] = {}
    if distance == "kl":
        p_y = jnp.exp(jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0])
        bounds["h_min"] = floor * (1 - p_y) * jnp.log(jnp.asarray(k, log_p.dtype))
        if not is_number(ceiling, 1):
            bounds["h_max"] = ceiling * jnp.log(jnp.asarray(k, log_p.dtype))
    away = (mistake if far == "mistake" else ~near) & ~near
    result = targets.project(log_p, near, away, alpha=near_mass, eps=far_mass, distance=distance, **bounds)
    flags = {"floor_clamped": result.clamped, "ceiling_failed": result.failed, "masses_infeasible": result.infeasible}
    log_q = result.log_q
    if distance == "l2":
        floored = jax.nn.log_softmax(jnp.maximum(log_q, _IMPOSSIBLE), axis=-1)
        log_q = jnp.where(moved(log_q, log_p)[:, None], floored, log_q)
    return log_q, flags


@hyper(nats=at_least(0))
def same_entropy(
    log_p: Array, log_q: Array, weight: Array | None, *, nats: Scalar = 0.0
) -> tuple[Array, Mapping[str, Array]]:
    """The raw teacher, tempered by the one T at which the batch's mean entropy is that of the shaped target.

    What shaping gains over this control is not softening. `nats` > 0 is a mean entropy to take instead, such as the
    `entropy` in a DUS teacher's result.json: the ordinary teacher, as soft as that one.
    """
    shaped = weighted_mean(targets.entropy(log_q), weight)
    log_q, T = targets.match_entropy(log_p, jnp.where(jnp.asarray(nats) > 0, nats, shaped), weight)
    return log_q, {"control_T": T}


TARGETS: dict[str, Callable] = {
    "wclip": targets.wclip,
    "swap": targets.swap,
    "margin": targets.margin,
    "top1": targets.top1,
    "project": project,
}
CONTROLS: dict[str, Callable] = {"entropy": same_entropy}
WEIGHTINGS: dict[str, Callable] = {"power_sum": power_sum}


def _parsed(what: str, text: str, known: Mapping[str, Callable]) -> tuple[str, dict[str, Any]]:
    """(name, options that were typed) of "name" or "name(option=value, ...)".

    Raises:
      Refused: an unknown name or option, a value that is no number, text or list, or one out of range.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise Refused(f"{what} is {text!r}; expected a name, or a name with options such as 'wclip(eta=0.3)'.")
    name, inside = match[1], match[2] or ""
    one_of(what, name, ("none", *known))
    try:
        call = ast.parse(f"name({inside})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args and all(keyword.arg for keyword in call.keywords)
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise Refused(f"{what} is {text!r}; expected options as in '{name}(option=0.3)'.") from error
    if name != "none":
        resolve(name, given, defaults(known[name]))
        for option, check in getattr(known[name], "hyper", {}).items():
            if option in given:
                check(f"{name}.{option}", given[option])
    elif given:
        raise Refused(f"{what} is {text!r}; 'none' has no options.")
    return name, given


def composed(what: str, given: str | Callable, known: Mapping[str, Callable]) -> Callable | None:
    """The function that a name stands for, with its options bound; a function stays, and "none" is None."""
    if callable(given):
        return given
    name, options = _parsed(what, given, known)
    return None if name == "none" else functools.partial(known[name], **options)


def canonical(what: str, given: str, known: Mapping[str, Callable]) -> str:
    """The one way to write it: options in order, defaults left out. It is what a stage's id holds."""
    name, options = _parsed(what, given, known)
    usual = defaults(known[name]) if name != "none" else {}
    typed = resolve(name, options, usual)
    changed = ", ".join(f"{option}={value!r}" for option, value in typed.items() if value != usual[option])
    return f"{name}({changed})" if changed else name


def part(what: str, known: Mapping[str, Callable]) -> Callable[[str, Any], Any]:
    """The check of an option that names a part: text of that form, or a function."""
    return lambda name, value: composed(name, value, known) if isinstance(value, str) or not callable(value) else value

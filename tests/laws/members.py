"""Who must obey the laws: every registered method, with variants, and every public loss. New ones join by themselves.

A method of the registry needs no line here: what it reads is in its registry line (`needs`), and that is all that it is
given. A line here adds variants (options that take another path through the code, or that make a term bite on small
logits), or declares an exception with its reason; a law checks that a declared exception really is one.
A public loss needs one line in `LOSSES`: its arguments after the logits.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp

from kdjax import losses, objectives
from kdjax.losses.numerics import at_least_float32, mask_absent
from kdjax.objectives import Objective, stateless


class Member(NamedTuple):
    """What the laws are run on.

    Attributes:
      id: the name, with its options in brackets.
      name: of the method or loss.
      objective: the door; a pure loss is wrapped in one.
      fields: the Batch fields it is given besides the weight.
      views: how often each example is stacked along the batch axis.
      raw: (batch, output) -> [B] or a scalar, what a pure loss returns; None for a method.
    """

    id: str
    name: str
    objective: Objective
    fields: tuple[str, ...]
    views: int = 1
    raw: Any = None

    def __repr__(self) -> str:
        return self.id


# More paths through a method than its defaults take.
VARIANTS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "label_smoothing": ({"form": "uniform"},),
    "focal": ({"gamma": 0.5},),
    "mdca": ({"gamma": 2.0, "beta": 5.0}, {"alpha": 0.1}),
    "mmce": ({"form": "unweighted"}, {"normalization": "paper"}),
    "crl": ({"confidence": "entropy"}, {"confidence": "margin"}),
    "pskd": ({"memory": "float16"},),
    "adafocal": ({"reduction": "sum"},),
    "cpc": ({"normalization": "cals"},),
    "mbls": ({"margin": 0.5},),
    "acls": ({"margin": 0.5}, {"margin": 0.5, "reference": "range"}),
    "dus": ({"rho": 0.5, "beta": 2.0},),
    "kd": (
        {"divergence": "reverse"},
        {"divergence": "js"},
        {"target": "margin", "c": 0.1},
        {"target": "top1"},
        {"target": "project", "near_mass": 0.4, "floor": 0.5},
        {"target": "project", "distance": "l2", "near_mass": 0.4},
        {"target": "wclip", "control": "entropy"},
    ),
    "mlld": ({"variant": "selecting"},),
}
# Variants that read more than the registry line of their method says.
READS_LABELS_TOO = ("kd",)

# Methods whose transform stacks views of every example along the batch axis.
VIEWS = {"mlld": 2}

_ORDER = "each example is ranked against its neighbor in the batch, by definition (Moon et al. 2020)"
_RAW_MAX = "the official code penalizes the raw maximum, not a difference of logits; reference='range' is invariant"
_GATE = "no gradient through the gate: it would pay the model for lowering p_y (CUD; stop_gate=False has it)"
_STOPPED = (
    "the penalty of the other classes stops the gradient at the maximum that it is measured from, as the code does"
)

# (law, member) -> reason. Every entry is checked to be true: an exception that does not break its law fails.
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("permuted examples", "crl"): _ORDER,
    ("permuted examples", "crl(confidence=entropy)"): _ORDER,
    ("permuted examples", "crl(confidence=margin)"): _ORDER,
    ("shifted logits", "acls"): _RAW_MAX,
    ("shifted logits", "acls(margin=0.5)"): _RAW_MAX,
    ("finite differences", "dus(rho=0.5, beta=2.0)"): _GATE,
    ("finite differences", "acls(margin=0.5)"): _STOPPED,
    ("finite differences", "acls(margin=0.5, reference=range)"): _STOPPED,
}

# By how much a method magnifies the rounding of its logits: only its float32 is held against float64 less tightly.
CONDITION: Mapping[str, tuple[float, str]] = {
    "ctkd": (300.0, "T² of some 250 multiplies differences of log-probabilities that are nearly equal"),
}


class Loss(NamedTuple):
    """How a public loss is called: (logits, *arguments, **options), with `weight=` if it is coupled over the batch.

    Attributes:
      arguments: of "label", "target", "teacher", "history" (in [0, 1]), "features" (student's, then teacher's, without
        logits).
      coupled: returns a scalar of the batch and takes `weight`; otherwise one value a row.
      options: hyper-parameters; a mapping from names to values.
      through: the method through whose door the function itself is held to all laws; without one, the loss is held to
        them on its own, behind a plain door.
    """

    arguments: tuple[str, ...]
    coupled: bool = False
    options: Mapping[str, Any] = {}
    views: int = 1
    through: str | None = None


_L, _T = ("label",), ("teacher",)
_F = ("features",)
LOSSES: Mapping[str, Loss] = {
    "nll": Loss(_L, through="nll"),
    "soft_nll": Loss(("target",), through="mixup"),
    "label_smoothing": Loss(_L, through="label_smoothing"),
    "focal": Loss(_L, through="focal"),
    "flsd": Loss(_L, through="flsd"),
    "dual_focal": Loss(_L, through="dual_focal"),
    "brier": Loss(_L, through="brier"),
    "adafocal": Loss(_L, options={"gamma": -1.5}, through="adafocal"),
    "mdca": Loss(_L, coupled=True, through="mdca"),
    "dca": Loss(_L, coupled=True, through="dca"),
    "mmce": Loss(_L, coupled=True, through="mmce"),
    "mmce_weighted": Loss(_L, coupled=True, through="mmce"),
    "crl": Loss(("history",), coupled=True, through="crl"),
    "acls": Loss((), options={"margin": 0.5}, through="acls"),
    "mbls": Loss((), options={"margin": 0.5}, through="mbls"),
    "cpc_discrimination": Loss(_L, through="cpc"),
    # Walked in several chunks, which five classes would not need.
    "cpc_exclusion": Loss(_L, options={"elements": 64}),
    "kd": Loss(_T, options={"T": 3.0, "T_c": 1.5}, through="kd"),
    "ttm": Loss(_T, options={"weighted": True}),
    "lskd": Loss(_T),
    "dkd": Loss(("teacher", "label"), through="dkd"),
    "dist": Loss(_T, coupled=True, options={"T": 2.0}),
    "mlld": Loss(_T, coupled=True, views=2, through="mlld"),
    "dus": Loss(_L, through="dus"),
    "hidden_state": Loss(_F, through="hidden_state"),
    "attention": Loss(_F, through="attention"),
    "attention_transfer": Loss(_F, through="attention_transfer"),
    "pkd": Loss(_F, through="pkd"),
}

# Public names of kdjax.losses that are no losses of logits, each with what it is.
NOT_LOSSES: Mapping[str, str] = {
    "AdaFocalState": "state of AdaFocal",
    "adafocal_bin": "look-up of a bin",
    "adafocal_gap": "calibration gap of held-out data",
    "adafocal_start": "first state of AdaFocal",
    "adafocal_update": "state update of AdaFocal",
    "true_probability": "p_y, a constant for the gradient",
    "crl_history": "counts to history",
    "forward_kl": "divergence of two log-distributions, inside kd",
    "reverse_kl": "divergence of two log-distributions, inside kd",
    "jensen_shannon": "divergence of two log-distributions, inside kd",
    "same_classes": "shape check of the distillation losses",
    "shares": "weights that sum to 1",
    "power_sum": "WTTM's weight of an example, of the teacher alone",
    "Levels": "the three levels of mlld",
    "zero_where_equal": "rows on which the two networks agree",
}


@lru_cache
def public_losses() -> dict[str, Any]:
    """Every public function or class that a module of kdjax.losses defines, `numerics` (shared arithmetic) excepted."""
    found = {}
    for info in pkgutil.iter_modules(losses.__path__):
        if info.name == "numerics":
            continue
        module = importlib.import_module(f"{losses.__name__}.{info.name}")
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__ and callable(value):
                found[name] = value
    return found


def _label(name: str, options: Mapping[str, Any]) -> str:
    return name + (f"({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")


def of_method(name: str) -> list[Member]:
    """A method of the registry with its defaults, and its variants."""
    method, views = objectives.METHODS[name], VIEWS.get(name, 1)
    found = [Member(name, name, objectives.build(name), method.needs, views)]
    for options in VARIANTS.get(name, ()):
        fields = (*method.needs, "label") if name in READS_LABELS_TOO else method.needs
        found.append(Member(_label(name, options), name, objectives.build(name, **options), fields, views))
    return found


def of_loss(name: str) -> Member:
    """A pure loss behind the door of an objective."""
    declared, function = LOSSES[name], public_losses()[name]

    def values(batch, output):
        logits, _, kept = mask_absent(at_least_float32(output.logits), batch.weight)
        given = {
            "label": lambda: (jnp.where(kept, batch.label, 0),),
            "target": lambda: (jnp.where(kept[:, None], batch.target, 0.0),),
            "teacher": lambda: (mask_absent(at_least_float32(batch.teacher.logits), batch.weight)[0],),
            "history": lambda: (batch.index % 5 / 4.0,),
        }
        if declared.arguments == _F:
            ours, theirs = output.features["map"], batch.teacher.features["map"]
            keep = kept.reshape(-1, *[1] * (ours.ndim - 1))
            return function(jnp.where(keep, ours, 0), jnp.where(keep, theirs, 0), **declared.options)
        arguments = [value for argument in declared.arguments for value in given[argument]()]
        coupled = {"weight": batch.weight} if declared.coupled else {}
        found = function(logits, *arguments, **coupled, **declared.options)
        return sum(found) if isinstance(found, tuple) else found

    known = {"history": "index", "features": "teacher"}
    fields = tuple(known.get(a, a) for a in declared.arguments)
    objective = stateless(name, lambda batch, output, clock: values(batch, output))
    return Member(f"losses.{name}", name, objective, fields, declared.views, values)


def methods() -> list[Member]:
    return [member for name in objectives.METHODS for member in of_method(name)]


def pure_losses() -> list[Member]:
    """All that are declared and exist; a test names those that are not declared."""
    return [of_loss(name) for name in LOSSES if name in public_losses()]


def everyone() -> list[Member]:
    """Whom laws 1 to 6 are run on: a loss inside a method is met there."""
    return methods() + [m for m in pure_losses() if LOSSES[m.name].through is None]

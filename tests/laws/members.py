"""Who must obey the laws: every registered method, with variants, and every public loss. New ones join by themselves.

Neither a method of the registry nor a public loss needs a line here: a method is given what its registry line says
that it reads (`needs`), a loss what the names of its arguments say. A line here adds variants (options that take
another path through the code, or that matter for small logits), or declares an exception with its reason; a law checks
that a declared exception really is one.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from kdjax import losses, objectives
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
        {"target": "margin(c=0.1)"},
        {"target": "top1"},
        {"target": "project(near_mass=0.4, floor=0.5)"},
        {"target": "project(distance='l2', near_mass=0.4)"},
        {"target": "wclip", "control": "entropy"},
    ),
    "mlld": ({"variant": "selecting"},),
    # Features of other widths, which a learned matrix makes equal.
    "hidden_state": ({"layers": ("map:wide",)},),
    "attention": ({"layers": ("map:heads",)},),
    "pkd": ({"layers": ("map:wide",)},),
    "tinybert": ({"layers": ("map:wide",), "scores": ("map:heads",)}, {"first_stage": 0.0}),
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

# Whose parameters do not descend the loss, and why; all others' gradients are held against finite differences.
REVERSED: Mapping[str, str] = {"ctkd": "the temperature climbs the loss that the student descends (gradient reversal)"}

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
      arguments: its positional arguments after the logits, by name; or (student, teacher) of features.
      coupled: returns a scalar of the batch and takes `weight`; otherwise one value a row.
      options: hyper-parameters with which it is held to the laws.
      views: as of a Member.
      through: the method through whose door the function itself is held to all laws; "" for a loss that is held to them
        on its own, behind a plain door.
    """

    arguments: tuple[str, ...]
    coupled: bool
    options: Mapping[str, Any] = {}
    views: int = 1
    through: str = ""


# Options that a loss needs, or that make it matter for small logits; its views; and the method that it is a part of.
# A loss that is registered under its own name is held to the laws there.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "soft_nll": {"through": "mixup"},
    "adafocal": {"options": {"gamma": -1.5}},
    "mmce_weighted": {"through": "mmce"},
    "crl": {"options": {"span": 4.0}},
    "acls": {"options": {"margin": 0.5}},
    "mbls": {"options": {"margin": 0.5}},
    "cpc_discrimination": {"through": "cpc"},
    # Walked in several chunks, which five classes would not need.
    "cpc_exclusion": {"options": {"elements": 64}},
    "kd": {"options": {"T": 3.0, "T_c": 1.5}},
    "ttm": {"options": {"weighted": True}, "through": ""},
    "lskd": {"through": ""},
    "dist": {"options": {"T": 2.0}},
    "mlld": {"views": 2},
}

# Public functions of kdjax.losses whose first argument is called `logits` but that are no losses, each with what it is.
NOT_LOSSES: Mapping[str, str] = {
    "true_probability": "p_y, a constant for the gradient",
    "same_classes": "shape check of the distillation losses",
    "shares": "weights that sum to 1",
}

# Argument of a loss -> (Batch field it is made of, how).
ARGUMENTS: Mapping[str, tuple[str, Any]] = {
    "labels": ("label", lambda batch, output: batch.label),
    "target": ("target", lambda batch, output: batch.target),
    "teacher_logits": ("teacher", lambda batch, output: batch.teacher.logits),
    "counts": ("index", lambda batch, output: batch.index % 5),
    "logits": ("", lambda batch, output: output.logits),
    "student": ("", lambda batch, output: output.features["map"]),
    "teacher": ("teacher", lambda batch, output: batch.teacher.features["map"]),
}


@lru_cache
def public_losses() -> dict[str, Any]:
    """Every public function of kdjax.losses that takes logits, or a student's features, first."""
    functions = {}
    for info in pkgutil.iter_modules(losses.__path__):
        module = importlib.import_module(f"{losses.__name__}.{info.name}")
        for name, value in vars(module).items():
            public = callable(value) and not name.startswith("_") and value.__module__ == module.__name__
            if info.name == "numerics" or not public or name in NOT_LOSSES:
                continue
            if next(iter(inspect.signature(value).parameters), "") in ("logits", "student"):
                functions[name] = value
    return functions


@lru_cache
def loss_of(name: str) -> Loss:
    parameters = inspect.signature(public_losses()[name]).parameters
    arguments = tuple(p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD)
    through = name if name in objectives.METHODS else ""
    return Loss(arguments, "weight" in parameters, **{"through": through, **SPECIAL.get(name, {})})


def _label(name: str, options: Mapping[str, Any]) -> str:
    return name + (f"({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")


def of_method(name: str) -> list[Member]:
    """A method of the registry with its defaults, and its variants."""
    method, views = objectives.METHODS[name], VIEWS.get(name, 1)
    members = [Member(name, name, objectives.build(name), method.needs, views)]
    for options in VARIANTS.get(name, ()):
        fields = (*method.needs, "label") if name in READS_LABELS_TOO else method.needs
        members.append(Member(_label(name, options), name, objectives.build(name, **options), fields, views))
    return members


def of_loss(name: str) -> Member:
    """A pure loss behind the door of an objective."""
    loss, function = loss_of(name), public_losses()[name]

    def values(batch, output):
        arguments = [ARGUMENTS[argument][1](batch, output) for argument in loss.arguments]
        coupled = {"weight": batch.weight} if loss.coupled else {}
        result = function(*arguments, **coupled, **loss.options)
        return sum(result) if isinstance(result, tuple) else result

    fields = tuple(field for field in (ARGUMENTS[argument][0] for argument in loss.arguments) if field)
    objective = stateless(name, lambda batch, output, clock: values(batch, output))
    return Member(f"losses.{name}", name, objective, fields, loss.views, values)


def on_features(member: Member) -> bool:
    return "layers" in (objectives.options(member.name) if member.raw is None else loss_of(member.name).arguments)


def methods() -> list[Member]:
    return [member for name in objectives.METHODS for member in of_method(name)]


def pure_losses() -> list[Member]:
    """All whose arguments are known; a test names the others."""
    return [of_loss(name) for name in public_losses() if set(loss_of(name).arguments) <= ARGUMENTS.keys()]


def everyone() -> list[Member]:
    """Whom laws 1 to 6 are run on: a loss inside a method is met there."""
    return methods() + [m for m in pure_losses() if not loss_of(m.name).through]


def by_default() -> list[Member]:
    """Every method and loss without its variants."""
    return [member for member in everyone() if "(" not in member.id]


def but_variants_slowly(members: list[Member]) -> list[Any]:
    """For laws that compile much: `make test` keeps every method and loss by default, CI adds their variants."""
    return [pytest.param(m, marks=pytest.mark.slow if "(" in m.id else ()) for m in members]


FEW = ("nll", "mdca", "crl", "kd", "dkd", "losses.focal", "losses.mdca", "losses.kd", "losses.lskd")


def but_few_slowly(members: list[Member]) -> list[Any]:
    """For laws that take long, as without jit, where each operation is a program: `make test` keeps one of a kind."""
    return [pytest.param(m, marks=() if m.id in FEW else pytest.mark.slow) for m in members]

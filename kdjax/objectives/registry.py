"""Every method by name: the only place where a string becomes an objective."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.errors import Refused, one_of
from kdjax.objectives.calibrators import CALIBRATORS
from kdjax.objectives.core import Method, Objective, blend
from kdjax.objectives.distillers import DISTILLERS
from kdjax.objectives.shaping import canonical
from kdjax.objectives.terms import FIELDS, arguments, of_loss, reads
from kdjax.options import Options, resolve
from kdjax.source_code import replaces, source_version
from kdjax.types import Scalar

METHODS: dict[str, Method] = {**CALIBRATORS, **DISTILLERS}

ROLES = ("calibrator", "distiller")


def options(name: str) -> dict[str, Any]:
    """The hyper-parameters of a method with their defaults.

    Raises:
      Refused: an unknown method, with the nearest names.
    """
    one_of("method", name, METHODS, registered=True)
    parameters = inspect.signature(METHODS[name].build).parameters.values()
    return {p.name: p.default for p in parameters}


def checked(name: str, given: Mapping[str, Any], role: str | None = None) -> Options:
    """`given` laid over the method's defaults; a composed option such as `target` in its shortest spelling.

    Raises:
      Refused: unknown method or option, with the nearest names; an option of another kind; or a method of the other
        role.
    """
    if not isinstance(name, str):
        raise Refused(f"the {role or 'method'} is {name!r}; expected a name such as 'nll'.")
    if not isinstance(given, Mapping):
        raise Refused(f"the options of {name} are {given!r}; expected a mapping of names to values.")
    names = [n for n, method in METHODS.items() if role in (None, method.role)]
    if name in METHODS and name not in names:
        raise Refused(
            f"{name!r} is a {METHODS[name].role} and stands where a {role} is expected; known: {', '.join(names)}."
        )
    one_of(role or "method", name, names, registered=True)
    parts = getattr(METHODS[name].build, "composed", {})
    functions = {option: value for option, value in given.items() if option in parts and callable(value)}
    typed = {option: value for option, value in given.items() if option not in functions}
    resolved = resolve(name, typed, options(name))
    shortest = {option: canonical(f"{name}.{option}", resolved[option], known) for option, known in parts.items()}
    return resolved.replace(**{**shortest, **functions})


def build(name: str, **given: Any) -> Objective:
    """The objective of that name. See `docs/methods.md` for names and options.

    Raises:
      Refused: an unknown method or option, with the nearest names; a value of another kind or out of range.
    """
    resolved = checked(name, given)
    return METHODS[name].build(**resolved)


def distilled(
    label_term: Objective, soft_term: Objective, *, alpha: Scalar = 0.9, weights: tuple[Scalar, ...] = ()
) -> Objective:
    """(1 - alpha) * label_term + alpha * soft_term, or weights[0] and weights[1] where a paper uses free weights."""
    of_label, of_soft = weights or (1 - alpha, alpha)
    return blend((of_label, label_term), (of_soft, soft_term))


_REGISTERED: dict[str, Callable[..., Any]] = {}


def register(
    name: str,
    method: Callable[..., Any],
    *,
    role: str = "",
    needs: tuple[str, ...] | None = None,
    formula: str = "",
    source: str = "from outside",
    version: str = "",
    **more: Any,
) -> Method:
    """Puts a loss or an objective from outside under a name, for recipes, configs and the command line.

        def confident(logits, labels, *, strength=0.5): ...              # [M] values, or a scalar with weight=
        objectives.register("confident", confident, formula="NLL + strength * ...")

    Args:
      name: letters, digits and underscores; a name of kdjax's own is refused.
      method: a loss, `(logits, labels | target | teacher_logits, *, options)`, whose arguments say what it reads; or
        a builder, keyword-only options with defaults -> Objective. Ranges are declared with `kdjax.options.hyper`.
      role: "calibrator" or "distiller"; by default a distiller is what reads the teacher.
      needs: the Batch fields that a builder's objective reads ("label", "teacher", ...); a loss says it by itself.
      formula, source: what tables say of it; by default the first line of its docstring.
      version: what stands for the code in ids; by default the SHA-256 of the source of the module that defines it, so
        that changed code is another method. Give one where there is no source file.
      **more: `transform`, `state`, `weights`, `published`, `params` and `features` of `Method`.

    Returns:
      The `Method` now under that name. Registering the same code again changes nothing.

    Raises:
      Refused: a name that is none or is taken by other code; options without defaults; no source and no version.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise Refused(f"the method is named {name!r}; expected a name such as 'my_loss'.")
    if not callable(method):
        raise Refused(f"the method {name!r} is {method!r}; expected a loss or a function that returns an Objective.")
    positional = [
        p
        for p in inspect.signature(method).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if positional:
        arguments(method)
        needs = reads(method) if needs is None else needs
        builder = of_loss(method, name)
    else:
        builder = method
    # A loss reads what its arguments say; what an objective looks at is not known.
    more = {"features": not positional, **more}
    for option, parameter in inspect.signature(builder).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise Refused(f"the option {option!r} of the method {name!r} has no default; give it one.")
    if needs is None:
        raise Refused(f"the method {name!r} does not say what it reads; type needs=('label',), or what it needs.")
    for field in needs:
        one_of(f"needs of the method {name!r}", field, (*FIELDS.values(), "index"))
    role = one_of("role", role or ("distiller" if "teacher" in needs else "calibrator"), ROLES)
    version = source_version(f"the method {name!r}", method, version)
    if name in METHODS and METHODS[name].version != version:
        raise Refused(f"the method {name!r} exists already, with other code; choose another name.")
    formula = formula or (inspect.getdoc(method) or name).splitlines()[0]
    replaces(_REGISTERED.setdefault(name, method), method)
    _REGISTERED[name] = method
    METHODS[name] = Method(builder, role, needs, formula, source, version=version, **more)
    return METHODS[name]

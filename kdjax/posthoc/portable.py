"""Fitted calibrators as JSON files, applied with NumPy alone: nothing here imports JAX.

    calibrator = kdjax.posthoc.load("calibrator.json")
    probabilities = calibrator(logits)                       # or calibrator.of_probabilities(probs)

The formulas are those of `kdjax.posthoc.POSTHOC`, in float64; the laws hold the two together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.errors import Refused, one_of
from kdjax.files import Damaged, read_json, write_json

FORMAT = 1
KIND = "kdjax calibrator"
# Below any probability a model means: an exact 0 would have an infinite logarithm.
LEAST_PROBABILITY = 1e-12


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits - logits.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def _temperature(params: Mapping[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    return z / params["T"]


def _classwise_temperature(params: Mapping[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    return z / params["T"][z.argmax(axis=-1)][..., None]


def _vector(params: Mapping[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    return z * params["w"] + params["b"]


def _dirichlet(params: Mapping[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    return log_softmax(z) @ params["W"].T + params["b"]


def _isotonic(params: Mapping[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    p = np.exp(log_softmax(z))
    q = np.empty_like(p)
    for k, (x, y) in enumerate(zip(params["x"], params["y"], strict=True)):
        q[..., k] = np.interp(p[..., k], x, y)
    return log_softmax(np.log(np.maximum(q, params["floor"])))


FORMS: Mapping[str, Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]] = {
    "temperature": _temperature,
    "classwise_temperature": _classwise_temperature,
    "vector": _vector,
    "dirichlet": _dirichlet,
    "isotonic": _isotonic,
}
# K is the number of classes; any other letter stands for one size that the arrays share.
SHAPES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "temperature": {"T": ()},
    "classwise_temperature": {"T": ("K",)},
    "vector": {"w": ("K",), "b": ("K",)},
    "dirichlet": {"W": ("K", "K"), "b": ("K",)},
    "isotonic": {"x": ("K", "M"), "y": ("K", "M"), "floor": ()},
}


def check_params(form: str, params: Any, num_classes: int) -> None:
    """Refuses parameters that are not those of the form, in one sentence; traced values pass by their shapes.

    Raises:
      Refused: no mapping; names missing or unknown; shapes that do not fit K; numbers that are not finite, or T <= 0.
    """
    shapes = SHAPES[form]
    expected = ", ".join(f"{name} [{', '.join(axes)}]" for name, axes in shapes.items())
    if not isinstance(params, Mapping) or set(params) != set(shapes):
        given = f"the names {', '.join(map(str, params))}" if isinstance(params, Mapping) else type(params).__name__
        raise Refused(f"the parameters of {form} are {given}; expected what its fit returned: {expected}.")
    sizes = {"K": num_classes}
    for name, axes in shapes.items():
        shape = np.shape(params[name])
        if len(shape) != len(axes) or any(
            sizes.setdefault(a, size) != size for a, size in zip(axes, shape, strict=True)
        ):
            raise Refused(
                f"the parameter {name} of {form} has shape {list(shape)} for logits of {num_classes} classes; "
                f"expected {expected} with K = {num_classes}."
            )
        if isinstance(params[name], np.ndarray | np.generic | float):
            value = np.asarray(params[name])
            if value.dtype.kind != "f" or not np.isfinite(value).all():
                raise Refused(f"the parameter {name} of {form} holds something else than finite numbers; fit it again.")
            if name in ("T", "floor") and not (value > 0).all():
                raise Refused(f"the parameter {name} of {form} is {value.min():g}; expected numbers > 0.")


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrator:
    """A fitted post-hoc calibrator.

    Attributes:
      method: its name in `kdjax.posthoc.POSTHOC`.
      params: what the fit returned, float64.
      num_classes: K.
      classes: the K names, or ().
      scores: what it was fitted on, "logits" or "probabilities" (their logarithms were the logits).
      form: the formula, a key of `FORMS`; "" for a method from outside, whose own `apply` is called.
      version: of the code of a method from outside.
      about: anything else the file says: what it was fitted on, the errors before and after.

    Raises:
      Refused: a field that `load` would not read, when made.
    """

    method: str
    params: Mapping[str, np.ndarray]
    num_classes: int
    classes: tuple[str, ...] = ()
    scores: str = "logits"
    form: str = ""
    version: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count, names = self.num_classes, self.classes
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2:
            raise Refused(f"num_classes is {count!r}; expected an integer of at least 2.")
        # One text is one name, not as many as it has letters.
        names = tuple(names) if isinstance(names, tuple | list | np.ndarray) else (names,)
        if len(names) not in (0, count) or not all(isinstance(name, str) for name in names):
            raise Refused(f"classes is {self.classes!r}; expected the names of all {count} classes as text, or ().")
        one_of("scores", self.scores, ("logits", "probabilities"))
        one_of("form", self.form, ("", *FORMS))
        if not isinstance(self.about, Mapping):
            raise Refused(f"about is {self.about!r}; expected a mapping, such as {{'examples': 300}}.")
        if isinstance(self.params, Mapping):
            try:
                params = {name: np.asarray(value, np.float64) for name, value in self.params.items()}
            except (ValueError, TypeError) as error:
                raise Refused(f"the parameters of {self.method} are not numbers; fit it again.") from error
            object.__setattr__(self, "params", params)
        elif not self.form:
            kind = type(self.params).__name__
            raise Refused(f"the parameters of {self.method} are {kind}; expected the mapping that its fit returned.")
        if self.form:
            check_params(self.form, self.params, int(count))
        object.__setattr__(self, "num_classes", int(count))
        object.__setattr__(self, "classes", names)

    def __call__(self, logits: Any) -> np.ndarray:
        """Calibrated probabilities of logits [N, K] or [K], float64, rows that sum to 1.

        Raises:
          Refused: another number of classes, NaN, or an infinity of which no probabilities come. -inf leaves its class
            out, but "dirichlet" weighs each class by all others.
        """
        return np.exp(log_softmax(self.logits(logits)))

    def of_probabilities(self, probabilities: Any) -> np.ndarray:
        """As `__call__`, of the model's probabilities; an exact 0 counts as 1e-12.

        Raises:
          Refused: also values outside [0, 1].
        """
        p = np.asarray(probabilities, np.float64)
        if p.size and not (p.min() >= 0 and p.max() <= 1):
            raise Refused(
                f"probabilities lie between {p.min():.6g} and {p.max():.6g}; expected [0, 1], or call the calibrator "
                "itself on logits."
            )
        return self(np.log(np.maximum(p, LEAST_PROBABILITY)))

    def logits(self, logits: Any) -> np.ndarray:
        """Calibrated logits, of the same shape."""
        z = np.asarray(logits, np.float64)
        if z.ndim not in (1, 2) or z.shape[-1] != self.num_classes:
            raise Refused(
                f"logits have shape {list(z.shape)}; this calibrator was fitted on [N, {self.num_classes}], one column "
                "for each class."
            )
        if np.isnan(z).any():
            raise Refused("the logits hold NaN; expected numbers.")
        if self.form:
            with np.errstate(invalid="ignore"):  # what comes of an infinity is asked below
                calibrated = FORMS[self.form](self.params, z)
            if np.isnan(calibrated).any() or not np.isfinite(calibrated.max(axis=-1)).all():
                raise Refused(
                    f"the logits hold an infinity that {self.method} cannot take; expected finite numbers (-100 leaves "
                    "a class out as well)."
                )
            return calibrated
        from kdjax.posthoc.registry import applied_from_outside  # the only road to JAX: someone's own `apply`

        return applied_from_outside(self, z)

    def save(self, path: str | Path) -> None:
        """Writes the JSON that `load` reads, atomically; every number comes back with the same bits.

        Raises:
          Refused: parameters that are not plain numbers.
          OSError: the disk refuses.
        """
        params = {name: value.tolist() for name, value in self.params.items()}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "params"}
        write_json(Path(path), {"kind": KIND, "format": FORMAT, **fields, "about": dict(self.about), "params": params})


def load(path: str | Path) -> Calibrator:
    """Reads a calibrator that `Calibrator.save` or `kdjax calibrate` wrote. Needs NumPy and nothing else.

    Raises:
      Refused: the file is missing, is no calibrator, is of a newer format, or holds wrong parameters.
    """
    path = Path(path)
    try:
        stored = read_json(path)
    except FileNotFoundError as error:
        raise Refused(f"{path} does not exist; expected a file written by `kdjax calibrate`.") from error
    except (Damaged, IsADirectoryError) as error:
        raise Refused(f"{path} is not a calibrator: expected the JSON written by `kdjax calibrate`.") from error
    if not isinstance(stored, dict) or stored.get("kind") != KIND:
        raise Refused(f"{path} is JSON but not a calibrator; expected a file written by `kdjax calibrate`.")
    if stored.get("format") != FORMAT:
        raise Refused(f"{path} is of format {stored.get('format')!r}, and this kdjax reads {FORMAT}; upgrade kdjax.")
    text: dict[str, Any] = {name: stored.get(name) for name in ("method", "scores", "form", "version")}
    others: dict[str, Any] = {name: stored.get(name) for name in ("params", "num_classes", "classes", "about")}
    if not all(isinstance(value, str) for value in text.values()):
        raise Refused(f"{path} is a damaged calibrator: a field is missing or of another kind; fit it again.")
    try:
        return Calibrator(**text, **others)
    except Refused as error:
        raise Refused(f"{path} is a damaged calibrator: {error}") from error

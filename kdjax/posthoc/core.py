"""What every post-hoc calibrator shares: the pair, and the inspection of what it is fitted on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp

from kdjax.errors import Refused
from kdjax.losses.numerics import at_least_float32
from kdjax.options import Check
from kdjax.posthoc.portable import check_params
from kdjax.source_code import source_version

Params = Mapping[str, Any]


class PostHoc(NamedTuple):
    """A calibrator that is fitted after training.

    Attributes:
      fit: (logits [N, K], labels [N], *, weight=None, **hyper-parameters) -> params, a flat dict of float64
        NumPy arrays. Runs on the host, in float64 whatever the jax_enable_x64 flag says.
      apply: (params, logits [B, K]) -> logits [B, K]. Pure and jittable.
      formula, source, published, verified: what `docs/methods.md` says of it, as in `kdjax.objectives.Method`.
      form: its formula without JAX, a key of `kdjax.posthoc.portable.FORMS`; "" for methods from outside.
      stated_version: the version its author gave, or "".
    """

    fit: Callable[..., Params]
    apply: Callable[[Params, Float[Array, "B K"]], Float[Array, "B K"]]
    formula: str = "-"
    source: str = "-"
    published: str = "-"
    verified: str = "law"
    form: str = ""
    stated_version: str = ""

    @property
    def version(self) -> str:
        """What stands for the code: the author's word, or the SHA-256 of the source of the module that defines `fit`.

        Raises:
          Refused: no source is to be found, as for code typed into a console, and no version was given.
        """
        return source_version("a post-hoc method", self.fit, self.stated_version)


def prepared(form: str, params: Any, logits: Any) -> tuple[Any, dict[str, Any]]:
    """Logits in float32 at least, and the parameters of a form in the same precision.

    Raises:
      Refused: as `check_params`, while tracing; NumPy parameters also by their values.
    """
    z = at_least_float32(logits)
    check_params(form, params, z.shape[-1])
    return z, {name: jnp.asarray(value, z.dtype) for name, value in params.items()}


def unless_none(check: Check) -> Check:
    """A range for an option whose None means "choose"."""
    return lambda what, value: value if value is None else check(what, value)


class Sample(NamedTuple):
    """Inspected input of a fit: float64 logits, int64 labels, and positive weights that sum to 1."""

    logits: np.ndarray
    labels: np.ndarray
    weight: np.ndarray


def inspect(logits: Any, labels: Any, weight: Any = None) -> Sample:
    """Returns the sample to fit on; rows of weight 0 are gone, so that weight 0 is absence in every method.

    Raises:
      Refused: wrong ranks or lengths, no examples, K < 2, non-finite logits, labels that are not integers in
        [0, K), negative or all-zero weights.

    Warns:
      if rows are probability distributions already: logits were expected, and a calibrator fitted on
        probabilities is fitted on a second softmax.
    """
    z, y = np.asarray(logits), np.asarray(labels)
    if z.ndim != 2 or y.ndim != 1 or len(z) != len(y):
        raise Refused(
            f"a post-hoc fit got logits of shape {z.shape} and labels of shape {y.shape}; expected [N, K] and [N]."
        )
    if len(z) == 0 or z.shape[1] < 2:
        raise Refused(f"a post-hoc fit got logits of shape {z.shape}; expected N >= 1 examples of K >= 2 classes.")
    if not np.issubdtype(y.dtype, np.integer):
        raise Refused(f"a post-hoc fit got labels of type {y.dtype}; expected integers in [0, {z.shape[1]}).")
    bad = np.flatnonzero((y < 0) | (y >= z.shape[1]))
    if bad.size:
        raise Refused(
            f"a post-hoc fit got {bad.size} labels outside [0, {z.shape[1]}); "
            f"the first is {y[bad[0]]}, at row {bad[0]}."
        )
    z = z.astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if broken.size:
        raise Refused(
            f"a post-hoc fit got logits that are not finite in {broken.size} rows, "
            f"the first is row {broken[0]}; expected finite numbers."
        )
    y = y.astype(np.int64)
    if weight is None:
        w = np.full(len(y), 1.0 / len(y))
    else:
        w = np.asarray(weight, np.float64)
        if w.shape != y.shape or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
            raise Refused(
                f"a post-hoc fit got weights of shape {w.shape}, the least of them {w.min(initial=np.inf)}; "
                f"expected {len(y)} finite numbers >= 0, not all zero."
            )
        kept = w > 0
        z, y, w = z[kept], y[kept], w[kept] / w[kept].sum()
    # A single row may sum to 1 by chance in a large split; one in a thousand may not.
    looks = (z.min(axis=1) >= 0) & (z.max(axis=1) <= 1) & (np.abs(z.sum(axis=1) - 1) < 1e-5)
    if looks.sum() > len(z) / 1000:
        warnings.warn(
            f"{looks.sum()} of {len(z)} rows given to a post-hoc fit are probability distributions; "
            "expected logits (pass the log of probabilities if probabilities are all there is).",
            UserWarning,
            stacklevel=3,
        )
    return Sample(z, y, w)


def log_softmax(z: np.ndarray) -> np.ndarray:
    """log p [N, K], float64, on the host."""
    return z - logsumexp(z, axis=1, keepdims=True)


def mean_nll(logits: Any, labels: Any, weight: Any = None) -> float:
    """Σ w_i·(−log softmax(z_i)[y_i]) / Σ w_i in nats, float64 on the host; logits [N, K], labels [N]."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    return float(np.average(logsumexp(z, axis=1) - z[np.arange(len(y)), y], weights=weight))

"""Reliability bins: the mergeable statistic behind ECE, MCE, OE, SCE and the reliability diagram."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kdjax.errors import Refused, one_of
from kdjax.metrics import _check

Closed = Literal["right", "left"]
Ends = Literal["in", "extra"]


class Bins(NamedTuple):
    """Sums over the members of each bin; adding two `Bins` field by field is the `Bins` of the union.

    Being a pytree of sums it may be carried through `scan`, mapped by `vmap`, and summed over devices by
    `jax.lax.psum(bins, axis)`. The class-wise form has a leading class axis, [K, M]. In float32 a count is exact up to
    2**24 members of one bin.

    Attributes:
      count: [..., M], number of members (or sum of their weights).
      confidence: [..., M], sum of the members' confidences.
      correct: [..., M], sum of the members' hits.
    """

    count: Float[Any, "*K M"]  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    confidence: Float[Any, "*K M"]
    correct: Float[Any, "*K M"]

    @classmethod
    def empty(cls, bins: int = 15, num_classes: int | None = None) -> Bins:
        """No examples yet: zeros, float32, [M] or [K, M]."""
        shape = (_check.bin_count(bins),) if num_classes is None else (num_classes, _check.bin_count(bins))
        return cls(*(jnp.zeros(shape, jnp.float32) for _ in range(3)))

    def add(self, confidence: Any, correct: Any, weight: Any = None) -> Bins:
        """These bins with more examples: equal width, closed on the right, as `binned` does by default."""
        return self.merge(binned(confidence, correct, bins=self.count.shape[-1], weight=weight))

    def merge(self, other: Bins) -> Bins:
        """The bins of both samples together."""
        if self.count.shape != other.count.shape:
            raise Refused(f"bins of shapes {self.count.shape} and {other.count.shape} cannot be merged.")
        return Bins(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def weight(self) -> Float[Any, "*K M"]:
        """n_b / N; 0 everywhere when there is no example."""
        return _ratio(self.count, self.count.sum(-1, keepdims=True))

    @property
    def mean_confidence(self) -> Float[Any, "*K M"]:
        """conf_b, 0 for an empty bin."""
        return _ratio(self.confidence, self.count)

    @property
    def accuracy(self) -> Float[Any, "*K M"]:
        """acc_b, 0 for an empty bin."""
        return _ratio(self.correct, self.count)

    @property
    def gap(self) -> Float[Any, "*K M"]:
        """conf_b - acc_b: positive where the model is over-confident, 0 for an empty bin."""
        return _ratio(self.confidence - self.correct, self.count)

    @property
    def over(self) -> Float[Any, "*K"]:
        """Σ_b w_b max(conf_b - acc_b, 0)."""
        return (self.weight * self.gap.clip(0)).sum(-1)

    @property
    def under(self) -> Float[Any, "*K"]:
        """Σ_b w_b max(acc_b - conf_b, 0)."""
        return (self.weight * (-self.gap).clip(0)).sum(-1)

    @property
    def ece(self) -> Float[Any, "*K"]:
        """Σ_b w_b |acc_b - conf_b|, computed as over + under so that the split is exact."""
        return self.over + self.under

    @property
    def mce(self) -> Float[Any, "*K"]:
        """max_b |acc_b - conf_b|."""
        return abs(self.gap).max(-1)

    @property
    def oe(self) -> Float[Any, "*K"]:
        """Σ_b w_b conf_b max(conf_b - acc_b, 0)."""
        return (self.weight * self.mean_confidence * self.gap.clip(0)).sum(-1)

    @property
    def rms(self) -> Float[Any, "*K"]:
        """sqrt(Σ_b w_b (acc_b - conf_b)²)."""
        return (self.weight * self.gap**2).sum(-1) ** 0.5

    @property
    def average(self) -> Float[Any, "*K"]:
        """Unweighted mean of |acc_b - conf_b| over the bins that are not empty; 0 when all are."""
        return _ratio(abs(self.gap).sum(-1), (self.count > 0).sum(-1) * 1.0)


def _ratio(numerator: Any, denominator: Any) -> Any:
    xp = jnp if isinstance(numerator, jax.Array) or isinstance(denominator, jax.Array) else np
    some = denominator > 0
    return xp.where(some, numerator / xp.where(some, denominator, 1.0), 0.0)


def binned(
    confidence: Float[Any, "N *K"],
    correct: Any,
    *,
    bins: int | Float[Any, "M+1"] = 15,
    closed: Closed = "right",
    ends: Ends = "in",
    weight: Float[Any, "N"] | None = None,
) -> Bins:
    """Sorts examples into bins of confidence.

    Bin m is (e_m, e_{m+1}], with e_m = m/M rounded once, so that a confidence that is written j/M lies exactly on an
    edge in float32 as in float64. NumPy input is summed in float64 on the host; JAX arrays stay in their precision
    (float32 at least) and on their device, under jit, vmap and pmap alike.

    Args:
      confidence: [N], the confidence of the prediction; or [N, K], every class on its own.
      correct: same shape, 0 or 1 (bool or number): was the prediction right, or is this the example's class.
      bins: M; or M + 1 edges in ascending order (the confidences need not lie between them, see `ends`).
      closed: "right" for (lo, hi], as Guo et al., KD(C), torrvision and verified_calibration; "left" for [lo, hi), as
        netcal, torchmetrics and Google's GCE.
      ends: where the one end value goes that no half-open bin holds (0 if closed on the right, 1 on the left): "in" the
        neighboring bin (netcal), or in an "extra" bin of its own, so that there are M + 1 (torchmetrics and GCE give
        exactly 1 such a bin; KD(C) leaves exactly 0 out, which is the extra bin 0 left out of the sum).
      weight: [N], non-negative; 0 is the same as absence.

    Returns:
      `Bins` of shape [M] or [K, M] (M + 1 with `ends="extra"`).

    Raises:
      Refused: N = 0, bins < 1, shapes that differ; where the values are known (not under jit), a confidence that is
        NaN or outside [0, 1], a hit that is not 0 or 1, a negative weight, edges that do not ascend.
    """
    one_of("closed", closed, ("right", "left"))
    one_of("ends", ends, ("in", "extra"))
    on_device = any(isinstance(x, jax.Array) for x in (confidence, correct, weight))
    xp: Any = jnp if on_device else np
    confidence = xp.asarray(confidence)
    dtype = jnp.promote_types(confidence.dtype, jnp.float32) if on_device else np.float64
    precision = confidence.dtype
    confidence, correct = confidence.astype(dtype), xp.asarray(correct).astype(dtype)
    if confidence.ndim not in (1, 2) or confidence.shape != correct.shape:
        raise Refused(
            f"confidence has shape {confidence.shape} and correct {correct.shape}; "
            "expected the same shape, [N] or [N, K]."
        )
    _check.unit_interval("confidence", confidence)
    _check.hits(correct)
    if weight is not None:
        weight = xp.asarray(weight).astype(dtype)
        if weight.shape != confidence.shape[:1]:
            raise Refused(f"weight has shape {weight.shape}; expected [{confidence.shape[0]}].")
        if not isinstance(weight, jax.core.Tracer) and not (weight >= 0).all():
            raise Refused("weight holds a negative number or NaN; expected numbers of at least 0.")
    edges = bins
    if np.ndim(bins) == 0:
        edges = np.arange(_check.bin_count(bins) + 1) / bins
        # Rounded as the confidences were: a float32 3/15 must meet a float32 edge, also when both are then widened.
        edges = edges.astype(precision) if jnp.issubdtype(precision, jnp.floating) else edges
    edges = xp.asarray(edges).astype(dtype)
    if edges.ndim != 1 or edges.size < 2:
        raise Refused(f"bin edges have shape {edges.shape}; expected [M + 1] with M at least 1.")
    if not isinstance(edges, jax.core.Tracer) and not (edges[1:] >= edges[:-1]).all():
        raise Refused("the bin edges are not in ascending order; sort them.")
    # Only the edges that separate two bins decide: the two outer ones are replaced by `ends`.
    first = 0 if ends == "extra" and closed == "right" else 1
    last = edges.size if ends == "extra" and closed == "left" else edges.size - 1
    sums = _device_sums if on_device else _host_sums
    return Bins(*sums(confidence, correct, edges[first:last], closed, weight))


def _host_sums(confidence, correct, cuts, closed, weight):
    side = "left" if closed == "right" else "right"
    members = cuts.size + 1
    columns = confidence.shape[1:]
    index = np.searchsorted(cuts, confidence, side=side)
    if columns:
        index += members * np.arange(columns[0])
        weight = None if weight is None else np.broadcast_to(weight[:, None], confidence.shape)
    size = members * (columns[0] if columns else 1)
    values = (np.ones_like(confidence), confidence, correct)
    for value in values:
        value = value if weight is None else np.where(weight > 0, weight * value, 0.0)
        yield np.bincount(index.ravel(), value.ravel(), size).reshape(*columns, members)


def _device_sums(confidence, correct, cuts, closed, weight):
    beyond = confidence[..., None] > cuts if closed == "right" else confidence[..., None] >= cuts
    index = beyond.sum(-1)
    # A masked sum fuses into one reduction and adds in a fixed order; a scatter-add does not on every device.
    member = index[..., None] == jnp.arange(cuts.size + 1)
    if weight is not None:
        weight = weight.reshape(-1, *(1 for _ in confidence.shape[1:]))
    for value in (jnp.ones_like(confidence), confidence, correct):
        value = value if weight is None else jnp.where(weight > 0, weight * value, 0.0)
        yield jnp.where(member, value[..., None], 0.0).sum(0)


def top_label(logits: Float[Any, "N K"], labels: Any) -> tuple[Any, Any]:
    """Confidence and hit of the predicted class: (max_j softmax(z)_j, 1[argmax_j z_j = y]); lowest index on ties.

    NumPy logits give float64 on the host, JAX arrays stay on the device (and pass under jit, unchecked).

    Returns:
      confidence [N] in [1/K, 1] and correct [N], bool.

    Raises:
      Refused: on the host, for wrong shapes, NaN, and labels outside [0, K). Warns if logits look like probabilities.
    """
    if isinstance(logits, jax.Array) or isinstance(labels, jax.Array):
        z = jnp.asarray(logits)
        probs = jax.nn.softmax(z.astype(jnp.promote_types(z.dtype, jnp.float32)), axis=-1)
        return probs.max(-1), z.argmax(-1) == labels
    from kdjax.metrics._rows import rows

    examples = rows(logits, labels)
    return examples.confidence, examples.rank == 0


def interpolated_edges(confidence: Float[Any, "N"], bins: int = 15) -> np.ndarray:
    """Equal-mass edges by linear interpolation: M + 1 equidistant positions in [0, N] on the sorted values.

    Position N lies one past the last value and is read as the last. Source: `histedges_equalN` of torrvision's
    focal_calibration, copied by AdaFocal, MbLS and ACLS.
    """
    confidence = np.sort(np.asarray(confidence, np.float64))
    count = confidence.size
    return np.interp(np.linspace(0, count, _check.bin_count(bins) + 1), np.arange(count), confidence)


def stride_edges(ascending: Float[Any, "N"], bins: int = 15) -> np.ndarray:
    """KD(C)'s equal-mass edges: the sorted values at 0, n, 2n, ..., (M-1)n with n = floor(N / M), then 1."""
    step = ascending.size // _check.bin_count(bins)
    return np.append(ascending[np.arange(bins) * step], 1.0)


def rounded_edges(ascending: Float[Any, "N"], bins: int = 15) -> np.ndarray:
    """GCE's equal-mass edges: the sorted values at round(m N / M), 0 < m < M; open towards 0 and 1."""
    where = np.round(np.linspace(0, ascending.size, _check.bin_count(bins), endpoint=False)).astype(int)
    inner = ascending[np.minimum(where, ascending.size - 1)][1:]
    return np.concatenate([[0.0], inner, [1.0]])

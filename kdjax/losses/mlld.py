"""Multi-level logit distillation; the conventions are those of `kdjax.losses.distillation`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import Refused
from kdjax.losses.distillation import kd, same_classes, shares, zero_where_equal
from kdjax.losses.numerics import materialized
from kdjax.options import above, choice, each, flag, hyper
from kdjax.targets import simple
from kdjax.targets.simple import temper
from kdjax.types import Scalar


class Levels(NamedTuple):
    """The three levels of MLLD, scalars."""

    instance: Float[Array, ""]
    category: Float[Array, ""]
    batch: Float[Array, ""]


@hyper(T=above(0), temperatures=each(above(0), 4), variant=choice("reference", "selecting"), standardize=flag())
def mlld(
    logits: Float[Array, "2B K"],
    teacher_logits: Float[Array, "2B K"],
    *,
    T: Scalar = 4.0,
    temperatures: tuple[Scalar, ...] = (3.0, 5.0, 2.0, 6.0),
    variant: str = "reference",
    standardize: bool = False,
    weight: Float[Array, "2B"] | None = None,
) -> Levels:
    """Multi-level logit distillation over two views stacked along the batch axis, the weak one first.

    With temperatures tau in (T, 3, 5, 2, 6), KL = tau^2 KL(q^tau||p^tau), P and Q the B x K probabilities at tau:
    instance: sum_tau mean_i KL; category: (1/K) ||Q'Q - P'P||_F^2; batch: (1/B) ||QQ' - PP'||_F^2.
    phi, psi: the share of examples (classes) whose weak teacher confidence (summed probability) is at most the median.

    variant="reference", the authors' arithmetic: the median masks multiply already reduced numbers, so that
    phi, psi ~ 1/2 are mere weights; phi * KL of the weak view over all five tau; KL of the strong view over (T, 3, 5)
    and, in place of it, of the weak view once more over (2, 6); psi * category and phi * batch of the weak view only.

    variant="selecting", as the method is described (our reading; no code of it exists): masks select examples, classes
    and rows of the batch matrix of the weak view; the strong view enters all three levels, unmasked, at all five tau.

    Args:
      logits, teacher_logits: [2B, K].
      T: base temperature, the first of the five.
      temperatures: the other four.
      standardize: LSKD's variant: standardized logits in the instance level, raw ones in the other two.
      weight: [2B]; both views of an example carry the same weight.

    Raises:
      Refused: an odd number of rows; unknown variant.

    Source: Jin et al., CVPR 2023, code Jin-Ying/Multi-Level-Logit-Distillation. Published weights: 0.9 on the sum
    of the levels, 0.1 on the cross-entropy of *each* view (0.2 on their mean).
    """
    if logits.shape[0] % 2 or not logits.shape[0]:
        raise Refused(
            f"mlld was given {logits.shape[0]} rows; it needs two views stacked: use the transform two_views."
        )
    z, t = same_classes(logits, teacher_logits)
    w = shares(z, weight)
    half = z.shape[0] // 2
    w = 2 * w[:half]
    both = jnp.stack([z, t])
    raw = both[:, :half], both[:, half:]
    both = simple.standardize(both) if standardize else both
    views = both[:, :half], both[:, half:]
    q = jnp.exp(temper(t[:half], 1.0))
    easy_rows = _at_most_the_median(jnp.max(q, axis=-1), w > 0)
    sums = jnp.sum(w[:, None] * q, axis=0)
    easy_classes = _at_most_the_median(sums, jnp.ones(sums.shape, bool))
    taus = jnp.stack([jnp.asarray(tau, z.dtype) for tau in (T, *temperatures)])

    def over_taus(f, x):  # [5, ...]; one traced copy instead of five
        return jax.vmap(partial(f, x))(taus)

    weak, strong = (over_taus(lambda x, tau: w * kd(x[0], x[1], T=tau), view) for view in views)
    category, batch = (jnp.sum(over_taus(partial(f, w), raw[0]), axis=0) for f in (_gram, _pairs))
    if variant == "selecting":
        levels = Levels(
            jnp.sum(easy_rows * weak) + jnp.sum(strong),
            jnp.sum(easy_classes * category) + jnp.sum(over_taus(partial(_gram, w), raw[1])),
            jnp.sum(easy_rows * batch) + jnp.sum(over_taus(partial(_pairs, w), raw[1])),
        )
    else:
        phi, psi = jnp.sum(w * easy_rows), jnp.mean(easy_classes)
        instance = phi * jnp.sum(weak) + jnp.sum(strong[:3]) + jnp.sum(weak[3:])
        levels = Levels(instance, psi * jnp.sum(category), phi * jnp.sum(batch))
    return Levels(*(zero_where_equal(z, t, level) for level in levels))


def _at_most_the_median(x: Array, kept: Array) -> Array:
    """1 where x is at most the median of the kept entries (the mean of the middle two of an even number), else 0.

    No entry lies between the middle two, so the lower of them decides. Both sides of the comparison are read from one
    sorted copy: the median entry must never exceed itself. Entries (none negative) that differ by no more than the
    rounding of a sum are equal: two classes that share the mass evenly are both at the median, however it was summed.
    """
    order = jnp.argsort(jnp.where(kept, x, jnp.inf))
    ordered = materialized(jnp.where(kept, x, jnp.inf)[order])
    median = ordered[(jnp.maximum(jnp.sum(kept), 1) - 1) // 2]
    return jnp.zeros_like(x).at[order].set((ordered <= median * (1 + 16 * jnp.finfo(x.dtype).eps)).astype(x.dtype))


def _gram(w: Array, pair: Array, tau: Array) -> Array:
    """Row means [K] of the squared entries of Q'Q - P'P; with weights, those of B sum_i w_i q_i q_i'."""
    P, Q = jnp.exp(temper(pair, tau))
    gap = w[:, None] * _count(w) * (Q - P)
    return jnp.mean((gap.T @ Q + P.T @ gap) ** 2, axis=1)


def _pairs(w: Array, pair: Array, tau: Array) -> Array:
    """Row sums [B] of the squared entries of QQ' - PP', each row and column with its weight, over B."""
    P, Q = jnp.exp(temper(pair, tau))
    return _count(w) * w * jnp.sum(w * ((Q - P) @ Q.T + P @ (Q - P).T) ** 2, axis=-1)


def _count(w: Array) -> Array:
    """B: the number of examples that normalized weights stand for (Kish's effective size; exact for 0 and 1)."""
    squares = jnp.sum(w**2)
    return 1.0 / jnp.where(squares > 0, squares, 1.0)

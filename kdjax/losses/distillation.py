"""Distillation losses on logits.

Conventions: student logits z and teacher logits t [B, K], class axis last, computed in float32 at least (float64 when
given float64). The teacher receives no gradient. Losses are per example [B] or, where examples are coupled, a batch
scalar that takes `weight` (weight 0 is the same as absence, value and gradient, for rows of finite logits). A logit of
-inf is read as -1e30.

A divergence is written with the terms sum_k (p_k - q_k) = 0 kept in: each of its terms is then non-negative. Where all
logits of student and teacher are equal, value and gradient are exactly 0 (`zero_where_equal`), although a compiler may
round the softmax of the two networks differently.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.errors import Refused
from kdjax.losses.numerics import at_least_float32, checked, classes, weights
from kdjax.options import above, at_least, choice, flag, hyper
from kdjax.targets.simple import standardize, temper
from kdjax.types import Scalar

Divergence = Callable[[Array, Array], Array]


def forward_kl(log_q: Float[Array, "*B K"], log_p: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """KL(q||p) = sum_k q_k (log q_k - log p_k), q the teacher; q_k = 0 contributes exactly 0 also where p_k = 0."""
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    some = q > 0
    gap = jnp.where(some, log_q, 0.0) - jnp.where(some, log_p, 0.0)
    return jnp.sum(q * gap + (p - q), axis=-1)


def reverse_kl(log_q: Float[Array, "*B K"], log_p: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """KL(p||q), p the student: mode-seeking."""
    return forward_kl(log_p, log_q)


def jensen_shannon(log_q: Float[Array, "*B K"], log_p: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """JS = KL(q||m)/2 + KL(p||m)/2 with m = (p + q)/2; symmetric, in [0, log 2]."""
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    bound = 80.0 if log_p.dtype == jnp.float32 else 600.0  # beyond it the smaller of the two no longer counts
    both = (q > 0) | (p > 0)
    d = jnp.clip(jnp.where(both, log_p, 0.0) - jnp.where(both, log_q, 0.0), -bound, bound)

    def to_mean(gap):  # log of one over the mean, from the gap to the other; exactly 0 at 0
        return -jnp.log1p(0.5 * jnp.expm1(gap))

    return 0.5 * jnp.sum(q * to_mean(d) + p * to_mean(-d), axis=-1)


DIVERGENCES: dict[str, Divergence] = {"forward": forward_kl, "reverse": reverse_kl, "js": jensen_shannon}


@hyper(T=above(0), T_c=above(0), divergence=choice(*DIVERGENCES))
def kd(
    logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    T: Scalar = 1.0,
    T_c: Scalar = 1.0,
    divergence: str = "forward",
) -> Float[Array, "B"]:
    """The KD core: T^2 D(softmax(t / (T_c T)), softmax(z / T)).

    T_c = 1 is Hinton's KD and KD(C)'s; T = 1 with T_c = 1.5 is RTC's teacher-only temperature and, as a formula,
    TTM; both free is RTC as a plug-in. No factor for T_c is needed: the student is not divided by it. Log-probabilities
    of a shaped target are logits too: pass them for `teacher_logits`.

    dL/dz = T (p - q) for "forward". KD(C)'s equation (1) writes the cross-entropy, summed over the data set; their code
    the KL divergence, averaged: same gradient up to the number of examples, and the code's form is this one.

    Args:
      logits, teacher_logits: [B, K].
      T: distillation temperature of both, scalar or [B], > 0.
      T_c: calibration temperature of the teacher alone, scalar or [B], > 0.
      divergence: "forward" (KL from teacher to student), "reverse", or "js" (Jensen-Shannon).

    Raises:
      Refused: T or T_c <= 0, unknown divergence, shapes that differ.

    Source: Hinton et al. 2015, arXiv 1503.02531; KD(C), ACCV 2024; RTC, arXiv 2508.20224.
    """
    z, t = same_classes(logits, teacher_logits)
    T, T_c = jnp.asarray(T, z.dtype), jnp.asarray(T_c, z.dtype)
    t = t / (T_c[:, None] if T_c.ndim else T_c)
    return zero_where_equal(z, t, T**2 * DIVERGENCES[divergence](temper(t, T), temper(z, T)))


def same_classes(logits: Array, teacher_logits: Array) -> tuple[Array, Array]:
    """Both in one floating type, the teacher cut off from the gradient.

    Raises:
      Refused: shapes that differ.
    """
    if logits.shape != teacher_logits.shape:
        raise Refused(
            f"the student's logits have shape {tuple(logits.shape)} and the teacher's {tuple(teacher_logits.shape)}; "
            "they must agree: use a teacher with the same classes."
        )
    z, t = at_least_float32(logits), jax.lax.stop_gradient(at_least_float32(teacher_logits))
    dtype = jnp.promote_types(z.dtype, t.dtype)
    return z.astype(dtype), t.astype(dtype)


def zero_where_equal(z: Array, t: Array, loss: Array) -> Array:
    """`loss`, but exactly 0 without gradient where z = t: row by row, or over the whole batch for a scalar loss."""
    return jnp.where(jnp.all(z == t, axis=-1 if loss.ndim else None), 0.0, loss)


@hyper(T=above(0), weighted=flag())
def ttm(
    logits: Float[Array, "B K"], teacher_logits: Float[Array, "B K"], *, T: Scalar = 10.0, weighted: bool = False
) -> Float[Array, "B"]:
    """Transformed teacher matching: KL(p_t^(1/T) / Z || p_s); weighted (WTTM): times Z = sum_k p_t,k^(1/T).

    Equal to `kd(T=1, T_c=T)`. The authors write gamma = 1/T. Z grows with the teacher's smoothness, from 1 (one-hot) to
    K^(1 - 1/T) (uniform). Published example: T = 10, with the loss weighted 45 against 1 for the cross-entropy.

    Source: Zheng & Yang, ICLR 2024, arXiv 2402.11148, code zkxufo/TTM.
    """
    value = kd(logits, teacher_logits, T_c=T)
    return value * power_sum(teacher_logits, T) if weighted else value


def power_sum(teacher_logits: Float[Array, "B K"], T: Scalar) -> Float[Array, "B"]:
    """Z = sum_k p_k^(1/T), WTTM's weight of an example; no gradient."""
    log_p = temper(jax.lax.stop_gradient(teacher_logits), 1.0)
    T = jnp.asarray(T, log_p.dtype)
    return jnp.exp(jax.nn.logsumexp(log_p / (T[..., None] if T.ndim else T), axis=-1))


@hyper(T=above(0), divergence=choice(*DIVERGENCES), eps=at_least(0))
def lskd(
    logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    T: Scalar = 2.0,
    divergence: str = "forward",
    eps: Scalar = 1e-7,
) -> Float[Array, "B"]:
    """Logit standardization: `kd(Z(z), Z(t), T=T)` with Z of `kdjax.targets.standardize`; gradient through mean and s.

    Published: T = 2 (2 to 4 by pair), weight 9 against 0.1 for the cross-entropy on raw logits.

    Source: Sun et al., CVPR 2024, arXiv 2403.01427, code sunshangquan/logit-standardization-KD.
    """
    z, t = same_classes(logits, teacher_logits)
    return zero_where_equal(z, t, kd(standardize(z, eps=eps), standardize(t, eps=eps), T=T, divergence=divergence))


@hyper(alpha=at_least(0), beta=at_least(0), T=above(0))
def dkd(
    logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    labels: Int[Array, "B"],
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 8.0,
    T: Scalar = 4.0,
) -> Float[Array, "B"]:
    """Decoupled KD: T^2 [alpha KL(b_t||b_s) + beta KL(n_t||n_s)].

    b = (p_y, 1 - p_y) at temperature T; n = softmax over the K - 1 other classes. With beta replaced by the teacher's
    1 - p_y and alpha = 1 it is `kd`. K = 2: the second part is 0.

    log(1 - p_y) is the logsumexp of the other log-probabilities. The authors' code sums probabilities and takes the
    logarithm afterwards (NaN once 1 - p_y underflows), and removes the label by subtracting 1000 from its logit.

    Raises:
      Refused: K = 1; T <= 0; shapes that differ.

    Source: Zhao et al., CVPR 2022, arXiv 2203.08679, code megvii-research/mdistiller. Defaults from there; beta = 6 for
    WRN-40-2 to WRN-40-1; the LSKD variant takes standardized logits.
    """
    z, t = same_classes(logits, teacher_logits)
    classes(z, 2, "dkd")
    z, labels = checked(z, labels)
    is_y = jnp.arange(z.shape[-1]) == labels[:, None]
    T = jnp.asarray(T, z.dtype)
    (b_s, n_s), (b_t, n_t) = (_decoupled(temper(x, T), is_y) for x in (z, t))
    # The label's own entry is the same in both, with no mass in either: it adds exactly 0.
    return zero_where_equal(z, t, T**2 * (alpha * forward_kl(b_t, b_s) + beta * forward_kl(n_t, n_s)))


def _decoupled(log_p: Array, is_y: Array) -> tuple[Array, Array]:
    """(log of (p_y, 1 - p_y), log of p given that the class is not y)."""
    target = jnp.sum(jnp.where(is_y, log_p, 0.0), axis=-1)
    rest = jnp.where(is_y, -jnp.inf, log_p)
    total = jax.nn.logsumexp(rest, axis=-1)
    return jnp.stack([target, total], axis=-1), jnp.where(is_y, -jnp.inf, log_p - total[:, None])


@hyper(beta=at_least(0), gamma=at_least(0), T=above(0))
def dist(
    logits: Float[Array, "B K"],
    teacher_logits: Float[Array, "B K"],
    *,
    beta: Scalar = 1.0,
    gamma: Scalar = 1.0,
    T: Scalar = 1.0,
    weight: Float[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """DIST: T^2 [beta (1 - mean_i rho(p_i., q_i.)) + gamma (1 - mean_k rho(p_.k, q_.k))], rho Pearson's correlation.

    The first mean runs over examples, the second over classes (its correlation over the batch, so the value depends on
    the batch). 1 - rho is computed as half the squared distance of the two centered unit vectors: exactly 0, with
    gradient 0, where they agree. A row or column that is constant in either network (or below 1e-19 throughout, in
    float32) has no correlation and adds 0; the authors add 1e-8 to the product of norms instead, which counts such a
    row as 1.

    Args:
      beta, gamma: weights of the inter-class (rows) and the intra-class (columns) relation, >= 0.
      T: temperature of both, > 0; the authors' code default is 1, ports for CIFAR use 4.
      weight: [B], enters means and correlations.

    Source: Huang et al., NeurIPS 2022, arXiv 2205.10536.
    """
    z, t = same_classes(logits, teacher_logits)
    w = shares(z, weight)
    T = jnp.asarray(T, z.dtype)
    both = jnp.exp(temper(jnp.stack([z, t]), T))
    uniform = jnp.full(z.shape[1], 1 / z.shape[1], z.dtype)
    rows = jnp.sum(w * _one_minus_correlation(both.swapaxes(1, 2), uniform))
    columns = jnp.mean(_one_minus_correlation(both, w))
    return zero_where_equal(z, t, T**2 * (beta * rows + gamma * columns))


def shares(logits: Array, weight: Array | None) -> Array:
    """The weights divided by their sum; all 0 if they are."""
    w = weights(logits, weight)
    total = jnp.sum(w)
    return w / jnp.where(total > 0, total, 1.0)


def _one_minus_correlation(x: Array, w: Array) -> Array:
    """1 - rho of x[0] and x[1] over axis 1 under weights w (summing to 1), for each column."""
    w = w[:, None]
    # In units of its largest entry: the squares of small probabilities, and their inverse roots, leave float32.
    top = jax.lax.stop_gradient(jnp.max(jnp.where(w > 0, jnp.abs(x), 0.0), axis=1, keepdims=True))
    large = top > jnp.finfo(x.dtype).tiny ** 0.5
    x = jnp.where(w > 0, x, 0.0) / jnp.where(large, top, 1.0)
    scale = jax.lax.stop_gradient(jnp.sum(w * x**2, axis=1, keepdims=True))
    x = jnp.sqrt(w) * (x - jnp.sum(w * x, axis=1, keepdims=True))
    size = jnp.sum(x**2, axis=1, keepdims=True)
    # Rounding leaves some 1e-16 of a constant column: it has no direction.
    some = large & (size > (16 * jnp.finfo(x.dtype).eps) ** 2 * scale)
    u, v = x * jax.lax.rsqrt(jnp.where(some, size, 1.0))
    return jnp.where(jnp.all(some, axis=(0, 1)), 0.5 * jnp.sum((u - v) ** 2, axis=0), 0.0)

"""Exact projections of a teacher's distribution onto CUD's constraints, eq. (2).

The paper asks for the nearest q to p under mass constraints (R2 and the second half of R1) and entropy bounds (the
first half of R1), and does not solve it. The masses have a closed form, the same for every f-divergence; the entropy
bounds are a temperature. All functions work per row, in log space and with fixed shapes: `vmap` and `jit` them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import Refused
from kdjax.options import at_least, between, choice, hyper
from kdjax.targets.simple import EXCLUDED, FLOOR, entropy, temper
from kdjax.types import Scalar

_STEPS = 60
_LOG_T = 18.5  # temperatures are searched in [1e-8, 1e8]


class Projected(NamedTuple):
    """A projected target and what happened on the way.

    Attributes:
      log_q: [..., K], normalized log-probabilities.
      T: [...], the temperature that meets the entropy bounds: >= 1 at the floor, < 1 at the ceiling, else 1.
      clamped: [...], the floor was above 99 % of the largest entropy that the masses allow, and was lowered to that.
      failed: [...], no distribution meets the ceiling by tempering (tied maxima, such as a uniform teacher); `log_q` is
        then the limit T -> 0, the nearest one can come.
      infeasible: [...], a mass constraint on an empty group (near empty with alpha > 0, or far everything with
        eps < 1) could not hold and was ignored.
    """

    log_q: Array
    T: Array
    clamped: Array
    failed: Array
    infeasible: Array


def _total(log_p: Array, mask: Array) -> Array:
    """log of a group's mass; a finite, hopeless number for an empty one."""
    return jnp.maximum(jax.nn.logsumexp(jnp.where(mask, log_p, -jnp.inf), axis=-1), EXCLUDED)


def _split(log_p: Array, mask: Array) -> tuple[Array, Array]:
    """log of a group's mass, and of p inside the group; exact however small the group is."""
    some = jnp.any(mask, axis=-1)
    inside_only = jnp.where(mask, log_p, -jnp.inf)
    high = jnp.where(some, jnp.max(inside_only, axis=-1), EXCLUDED)
    # The compiler may compute log_p anew for the subtraction and round otherwise: at T = 1e-8 one rounding is e^1000.
    # So the largest entry is 0 by its place, and none is above it.
    first = jnp.arange(log_p.shape[-1]) == jnp.argmax(inside_only, axis=-1)[..., None]
    inside = jnp.where(mask, jnp.where(first, 0.0, jnp.minimum(log_p - high[..., None], 0.0)), -jnp.inf)
    size = jnp.where(some, jnp.log(jnp.sum(jnp.exp(inside), axis=-1)), 0.0)
    return high + size, inside - size[..., None]


def _parts(near: Array, far: Array) -> tuple[Array, Array, Array]:
    far = far & ~near
    return near, far, ~near & ~far


@hyper(alpha=between(0, 1), eps=between(0, 1))
def masses(
    log_p: Float[Array, "*B K"],
    near: Bool[Array, "*B K"],
    far: Bool[Array, "*B K"],
    *,
    alpha: Scalar = 0.0,
    eps: Scalar = 1.0,
) -> Float[Array, "*B K"]:
    """Projection onto {q : q(near) >= alpha, q(far) <= eps}: one answer for every f-divergence.

    Inside each group the ratios of p are kept (Jensen's inequality), so that only the three masses move; a, b, c those
    of near, far and the others:

    1. a >= alpha and b <= eps: q = p, to the bit.
    2. b > eps: far gets eps, the rest is scaled by (1 - eps) / (1 - b); accepted if near then has alpha.
    3. else near gets alpha, the rest is scaled by (1 - alpha) / (1 - a); accepted if far then has at most eps.
    4. else near alpha, far eps, the others 1 - alpha - eps.

    Minimizes KL(q||p), KL(p||q), Jeffreys, Jensen-Shannon, Hellinger and chi^2 alike; the tilting form of CUD's
    appendix, q_k = p_k exp(mu 1[k in N] - nu 1[k in W]) / Z, has the multipliers of `multipliers`.

    Args:
      log_p: logits or log-probabilities.
      near: N(y; x), the classes that share the label's meaning; contains the label.
      far: W(x, y), the classes known to be wrong; what lies in both counts as near.
      alpha, eps: scalars or one per row, in [0, 1].

    Raises:
      Refused: Python numbers outside [0, 1].
    """
    log_p = temper(log_p, 1.0)
    groups = _parts(near, far)
    (la, in_n), (lb, in_w), (lc, in_o) = (_split(log_p, g) for g in groups)
    alpha, eps = (x + jnp.zeros_like(la) for x in _reachable(alpha, eps, *groups[:2], log_p))
    l_alpha, l_eps, l_not_alpha, l_not_eps = jnp.log(alpha), jnp.log(eps), jnp.log1p(-alpha), jnp.log1p(-eps)
    l_ac, l_bc = jnp.logaddexp(la, lc), jnp.logaddexp(lb, lc)
    two = (l_not_eps + (la - l_ac), l_eps, l_not_eps + (lc - l_ac))
    three = (l_alpha, l_not_alpha + (lb - l_bc), l_not_alpha + (lc - l_bc))
    four = (l_alpha, l_eps, jnp.log(jnp.maximum(1 - alpha - eps, 0.0)))
    low, high = jnp.exp(la) < alpha, jnp.exp(lb) > eps
    use_two = high & (jnp.exp(two[0]) >= alpha)
    use_three = low & ~use_two & (jnp.exp(three[1]) <= eps)
    log_q = log_p
    for group, inside, x2, x3, x4 in zip(groups, (in_n, in_w, in_o), two, three, four, strict=True):
        mass = jnp.where(use_two, x2, jnp.where(use_three, x3, x4))
        log_q = jnp.where(group & (low | high)[..., None], inside + mass[..., None], log_q)
    return log_q


def _reachable(alpha: Scalar, eps: Scalar, n: Array, w: Array, like: Array) -> tuple[Array, Array]:
    """The constraints with those on empty groups removed: see `Projected.infeasible`."""
    alpha, eps = jnp.asarray(alpha, like.dtype), jnp.asarray(eps, like.dtype)
    return jnp.where(jnp.any(n, axis=-1), alpha, 0.0), jnp.where(jnp.all(w, axis=-1), 1.0, eps)


def multipliers(
    log_p: Float[Array, "*B K"], log_q: Float[Array, "*B K"], near: Bool[Array, "*B K"], far: Bool[Array, "*B K"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """(mu, nu) of the tilting form q_k = p_k exp(mu 1[N] - nu 1[W]) / Z; both are >= 0 at a projection.

    mu = log(A/a) - log(C/c), nu = log(C/c) - log(B/b). Without other classes only mu + nu is determined: mu = 0 then.
    """
    log_p = temper(log_p, 1.0)
    near, far, other = _parts(near, far)
    gain_n, gain_w, gain_o = (_total(log_q, g) - _total(log_p, g) for g in (near, far, other))
    gain_o = jnp.where(jnp.any(other, axis=-1), gain_o, gain_n)
    mu = jnp.where(jnp.any(near, axis=-1), gain_n - gain_o, 0.0)
    return mu, jnp.where(jnp.any(far, axis=-1), gain_o - gain_w, 0.0)


def simplex(p: Float[Array, "*B K"], mask: Bool[Array, "*B K"], total: Scalar) -> Float[Array, "*B K"]:
    """Euclidean projection of the masked entries onto {q >= 0, sum q = total}; 0 elsewhere.

    q = relu(p - theta) with theta = max_j (sum of the j largest - total) / j.
    """
    ordered = -jnp.sort(jnp.where(mask, -p, jnp.inf), axis=-1)
    member = jnp.arange(p.shape[-1]) < jnp.sum(mask, axis=-1, keepdims=True)
    sums = jnp.cumsum(jnp.where(member, ordered, 0.0), axis=-1)
    candidates = (sums - jnp.asarray(total, p.dtype)[..., None]) / jnp.arange(1, p.shape[-1] + 1)
    theta = jnp.max(jnp.where(member, candidates, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(mask, jax.nn.relu(p - theta), 0.0)


@hyper(alpha=between(0, 1), eps=between(0, 1))
def masses_l2(
    p: Float[Array, "*B K"],
    near: Bool[Array, "*B K"],
    far: Bool[Array, "*B K"],
    *,
    alpha: Scalar = 0.0,
    eps: Scalar = 1.0,
) -> Float[Array, "*B K"]:
    """As `masses`, for the squared Euclidean distance; probabilities in and out.

    The cases are those of `masses`; groups move by a common shift, clipped at 0, instead of a common factor: ratios
    are not kept and exact zeros appear.
    """
    n, w, o = _parts(near, far)
    alpha, eps = _reachable(alpha, eps, n, w, p)
    a, b = jnp.sum(jnp.where(n, p, 0.0), axis=-1), jnp.sum(jnp.where(w, p, 0.0), axis=-1)
    alpha, eps = alpha + 0 * a, eps + 0 * b
    two = simplex(p, w, eps) + simplex(p, ~w, 1 - eps)
    three = simplex(p, n, alpha) + simplex(p, ~n, 1 - alpha)
    four = simplex(p, n, alpha) + simplex(p, w, eps) + simplex(p, o, 1 - alpha - eps)
    low, high = a < alpha, b > eps
    use_two = high & (jnp.sum(jnp.where(n, two, 0.0), axis=-1) >= alpha)
    use_three = low & ~use_two & (jnp.sum(jnp.where(w, three, 0.0), axis=-1) <= eps)
    q = jnp.where(use_two[..., None], two, jnp.where(use_three[..., None], three, four))
    return jnp.where((low | high)[..., None], q, p)


@hyper(alpha=between(0, 1), eps=between(0, 1), h_min=at_least(0), distance=choice("kl", "l2"))
def project(
    log_p: Float[Array, "*B K"],
    near: Bool[Array, "*B K"],
    far: Bool[Array, "*B K"],
    *,
    alpha: Scalar = 0.0,
    eps: Scalar = 1.0,
    h_min: Scalar = 0.0,
    h_max: Scalar | None = None,
    distance: str = "kl",
) -> Projected:
    """The projection of eq. (2): argmin_q Dist(q, p) with q(near) >= alpha, q(far) <= eps, h_min <= H(q) <= h_max.

    **The entropy floor is a temperature.** With multiplier kappa on the floor the Lagrangian of KL(q||p) is
    (1 + kappa) KL(q || p^(1/(1+kappa)) / Z) + const, so the projection is `masses(temper(p, T))` with the smallest
    T >= 1 that reaches h_min. Without mass constraints: q = softmax(z_T / T). RTC's temperature scaling of the teacher
    is therefore CUD's requirement R1, solved exactly, with h_min the entropy of the tempered teacher.

    **The entropy ceiling** is not a convex constraint (the paper's Theorem 1 overlooks it), yet `masses(temper(p, T))`
    with T < 1 and H = h_max is the unique minimizer whenever such a T exists, since KL + kappa' H is strictly convex
    for kappa' < 1. None exists where maxima are tied, as in a uniform teacher: flagged in `failed`.

    T is found by bisection on log T and always ends on the feasible side.

    Args:
      log_p: logits or log-probabilities.
      near, far, alpha, eps: as in `masses`.
      h_min, h_max: nats, scalars or one per row; `h_max=None` is no ceiling.
      distance: "kl" (KL(q||p); where only masses bind, every f-divergence) or "l2" (squared Euclid, masses only).

    Raises:
      Refused: unknown distance; entropy bounds with "l2" (no closed form); Python numbers out of range.
    """
    if h_max is not None:
        at_least(0)("project.h_max", h_max)
    log_p = temper(log_p, 1.0)
    one = jnp.ones(log_p.shape[:-1], log_p.dtype)
    never = jnp.zeros(log_p.shape[:-1], bool)
    n, w, _ = _parts(near, far)
    alpha_, eps_ = _reachable(alpha, eps, n, w, log_p)
    infeasible = (alpha_ < jnp.asarray(alpha, log_p.dtype)) | (eps_ > jnp.asarray(eps, log_p.dtype))
    if distance == "l2":
        if h_max is not None or not (isinstance(h_min, int | float) and h_min == 0):
            raise Refused("entropy bounds were given with distance 'l2', which handles masses only; use distance='kl'.")
        q = masses_l2(jnp.exp(log_p), near, far, alpha=alpha, eps=eps)
        return Projected(jnp.log(q), one, never, never, infeasible)

    def at(log_T):
        return masses(temper(log_p, jnp.exp(log_T)), near, far, alpha=alpha, eps=eps)

    h = entropy(at(0 * one))
    most = entropy(masses(jnp.zeros_like(log_p), near, far, alpha=alpha, eps=eps))
    wanted = jnp.asarray(h_min, log_p.dtype)
    floor = jnp.minimum(wanted, 0.99 * most)
    clamped = (0.99 * most < wanted) & (h < wanted)
    ceiling = jnp.asarray(jnp.inf if h_max is None else h_max, log_p.dtype)
    up = _bisect(lambda x: entropy(at(x)) >= floor, 0 * one, _LOG_T * one)
    down = _bisect(lambda x: entropy(at(x)) <= ceiling, 0 * one, -_LOG_T * one)
    log_T = jnp.where(h < floor, up, jnp.where(h > ceiling, down, 0.0))
    log_q = at(log_T)
    tol = 100 * jnp.finfo(log_p.dtype).eps
    return Projected(log_q, jnp.exp(log_T), clamped, entropy(log_q) > ceiling + tol, infeasible)


def _bisect(holds: Callable[[Array], Array], start: Array, end: Array) -> Array:
    """The point nearest to `start` where `holds`, given that it is true towards `end`; `end` if it is true nowhere."""

    def halve(_, interval):
        no, yes = interval
        middle = 0.5 * (no + yes)
        ok = holds(middle)
        return jnp.where(ok, no, middle), jnp.where(ok, middle, yes)

    return jax.lax.fori_loop(0, _STEPS, halve, (start, end))[1]


@hyper(distance=choice("kl", "l2"))
def top1(log_p: Float[Array, "*B K"], labels: Int[Array, "*B"], *, distance: str = "kl") -> Float[Array, "*B K"]:
    """Projection onto {q : q_y >= q_k for every k}: the label leads, or ties.

    The label is pooled with the classes above it: others in descending order join as long as they exceed the pooled
    value. "kl" (KL(q||p)): geometric mean of the pool, then everything renormalized. "l2": arithmetic mean, nothing
    else moves.

    Raises:
      Refused: unknown distance.
    """
    log_p = temper(log_p, 1.0)
    x = jnp.maximum(log_p, FLOOR) if distance == "kl" else jnp.exp(log_p)
    is_y = jnp.arange(x.shape[-1]) == labels[..., None]
    x_y = jnp.take_along_axis(x, labels[..., None], axis=-1)
    rivals = -jnp.sort(jnp.where(is_y, jnp.inf, -x), axis=-1)[..., :-1]
    sums = jnp.concatenate([x_y, x_y + jnp.cumsum(rivals, axis=-1)], axis=-1)
    pools = sums / jnp.arange(1, x.shape[-1] + 1)
    joins = rivals > pools[..., :-1]
    size = jnp.sum(jnp.cumprod(joins, axis=-1), axis=-1, keepdims=True)
    pooled = jnp.take_along_axis(pools, size, axis=-1)
    q = jnp.where(is_y | (x > pooled), pooled, x)
    q = jax.nn.log_softmax(q, axis=-1) if distance == "kl" else jnp.log(q)
    return jnp.where(size > 0, q, log_p)


def match_entropy(
    log_p: Float[Array, "B K"], mean_entropy: Float[Array, ""], weight: Float[Array, "B"] | None = None
) -> tuple[Float[Array, "B K"], Float[Array, ""]]:
    """The control of every shaped target: p tempered by the one T that gives the same (weighted) mean entropy.

    What a shaped target gains over it is more than softening. T is searched in [1e-8, 1e8] on a log scale.

    Returns:
      (log of the tempered distributions, T).
    """
    log_p = temper(log_p, 1.0)
    w = jnp.ones(log_p.shape[:-1], log_p.dtype) if weight is None else jnp.asarray(weight, log_p.dtype)
    w = w / jnp.where(jnp.sum(w) > 0, jnp.sum(w), 1.0)
    lo, hi = jnp.asarray(-_LOG_T, log_p.dtype), jnp.asarray(_LOG_T, log_p.dtype)
    log_T = _bisect(lambda x: jnp.sum(w * entropy(temper(log_p, jnp.exp(x)))) >= mean_entropy, lo, hi)
    T = jnp.exp(log_T)
    return temper(log_p, T), T

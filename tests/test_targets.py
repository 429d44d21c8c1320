"""Target shaping against a general-purpose solver, and the facts that CUD's constructions must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from kdjax import targets
from kdjax.errors import Refused

SIZES = (3, 5, 8)
DRAWS = 4

# Compiled once per shape: eager dispatch would compile every operation of every shape.
project = jax.jit(targets.project, static_argnames="distance")
top1 = jax.jit(targets.top1, static_argnames="distance")
masses = jax.jit(targets.masses)
masses_l2 = jax.jit(targets.masses_l2)
multipliers = jax.jit(targets.multipliers)
margin = jax.jit(targets.margin)
wclip = jax.jit(targets.wclip)
swap = jax.jit(targets.swap)
match_entropy = jax.jit(targets.match_entropy)
entropy = jax.jit(targets.entropy)
temper = jax.jit(targets.temper)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def problems(k, seed=0, sharp=1.2):
    """Random teachers [DRAWS, k], labels, and disjoint masks with the label near and at least one class far."""
    rng = np.random.default_rng(100 * k + seed)
    p = np.exp(sharp * rng.normal(size=(DRAWS, k)))
    p /= p.sum(axis=1, keepdims=True)
    labels = rng.integers(0, k, DRAWS)
    near, far = np.zeros((2, DRAWS, k), bool)
    for i in range(DRAWS):
        others = rng.permutation([j for j in range(k) if j != labels[i]])
        near[i, labels[i]] = True
        near[i, others[: (k - 3) // 2]] = True
        far[i, others[(k - 3) // 2 : k - 2]] = True
    return p, labels, near, far


DIVERGENCES = {
    "KL(q||p)": lambda q, p: (np.sum(q * np.log(q / p)), np.log(q / p) + 1),
    "KL(p||q)": lambda q, p: (np.sum(p * np.log(p / q)), -p / q),
    "Jeffreys": lambda q, p: (np.sum((q - p) * np.log(q / p)), np.log(q / p) + 1 - p / q),
    "Jensen-Shannon": lambda q, p: (
        0.5 * np.sum(q * np.log(2 * q / (p + q)) + p * np.log(2 * p / (p + q))),
        0.5 * np.log(2 * q / (p + q)),
    ),
    "Hellinger": lambda q, p: (np.sum((np.sqrt(q) - np.sqrt(p)) ** 2), 1 - np.sqrt(p / q)),
    "chi2": lambda q, p: (np.sum((q - p) ** 2 / p), 2 * (q - p) / p),
    "l2": lambda q, p: (np.sum((q - p) ** 2), 2 * (q - p)),
}


def solve(name, p, linear=(), nonlinear=(), start=None):
    """argmin of the divergence over the simplex with rows a.q >= b and functions >= 0."""
    constraints = [{"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones_like(q)}]
    for a, b in linear:
        a = np.asarray(a, float)
        constraints.append({"type": "ineq", "fun": lambda q, a=a, b=b: a @ q - b, "jac": lambda q, a=a: a})
    for fun, jac in nonlinear:
        constraints.append({"type": "ineq", "fun": fun, "jac": jac})
    lowest = 0.0 if name == "l2" else 1e-13
    found = minimize(
        lambda q: DIVERGENCES[name](q, p),
        np.full(len(p), 1 / len(p)) if start is None else start,
        jac=True,
        bounds=[(lowest, 1)] * len(p),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


def inside(near, far, alpha, eps):
    """A point strictly inside the mass constraints, from which the solver starts."""
    b = min(eps, (1 - alpha) / 2) / 2
    other = ~near & ~far
    a = alpha + (1 - alpha) / 2
    return a * near / near.sum() + b * far / far.sum() + (1 - a - b) * other / other.sum()


def optimal(name, p, ours, linear=(), nonlinear=(), atol=1e-5, start=None):
    """`ours` is feasible, not worse than the solver's answer, and close to it."""
    ours = np.asarray(ours)
    assert abs(ours.sum() - 1) < 1e-9 and ours.min() >= 0
    for a, b in linear:
        assert np.asarray(a, float) @ ours >= b - 1e-9
    for fun, _ in nonlinear:
        assert fun(ours) >= -1e-9
    theirs = solve(name, p, linear, nonlinear, start)
    safe = np.maximum(ours, 1e-300)
    assert DIVERGENCES[name](safe, p)[0] <= DIVERGENCES[name](np.maximum(theirs, 1e-300), p)[0] + 1e-7
    np.testing.assert_allclose(ours, theirs, atol=atol)


BOUNDS = [(0.5, 0.2), (0.9, 0.05), (0.2, 0.01), (0.6, 0.4)]


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "l2"])
def test_masses_are_the_projection_of_every_f_divergence(name):
    for k in SIZES:
        p, _, near, far = problems(k)
        for alpha, eps in BOUNDS[:2]:
            q = np.exp(masses(jnp.log(p), near, far, alpha=alpha, eps=eps))
            for i in range(DRAWS):
                rows = [(near[i], alpha), (-1.0 * far[i], -eps)]
                optimal(name, p[i], q[i], rows, start=inside(near[i], far[i], alpha, eps))


def test_masses_meet_every_case_and_have_the_multipliers_of_the_tilting_form():
    seen = set()
    for k in SIZES:
        for seed in range(6):
            p, _, near, far = problems(k, seed)
            for alpha, eps in BOUNDS:
                log_q = masses(jnp.log(p), near, far, alpha=alpha, eps=eps)
                q = np.exp(log_q)
                a, b = (near * q).sum(1), (far * q).sum(1)
                assert np.all(a >= alpha - 1e-12) and np.all(b <= eps + 1e-12)
                mu, nu = (np.asarray(x) for x in multipliers(jnp.log(p), log_q, near, far))
                assert np.all(mu >= -1e-9) and np.all(nu >= -1e-9)
                tilted = p * np.exp(mu[:, None] * near - nu[:, None] * far)
                np.testing.assert_allclose(tilted / tilted.sum(1, keepdims=True), q, rtol=1e-9)
                # Complementary slackness: a multiplier only where its constraint holds with equality.
                assert np.all((mu < 1e-9) | (np.abs(a - alpha) < 1e-9))
                assert np.all((nu < 1e-9) | (np.abs(b - eps) < 1e-9))
                seen |= set(zip((mu > 1e-9).tolist(), (nu > 1e-9).tolist(), strict=True))
                again = masses(log_q, near, far, alpha=alpha, eps=eps)
                np.testing.assert_allclose(np.exp(again), q, atol=1e-12)
                idle = ((near * p).sum(1) >= alpha) & ((far * p).sum(1) <= eps)
                np.testing.assert_array_equal(log_q[idle], temper(jnp.log(p), 1.0)[idle])
    assert seen == {(False, False), (True, False), (False, True), (True, True)}


def test_masses_without_other_or_near_classes():
    p = jnp.array([0.1, 0.7, 0.2])
    near = jnp.array([True, False, False])
    no_other = np.exp(masses(jnp.log(p), near, ~near, alpha=0.8, eps=0.5))
    np.testing.assert_allclose(no_other, [0.8, 0.2 * 7 / 9, 0.2 * 2 / 9])
    capped = np.exp(masses(jnp.log(p), near, ~near, alpha=0.0, eps=0.3))
    np.testing.assert_allclose(capped, [0.7, 0.3 * 7 / 9, 0.3 * 2 / 9])
    nobody = jnp.zeros(3, bool)
    lost = project(jnp.log(p), nobody, nobody, alpha=0.5)
    assert bool(lost.infeasible) and not bool(project(jnp.log(p), near, ~near, alpha=0.5).infeasible)
    np.testing.assert_allclose(np.exp(lost.log_q), p)
    impossible = jnp.array([-jnp.inf, 0.0, -jnp.inf, -jnp.inf])
    raised = masses(impossible, jnp.array([True, False, True, False]), jnp.zeros(4, bool), alpha=0.4)
    np.testing.assert_allclose(np.exp(raised), [0.2, 0.6, 0.2, 0.0], atol=1e-12)


def test_euclidean_masses():
    for k in SIZES:
        p, _, near, far = problems(k)
        for alpha, eps in BOUNDS:
            q = np.asarray(masses_l2(jnp.asarray(p), near, far, alpha=alpha, eps=eps))
            also = np.exp(project(jnp.log(p), near, far, alpha=alpha, eps=eps, distance="l2").log_q)
            np.testing.assert_allclose(also, q, atol=1e-12)
            for i in range(DRAWS):
                rows = [(near[i], alpha), (-1.0 * far[i], -eps)]
                optimal("l2", p[i], q[i], rows, start=inside(near[i], far[i], alpha, eps))
    with pytest.raises(Refused, match="masses only"):
        targets.project(jnp.log(p), near, far, h_min=0.5, distance="l2")


def entropy_floor(h):
    return (lambda q: -np.sum(q * np.log(np.maximum(q, 1e-300))) - h, lambda q: -np.log(np.maximum(q, 1e-300)) - 1)


def test_the_entropy_floor_with_masses_is_tempering():
    for k in SIZES:
        p, _, near, far = problems(k, sharp=2.0)
        h = 0.85 * np.log(k)
        found = project(jnp.log(p), near, far, alpha=0.3, eps=0.25, h_min=h)
        q, T = np.exp(found.log_q), np.asarray(found.T)
        assert np.all(T >= 1) and np.any(T > 1.2) and not np.any(found.failed)
        for i in range(DRAWS):
            if not found.clamped[i]:
                linear = [(near[i], 0.3), (-1.0 * far[i], -0.25)]
                optimal("KL(q||p)", p[i], q[i], linear, [entropy_floor(h)], atol=2e-5)


def test_teacher_temperature_is_the_projection_onto_its_own_entropy():
    """RTC's temperature scaling = CUD's R1: the floor at the tempered teacher's entropy gives that teacher back."""
    p, _, near, _ = problems(5)
    far = np.zeros_like(near)
    scaled = temper(jnp.log(p), 1.5)
    found = project(jnp.log(p), near, far, h_min=entropy(scaled))
    np.testing.assert_allclose(found.T, 1.5, rtol=1e-8)
    np.testing.assert_allclose(np.exp(found.log_q), np.exp(scaled), atol=1e-9)
    again = project(found.log_q, near, far, h_min=entropy(scaled))
    np.testing.assert_allclose(np.exp(again.log_q), np.exp(scaled), atol=1e-7)


def test_the_entropy_ceiling_against_a_grid_of_the_simplex():
    steps = 400
    i, j = np.meshgrid(np.arange(1, steps), np.arange(1, steps))
    grid = np.stack([i, j, steps - i - j], axis=-1)[i + j < steps] / steps
    near = np.array([True, False, False])
    far = np.array([False, False, True])
    heights = -np.sum(grid * np.log(grid), axis=1)
    for p in ([0.5, 0.3, 0.2], [0.2, 0.45, 0.35], [0.34, 0.36, 0.3]):
        for h, alpha, eps in [(0.6, 0.0, 1.0), (0.4, 0.0, 1.0), (0.75, 0.3, 0.2)]:
            found = project(jnp.log(jnp.array(p)), near, far, alpha=alpha, eps=eps, h_max=h)
            q = np.exp(found.log_q)
            assert not found.failed and entropy(found.log_q) <= h + 1e-9 and found.T < 1
            assert q[0] >= alpha - 1e-9 and q[2] <= eps + 1e-9
            ok = (heights <= h) & (grid[:, 0] >= alpha) & (grid[:, 2] <= eps)
            best = np.min(np.sum(grid[ok] * np.log(grid[ok] / np.array(p)), axis=1))
            assert np.sum(q * np.log(q / np.array(p))) <= best + 1e-6


def test_the_entropy_ceiling_that_tied_maxima_cannot_meet_is_flagged():
    nobody = jnp.zeros((3, 3), bool)
    p = jnp.array([[1 / 3, 1 / 3, 1 / 3], [0.4, 0.4, 0.2], [0.5, 0.3, 0.2]])
    found = project(jnp.log(p), nobody, nobody, h_max=0.5)
    np.testing.assert_array_equal(found.failed, [True, True, False])
    np.testing.assert_allclose(np.exp(found.log_q[1]), [0.5, 0.5, 0.0], atol=1e-6)


def test_an_unreachable_entropy_floor_is_lowered_and_reported():
    p, _, near, far = problems(5)
    found = project(jnp.log(p), near, far, alpha=0.9, h_min=np.log(5))
    assert np.all(found.clamped)
    most = entropy(masses(jnp.zeros_like(jnp.asarray(p)), near, far, alpha=0.9))
    np.testing.assert_allclose(entropy(found.log_q), 0.99 * most, rtol=1e-9)


@pytest.mark.parametrize("distance", ["kl", "l2"])
def test_top1(distance):
    for k in SIZES:
        p, labels, _, _ = problems(k)
        log_q = top1(jnp.log(p), labels, distance=distance)
        q = np.exp(log_q)
        for i in range(DRAWS):
            y = labels[i]
            assert np.all(q[i, y] >= q[i])
            rows = [(np.eye(k)[y] - np.eye(k)[j], 0.0) for j in range(k) if j != y]
            optimal({"kl": "KL(q||p)", "l2": "l2"}[distance], p[i], q[i], rows)
        np.testing.assert_allclose(np.exp(top1(log_q, labels, distance=distance)), q, atol=1e-12)


@pytest.mark.parametrize("c", [0.0, 0.3])
def test_margin(c):
    for k in SIZES:
        p, labels, _, _ = problems(k)
        log_q = margin(jnp.log(p), labels, c=c)
        for i in range(DRAWS):
            y = labels[i]
            rival = np.argmax(np.where(np.arange(k) == y, -1, p[i]))
            optimal("KL(q||p)", p[i], np.exp(log_q[i]), [(np.eye(k)[y] - np.eye(k)[rival], c)])


def test_wclip_facts():
    for k in (2, 3, 8):
        p, labels, _, _ = problems(max(k, 3), seed=3)
        p, labels = p[:, :k] / p[:, :k].sum(1, keepdims=True), labels % k
        top = p.argmax(1)
        labels[0] = top[0]
        rows = np.arange(DRAWS)
        log_q = wclip(jnp.log(p), labels)
        q = np.exp(log_q)
        delta = np.where(top != labels, np.minimum(0.5 * p.max(1), 0.7 * (p.max(1) - p[rows, labels])), 0.0)
        wanted = p.copy()
        wanted[rows, labels] += delta
        wanted[rows, top] -= delta
        np.testing.assert_allclose(q, wanted, rtol=1e-12)
        assert np.all(q >= 0)
        np.testing.assert_allclose(q.sum(1), 1)
        np.testing.assert_array_equal(log_q[0], temper(jnp.log(p), 1.0)[0])
        wrong = top != labels
        # eta, m >= 1/2: the label ends at or above the old top class.
        assert np.all(q[rows, labels][wrong] >= q[rows, top][wrong] - 1e-15)


def test_wclip_is_the_euclidean_projection_on_a_margin_half_space_and_not_the_kl_one():
    for k in SIZES:
        p, labels, _, _ = problems(k, seed=5)
        labels = (p.argmax(1) + 1) % k
        q = np.exp(wclip(jnp.log(p), labels, eta=0.4, m=0.6))
        for i in range(DRAWS):
            y, top = labels[i], p[i].argmax()
            delta = p[i, top] - q[i, top]
            row = np.eye(k)[y] - np.eye(k)[top]
            optimal("l2", p[i], q[i], [(row, -(p[i, top] - p[i, y]) + 2 * delta)])
        far = np.eye(k, dtype=bool)[p.argmax(1)]
        near = np.eye(k, dtype=bool)[labels]
        eps = jnp.asarray(q[np.arange(DRAWS), p.argmax(1)])
        exact = np.exp(masses(jnp.log(p), near, far, eps=eps))
        np.testing.assert_allclose((exact * far).sum(1), eps)
        if k > 3:
            assert np.all((exact * near).sum(1) < (q * near).sum(1) - 1e-3)


def test_undamped_wclip_is_the_swap_of_knowledge_adjustment():
    p, labels, _, _ = problems(8)
    swapped = swap(jnp.log(p), labels)
    np.testing.assert_allclose(wclip(jnp.log(p), labels, eta=1.0, m=1.0), swapped, rtol=1e-9)
    q, rows = np.exp(swapped), np.arange(DRAWS)
    np.testing.assert_allclose(q[rows, labels], p.max(1))
    np.testing.assert_allclose(np.sort(q, axis=1), np.sort(p, axis=1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_extreme_logits_stay_finite_and_normalized(dtype):
    logits = jnp.array([[1e4, -1e4, 0, 50], [0, 0, 0, 0], [-50, 50, 50, 50], [3, 1, -jnp.inf, 2]], dtype)
    labels = jnp.array([1, 2, 0, 1])
    near, far = jax.nn.one_hot(labels, 4, dtype=bool), jax.nn.one_hot(targets.top(logits), 4, dtype=bool)
    shapes = {
        "temper": temper(logits, 0.5),
        "wclip": wclip(logits, labels),
        "swap": swap(logits, labels),
        "margin": margin(logits, labels, c=0.2),
        "top1": top1(logits, labels),
        "project": project(logits, near, far, alpha=0.3, eps=0.2, h_min=0.4, h_max=1.0).log_q,
    }
    for name, log_q in shapes.items():
        q = np.exp(np.asarray(log_q, np.float64))
        assert log_q.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32), name
        assert np.all(np.isfinite(q)), name
        np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5, err_msg=name)
    assert np.all(np.exp(shapes["top1"])[0, 1] >= 0.49)
    np.testing.assert_allclose(np.exp(shapes["margin"])[0, :2], [0.4, 0.6], rtol=1e-3)


def test_standardize_has_unit_spread_and_survives_constant_rows():
    x = jnp.array([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]])
    z = targets.standardize(x)
    np.testing.assert_allclose(np.std(z[0], ddof=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(z[1], 0)
    grad = jax.jacobian(targets.standardize)(x)
    assert np.all(np.isfinite(grad))


def test_the_control_has_the_wanted_mean_entropy_under_weights():
    p, _, _, _ = problems(5)
    weight = jnp.array([1.0, 0.0, 2.0, 1.0])
    log_q, T = match_entropy(jnp.log(p), 1.0, weight)
    np.testing.assert_allclose(np.average(entropy(log_q), weights=weight), 1.0, rtol=1e-9)
    np.testing.assert_allclose(log_q, temper(jnp.log(p), T))
    same, T = match_entropy(jnp.log(p), jnp.mean(entropy(jnp.log(p))))
    np.testing.assert_allclose(T, 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.exp(same), p, rtol=1e-8)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, y: targets.temper(p, 0.0),
        lambda p, y: targets.wclip(p, y, eta=0.0),
        lambda p, y: targets.wclip(p, y, m=1.5),
        lambda p, y: targets.margin(p, y, c=1.0),
        lambda p, y: targets.top1(p, y, distance="l3"),
        lambda p, y: targets.masses(p, y == y, y != y, alpha=1.2),
    ],
)
def test_wrong_numbers_are_refused(call):
    with pytest.raises(Refused):
        call(jnp.zeros((2, 3)), jnp.array([0, 1]))

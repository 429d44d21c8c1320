"""The laws themselves, as functions of a member: the tests run them over the registry, and over a toy method."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.objectives.rows import as_rows
from kdjax.types import Output
from tests.laws.door import CLOCK, Draw, Sample, doors, history, params_of, renamed, run, same, sample, taken
from tests.laws.members import CONDITION, EXCEPTIONS, REVERSED, Member


def excepted(law: str, member: Member, strict: bool) -> bool:
    """Whether the member is let off; `strict` lets nobody off, by which exceptions are checked to be true."""
    return not strict and (law, member.id) in EXCEPTIONS


def short(x: Any) -> np.ndarray:
    """The nearest numbers that bfloat16 holds, in the precision of `x`: every precision is then given the same."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16), x.dtype)


def precisions(member: Member, draw: Draw) -> None:
    """Law 1: float32 agrees with float64 to 1e-6."""
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        s = Sample(*(short(x) if x.dtype.kind == "f" else x for x in s))
        s = s._replace(target=s.target / s.target.sum(-1, keepdims=True))
        state = history(member, draw.shape[1])
        exact = run(member, s, state)
    single = run(member, Sample(*(x.astype(np.float32) if x.dtype.kind == "f" else x for x in s)), state)
    scale = CONDITION.get(member.name, (1.0, ""))[0] * max(1.0, float(np.abs(exact.value)))
    np.testing.assert_allclose(single.value, exact.value, rtol=1e-6, atol=1e-6 * scale)
    for gradient, wanted in zip(single.gradient, exact.gradient, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    chex.assert_trees_all_equal_dtypes(single.state, state)


def examples_permute(member: Member, draw: Draw, strict: bool = False) -> None:
    """Law 2: the order of the batch changes nothing but the order of the gradients."""
    if excepted("permuted examples", member, strict):
        return
    b = draw.shape[0]
    order = np.roll(np.random.default_rng(draw.seed + 1).permutation(b), 1)
    rows = np.concatenate([order + view * b for view in range(member.views)])
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        plain, other = run(member, s), run(member, taken(s, order, member.views))
        same(plain.value, other.value)
        same(tuple(g[rows] for g in plain.gradient), other.gradient)
        same(plain.by_params, other.by_params, rtol=1e-6)
        same((plain.state, plain.logs), (other.state, other.logs), rtol=1e-5, atol=1e-6)


def classes_permute(member: Member, draw: Draw, strict: bool = False) -> None:
    """Law 2: the names of the classes change nothing but the order of the gradient's columns."""
    if excepted("permuted classes", member, strict):
        return
    k = draw.shape[1]
    classes = np.random.default_rng(draw.seed + 2).permutation(k)
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        plain = run(member, s)
        other = run(member, renamed(s, classes), history(member, k, tuple(classes)))
        # Memories are float32: a sum over classes in another order may end on the other side of a rounding.
        loose = {"rtol": 1e-5, "atol": 1e-6} if jax.tree.leaves(plain.state) else {}
        same(plain.value, other.value, **loose)
        same((plain.gradient[0][:, classes], plain.gradient[1]), other.gradient, **loose)
        same(plain.logs, other.logs, rtol=1e-5, atol=1e-6)


def shifts(member: Member, draw: Draw, strict: bool = False) -> None:
    """Law 3: a constant added to all logits of a row, student's or teacher's, changes nothing."""
    if excepted("shifted logits", member, strict):
        return
    rng = np.random.default_rng(draw.seed + 3)
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        up = [rng.uniform(-20, 20, (len(s.label), 1)) for _ in range(2)]
        plain = run(member, s)
        other = run(member, s._replace(logits=s.logits + up[0], teacher=s.teacher + up[1]))
        same(plain[:3], other[:3], rtol=1e-6, atol=1e-8)
        same((plain.state, plain.logs), (other.state, other.logs), rtol=1e-5, atol=1e-6)


def absence(member: Member, draw: Draw, strict: bool = False) -> None:
    """Law 4: weight 0 equals removal, in value, gradient and memory, whatever the row holds."""
    if excepted("absent examples", member, strict):
        return
    b, k = draw.shape
    gone = np.sort(np.random.default_rng(draw.seed + 4).permutation(b)[: b // 3])
    stay = np.setdiff1d(np.arange(b), gone)
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        out = np.isin(np.arange(len(s.label)) % b, gone)
        spoilt = {
            name: np.where(out.reshape(-1, *[1] * (getattr(s, name).ndim - 1)), np.nan, getattr(s, name))
            for name in ("logits", "features", "teacher", "teacher_features", "target")
        }
        emptied = s._replace(
            weight=np.where(out, 0.0, s.weight), label=np.where(out, k, s.label).astype(np.int32), **spoilt
        )
        state = history(member, k)
        present, removed = run(member, emptied, state), run(member, taken(s, stay, member.views), state)
        same((present.value, present.by_params), (removed.value, removed.by_params), rtol=1e-6, atol=1e-8)
        for whole, part in zip(present.gradient, removed.gradient, strict=True):
            whole = np.asarray(whole)
            assert not np.any(whole[out]), "an absent example has a gradient"
            same(whole[~out], part)
        same((present.state, present.logs), (removed.state, removed.logs), rtol=1e-5, atol=1e-6)


def regions(member: Member, draw: Draw) -> None:
    """Law 4 for [B, R, K]: regions that do not exist (label -1, or weight 0) are absent, whatever they hold."""
    b, k = draw.shape
    gone = np.isin(np.arange(b), np.random.default_rng(draw.seed + 6).permutation(b)[: b // 3])
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        params, state = params_of(member, k), history(member, k)
        by_label = "label" in member.fields
        spoilt = {name: np.where(gone[:, None], np.nan, getattr(s, name)) for name in ("logits", "teacher", "target")}
        label, weight = (np.where(gone, -1, s.label), s.weight) if by_label else (s.label, np.where(gone, 0, s.weight))
        batch, _ = doors(member, s._replace(label=label.astype(np.int32), weight=weight, **spoilt))

        def total(logits):
            read = batch._replace(weight=batch.weight.reshape(2, -1))
            for field in set(member.fields) - {"teacher"}:
                read = read._replace(**{field: (x := getattr(batch, field)).reshape(2, -1, *x.shape[1:])})
            if read.teacher is not None:
                read = read._replace(teacher=Output(batch.teacher.logits.reshape(2, -1, k)))
            rows = as_rows(read, Output(logits))
            terms, _ = member.objective.apply(params, jax.tree.map(jnp.asarray, state), *rows, CLOCK)
            return terms.total, terms.logs

        (value, logs), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(spoilt["logits"].reshape(2, -1, k))
        removed = run(member, taken(s, np.flatnonzero(~gone), 1), state)
        same((value, logs), (removed.value, removed.logs), rtol=1e-6)
        gradient = np.asarray(gradient).reshape(b, k)
        assert not gradient[gone].any(), "a region that does not exist has a gradient"
        same(gradient[~gone], removed.gradient[0])


def extreme(kind: str, k: int, label: Any) -> np.ndarray:
    """[B, k] logits at the ends of what float32 training can meet."""
    b = len(label)
    mine = np.arange(k) == label[:, None]
    other = np.arange(k) == ((label + 1) % k)[:, None]
    return {
        "zero": lambda: np.zeros((b, k)),
        "equal": lambda: np.full((b, k), -7.5),
        "huge": lambda: 1e4 * (-1.0) ** np.add.outer(np.arange(b), np.arange(k)),
        "right": lambda: np.where(mine, 1e4, 0.0),
        "wrong": lambda: np.where(other, 1e4, -1e4),
        "masked": lambda: np.where(other, -np.inf, np.linspace(-1, 1, k)),
    }[kind]().astype(np.float32)


KINDS = ("zero", "equal", "huge", "right", "wrong", "masked")
_AT = {kind: i for i, kind in enumerate(KINDS)}


def finite(member: Member, shape: tuple[int, int], strict: bool = False) -> None:
    """Law 5: value, gradient, logs and memory are finite at every extreme of student and teacher."""
    if excepted("extreme logits", member, strict):
        return
    k = shape[1]
    s = sample(Draw(5, 1.0, shape), member.views, np.float32)
    before = history(member, k)
    # Without a teacher its logits are not read; at a thousand classes each kind meets its own and the next.
    others = KINDS if "teacher" in member.fields else KINDS[:1]
    met = [(a, b) for a in KINDS for b in others if k < 100 or len(others) == 1 or (_AT[b] - _AT[a]) % 6 < 2]
    for kind, teacher in met:
        read = s._replace(logits=extreme(kind, k, s.label), teacher=extreme(teacher, k, s.label))
        state = before
        if kind == "masked":
            # A target that gives mass to a class that cannot be has an infinite loss, as it should; so the targets,
            # given or remembered, give it none.
            target = np.where(np.isneginf(read.logits), 0.0, s.target)
            read = read._replace(target=(target / target.sum(-1, keepdims=True)).astype(np.float32))
            state = run(member, read, before).state
        if kind == "zero":
            read = read._replace(features=np.zeros_like(s.features))
        found = run(member, read, state)
        for part, tree in found._asdict().items():
            for leaf in jax.tree.leaves(tree):
                where = f"{part} of {member} at {kind} logits {shape}, teacher {teacher}"
                assert np.isfinite(leaf).all(), f"{where}: {leaf}"
        assert found.value.dtype == np.float32


def slopes(member: Member, draw: Draw, strict: bool = False, step: float = 1e-5) -> None:
    """Law 6: the gradient is that of central differences in float64, along random directions."""
    if excepted("finite differences", member, strict):
        return
    rng = np.random.default_rng(draw.seed + 5)
    with jax.enable_x64(True):
        s = sample(draw, member.views)
        state = history(member, draw.shape[1])
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params_of(member, draw.shape[1]))
        result = run(member, s, state, params=params)
        for _ in range(4):
            read = (s.logits, s.features, () if member.name in REVERSED else params)
            along = jax.tree.map(lambda x: rng.normal(size=x.shape), read)

            def value(h, read=read, along=along):
                logits, features, own = jax.tree.map(lambda x, d: x + h * d, read, along)
                return run(member, s._replace(logits=logits, features=features), state, params=own or params).value

            claims = (*result.gradient, () if member.name in REVERSED else result.by_params)
            claimed = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(np.sum(g * d)), claims, along)))
            slope = (float(value(step)) - float(value(-step))) / (2 * step)
            np.testing.assert_allclose(claimed, slope, rtol=1e-5, atol=1e-7)


LAWS = {
    "permuted examples": examples_permute,
    "permuted classes": classes_permute,
    "shifted logits": shifts,
    "absent examples": absence,
    "finite differences": slopes,
}

"""The one door through which every law looks at a member: what it is given, what comes out, what it remembers."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from kdjax.objectives.rows import as_rows
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at
from tests.laws.members import Member

N = 16  # training examples that a member with memory knows
EPOCHS = 8
# Late enough in a run for every schedule to act.
CLOCK = at(0.6, EPOCHS)


class Draw(NamedTuple):
    """What hypothesis draws: arrays follow from it. Few shapes, since XLA compiles each."""

    seed: int
    scale: float
    shape: tuple[int, int]


class Sample(NamedTuple):
    """Everything an objective may look at, as arrays; rows come in `views` blocks of B examples."""

    logits: Any
    features: Any
    label: Any
    target: Any
    index: Any
    teacher: Any
    teacher_features: Any
    weight: Any


class Result(NamedTuple):
    """`gradient` is by (logits, features)."""

    value: Any
    gradient: Any
    state: Any
    logs: Any


def sample(draw: Draw, views: int = 1, dtype: Any = np.float64) -> Sample:
    """Random rows without ties; the weights are positive and differ."""
    rng = np.random.default_rng(draw.seed)
    (b, k), rows = draw.shape, draw.shape[0] * views

    def logits():
        return (draw.scale * rng.normal(size=(rows, k))).astype(dtype)

    def features():
        return rng.normal(size=(rows, 2, 3, 3)).astype(dtype)

    target = rng.dirichlet(np.ones(k), b).astype(dtype)
    return Sample(
        logits(),
        features(),
        np.tile(rng.integers(0, k, b), views).astype(np.int32),
        np.tile(target, (views, 1)),
        np.tile(rng.permutation(N)[:b], views).astype(np.int32),
        logits(),
        features(),
        np.tile(rng.uniform(0.5, 2.0, b), views).astype(dtype),
    )


def doors(member: Member, s: Sample, logits: Any = None, features: Any = None) -> tuple[Batch, Output]:
    """The batch with the fields that the member says it reads and no other, and the student's output."""
    fields = {
        "label": s.label,
        "target": s.target,
        "index": s.index,
        "teacher": Output(s.teacher, {"map": s.teacher_features}),
    }
    batch = Batch(None, weight=s.weight, **{name: fields[name] for name in member.fields})
    return batch, Output(s.logits if logits is None else logits, {"map": s.features if features is None else features})


def evaluate(member: Member, state: Any, s: Sample, clock: Any = CLOCK) -> Result:
    """Value, gradient, new state and logs, as the step takes them."""

    def total(read):
        batch, output = doors(member, s, *read)
        params, _ = member.objective.init(Spec(N, s.logits.shape[-1], EPOCHS), KEY)
        terms, new = member.objective.apply(params, state, *as_rows(batch, output), clock)
        return terms.total, (new, terms.logs)

    (value, (new, logs)), gradient = jax.value_and_grad(total, has_aux=True)((s.logits, s.features))
    return Result(value, gradient, new, logs)


@cache
def compiled(member: Member) -> Any:
    """One program per member, traced once per shape and precision."""
    return jax.jit(lambda state, s, clock: evaluate(member, state, s, clock))


@cache
def refreshed(member: Member) -> Any:
    return jax.jit(member.objective.refresh)


def run(member: Member, s: Sample, state: Any = None, clock: Any = CLOCK) -> Result:
    return compiled(member)(history(member, s.logits.shape[-1]) if state is None else state, s, clock)


@cache
def history(member: Member, k: int, classes: tuple[int, ...] | None = None) -> Any:
    """A state after three epochs, as host arrays, and a refresh where there is one; `classes` renames the K classes."""
    state = member.objective.init(Spec(N, k, EPOCHS), KEY)[1]
    if not jax.tree.leaves(state):
        return state
    for seed in range(3):
        s = sample(Draw(seed, 3.0, (N, k)), member.views, np.float32)
        if seed == 0:
            s = s._replace(label=np.argmax(s.logits, -1).astype(np.int32))
        s = s._replace(label=np.tile(s.label[:N], member.views))
        s = s if classes is None else renamed(s, np.asarray(classes))
        state = compiled(member)(state, s, CLOCK).state
    if member.objective.refresh is not None:
        state = refreshed(member)(state, s.logits, s.label)
    return jax.tree.map(np.asarray, state)


def taken(s: Sample, rows: Any, views: int) -> Sample:
    """Those examples, in that order, of every view."""
    b = len(s.label) // views
    where = np.concatenate([np.asarray(rows) + view * b for view in range(views)])
    return Sample(*(np.asarray(x)[where] for x in s))


def renamed(s: Sample, classes: Any) -> Sample:
    """Class `classes[j]` becomes class j."""
    return s._replace(
        logits=s.logits[:, classes],
        teacher=s.teacher[:, classes],
        target=s.target[:, classes],
        label=np.argsort(classes)[s.label].astype(np.int32),
    )


def same(a: Any, b: Any, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    chex.assert_trees_all_close(jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b), rtol=rtol, atol=atol)

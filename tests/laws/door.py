"""The one door through which every law looks at a member: what it is given, what comes out, what it remembers."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.objectives.rows import as_rows
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at
from tests.laws.members import Member

N = 16  # training examples that a member with memory knows
EPOCHS = 8
FEATURES = (2, 3, 3)  # of one example
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
    """`gradient` is by (logits, features), `by_params` by the objective's own parameters."""

    value: Any
    gradient: Any
    by_params: Any
    state: Any
    logs: Any


def sample(draw: Draw, views: int = 1, dtype: Any = np.float64) -> Sample:
    """Random rows without ties; the weights are positive and differ."""
    rng = np.random.default_rng(draw.seed)
    (b, k), rows = draw.shape, draw.shape[0] * views

    def logits():
        return (draw.scale * rng.normal(size=(rows, k))).astype(dtype)

    def features():
        return rng.normal(size=(rows, *FEATURES)).astype(dtype)

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


def features_of_teacher(x: Any) -> dict[str, Any]:
    """The teacher's features: one as wide as the student's, one with more channels, one with more heads."""
    return {
        "map": x,
        "wide": jnp.concatenate([x, x[..., :2] ** 2], axis=-1),
        "heads": jnp.concatenate([x, x[:, ::-1] / 2], axis=1),
    }


def doors(member: Member, s: Sample, logits: Any = None, features: Any = None) -> tuple[Batch, Output]:
    """The batch with the fields that the member says it reads and no other, and the student's output."""
    fields = {
        "label": s.label,
        "target": s.target,
        "index": s.index,
        "teacher": Output(s.teacher, features_of_teacher(s.teacher_features)),
    }
    batch = Batch(None, weight=s.weight, **{name: fields[name] for name in member.fields})
    return batch, Output(s.logits if logits is None else logits, {"map": s.features if features is None else features})


def begin(member: Member, k: int) -> tuple[Any, Any]:
    """The member's first parameters and state."""
    like = np.zeros((1, *FEATURES), np.float32)
    shapes = jax.eval_shape(features_of_teacher, like)
    return member.objective.init(Spec(N, k, EPOCHS, {"map": shapes["map"]}, shapes), KEY)


@cache
def params_of(member: Member, k: int) -> Any:
    return jax.tree.map(np.asarray, begin(member, k)[0])


def evaluate(member: Member, params: Any, state: Any, s: Sample, clock: Any = CLOCK) -> Result:
    """Value, gradients, new state and logs, as the step takes them."""

    def total(read, params):
        terms, new = member.objective.apply(params, state, *as_rows(*doors(member, s, *read)), clock)
        return terms.total, (new, terms.logs)

    differentiated = jax.value_and_grad(total, (0, 1), has_aux=True)
    (value, (new, logs)), (gradient, by_params) = differentiated((s.logits, s.features), params)
    return Result(value, gradient, by_params, new, logs)


@cache
def compiled(member: Member) -> Any:
    """One program per member, traced once per shape and precision."""
    return jax.jit(lambda params, state, s, clock: evaluate(member, params, state, s, clock))


@cache
def refreshed(member: Member) -> Any:
    return jax.jit(member.objective.refresh)


def run(member: Member, s: Sample, state: Any = None, clock: Any = CLOCK, params: Any = None) -> Result:
    k = s.logits.shape[-1]
    state = history(member, k) if state is None else state
    return compiled(member)(params_of(member, k) if params is None else params, state, s, clock)


@cache
def history(member: Member, k: int, classes: tuple[int, ...] | None = None) -> Any:
    """A state after three epochs, as host arrays, and a refresh where there is one; `classes` renames the K classes."""
    params, state = begin(member, k)
    if not jax.tree.leaves(state):
        return state
    for seed in range(3):
        s = sample(Draw(seed, 3.0, (N, k)), member.views, np.float32)
        if seed == 0:
            s = s._replace(label=np.argmax(s.logits, -1).astype(np.int32))
        s = s._replace(label=np.tile(s.label[:N], member.views))
        s = s if classes is None else renamed(s, np.asarray(classes))
        state = compiled(member)(params, state, s, CLOCK).state
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

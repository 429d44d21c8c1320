"""Networks and optimizers as a plan looks at them: of shapes alone, and each traced once, whatever is trained with it.

A table has many kinds of stages and few networks. Tracing a network costs a hundred times more than tracing a loss, so
every kind that is rehearsed shares the networks' traces. Nothing here is compiled or run: what trains is `step`'s.
"""

from __future__ import annotations

import functools

import jax
import optax

from kdjax.programs import random_key
from kdjax.teachers import Apply
from kdjax.types import Key, Model, Output, Prepare, PyTree, Variables


@functools.lru_cache(maxsize=256)
def model(of: Model) -> Model:
    """The same network; each of its functions is traced once for arguments of one shape, its gradient too."""

    def apply(variables: Variables, inputs: PyTree, *, train: bool, key: Key | None = None) -> tuple[Output, PyTree]:
        output, stats = of.apply(variables, inputs, train=train, key=key)
        return _tree(output), stats

    return of._replace(init=jax.jit(of.init), apply=jax.jit(apply, static_argnames="train"))


@functools.lru_cache(maxsize=256)
def teacher(of: Apply) -> Apply:
    """The same teacher, traced once for batches of one shape."""
    return jax.jit(lambda variables, batch: _tree(of(variables, batch)))


def _tree(output: Output) -> Output:
    """Any mapping will do in an output, but what leaves a trace must be a tree."""
    return output._replace(features={**output.features}, terms={**output.terms})


@functools.lru_cache(maxsize=256)
def optimizer(of: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, traced once for parameters of one shape."""
    return optax.GradientTransformation(jax.jit(of.init), jax.jit(of.update))


def variables(of: Model, prepare: Prepare, raw: PyTree) -> PyTree:
    """What `of.init` draws for raw inputs: {"params", "batch_stats"} of shapes and dtypes.

    Args:
      raw: one batch of raw inputs, or shapes of it.
    """
    traced = model(of)
    made = jax.eval_shape(lambda x: traced.init(random_key(0), prepare(x)), raw)
    return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}


def logits(of: Model, prepare: Prepare, raw: PyTree) -> tuple[int, ...]:
    """The shape of a network's logits for one batch of raw inputs."""
    traced, like = model(of), variables(of, prepare, raw)
    return jax.eval_shape(lambda v, x: traced.apply(v, prepare(x), train=False)[0].logits, like, raw).shape


@functools.lru_cache(maxsize=256)
def forward_flops(of: Model, prepare: Prepare, raw: tuple) -> float:
    """Floating-point operations of one example's forward pass, from the lowered program.

    Args:
      raw: (tree definition, ((shape without the batch axis, dtype), ...)) of the raw inputs.
    """
    tree, leaves = raw
    one = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in leaves])
    lowered = jax.jit(lambda v, x: of.apply(v, prepare(x), train=False)[0].logits).lower(
        variables(of, prepare, one), one
    )
    cost = lowered.cost_analysis()
    return float(cost.get("flops", 0.0)) if cost else 0.0

"""A Flax NNX network as a `Model`: two pure functions of plain dicts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx as flax_nnx

from kdjax.errors import Refused
from kdjax.models.entry import parameters
from kdjax.models.linen_adapter import FLAGS, as_output, call_flags
from kdjax.models.source import author_version, source_hash
from kdjax.types import Key, Model, Output, PyTree, Variables


def nnx(factory: Callable[..., flax_nnx.Module], *, name: str = "", version: str = "") -> Model:
    """Your own NNX network as a `Model`, for `task(recipe, dataset, model=...)`.

        class Net(nnx.Module):
            def __init__(self, width: int = 64, *, rngs: nnx.Rngs): ...
            def __call__(self, x): ...

        model = nnx(Net)                       # or nnx(functools.partial(Net, width=128))

    The factory is called with `rngs=nnx.Rngs(key)`, so that the recipe's seed decides the initial values. Training sets
    the attributes that `Module.train()` sets, and the flags of `linen_adapter.FLAGS` among the arguments of `__call__`.
    `nnx.Param`s are the parameters; every other variable but random state is kept among the batch statistics and may
    change in training. In training each step's key reseeds all random streams. Results: see `linen_adapter.linen`.

    Args:
      factory: a class or function whose keyword `rngs` takes an `nnx.Rngs`, and which needs nothing else.
      name: how refusals and run folders call it; the name of the factory unless told.
      version: what stands for the code in a stage's id. Unless told, the SHA-256 of the source files that define the
        factory and the network's class, of the factory's bound arguments, and of the names and shapes of all variables.

    Raises:
      Refused: an instance (its initial values would not depend on the seed), a factory without `rngs`, arguments that
        kdjax does not know; and, while tracing, random streams without a key, results that are no logits.
    """
    if isinstance(factory, flax_nnx.Module):
        given = type(factory).__name__
        raise Refused(
            f"kdjax.models.nnx got a {given} that already has its values; expected what makes one, "
            f"so that the seed decides them: kdjax.models.nnx({given}), or functools.partial({given}, ...)."
        )
    if not callable(factory) or "rngs" not in parameters(factory):
        raise Refused(
            f"kdjax.models.nnx got {factory!r}; expected a class or function that takes rngs=nnx.Rngs(...) and makes "
            "an nnx.Module."
        )
    inner = factory.func if isinstance(factory, functools.partial) else factory
    name = name or getattr(inner, "__name__", "network")
    made = _abstract(factory, name)
    if not version:
        shapes = "; ".join(f"{path} {leaf}" for path, leaf in _named(flax_nnx.state(made)))
        version = source_hash(factory, name, source_hash(type(made), name), shapes)
    version = author_version(version, name)
    try:
        return as_model(factory, name, version)
    except TypeError:  # a bound argument that cannot be hashed
        return as_model.__wrapped__(factory, name, version)


@functools.lru_cache(maxsize=256)
def as_model(factory: Callable[..., flax_nnx.Module], name: str, version: str) -> Model:
    """`nnx` for a factory that is known to be one; equal factories give the same `Model`."""
    templates = {train: _template(_abstract(factory, name), train) for train in (True, False)}
    call = type(_abstract(factory, name)).__call__
    flags = call_flags(call, name)
    takes_rngs = "rngs" in inspect.signature(call).parameters

    def init(key: Key, inputs: PyTree) -> Variables:
        _, params, _, stats = _template(factory(rngs=flax_nnx.Rngs(key)), False)
        return {"params": _nested(params), "batch_stats": _nested(stats)}

    def apply(variables: Variables, inputs: PyTree, *, train: bool, key: Key | None = None) -> tuple[Output, PyTree]:
        graph, params, random, stats = templates[train]
        if train and key is None and (takes_rngs or jax.tree.leaves(random)):
            raise Refused(f"model {name!r} trains with random streams and got key=None; expected a jax.random.key.")
        key = jax.random.key(0) if key is None else key
        network = flax_nnx.merge(
            graph,
            _filled(params, variables["params"]),
            _reseeded(random, key),
            _filled(stats, variables.get("batch_stats", {})),
        )
        arguments: dict[str, Any] = {flag: FLAGS[flag] == train for flag in flags}
        if takes_rngs:
            arguments["rngs"] = flax_nnx.Rngs(key)
        output = as_output(network(inputs, **arguments), name)
        if not train:
            return output, variables.get("batch_stats", {})
        return output, _nested(_template(network, train)[3])

    return Model(init, apply, name, version)


def _abstract(factory: Callable[..., flax_nnx.Module], name: str) -> flax_nnx.Module:
    """The network with shapes for values."""
    try:
        made = flax_nnx.eval_shape(lambda: factory(rngs=flax_nnx.Rngs(0)))
    except TypeError as error:
        raise Refused(
            f"{name} could not be made from rngs alone ({error}); bind its other arguments by functools.partial."
        ) from error
    if not isinstance(made, flax_nnx.Module):
        raise Refused(f"{name} made a {type(made).__name__}; expected a flax.nnx.Module.")
    return made


def _template(network: flax_nnx.Module, train: bool) -> tuple[Any, ...]:
    """(graph, parameters, random state, other state) of the network in that mode."""
    if train:
        network.train()
    else:
        network.eval()
    return flax_nnx.split(network, flax_nnx.Param, flax_nnx.RngState, ...)


def _named(state: Any) -> list[tuple[str, str]]:
    return [
        ("/".join(map(str, path)), f"{variable.get_value().dtype}{list(variable.get_value().shape)}")
        for path, variable in flax_nnx.to_flat_state(state)
    ]


def _nested(state: Any) -> dict[str, Any]:
    """The values of a state as nested dicts of names."""
    nested: dict[str, Any] = {}
    for path, variable in flax_nnx.to_flat_state(state):
        *outer, last = map(str, path)
        node = nested
        for name in outer:
            node = node.setdefault(name, {})
        node[last] = variable.get_value()
    return nested


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
    """The state with the values of `_nested` dicts."""

    def value(path: tuple) -> Any:
        node: Any = values
        for name in map(str, path):
            node = node[name]
        return node

    flat = flax_nnx.to_flat_state(state)
    return flax_nnx.from_flat_state([(path, variable.replace(value(path))) for path, variable in flat])


def _reseeded(random: Any, key: Key) -> Any:
    """The random state as it is after `nnx.reseed`: a key of its own for each stream, and nothing drawn yet."""
    streams = []
    for position, (path, variable) in enumerate(flax_nnx.to_flat_state(random)):
        shape, dtype = variable.get_value().shape, variable.get_value().dtype
        if isinstance(variable, flax_nnx.RngKey):
            fresh = jax.random.fold_in(key, position)
            fresh = jax.random.split(fresh, shape) if shape else fresh
        else:
            fresh = jax.numpy.zeros(shape, dtype)
        streams.append((path, variable.replace(fresh)))
    return flax_nnx.from_flat_state(streams)

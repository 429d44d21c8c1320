"""A Linen network as a `Model`: two pure functions of plain dicts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors as flax_errors
from flax import linen as nn

from kdjax.errors import Refused
from kdjax.models.source import author_version, source_hash
from kdjax.types import Key, Model, Output, PyTree, Variables

FLAGS: Mapping[str, bool] = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""The names under which networks are told that they train, and the value that means it."""


def linen(module: nn.Module, *, name: str = "", version: str = "") -> Model:
    """Your own Linen network as a `Model`, for `task(recipe, dataset, model=...)`.

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, train: bool): ...

        model = linen(Net())

    The network takes one batch of inputs and at most flags of `FLAGS`: `train=True` or `deterministic=False` means
    training. The flags may be arguments of `__call__` or attributes of the module. It returns logits [B, K] (or
    [B, R, K]), a pair (logits, features) of an array and an array or a dict of arrays, or a `kdjax.types.Output`.
    Collections other than "params" are state that training updates; all but "batch_stats" are kept among the batch
    statistics as "@<collection>". In training each step's key drives "dropout" and every other random stream.

    Args:
      module: an instance, not bound to variables.
      name: how refusals and run folders call it; the name of the class unless told.
      version: what stands for the code in a stage's id. Unless told, the SHA-256 of the source file of the class (and
        those of the modules it holds) and of its attributes; files that these import are not seen.

    Raises:
      Refused: something else than a Linen module, arguments that kdjax does not know, a source that cannot be read;
        and, while tracing, state without a train flag, dropout without a key, results that are no logits.
    """
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise Refused(
            f"{module.__name__} is a class; expected a network, such as kdjax.models.linen({module.__name__}())."
        )
    if not isinstance(module, nn.Module):
        raise Refused(
            f"kdjax.models.linen got a {type(module).__name__}; expected a flax.linen.Module "
            "(for a flax.nnx network type kdjax.models.nnx(<its class>))."
        )
    name = name or type(module).__name__
    version = author_version(version, name) if version else source_hash(module, name)
    return as_model(module, name, version)


def as_model(module: Any, name: str, version: str = "") -> Model:
    """`linen` for a module that is known to be one; equal modules give the same `Model`, and share compiled steps."""
    try:
        return _as_model(module, name, version)
    except TypeError:  # an attribute that cannot be hashed, such as the list of a Sequential
        return _as_model.__wrapped__(module, name, version)


@functools.lru_cache(maxsize=256)
def _as_model(module: Any, name: str, version: str) -> Model:
    flags = call_flags(type(module).__call__, name)
    attributes = [flag for flag in FLAGS if flag in module.__dataclass_fields__ and flag not in flags]

    def in_mode(train: bool) -> tuple[Any, dict[str, bool]]:
        """The module and the arguments that say whether it trains."""
        values = {flag: FLAGS[flag] == train for flag in (*flags, *attributes)}
        network = module.clone(**{flag: values[flag] for flag in attributes}) if attributes else module
        return network, {flag: values[flag] for flag in flags}

    def init(key: Key, inputs: PyTree) -> Variables:
        network, arguments = in_mode(train=False)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        # Lazy: parameters alone are computed, not the forward pass, which eager mode would compile op by op.
        variables = dict(network.lazy_init(key, shapes, **arguments))
        params = variables.pop("params", {})
        if variables and not (flags or attributes):
            raise Refused(
                f"{name} has state ({', '.join(sorted(variables))}) and no way to be told whether it trains; "
                "let its __call__ take train: bool."
            )
        return {"params": params, "batch_stats": _joined(variables)}

    def apply(variables: Variables, inputs: PyTree, *, train: bool, key: Key | None = None) -> tuple[Output, PyTree]:
        network, arguments = in_mode(train)
        stats = variables.get("batch_stats", {})
        collections = _separated(stats)
        everything = {"params": variables["params"], **collections}
        if not train:
            return as_output(network.apply(everything, inputs, **arguments), name), stats
        rngs = {} if key is None else {"dropout": key, "params": key}
        try:
            result, changed = network.apply(everything, inputs, mutable=list(collections), rngs=rngs, **arguments)
        except flax_errors.InvalidRngError as error:
            raise Refused(f"model {name!r} trains with dropout and got key=None; expected a jax.random.key.") from error
        return as_output(result, name), _joined(changed)

    return Model(init, apply, name, version)


def call_flags(call: Callable[..., Any], name: str) -> list[str]:
    """The flags of `FLAGS` among the arguments of a network's `__call__`.

    Raises:
      Refused: if it needs another argument beside the inputs.
    """
    arguments = list(inspect.signature(call).parameters.values())[1:]  # without self
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for argument in arguments[1:]:
        required = argument.default is argument.empty and argument.kind not in variadic
        if required and argument.name not in (*FLAGS, "rngs"):
            raise Refused(
                f"{name}.__call__ needs the argument {argument.name!r}, which kdjax cannot give; expected the inputs "
                f"and at most one of {', '.join(FLAGS)}."
            )
    return [argument.name for argument in arguments[1:] if argument.name in FLAGS]


def as_output(result: Any, name: str) -> Output:
    """What a network returned, as an `Output` with float32 logits."""
    if isinstance(result, Output):
        output = result
    elif isinstance(result, tuple) and len(result) == 2:
        logits, features = result
        output = Output(logits, features if isinstance(features, Mapping) else {"penultimate": features})
    else:
        output = Output(result)
    logits = output.logits
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        held = f"{logits.dtype} {shape}" if shape is not None else f"a {type(logits).__name__}"
        raise Refused(
            f"{name} returned {held}; expected float logits [B, K], (logits, features) or kdjax.types.Output."
        )
    return output._replace(logits=logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def _joined(collections: Mapping[str, Any]) -> dict[str, Any]:
    """{"batch_stats": {...}, "ema": {...}} -> {..., "@ema": {...}}."""
    others = {f"@{name}": tree for name, tree in collections.items() if name != "batch_stats"}
    return {**collections.get("batch_stats", {}), **others}


def _separated(stats: Mapping[str, Any]) -> dict[str, Any]:
    others = {name[1:]: tree for name, tree in stats.items() if name.startswith("@")}
    return {"batch_stats": {name: tree for name, tree in stats.items() if not name.startswith("@")}, **others}

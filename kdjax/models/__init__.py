"""Networks by name, as pairs of pure functions. Flax stays inside this folder.

    model = build("wrn_40_2", num_classes=100)
    variables = model.init(key, images)  # {"params": ..., "batch_stats": ...}, plain dicts
    output, batch_stats = model.apply(variables, images, train=True, key=key)

Inputs are normalized float images [B, H, W, C], or token ids with their mask (`transformer.Transformer`). Names and
shapes of the parameters are the checkpoint format: a test pins them. Networks of your own: `linen` and `nnx` make a
`Model` of them, `register` gives them a name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as linen_api

from kdjax.errors import Refused, one_of
from kdjax.models import (
    densenet,
    linen_adapter,
    mobilenet,
    nnx_adapter,
    resnet,
    shufflenet,
    small,
    transformer,
    transformer_names,
    wrn,
)
from kdjax.models.entry import NOT_OPTIONS, Entry, check_options, parameters
from kdjax.models.linen_adapter import as_model as as_model
from kdjax.models.linen_adapter import linen as linen
from kdjax.models.nnx_adapter import nnx as nnx
from kdjax.models.source import author_version, source_hash
from kdjax.options import Options, frozen
from kdjax.source_code import identity, replaces
from kdjax.types import Model, PyTree

FAMILIES: tuple[Any, ...] = (wrn, resnet, mobilenet, densenet, shufflenet, small, transformer)
"""Modules with `NAMES`, their entries by name, and perhaps `parse(name)`, an entry for any other name of the family."""

MODELS: dict[str, Entry] = {name: entry for family in FAMILIES for name, entry in family.NAMES.items()}
"""The common names. `build` also knows every `wrn_<d>_<k>`, d = 6n+4, every `resnet<d>_bottleneck`, d = 9n+2, and every
transformer `<family>_<L>l_<H>`, as in bert_4l_256."""

_DTYPES = ("float32", "bfloat16")


def build(name: str, *, num_classes: int, dtype: Any = "float32", norm_group: int = 0, **options: Any) -> Model:
    """The network `name` as a `Model`; equal arguments give the same object, which shares compiled steps.

    Args:
      name: a key of `MODELS`, any `wrn_<d>_<k>`, `resnet<d>_bottleneck` or `<family>_<L>l_<H>`.
      num_classes: K, at least 2.
      dtype: compute dtype, float32 or bfloat16. Parameters, BatchNorm statistics, the pooled features, the
        head and the logits are float32 in both.
      norm_group: examples per group of BatchNorm (`batchnorm.BatchNorm`); 0 is the whole batch.
      options: attributes of the network that its name leaves open: `dropout` (wrn, densenet, mlp), `pool` and
        `conv_init` (resnet), `multiplier` (mobilenet_v2), `widths` (mlp, conv) and `hidden` (conv); those of
        `transformer_names.Architecture`.

    Returns:
      A `Model`. `apply` with `train=False` uses the running statistics and returns them unchanged; with
      `train=True` it returns new ones. `Output.features` holds what the network's docstring lists; what
      nobody reads, XLA drops.

    Raises:
      Refused: unknown names or options (with the nearest ones), K < 2, another dtype; and, while tracing,
        inputs that the network does not take, a batch that the groups do not divide, or dropout without a key.
    """
    entry = _entry(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise Refused(f"num_classes is {num_classes!r}; expected an integer of at least 2.")
    try:
        dtype_name = jnp.dtype(dtype).name
    except TypeError:
        dtype_name = str(dtype)
    one_of("dtype", dtype_name, _DTYPES)
    if norm_group:
        options["norm_group"] = norm_group
    options = {option: frozen(value) for option, value in options.items()}
    check_options(name, entry, options)
    return _build(name, entry, num_classes, dtype_name, Options(options))


@functools.lru_cache(maxsize=256)
def _build(name: str, entry: Entry, num_classes: int, dtype: str, options: Options) -> Model:
    arguments = {"num_classes": num_classes, "dtype": jnp.dtype(dtype), **entry.defaults, **options}
    if "dtype" not in parameters(entry.factory):
        if dtype != "float32":
            raise Refused(f"model {name!r} takes no dtype; expected precision='float32', its own.")
        del arguments["dtype"]
    if "rngs" in parameters(entry.factory):
        return nnx_adapter.as_model(functools.partial(entry.factory, **arguments), name, entry.version)
    network = entry.factory(**arguments)
    if isinstance(network, Model):
        return network._replace(name=name, version=entry.version)
    if isinstance(network, linen_api.Module):
        return linen_adapter.as_model(network, name, entry.version)
    raise Refused(f"the factory of model {name!r} made a {type(network).__name__}; expected a Flax module or a Model.")


def register(name: str, factory: Callable[..., Any], *, describe: str = "", version: str = "") -> None:
    """Puts a network from outside the package under a name that recipes and command lines may use.

        kdjax.models.register("my_net", MyNet, describe="a toy of ours")
        Recipe(model="my_net", model_options={"width": 32})

    Args:
      name: a new name.
      factory: a Linen class with the attribute `num_classes`, an NNX class that takes `num_classes` and `rngs`, or a
        function of `num_classes` that returns a Linen module or a `Model`. Its other keyword parameters are the model's
        options, but `dtype`, which takes the recipe's precision. Ranges for the options may stand in `factory.hyper`.
      describe: whose network it is; `--plan` prints it.
      version: what stands for the code in a stage's id; the SHA-256 of the factory's source file unless told.

    Raises:
      Refused: a name that exists, a factory without `num_classes`, a source that cannot be read.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise Refused(
            f"a model is named {name!r}; expected a name of letters, digits and underscores, such as 'my_net'."
        )
    known = MODELS.get(name) or _parse(name)
    if known is not None and (not known.version or identity(known.factory) != identity(factory)):
        raise Refused(f"the model {name!r} exists already ({known.whose}); register yours under another name.")
    if not callable(factory) or "num_classes" not in parameters(factory):
        raise Refused(
            f"the factory of model {name!r} is {factory!r}; expected a Flax class or a function with the parameter "
            "num_classes."
        )
    version = author_version(version, name) if version else source_hash(factory, name)
    if known is not None:
        replaces(known.factory, factory)
    MODELS[name] = Entry(factory, describe or "from outside kdjax", version=version)


def version(name: str) -> str:
    """What stands for the code of a model from outside the package in a stage's id; "" for the package's own."""
    return _entry(name).version


def resolved(name: str, **options: Any) -> Options:
    """The options with those at their default today, so that a network is built alike when defaults have changed."""
    entry = _entry(name)
    signature = {key: p.default for key, p in parameters(entry.factory).items() if key not in NOT_OPTIONS}
    kept = {key: value for key, value in signature.items() if isinstance(value, bool | int | float | str | tuple)}
    return Options({key: frozen(value) for key, value in {**kept, **entry.defaults, **options}.items()})


def vocab_size(name: str, **options: Any) -> int | None:
    """Rows of the word table of a transformer, below which token ids must be; None for other networks."""
    attributes = transformer_names.named(name)
    return None if attributes is None else transformer_names.Architecture(**{**attributes, **options}).vocab_size


class Description(NamedTuple):
    """How large a network is, in trained parameters, and whose it is."""

    parameters: int
    whose: str


def describe(name: str, num_classes: int, inputs: PyTree = None, **options: Any) -> Description:
    """The parameter count and the origin of a network; only shapes are computed.

    Args:
      name, num_classes, options: as in `build`.
      inputs: one batch of inputs, or their shapes; one 32x32 RGB image unless told. The count depends on it for `conv*`
        and `mlp` alone.
    """
    model = build(name, num_classes=num_classes, **options)
    entry = _entry(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), entry.example if inputs is None else inputs)
    return Description(sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"])), entry.whose)


def _entry(name: str) -> Entry:
    if not isinstance(name, str):
        raise Refused(
            f"model is a {type(name).__name__}; expected a name such as 'wrn_40_2'. A network of your own goes to "
            "kdjax.models.register, or to task(recipe, dataset, model=kdjax.models.linen(...))."
        )
    entry = MODELS.get(name) or _parse(name)
    return MODELS[one_of("model", name, MODELS, registered=True)] if entry is None else entry


@functools.lru_cache(maxsize=256)
def _parse(name: str) -> Entry | None:
    """The entry of a name that a family makes from its numbers."""
    entries = (family.parse(name) for family in FAMILIES if hasattr(family, "parse"))
    return next((entry for entry in entries if entry is not None), None)

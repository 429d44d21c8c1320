"""Networks by name, as pairs of pure functions (floor 2). Flax Linen stays inside this folder.

    model = build("wrn_40_2", num_classes=100)
    variables = model.init(key, images)  # {"params": ..., "batch_stats": ...}, plain dicts
    output, batch_stats = model.apply(variables, images, train=True, key=key)

Inputs are normalized float images [B, H, W, C], or token ids with their mask (`transformer.Transformer`). Names and
shapes of the parameters are the checkpoint format: a test pins them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.errors import Refused, nearest, one_of, positive, within
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.resnet import ResNet
from kdjax.models.small import MLP, VGG, ConvNet
from kdjax.models.transformer import Transformer
from kdjax.models.transformer_names import NAMES, SHAPE, Architecture, named
from kdjax.models.wrn import WideResNet
from kdjax.types import Key, Model, Output, PyTree, Variables

_DTYPES = ("float32", "bfloat16")


def _wrn(depth: int, width: int) -> Callable[..., nn.Module]:
    return partial(WideResNet, depth=depth, width=width)


def _cifar(n: int, *, multiplier: int = 1, bottleneck: bool = False) -> Callable[..., nn.Module]:
    """Three stages of n blocks. mdistiller's "x4" nets widen the stem by 2 only: 32, then 64, 128, 256."""
    widths = (16 * multiplier, 32 * multiplier, 64 * multiplier)
    stem = 16 if multiplier == 1 else 32
    return partial(ResNet, stem=stem, widths=widths, blocks=(n, n, n), bottleneck=bottleneck)


def _imagenet(*blocks: int, bottleneck: bool = False, **defaults: Any) -> Callable[..., nn.Module]:
    return partial(ResNet, stem=64, widths=(64, 128, 256, 512), blocks=blocks, bottleneck=bottleneck, **defaults)


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    **{f"wrn_{d}_{k}": _wrn(d, k) for d in (16, 28, 40) for k in (1, 2, 4, 10)},
    **{f"resnet{6 * n + 2}": _cifar(n) for n in (1, 2, 3, 5, 7, 9, 18)},
    "resnet8x4": _cifar(1, multiplier=4),
    "resnet32x4": _cifar(5, multiplier=4),
    "resnet56_bottleneck": _cifar(6, bottleneck=True),
    "resnet110_bottleneck": _cifar(12, bottleneck=True),
    "resnet18": _imagenet(2, 2, 2, 2),
    "resnet34": _imagenet(3, 4, 6, 3),
    "resnet50": _imagenet(3, 4, 6, 3, bottleneck=True, conv_init="torch"),
    "resnet101": _imagenet(3, 4, 23, 3, bottleneck=True),
    "resnet152": _imagenet(3, 8, 36, 3, bottleneck=True),
    "mobilenet_v2": partial(MobileNetV2, kdc=True),
    "mobilenet_v2_half": partial(MobileNetV2, kdc=False, multiplier=0.5),
    "vgg8": partial(VGG, blocks=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, blocks=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, blocks=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, blocks=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, blocks=(2, 2, 4, 4, 4)),
    "conv": ConvNet,
    "conv_small": partial(ConvNet, widths=(32, 64, 64), hidden=128),
    "conv_tiny": partial(ConvNet, widths=(8, 16, 16), hidden=32),
    "mlp": MLP,
}
"""The common names. `build` also knows every `wrn_<d>_<k>`, d = 6n+4, and `resnet<d>_bottleneck`, d = 9n+2, and the
transformers: those of `transformer_names.NAMES` and every `<family>_<L>l_<H>`, as in bert_4l_256."""


def build(name: str, *, num_classes: int, dtype: Any = "float32", **options: Any) -> Model:
    """The network `name` as a `Model`.

    Args:
      name: a key of `MODELS`, any `wrn_<d>_<k>` or `resnet<d>_bottleneck`.
      num_classes: K, at least 2.
      dtype: compute dtype, float32 or bfloat16. Parameters, BatchNorm statistics, the pooled features, the
        head and the logits are float32 in both.
      options: attributes of the network that its name leaves open: `dropout` (wrn, mlp), `pool` and
        `conv_init` (resnet), `widths` (mlp, conv) and `hidden` (conv); those of `transformer_names.Architecture`.

    Returns:
      A `Model`. `apply` with `train=False` uses the running statistics and returns them unchanged; with
      `train=True` it returns new ones. `Output.features` holds what the network's docstring lists; what
      nobody reads, XLA drops.

    Raises:
      Refused: unknown names or options (with the nearest ones), K < 2, another dtype; and, while tracing,
        inputs that are not float images, or dropout without a key.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise Refused(f"num_classes is {num_classes!r}; expected an integer of at least 2.")
    try:
        dtype_name = jnp.dtype(dtype).name
    except TypeError:
        dtype_name = str(dtype)
    one_of("dtype", dtype_name, _DTYPES)
    factory: Any = transformer if (text := named(name)) else _factory(name)
    free = {field.name for field in dataclasses.fields(Architecture)} - set(SHAPE) if text else _free(factory)
    for option in options:
        if option not in free:
            hint = nearest(option, free) if free else "it takes none."
            raise Refused(f"model {name!r} has no option {option!r}; {hint}")
    _check_values(name, options)
    module: Any = factory(num_classes=num_classes, dtype=jnp.dtype(dtype_name), **{**(text or {}), **options})
    return as_model(module, name)


def transformer(*, num_classes: int, dtype: Any, **attributes: Any) -> nn.Module:
    """The network of an `Architecture`, given by its attributes."""
    return Transformer(num_classes, Architecture(**attributes), dtype)


def as_model(module: Any, name: str) -> Model:
    """A Linen network as a pair of pure functions; `build` makes one from a name."""
    images = not isinstance(module, MLP)
    check = _checks_itself if isinstance(module, Transformer) else partial(_check, images=images)
    drops = module.drops if isinstance(module, Transformer) else getattr(module, "dropout", 0)

    def init(key: Key, inputs: PyTree) -> Variables:
        check(name, inputs)
        # Lazy: parameters alone are computed, not the forward pass, which eager mode would compile op by op.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        variables = module.lazy_init(key, shapes, train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(variables: Variables, inputs: PyTree, *, train: bool, key: Key | None = None) -> tuple[Output, PyTree]:
        check(name, inputs)
        output: Any
        if not train:
            output = module.apply(variables, inputs, train=False)
            return output, variables.get("batch_stats", {})
        if key is None and drops:
            raise Refused(f"model {name!r} trains with dropout and got key=None; expected a jax.random.key.")
        rngs = None if key is None else {"dropout": key}
        output, changed = module.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        return output, changed.get("batch_stats", {})

    return Model(init, apply, name)


def version(name: str) -> str:
    """What stands for the code of a model from outside the package in a stage's id; "" for the package's own."""
    return ""


def _checks_itself(name: str, inputs: PyTree) -> None:
    """For a network that checks its own inputs while it is traced."""


def _free(factory: Callable[..., nn.Module]) -> set[str]:
    """The attributes that a name leaves open. `conv_init` always is: a name sets it as a default only."""
    network: Any = factory.func if isinstance(factory, partial) else factory
    fixed = set(factory.keywords) - {"conv_init"} if isinstance(factory, partial) else set()
    return set(network.__dataclass_fields__) - {"parent", "name", "num_classes", "dtype"} - fixed


def _check_values(name: str, options: Mapping[str, Any]) -> None:
    if "dropout" in options:
        within("dropout", options["dropout"], 0, 1, open_high=True)
    if "multiplier" in options:
        positive("multiplier", options["multiplier"])
    if "conv_init" in options:
        one_of("conv_init", options["conv_init"], ("he", "torch"))
    sizes = {k: options[k] for k in ("pool", "hidden", "widths") if k in options}
    for option, value in sizes.items():
        for size in value if option == "widths" else (value,):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise Refused(f"option {option} of model {name!r} is {value!r}; expected positive integers.")


def _factory(name: str) -> Callable[..., nn.Module]:
    if name in MODELS:
        return MODELS[name]
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", str(name)):
        depth, width = int(match[1]), int(match[2])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise Refused(f"model is {name!r}; expected wrn_<d>_<k> with d = 6n+4 (10, 16, 22, ...) and k >= 1.")
        return _wrn(depth, width)
    if match := re.fullmatch(r"resnet(\d+)_bottleneck", str(name)):
        depth = int(match[1])
        if depth < 11 or (depth - 2) % 9:
            raise Refused(f"model is {name!r}; expected resnet<d>_bottleneck with d = 9n+2 (11, 20, 29, ...).")
        return _cifar((depth - 2) // 9, bottleneck=True)
    return MODELS[one_of("model", name, (*MODELS, *NAMES))]


def _check(name: str, inputs: PyTree, images: bool) -> None:
    shape: Any = getattr(inputs, "shape", None)
    if shape is None or (len(shape) != 4 if images else len(shape) < 2):
        expected = "images [B, H, W, C]" if images else "one array [B, ...]"
        raise Refused(f"model {name!r} got inputs of shape {shape}; expected {expected}.")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise Refused(f"model {name!r} got {inputs.dtype} inputs; expected floats: put transforms.normalize before it.")

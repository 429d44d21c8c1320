"""What the image networks share: convolution, BatchNorm, pooling, head, with the authors' constants.

The functions are called inside a Linen `compact` method and create a submodule of the given name there.
They compute in the dtype of `x`; parameters and BatchNorm statistics are float32, and so is everything
after the last pooling, because logits rounded to 8 bits of mantissa would show up in the calibration that
this library measures.

Initializers, as in the authors' PyTorch code:

- `"he"`: kernel ~ N(0, 2 / (k * k * out)), He fan-out; bias 0.
- `"torch"`: the PyTorch layer default: kernel and bias ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
- `"small"`: kernel ~ N(0, 0.01^2), bias 0; linear heads only.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from kdjax.errors import DEEPEST, Refused, deepest, one_of
from kdjax.models.batchnorm import BatchNorm
from kdjax.options import Check, between, integer

_KERNELS = {
    "he": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "small": nn.initializers.normal(0.01),
}


class Norm(Protocol):
    """`norm` with `train` and `group` bound by the network, handed down to its blocks."""

    def __call__(
        self, x: Float[Array, "B H W C"], name: str, *, relu: bool = False, after: partial | None = None
    ) -> Float[Array, "B H W C"]: ...


NORM_GROUP: Check = integer(0)
DROPOUT: Check = between(0, 1, open_high=True)


def sizes(what: str, value: Any) -> Any:
    """A check: a list of positive integers, possibly empty."""
    if not isinstance(value, tuple | list) or not all(type(size) is int and size > 0 for size in value):
        raise Refused(f"{what} is {value!r}; expected positive integers, such as (32, 64).")
    if len(value) > DEEPEST:
        deepest(what, f"{str(value[:3])[:-1]}, ...)", len(value))
    return value


def _kernel(init: str):
    return _KERNELS[one_of("init", init, _KERNELS)]


def _bias(init: str, fan_in: int):
    if init != "torch":
        return nn.initializers.zeros
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def to_images(inputs: Float[Array, "B H W C"], network: nn.Module) -> Float[Array, "B H W C"]:
    """The inputs in the network's compute dtype.

    Raises:
      Refused: if they are not float images [B, H, W, C].
    """
    check_floats(inputs, network, "images [B, H, W, C]", lambda rank: rank == 4)
    return inputs.astype(network.dtype)  # type: ignore[attr-defined]


def check_floats(inputs: Any, network: nn.Module, expected: str, fits: Callable[[int], bool]) -> None:
    """Refuses what is not one array of floats of a rank that fits."""
    model = type(network).__name__
    shape = getattr(inputs, "shape", None)
    if shape is None:
        raise Refused(f"{model} got a {type(inputs).__name__} as inputs; expected {expected}.")
    if not fits(len(shape)):
        raise Refused(f"{model} got inputs of shape {shape}; expected {expected}.")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise Refused(f"{model} got {inputs.dtype} inputs; expected floats: call the data set's `prepare` on them.")


def conv(
    x: Float[Array, "B H W C"],
    features: int,
    kernel: int,
    name: str,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    init: str = "he",
    factor: Float[Array, "features"] | None = None,
) -> Float[Array, "B h w features"]:
    """A square convolution padded by `padding` on every side, (kernel - 1) / 2 unless told; times `factor`, if given.

    The padding is explicit since "SAME" differs from PyTorch where the stride is 2: it would pad 0 before
    and 1 after.
    """
    pad = (kernel - 1) // 2 if padding is None else padding
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=bias,
        dtype=x.dtype,
        kernel_init=_kernel(init),
        bias_init=_bias(init, kernel * kernel * x.shape[-1] // groups),
        promote_dtype=promote_dtype if factor is None else partial(_multiplied, factor),
        name=name,
    )(x)


def _multiplied(factor, inputs, kernel, bias, *, dtype):
    """Kernel and bias times the factor, in float32, before they are cast."""
    return promote_dtype(inputs, kernel * factor, None if bias is None else bias * factor, dtype=dtype)


def norm(
    x: Float[Array, "... C"],
    name: str,
    *,
    train: bool,
    group: int = 0,
    relu: bool = False,
    after: partial | None = None,
) -> Float[Array, "... C"]:
    """BatchNorm over groups of `group` examples, 0 for the whole batch, and ReLU; see `batchnorm.BatchNorm`.

    With `after`, the convolution `partial(conv, features=C, ...)` of x comes first. Out of training the two are one
    convolution, whose kernel is multiplied by scale / √(var + 1e-5): a pass over the activations less.
    """
    layer = BatchNorm(group, relu, name=name)
    if after is None or train:
        return layer(x if after is None else after(x), train)
    factor, shift = layer(after.keywords["features"], train)
    y = after(x, factor=factor) + shift.astype(x.dtype)
    return nn.relu(y) if relu else y


def pool(x: Float[Array, "B H W C"], size: int = 1) -> Float[Array, "B F"]:
    """Average over a size x size grid of equal cells (1: the whole map), flattened, in float32.

    Raises:
      Refused: if the map is not a multiple of `size`.
    """
    b, h, w, c = x.shape
    if h % size or w % size:
        raise Refused(
            f"pool is {size} and the last map is {h}x{w}; expected a map that {size} divides, or type pool=1."
        )
    cells = x.astype(jnp.float32).reshape(b, size, h // size, size, w // size, c)
    return cells.mean(axis=(2, 4)).reshape(b, size * size * c)


def dense(x: Float[Array, "B F"], features: int, name: str, *, init: str = "torch", bias: str | None = None):
    """A linear layer. `bias` names the bias's own initializer where it differs from the kernel's."""
    return nn.Dense(
        features,
        dtype=x.dtype,
        kernel_init=_kernel(init),
        bias_init=_bias(bias or init, x.shape[-1]),
        name=name,
    )(x)

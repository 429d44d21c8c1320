"""Batch normalization with sums that do not cancel, a closed-form backward pass, and statistics per group."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax.errors import Refused

MOMENTUM = 0.9
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """y = scale · (x - μ_g) / √(v_g + 1e-5) + bias, with μ_g and v_g the mean and the biased variance of group g.

    A group is `group` consecutive examples of the batch, with all their positions; 0 makes the whole batch one group.
    Running statistics move by 0.1 towards the mean over the G groups, μ ← 0.9 μ + 0.1 (1/G) Σ_g μ_g and
    v ← 0.9 v + 0.1 (1/G) Σ_g v_g, and replace the batch's own when `train` is False. Under `jit` over a sharded batch
    the groups are those of the global batch, so one device and many give the same numbers; where no group crosses a
    device, the normalization needs no communication.

    Momentum and epsilon are PyTorch's. The running variance takes the biased variance, as Flax does; PyTorch takes the
    unbiased one, a factor n / (n - 1) with n = group · H · W (1.0001 at 128 examples of 8x8).

    Parameters `scale`, `bias` and statistics `mean`, `var` are float32 [C]; so is the arithmetic, whatever the dtype
    of `x`, which the result keeps.

    Attributes:
      group: examples a group.
      relu: return max(y, 0) instead of y.

    Raises:
      Refused: in training, if the group does not divide the batch.

    Source: Ioffe & Szegedy, ICML 2015; groups: Hoffer et al., "Train longer, generalize better", NeurIPS 2017.
    """

    group: int = 0
    relu: bool = False

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """y [B, *positions, C] of x; or of C alone, out of training, (factor, shift) with y = factor · x + shift."""
        channels = (x if isinstance(x, int) else x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if isinstance(x, int):
            factor = jax.lax.rsqrt(var.value + EPSILON) * scale
            return factor, bias - mean.value * factor
        if not train:
            y = _affine(x, mean.value, jax.lax.rsqrt(var.value + EPSILON), scale, bias)
            return nn.relu(y) if self.relu else y
        y, group_mean, group_var = normalize(_grouped(x, self.group), scale, bias, self.relu)
        if not self.is_initializing():
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * group_mean.mean(0)
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * group_var.mean(0)
        return y.reshape(x.shape)


def _grouped(x: Float[Array, "B *positions C"], group: int) -> Float[Array, "G n *positions C"]:
    rows = x.shape[0]
    if group and rows % group:
        divisors = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise Refused(
            f"norm_group is {group} and a batch has {rows} rows; expected a divisor of it ({divisors}), "
            "or 0 for the whole batch."
        )
    group = group or rows
    return x.reshape(rows // group, group, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: Float[Array, "G n *positions C"], scale: Float[Array, "C"], bias: Float[Array, "C"], relu: bool = False
) -> tuple[Float[Array, "G n *positions C"], Float[Array, "G C"], Float[Array, "G C"]]:
    """The normalized groups, their means and their biased variances; the gradient is that of the first alone.

    With `relu` the first is max(y, 0): compiled as one function with its gradient, it is not written to memory twice.

    One pass over `x` sums d and d², d = x - r, where r is one position of the group: the variance Σd²/N - (Σd/N)² then
    loses digits only where r lies many standard deviations from the mean, not where the mean is far from 0.
    """
    return _forward(x, scale, bias, relu)[0]


def _forward(x, scale, bias, relu):
    axes = tuple(range(1, x.ndim - 1))
    count = x[0, ..., 0].size
    exact = x.astype(jnp.float32)
    reference = exact[(slice(None), 0, *(size // 2 for size in x.shape[2:-1]))]
    deviation = exact - _spread(reference, x)
    total, squares = _sums(deviation, deviation * deviation, axes)
    shift = total / count
    var = jnp.maximum(squares / count - shift * shift, 0)
    inverse = jax.lax.rsqrt(var + EPSILON)
    y = (deviation - _spread(shift, x)) * _spread(inverse * scale, x) + bias
    y = (nn.relu(y) if relu else y).astype(x.dtype)
    mean = reference + shift
    return (y, mean, var), (x, mean, inverse, scale, bias, y)


def _backward(relu, saved, cotangents):
    """With x̂ the normalized x and means over the group: dx = scale / σ · (dy - mean(dy) - x̂ mean(dy x̂))."""
    x, mean, inverse, scale, bias, y = saved
    axes = tuple(range(1, x.ndim - 1))
    count = x[0, ..., 0].size
    dy = cotangents[0].astype(jnp.float32)
    standard = (x.astype(jnp.float32) - _spread(mean, x)) * _spread(inverse, x)
    if relu:
        # Accelerators compute y again from what they read anyway; on CPU reading y is several times faster.
        again = standard * scale + bias
        active = jax.lax.platform_dependent(y, again, cpu=lambda y, again: y > 0, default=lambda y, again: again > 0)
        dy = jnp.where(active, dy, 0)
    total, product = _sums(dy, dy * standard, axes)
    dx = _spread(inverse * scale, x) * (dy - _spread(total / count, x) - standard * _spread(product / count, x))
    return dx.astype(x.dtype), product.sum(0), total.sum(0)


normalize.defvjp(_forward, _backward)


def _sums(a: Array, b: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Both sums: in one kernel on accelerators; apart on CPU, whose compiler vectorizes only sums of one array."""

    def together(a, b):
        zero = jnp.float32(0)
        return tuple(jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes))

    return jax.lax.platform_dependent(a, b, cpu=lambda a, b: (a.sum(axes), b.sum(axes)), default=together)


def _spread(values: Float[Array, "G C"], x: Float[Array, "G n *positions C"]) -> Float[Array, "G 1 *ones C"]:
    """Per-group values, shaped to meet the elements of their group."""
    return values.reshape(values.shape[0], *(1,) * (x.ndim - 2), values.shape[-1])


def _affine(x, mean, inverse, scale, bias):
    return ((x.astype(jnp.float32) - mean) * (inverse * scale) + bias).astype(x.dtype)

"""Mixup."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.errors import Refused, within
from kdjax.transforms.pixels import array
from kdjax.types import Batch, Key, Transform


def mix(batch: Batch, lam: Float[Array, ""], perm: Int[Array, "B"], num_classes: int | None = None) -> Batch:
    """What `mixup` does once lambda and the permutation are drawn.

    inputs <- lam x + (1 - lam) x[perm]; target <- lam t + (1 - lam) t[perm]; label <- None, where t is the
    batch's target, or else the one-hot label. So the soft NLL of the mixed target equals the two-term loss of
    the authors' code.

    With weights the same identity is kept: pair (i, j) gets w = lam w_i + (1 - lam) w_j and the target
    (lam w_i t_i + (1 - lam) w_j t_j) / w. An absent example (weight 0) is mixed into none, and stays absent.
    """
    x = array(batch, "mixup")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    t = batch.target
    if batch.label is not None and batch.label.ndim != 1:
        raise Refused(
            f"mixup got labels of shape {batch.label.shape}, of regions; expected one label for each example: remove "
            "mixup."
        )
    if t is None:
        if batch.label is None:
            raise Refused("mixup needs batch.label or batch.target, and this batch has neither.")
        if num_classes is None:
            raise Refused("mixup got hard labels and no num_classes; expected mixup(alpha, num_classes=K).")
        t = jax.nn.one_hot(batch.label, num_classes, dtype=x.dtype)
    w = jnp.ones(x.shape[0]) if batch.weight is None else batch.weight
    both = (w > 0) & (w[perm] > 0)
    part = jnp.where(both, lam, 1.0)
    weight, partner_weight = part * w, (1 - part) * w[perm]
    total = weight + partner_weight
    # `where`, since an absent example may hold NaN and 0 * NaN is NaN.
    keep = (part == 1).reshape(-1, *[1] * (x.ndim - 1))
    part = part.reshape(keep.shape)
    x = jnp.where(keep, x, part * x + (1 - part) * x[perm])
    share = (weight / jnp.where(total > 0, total, 1.0))[:, None]
    t = jnp.where(keep.reshape(-1, 1), t, share * t + (1 - share) * t[perm])
    return batch._replace(inputs=x, target=t, label=None, weight=None if batch.weight is None else total)


def mixup(alpha: float, num_classes: int | None = None) -> Transform:
    """Mixup with one lambda ~ Beta(alpha, alpha) and one random permutation per batch; see `mix`.

    lambda is not folded to [1/2, 1], as in the authors' code. alpha = 0 means lambda = 1: the inputs stay and
    the target is the one-hot label.

    Args:
      alpha: at least 0; 1 in the original, 0.1 to 0.4 in the calibration literature.
      num_classes: K, needed where the batch has hard labels; `build` and the recipe supply it.

    Raises:
      Refused: if alpha < 0; while tracing, if there is nothing to mix or K is missing.

    Source: Zhang et al., ICLR 2018; `facebookresearch/mixup-cifar10`. Calibration: Thulasidasan et al., 2019.
    """
    within("alpha", alpha, 0)

    def apply(key: Key, batch: Batch) -> Batch:
        first, second = jax.random.split(key)
        safe = jnp.where(alpha > 0, alpha, 1.0)
        lam = jnp.where(alpha > 0, jax.random.beta(first, safe, safe), 1.0)
        perm = jax.random.permutation(second, array(batch, "mixup").shape[0])
        return mix(batch, lam, perm, num_classes)

    return apply

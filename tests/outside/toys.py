"""Everything that a stranger may bring along, in one module: a loss, a network, tokens with a mask, regions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax import data, register
from kdjax.options import at_least, hyper
from kdjax.types import Output

CLASSES, REGIONS, TOKENS, VOCABULARY = 3, 4, 6, 20


@hyper(strength=at_least(0))
def toy_loss(logits, labels, *, strength=0.1):
    """-log p_y + strength * sum of squared logits / K, per row."""
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return nll + strength * jnp.mean(jnp.square(logits), axis=-1)


class ToyNet(nn.Module):
    """One logit row an example, of the mean embedding of its unmasked tokens."""

    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, inputs, train: bool):
        embedded = nn.Embed(VOCABULARY, self.width)(inputs["ids"])
        mask = inputs["mask"][..., None].astype(embedded.dtype)
        mean = jnp.sum(embedded * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(mean)))


class ToyRegions(nn.Module):
    """One logit row a region, and an auxiliary term: the squared size of a box."""

    num_classes: int

    @nn.compact
    def __call__(self, inputs, train: bool):
        hidden = nn.relu(nn.Dense(8)(inputs["regions"]))
        boxes = nn.Dense(2)(hidden)
        return Output(nn.Dense(self.num_classes)(hidden), terms={"box": 0.01 * jnp.mean(jnp.square(boxes))})


def tokens(*, examples: int = 40):
    """Token ids with a mask; the class is the one of the first token. What is masked is rubbish."""
    rng = np.random.default_rng(0)

    def split(n):
        ids = rng.integers(0, VOCABULARY, (n, TOKENS)).astype(np.int32)
        mask = (np.arange(TOKENS) < rng.integers(1, TOKENS + 1, n)[:, None]).astype(np.int32)
        return {"ids": ids, "mask": mask}, (ids[:, 0] % CLASSES).astype(np.int32)

    return data.as_source("toy_tokens", {"train": split(examples), "test": split(20)}, num_classes=CLASSES)


def regions():
    """[N, R, 5] features of regions; label -1 where a region does not exist."""
    rng = np.random.default_rng(1)

    def split(n):
        x = rng.normal(size=(n, REGIONS, 5)).astype(np.float32)
        label = np.argmax(x[..., :CLASSES], axis=-1).astype(np.int32)
        label[rng.random((n, REGIONS)) < 0.3] = -1
        label[:, 0] = np.maximum(label[:, 0], 0)
        return {"regions": x}, label

    return data.as_source("toy_regions", {"train": split(40), "test": split(20)}, num_classes=CLASSES)._replace(
        kind="features"
    )


def register_all() -> None:
    register.objective("toy_loss", toy_loss)
    register.model("toy_net", ToyNet, describe="a toy")
    register.model("toy_regions_net", ToyRegions, describe="a toy")
    register.dataset("toy_tokens", tokens)
    register.dataset("toy_regions", regions)

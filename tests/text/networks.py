"""Folders of the golden set as networks, in float32 as they are used and in float64 as they are checked."""

from __future__ import annotations

import functools
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import huggingface
from kdjax.huggingface.names import tensors
from kdjax.models import as_model
from kdjax.models.transformer import Transformer
from tests.text import golden

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@functools.cache
def load(folder: str) -> huggingface.Pretrained:
    return huggingface.load(golden.ROOT / folder)


def network(folder: str, dtype: str):
    """(Model, params) of a folder; float64 by the very module that `build` uses, outside its choice of types."""
    loaded = load(folder)
    if dtype == "float32":
        return loaded.model, loaded.variables["params"]
    module = Transformer(loaded.num_classes, loaded.architecture, jnp.float64)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), loaded.variables["params"])
    return as_model(module, loaded.model.name), params


def compiled(function, **options):
    """`jax.jit` that spends little on optimizing: these programs run once or twice."""
    cheap = {"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "fusion,cpu-instruction-fusion"}
    return jax.jit(function, compiler_options=cheap, **options)


def inputs(arrays, prefix: str = "in/"):
    return {name: jnp.asarray(arrays[prefix + name]) for name in INPUTS if prefix + name in arrays}


def mean_loss(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def in_file_layout(loaded: huggingface.Pretrained, tree) -> dict[str, np.ndarray]:
    """Leaves of a tree like the parameters, under the names and in the layout of the file."""
    table = tensors(loaded.architecture, loaded.num_classes)
    assert len(jax.tree.leaves(tree)) == len(table)
    arrays = {name: np.asarray(functools.reduce(getitem, tensor.path, tree)) for name, tensor in table.items()}
    return {name: array.T if table[name].transposed else array for name, array in arrays.items()}

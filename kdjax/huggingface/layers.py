"""Students that begin with some of a teacher's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from kdjax.errors import Refused
from kdjax.huggingface.config import DISTILBERT_EPSILON
from kdjax.huggingface.folder import Pretrained, fresh_tensor, network_of
from kdjax.huggingface.names import tensors
from kdjax.models.transformer_names import Architecture


def architecture_of(net: Architecture, layers: Sequence[int], family: str) -> Architecture:
    """The network of a student that begins with these layers of a teacher's.

    Raises:
      Refused: a teacher that is no BERT; a layer that it does not have, none, or one twice.
    """
    if net.family != "bert" or family not in ("bert", "distilbert"):
        raise Refused(f"from_layers makes a {family!r} of a {net.family!r}; expected a bert or distilbert of a bert.")
    depth = net.num_hidden_layers
    if not layers or len(set(layers)) < len(layers) or any(type(i) is not int or not 0 <= i < depth for i in layers):
        raise Refused(
            f"layers is {list(layers)}; expected different numbers from 0 to {depth - 1}, such as [0, {depth - 1}]."
        )
    fields = {**net.__dict__, "num_hidden_layers": len(layers)}
    if family == "distilbert":
        defaults = {"type_vocab_size": 0, "classifier_dropout": 0.2, "layer_norm_eps": DISTILBERT_EPSILON}
        fields |= {"family": "distilbert", **defaults}
    return Architecture(**fields)


def from_layers(
    teacher: Pretrained,
    layers: Sequence[int],
    *,
    family: str = "distilbert",
    num_classes: int | None = None,
    keep_segment: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> Pretrained:
    """A student that begins with some of a BERT's layers.

    Word and position tables, the embedding's LayerNorm and the named layers are copied. A "distilbert" has neither
    segments nor BERT's pooler, so that its pooling layer and head are new; a "bert" copies segments and pooler as well,
    and its head is new.

    Args:
      layers: the teacher's layers by number from 0, in the student's order. DistilBERT's own script takes
        [0, 2, 4, 7, 9, 11] of 12.
      num_classes: of the new head; the teacher's by default.
      keep_segment: add the segment row 0, which a DistilBERT drops, to every position, so that the embedding stays the
        same function. DistilBERT's script does not.

    Raises:
      Refused: a teacher that is no BERT; a layer that it does not have, none, or one twice.

    Source: Sanh et al., DistilBERT, arXiv 1910.01108, and its script extract_distilbert.py.
    """
    architecture = architecture_of(teacher.architecture, layers, family)
    classes = num_classes or teacher.num_classes
    source = teacher.variables["params"]
    params: dict[str, Any] = {}
    embed = dict(source["embed"])
    if family == "distilbert":
        segment = embed.pop("segment")["embedding"][0]
        if keep_segment:
            embed["position"] = {"embedding": embed["position"]["embedding"] + segment}
    else:
        params["pool"] = source["pool"]
    params["embed"] = embed
    for i, layer in enumerate(layers, start=1):
        params[f"layer{i}"] = source[f"layer{layer + 1}"]
    parts = ("head", "pool") if family == "distilbert" else ("head",)
    fresh = {name: tensor for name, tensor in tensors(architecture, classes).items() if tensor.part in parts}
    for tensor in fresh.values():
        array = fresh_tensor(tensor, architecture, seed)
        node = params.setdefault(tensor.path[0], {})
        node[tensor.path[1]] = jnp.asarray(array.T if tensor.transposed else array)
    return Pretrained(
        network_of(architecture, classes, dtype),
        architecture,
        classes,
        {"params": params, "batch_stats": {}},
        fresh=tuple(fresh),
        vocabulary=teacher.vocabulary,
    )

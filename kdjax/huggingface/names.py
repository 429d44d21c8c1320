"""Tensor names of Hugging Face files <-> the parameter tree of `kdjax.models.transformer`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kdjax.errors import Refused
from kdjax.models.transformer_names import Architecture

_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "output_norm": "output_layer_norm",
}
POOL = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier", "roberta": "classifier.dense"}
HEAD = {"bert": "classifier", "distilbert": "classifier", "roberta": "classifier.out_proj"}

# What pretraining leaves in a file and a classifier does not use: the heads of language modeling and of next-sentence
# prediction, RoBERTa's unused pooler, and index buffers of old versions.
_SKIPPED = re.compile(
    r"cls\.(predictions|seq_relationship)\..+|lm_head\..+|vocab_(transform|layer_norm|projector)\..+|"
    r"roberta\.pooler\..+|((distilbert|roberta|bert)\.)?embeddings\.(position_ids|token_type_ids)"
)
_ALONE = ("embeddings.", "encoder.", "transformer.", "pooler.")
"""How names begin in an encoder that was saved alone."""


class Tensor(NamedTuple):
    """Where a tensor goes.

    Attributes:
      path: keys in the parameter tree.
      shape: as stored; dense weights are stored [out, in] and kept [in, out].
      part: "encoder", "pool" or "head".
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    part: str

    @property
    def transposed(self) -> bool:
        return self.path[-1] == "kernel"


def tensors(net: Architecture, num_classes: int) -> dict[str, Tensor]:
    """Every tensor of a network with a classification head, by its name in the file."""
    width, inner, family = net.hidden_size, net.intermediate_size, net.family
    distilbert = family == "distilbert"
    embeddings = f"{family}.embeddings."
    table: dict[str, Tensor] = {}

    def embedding(name: str, rows: int, node: str) -> None:
        table[f"{embeddings}{name}.weight"] = Tensor(("embed", node, "embedding"), (rows, width), "encoder")

    def norm(name: str, *node: str) -> None:
        table[f"{name}.weight"] = Tensor((*node, "scale"), (width,), "encoder")
        table[f"{name}.bias"] = Tensor((*node, "bias"), (width,), "encoder")

    def dense(name: str, inputs: int, outputs: int, *node: str, part: str = "encoder") -> None:
        table[f"{name}.weight"] = Tensor((*node, "kernel"), (outputs, inputs), part)
        table[f"{name}.bias"] = Tensor((*node, "bias"), (outputs,), part)

    embedding("word_embeddings", net.vocab_size, "word")
    embedding("position_embeddings", net.max_position_embeddings, "position")
    if net.type_vocab_size:
        embedding("token_type_embeddings", net.type_vocab_size, "segment")
    norm(f"{embeddings}LayerNorm", "embed", "norm")
    for i in range(net.num_hidden_layers):
        layer = f"{family}.{'transformer' if distilbert else 'encoder'}.layer.{i}."
        sizes = {"up": (width, inner), "down": (inner, width)}
        for node, name in (_DISTILBERT_LAYER if distilbert else _BERT_LAYER).items():
            if node.endswith("norm"):
                norm(layer + name, f"layer{i + 1}", node)
            else:
                dense(layer + name, *sizes.get(node, (width, width)), f"layer{i + 1}", node)
    dense(POOL[family], width, width, "pool", part="pool")
    dense(HEAD[family], width, num_classes, "head", part="head")
    return table


def skipped(name: str) -> bool:
    """True for tensors that a file may hold and a classifier does not use."""
    return _SKIPPED.fullmatch(name) is not None


def canonical(names: Iterable[str], family: str, where: str) -> dict[str, str]:
    """{name as today's transformers writes it: name in the file}.

    Old files call LayerNorm's parameters gamma and beta, and an encoder that was saved alone leaves the prefix out.

    Raises:
      Refused: two spellings of one tensor; names of another family than config.json says.
    """
    names = list(names)
    alone = not any(name.startswith(f"{family}.") for name in names)
    for other in sorted(POOL.keys() - {family}):
        if alone and (foreign := [name for name in sorted(names) if name.startswith(f"{other}.")]):
            raise Refused(
                f"{where} has the tensor {foreign[0]} and config.json says {family!r}; expected {family}.* names."
            )
    result: dict[str, str] = {}
    for name in names:
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        today = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", today)
        if alone and today.startswith(_ALONE):
            today = f"{family}.{today}"
        if today in result:
            raise Refused(
                f"{where} has both {result[today]} and {name}, two spellings of one tensor; expected one of them."
            )
        result[today] = name
    return result


def unknown_reason(name: str, net: Architecture, known: Mapping[str, Tensor]) -> str:
    """Why a tensor has no place, as the end of a sentence."""
    if match := re.search(r"\.layer\.(\d+)\.", name):
        layer = int(match[1])
        if layer >= net.num_hidden_layers and re.sub(r"\.layer\.\d+\.", ".layer.0.", name) in known:
            return f"a layer beyond the {net.num_hidden_layers} that config.json declares; correct config.json"
    return "which no part of the network has; remove it, or correct model_type in config.json"

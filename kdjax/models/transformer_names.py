"""What a transformer's shape depends on, and the names of the published sizes.

The attributes carry the names of a BERT `config.json`, so that nothing is to be learned twice.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from kdjax.errors import Refused, deepest, one_of, positive, within
from kdjax.options import integer

EXACT, TANH = "exact", "tanh"
ACTIVATIONS: Mapping[str, str] = {
    "gelu": EXACT,
    "gelu_python": EXACT,
    "gelu_new": TANH,
    "gelu_fast": TANH,
    "gelu_pytorch_tanh": TANH,
    "relu": "relu",
}
"""The functions that go by these names: GELU with erf, GELU in its tanh form, ReLU."""

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "bert": {},
    "distilbert": {"type_vocab_size": 0, "classifier_dropout": 0.2},
    "roberta": {
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    },
}
"""What a family's networks have by default where BERT's differ."""

NAMES: Mapping[str, str] = {
    "bert_base": "bert_12l_768",
    "distilbert": "distilbert_6l_768",
    "roberta_base": "roberta_12l_768",
    "distilroberta": "roberta_6l_768",
}
"""Published networks; any other size is `<family>_<L>l_<H>`, as in bert_4l_256."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that a network's shape and regularization depend on, but for the number of classes.

    Attributes:
      family: "bert", "distilbert" or "roberta".
      vocab_size: V, rows of the word table; ids are below it.
      hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: H, L, A (a divisor of H), I.
      max_position_embeddings: P; RoBERTa's holds P - pad_token_id - 1 tokens.
      type_vocab_size: rows of the segment table, 0 for DistilBERT, which has none.
      hidden_act: a key of `ACTIVATIONS`; "gelu" is the exact one.
      layer_norm_eps: added to the variance, inside the root.
      pad_token_id: its word starts as zeros; RoBERTa counts positions by it.
      hidden_dropout_prob, attention_probs_dropout_prob, classifier_dropout: rates in [0, 1).
      initializer_range: standard deviation of every matrix and table at the start.

    Raises:
      Refused: a value out of range; heads that do not divide the width; segments in a DistilBERT.
    """

    family: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        one_of("family", self.family, FAMILIES)
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            integer(1)(name, getattr(self, name))
        deepest("num_hidden_layers", str(self.num_hidden_layers), self.num_hidden_layers)
        integer(0)("pad_token_id", self.pad_token_id)
        integer(0)("type_vocab_size", self.type_vocab_size)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            within(name, getattr(self, name), 0, 1, open_high=True)
        positive("layer_norm_eps", self.layer_norm_eps)
        positive("initializer_range", self.initializer_range)
        if self.hidden_size % self.num_attention_heads:
            raise Refused(
                f"num_attention_heads is {self.num_attention_heads} and hidden_size {self.hidden_size}; expected a "
                "number of heads that divides the width: set num_attention_heads."
            )
        if self.pad_token_id >= self.vocab_size:
            raise Refused(f"pad_token_id is {self.pad_token_id}; expected an id below vocab_size {self.vocab_size}.")
        if (self.family == "distilbert") != (self.type_vocab_size == 0):
            raise Refused(
                f"type_vocab_size is {self.type_vocab_size} for family {self.family!r}; expected 0 for distilbert, "
                "which has no segments, and at least 1 for the others."
            )
        integer(self.max_position_embeddings - self.max_length + 1)(
            "max_position_embeddings", self.max_position_embeddings
        )

    @property
    def max_length(self) -> int:
        """The most tokens that the position table has room for."""
        used = self.pad_token_id + 1 if self.family == "roberta" else 0
        return self.max_position_embeddings - used


SHAPE = ("family", "num_hidden_layers", "hidden_size")
"""What a name says; the rest is options."""


def named(name: str) -> dict[str, Any] | None:
    """The attributes that a name stands for, `SHAPE` and the family's defaults; None for another kind of network.

    `<family>_<L>l_<H>` has H/64 attention heads and 4H inner units, as the published sizes have; others are options.
    """
    match = re.fullmatch(r"(bert|distilbert|roberta)_(\d{1,18})l_(\d{1,18})", NAMES.get(name, str(name)))
    if match is None:
        return None
    family, layers, width = match[1], int(match[2]), int(match[3])
    sizes = {"num_attention_heads": max(1, width // 64), "intermediate_size": 4 * width}
    return {"family": family, "num_hidden_layers": layers, "hidden_size": width, **sizes, **FAMILIES[family]}

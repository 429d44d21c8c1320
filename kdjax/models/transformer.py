"""BERT, DistilBERT and RoBERTa for classification: one post-norm encoder, three ways in and out of it.

Devlin et al., BERT, arXiv 1810.04805; Sanh et al., DistilBERT, arXiv 1910.01108; Liu et al., RoBERTa, arXiv 1907.11692.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import Refused
from kdjax.models import transformer_names
from kdjax.models.entry import Entry
from kdjax.models.transformer_names import ACTIVATIONS, EXACT, SHAPE, TANH, Architecture
from kdjax.types import Output, PyTree

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    EXACT: partial(jax.nn.gelu, approximate=False),
    TANH: partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class Transformer(nn.Module):
    """An encoder and a classification head over token ids.

    Inputs are a dict of integer arrays [B, S]: `input_ids`, `attention_mask` (1 for real tokens, 0 for padding) and,
    for BERT and RoBERTa, `token_type_ids` where there are two texts (0 everywhere when left out; DistilBERT has no
    segments and ignores them). The mask is never derived from the ids: a text may contain the padding token.

        x = LN(word[id] + segment[type] + position[s])
        a = softmax(q kᵀ/√d over real keys);  h = LN(x + W_o(a v));  x = LN(h + W_2 act(W_1 h))        L times
        BERT: tanh(W_p x₀); DistilBERT: relu(W_p x₀), no dropout after W_o; RoBERTa: dropout before W_p, positions
        counted over the ids that are not padding. Then dropout and a linear head.

    Matrix products are in `dtype`; the residual stream, LayerNorm, softmax, pooling and logits in float32 at least. A
    row whose mask is 0 everywhere gives uniform attention, finite and without meaning.

    Features: "penultimate" [B, H] (pooled, before dropout); "layer0" [B, S, H] (the embedding after its LayerNorm) to
    "layer<L>"; "cls0".. [B, H], the first token of each of these, and "cls" [B, L+1, H], of all; "attention1"..
    [B, A, S, S], probabilities before dropout, exactly 0 on padded keys; "scores1".. [B, A, S, S], q kᵀ/√d before the
    mask.
    """

    num_classes: int
    net: Architecture
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Mapping[str, Int[Array, "B S"]], train: bool) -> Output:
        self._check(inputs)
        net, exact = self.net, _exact(self.dtype)
        real = inputs["attention_mask"] != 0
        x = Embedding(self.net, exact, name="embed")(inputs["input_ids"], inputs.get("token_type_ids"), train)
        features = {"layer0": x}
        for i in range(1, net.num_hidden_layers + 1):
            x, features[f"attention{i}"], features[f"scores{i}"] = Layer(self.net, self.dtype, name=f"layer{i}")(
                x, real, train
            )
            features[f"layer{i}"] = x
        first_tokens = [features[f"layer{i}"][:, 0] for i in range(net.num_hidden_layers + 1)]
        features |= {f"cls{i}": token for i, token in enumerate(first_tokens)}
        features["cls"] = jnp.stack(first_tokens, axis=1)
        drop = partial(nn.Dropout, net.classifier_dropout, deterministic=not train)
        first = x[:, 0]
        if net.family == "roberta":
            first = drop()(first)
        squash = jax.nn.relu if net.family == "distilbert" else jnp.tanh
        pooled = squash(_dense(net, net.hidden_size, "pool", exact)(first))
        features["penultimate"] = pooled
        return Output(_dense(net, self.num_classes, "head", exact)(drop()(pooled)), features)

    @property
    def drops(self) -> bool:
        """True if training needs a key."""
        return any((self.net.hidden_dropout_prob, self.net.attention_probs_dropout_prob, self.net.classifier_dropout))

    def _check(self, inputs: PyTree) -> None:
        """Refuses, while tracing, what is not token ids with a mask, or longer than the position table."""
        name = f"{self.net.family}_{self.net.num_hidden_layers}l_{self.net.hidden_size}"
        wanted = "a dict of integer arrays [B, S]: input_ids, attention_mask and, if wanted, token_type_ids"
        if not isinstance(inputs, Mapping):
            what = f"an array of shape {inputs.shape}" if hasattr(inputs, "shape") else type(inputs).__name__
            raise Refused(f"model {name!r} got {what}; expected {wanted}: use a text data set.")
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if {"input_ids", "attention_mask"} - inputs.keys() or inputs.keys() - known:
            raise Refused(
                f"model {name!r} got inputs named {', '.join(sorted(inputs)) or 'nothing'}; expected {wanted}."
            )
        shapes = {key: tuple(array.shape) for key, array in inputs.items()}
        if len(set(shapes.values())) > 1 or len(shapes["input_ids"]) != 2:
            raise Refused(f"model {name!r} got inputs of shapes {shapes}; expected one shape [B, S] for all.")
        for key, array in inputs.items():
            if not (jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_):
                raise Refused(f"model {name!r} got {array.dtype} {key}; expected integers.")
        longest, length = self.net.max_length, shapes["input_ids"][1]
        if length > longest:
            raise Refused(
                f"model {name!r} got texts of {length} tokens and has positions for {longest}; expected at most that: "
                f"set data.max_length={longest}."
            )


class Embedding(nn.Module):
    """Sum of word, position and segment, LayerNorm, dropout."""

    net: Architecture
    dtype: Any

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B S"], segments: Int[Array, "B S"] | None, train: bool
    ) -> Float[Array, "B S H"]:
        net = self.net
        normal = nn.initializers.normal(net.initializer_range)
        padded = partial(_zero_row, normal, net.pad_token_id)
        table = partial(nn.Embed, features=net.hidden_size, dtype=self.dtype)
        roberta = net.family == "roberta"
        if roberta:
            counted = ids != net.pad_token_id
            position = jnp.cumsum(counted, axis=1, dtype=jnp.int32) * counted + net.pad_token_id
        else:
            position = jnp.arange(ids.shape[1])[None]
        x = table(net.vocab_size, embedding_init=padded, name="word")(ids)
        if net.type_vocab_size:
            segments = jnp.zeros_like(ids) if segments is None else segments
            x = x + table(net.type_vocab_size, embedding_init=normal, name="segment")(segments)
        init = padded if roberta else normal
        x = x + table(net.max_position_embeddings, embedding_init=init, name="position")(position)
        return nn.Dropout(net.hidden_dropout_prob, deterministic=not train)(_norm(net, "norm", self.dtype)(x))


class Layer(nn.Module):
    """Attention and feed-forward, LayerNorm after each. Returns (x, attention probabilities, scores)."""

    net: Architecture
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S H"], real: Bool[Array, "B S"], train: bool
    ) -> tuple[Float[Array, "B S H"], Float[Array, "B A S S"], Float[Array, "B A S S"]]:
        net = self.net
        exact = _exact(self.dtype)
        width, heads = net.hidden_size, net.num_attention_heads
        drop = partial(nn.Dropout, net.hidden_dropout_prob, deterministic=not train)
        q, k, v = (
            _dense(net, width, part, self.dtype)(x).reshape(*x.shape[:2], heads, width // heads)
            for part in ("query", "key", "value")
        )
        scores = jnp.einsum("bqad,bkad->baqk", q, k, preferred_element_type=exact) / (width // heads) ** 0.5
        # The least finite number and not -inf: a row without any real token must not become NaN.
        masked = jnp.where(real[:, None, None, :], scores, jnp.finfo(exact).min)
        attention = jax.nn.softmax(masked, axis=-1)
        kept = nn.Dropout(net.attention_probs_dropout_prob, deterministic=not train)(attention)
        context = jnp.einsum("baqk,bkad->bqad", kept.astype(self.dtype), v).reshape(x.shape)
        mixed = _dense(net, width, "out", self.dtype)(context)
        if net.family != "distilbert":
            mixed = drop()(mixed)
        h = _norm(net, "attention_norm", exact)(x + mixed.astype(exact))
        inner = _ACTIVATIONS[ACTIVATIONS[net.hidden_act]](_dense(net, net.intermediate_size, "up", self.dtype)(h))
        x = _norm(net, "output_norm", exact)(h + drop()(_dense(net, width, "down", self.dtype)(inner)).astype(exact))
        return x, attention, scores


def _exact(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _dense(net: Architecture, features: int, name: str, dtype: Any) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(net.initializer_range), name=name)


def _norm(net: Architecture, name: str, dtype: Any) -> nn.LayerNorm:
    # E(x - Ex)² and not Ex² - (Ex)²: pretrained networks have dimensions far from 0, where the difference cancels.
    return nn.LayerNorm(epsilon=net.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


def _zero_row(init: Callable, row: int, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return init(key, shape, dtype).at[row].set(0)


def _network(*, num_classes: int, dtype: Any, **attributes: Any) -> Transformer:
    return Transformer(num_classes, Architecture(**attributes), dtype)


_WHOSE = {"bert": "Google's BERT", "distilbert": "Hugging Face's DistilBERT", "roberta": "Facebook's RoBERTa"}
_TOKENS = jax.ShapeDtypeStruct((1, 8), jnp.int32)


def parse(name: str) -> Entry | None:
    """The network of any `<family>_<L>l_<H>`, and of the published names."""
    attributes = transformer_names.named(name)
    if attributes is None:
        return None
    fixed = {attribute: attributes.pop(attribute) for attribute in SHAPE}
    usual = {field.name: field.default for field in dataclasses.fields(Architecture) if field.name not in SHAPE}
    return Entry(
        partial(_network, **fixed),
        f"{_WHOSE[fixed['family']]}, {fixed['num_hidden_layers']} layers of {fixed['hidden_size']}",
        defaults={**{name: value for name, value in usual.items() if value is not dataclasses.MISSING}, **attributes},
        options=[field.name for field in dataclasses.fields(Architecture) if field.name not in SHAPE],
        example={"input_ids": _TOKENS, "attention_mask": _TOKENS},
    )


NAMES = {name: entry for name in transformer_names.NAMES if (entry := parse(name)) is not None}

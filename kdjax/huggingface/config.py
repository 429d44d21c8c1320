"""`config.json` of a Hugging Face folder <-> `Architecture`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.errors import Refused, nearest
from kdjax.models.transformer_names import ACTIVATIONS, FAMILIES, Architecture

_KEYS: Mapping[str, Mapping[str, str]] = {
    "bert": {},
    "roberta": {},
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
}
"""A family's own names, where they are not BERT's."""

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_CLASSES = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta"}
DISTILBERT_EPSILON = 1e-12
"""Written into DistilBERT's code: its config.json has no key for it."""


class Config(NamedTuple):
    """What a `config.json` says.

    Attributes:
      num_classes: the number of entries of `id2label`; None where the file has none (two classes, or no head).
      label_names: names of the classes, in order; () where they are the default LABEL_0, LABEL_1, ...
    """

    architecture: Architecture
    num_classes: int | None
    label_names: tuple[str, ...]


def read_config(folder: Path) -> Config:
    """Reads `config.json`; keys that do not change the forward pass are ignored.

    Raises:
      Refused: no such file or not JSON; a family, an activation or a kind of positions that is not implemented; a
        decoder; regression or several labels for one text; a missing or impossible size; label numbers that are not 0
        to K-1.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise Refused(
            f"{folder} has no config.json; expected a Hugging Face folder: config.json and model.safetensors."
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it is no mapping")
    except ValueError as error:
        raise Refused(f"{path} cannot be read as JSON ({error}); expected what transformers writes.") from error
    return parse(fields, str(path))


def parse(fields: Mapping[str, Any], where: str) -> Config:
    """A `Config` from the fields of a `config.json`; `where` names the file in a refusal."""
    family = str(fields.get("model_type"))
    if family not in FAMILIES:
        raise Refused(f"{where} has model_type {family!r}; expected one of {', '.join(FAMILIES)}.")
    _refuse_other_computations(fields, where)
    keys = _KEYS[family]
    activation = fields.get(keys.get("hidden_act", "hidden_act"), "gelu")
    if activation not in ACTIVATIONS:
        key = keys.get("hidden_act", "hidden_act")
        raise Refused(f"{where} has {key} {activation!r}, which is unknown; {nearest(str(activation), ACTIVATIONS)}")
    attributes: dict[str, Any] = {"family": family, **FAMILIES[family]}
    for name in Architecture.__dataclass_fields__:
        key = keys.get(name, name)
        if fields.get(key) is not None:
            attributes[name] = fields[key]
        elif name in _REQUIRED:
            raise Refused(f"{where} has no {key}; expected the size of the network: copy the folder's own config.json.")
    if family == "distilbert":
        attributes.update(type_vocab_size=0, layer_norm_eps=DISTILBERT_EPSILON)
    elif fields.get("classifier_dropout") is None:
        attributes["classifier_dropout"] = attributes.get("hidden_dropout_prob", Architecture.hidden_dropout_prob)
    try:
        architecture = Architecture(**attributes)
    except Refused as error:
        raise Refused(f"{where}: {error}") from error
    names = _labels(fields, where)
    default = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return Config(architecture, len(names) or None, () if default else names)


def _refuse_other_computations(fields: Mapping[str, Any], where: str) -> None:
    positions = fields.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise Refused(
            f"{where} has position_embedding_type {positions!r}; expected 'absolute', the only one built here."
        )
    for key in ("is_decoder", "add_cross_attention"):
        if fields.get(key):
            raise Refused(f"{where} has {key} true, which changes the attention; expected an encoder: false.")
    problem = fields.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise Refused(f"{where} has problem_type {problem!r}; expected a classifier with one label for each text.")


def _labels(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    table = fields.get("id2label")
    count = fields.get("num_labels")
    if table is None:
        return tuple(f"LABEL_{i}" for i in range(count)) if isinstance(count, int) else ()
    if not isinstance(table, dict) or set(table) != {str(i) for i in range(len(table))}:
        raise Refused(f"{where} has id2label {table!r}; expected the numbers 0 to K-1, each with a name.")
    if count is not None and count != len(table):
        raise Refused(f"{where} has num_labels {count} and {len(table)} names in id2label; expected one name a class.")
    return tuple(str(table[str(i)]) for i in range(len(table)))


def fields_of(architecture: Architecture, label_names: Sequence[str], num_classes: int) -> dict[str, Any]:
    """The fields that transformers needs to read the network back, `architectures` included.

    Raises:
      Refused: a DistilBERT with another epsilon than its code has; names that are not one for each class.
    """
    family = architecture.family
    if family == "distilbert" and architecture.layer_norm_eps != DISTILBERT_EPSILON:
        raise Refused(
            f"layer_norm_eps is {architecture.layer_norm_eps} in a DistilBERT, whose config.json cannot say so; "
            f"expected {DISTILBERT_EPSILON}."
        )
    names = list(label_names) or [f"LABEL_{i}" for i in range(num_classes)]
    if len(names) != num_classes:
        raise Refused(f"there are {len(names)} label names for {num_classes} classes; expected one for each.")
    absent = {"family", *(("type_vocab_size", "layer_norm_eps") if family == "distilbert" else ())}
    values = {name: getattr(architecture, name) for name in Architecture.__dataclass_fields__ if name not in absent}
    return {
        "architectures": [f"{_CLASSES[family]}ForSequenceClassification"],
        "model_type": family,
        "dtype": "float32",
        **{_KEYS[family].get(name, name): value for name, value in values.items()},
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }

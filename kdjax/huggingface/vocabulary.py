"""The vocabulary of a tokenizer: `vocab.txt` or `tokenizer.json`, checked, without the library that encodes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.errors import Refused
from kdjax.files import write_json, write_text

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
MASK = "[MASK]"
LONGEST_WORD = 100
"""Letters; a longer word is one unknown token, as in BERT."""
_ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"}


class Vocabulary(NamedTuple):
    """What turns texts into ids, as data.

    Attributes:
      tokens: the entries in the order of their ids.
      special: {"pad": "[PAD]", "unk": ..., "cls": ..., "sep": ...}.
      lowercase, strip_accents, split_chinese: WordPiece's normalization; strip_accents None follows `lowercase`.
      file: the text of `tokenizer.json` where any part of it is not BERT's (`_is_plain`), else "".
    """

    tokens: tuple[str, ...]
    special: tuple[tuple[str, str], ...]
    lowercase: bool = True
    strip_accents: bool | None = None
    split_chinese: bool = True
    file: str = ""

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """SHA-256 over the entries and the normalization: equal digests give equal ids for every text."""
        said = [list(self.tokens), self.lowercase, self.strip_accents, self.split_chinese, self.file]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def save(self, folder: str | os.PathLike, *, max_length: int | None = None) -> None:
        """Writes `vocab.txt`, or `tokenizer.json` where it is not plain WordPiece, and `tokenizer_config.json`.

        Args:
          max_length: tokens at which transformers is to cut a text.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        said: dict[str, Any] = {f"{role}_token": token for role, token in self.special}
        said["model_input_names"] = ["input_ids", "attention_mask"]  # no segments: DistilBERT takes none
        if max_length is not None:
            said["model_max_length"] = max_length
        if self.file:
            write_json(folder / "tokenizer.json", json.loads(self.file))
            # Any other class, also the one that config.json implies, would build its own parts around the entries.
            said["tokenizer_class"] = "PreTrainedTokenizerFast"
        else:
            write_text(folder / "vocab.txt", "".join(token + "\n" for token in self.tokens))
            said |= {
                "do_lower_case": self.lowercase,
                "tokenize_chinese_chars": self.split_chinese,
                "tokenizer_class": "BertTokenizer",
            }
            if self.strip_accents is not None:
                said["strip_accents"] = self.strip_accents
        write_json(folder / "tokenizer_config.json", said)

    @classmethod
    def of_tokens(cls, tokens: Sequence[str], *, where: str, special: Mapping[str, str] = SPECIAL, **settings: Any):
        """Checked entries.

        Raises:
          Refused: an entry twice; a special token that is not among them.
        """
        seen: set[str] = set()
        for token in tokens:
            if token in seen:
                raise Refused(f"{where} has the entry {token!r} twice; expected every entry once: its id is ambiguous.")
            seen.add(token)
        if missing := [token for token in special.values() if token not in seen]:
            raise Refused(
                f"{where} lacks the special token {missing[0]}; expected {', '.join(special.values())} in it."
            )
        return cls(tuple(tokens), tuple(sorted(special.items())), **settings)

    @classmethod
    def from_folder(cls, folder: str | Path, *, optional: bool = False) -> Vocabulary | None:
        """Reads `tokenizer.json`, or `vocab.txt` with `do_lower_case` of `tokenizer_config.json`.

        Where both files are there they must agree. Truncation and padding that a file carries are ignored.

        Raises:
          Refused: neither file (None when `optional`); unreadable ones; entries that are repeated; special tokens that
            are missing; files that disagree; a cased `vocab.txt` beside which nothing says whether to lower the case;
            added tokens that `tokenizer.json` does not hold.
        """
        folder = Path(folder).expanduser()
        text, described = folder / "vocab.txt", folder / "tokenizer.json"
        if not text.is_file() and not described.is_file():
            if optional:
                return None
            raise Refused(
                f"{folder} has no tokenizer; expected vocab.txt or tokenizer.json: copy the one it was trained with."
            )
        said = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        read = _from_json(described, said) if described.is_file() else None
        if text.is_file() and (read is None or not read.file):
            plain = _from_text(text, said, read)
            if read is not None and plain.digest != read.digest:
                raise Refused(
                    f"{text} and {described.name} beside it disagree; expected one vocabulary: remove the wrong one."
                )
            read = plain
        assert read is not None
        _refuse_added(folder, said, read)
        return read


def _from_text(path: Path, said: Mapping[str, Any], other: Vocabulary | None) -> Vocabulary:
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 ({error}); expected one entry a line.") from error
    if tokens[-1] == "":
        tokens.pop()
    lowercase = said.get("do_lower_case", other.lowercase if other else None)
    if lowercase is None:
        if any(token != token.lower() for token in tokens if not (token[:1] == "[" and token[-1:] == "]")):
            raise Refused(
                f"{path} has entries in capitals and nothing beside it says whether texts are lower-cased; expected "
                'tokenizer_config.json: write {"do_lower_case": false} or true into it.'
            )
        lowercase = True
    strip, chinese = (other.strip_accents, other.split_chinese) if other else (None, True)
    return Vocabulary.of_tokens(
        tokens,
        where=str(path),
        special=_special(said, SPECIAL),
        lowercase=bool(lowercase),
        strip_accents=said.get("strip_accents", strip),
        split_chinese=said.get("tokenize_chinese_chars", chinese),
    )


def _from_json(path: Path, said: Mapping[str, Any]) -> Vocabulary:
    data = _json(path)
    model: Any = data.get("model")
    model = model if isinstance(model, dict) else {}
    table = model.get("vocab")
    if not isinstance(table, dict) or not all(type(number) is int for number in table.values()):
        raise Refused(f"{path} has no vocabulary of entries with ids; expected WordPiece or byte-level BPE.")
    added = data.get("added_tokens") or []
    if not all(isinstance(one, dict) and isinstance(one.get("content"), str) and "id" in one for one in added):
        raise Refused(f"{path} has added_tokens that are none; expected each with its content and its id.")
    ids = dict(table) | {one["content"]: one["id"] for one in added}
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise Refused(
            f"{path} gives {len(tokens)} entries ids that are not 0 to {len(tokens) - 1}; expected each id once."
        )
    data.update(truncation=None, padding=None)
    normalizer = data["normalizer"] if isinstance(data.get("normalizer"), dict) else {}
    lowercase = bool(normalizer.get("lowercase"))
    if normalizer.get("type") == "BertNormalizer" and said.get("do_lower_case", lowercase) != lowercase:
        raise Refused(
            f"{path} says lowercase {lowercase} and tokenizer_config.json do_lower_case {said['do_lower_case']}; "
            "expected the same: correct one of them."
        )
    special = _special(said, _ROBERTA if _ROBERTA["cls"] in ids else SPECIAL)
    if not _is_plain(data, ids, special):
        return Vocabulary.of_tokens(tokens, where=str(path), special=special, file=json.dumps(data, sort_keys=True))
    return Vocabulary.of_tokens(
        tokens,
        where=str(path),
        special=special,
        lowercase=lowercase,
        strip_accents=normalizer.get("strip_accents"),
        split_chinese=bool(normalizer.get("handle_chinese_chars", True)),
    )


def _is_plain(data: Mapping[str, Any], ids: Mapping[str, int], special: Mapping[str, str]) -> bool:
    """Whether the file says, in every part, what `Tokenizer` builds from entries, special tokens and three settings."""
    model = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": LONGEST_WORD}
    model = {"type": "WordPiece", **model, **data["model"]}
    normalizer = data.get("normalizer")
    special_tokens = {*special.values(), *([MASK] if MASK in ids else [])}
    added = {one["content"]: one for one in data.get("added_tokens") or []}
    cls, sep = special["cls"], special["sep"]
    single = [_piece("SpecialToken", cls, 0), _piece("Sequence", "A", 0), _piece("SpecialToken", sep, 0)]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, _piece("Sequence", "B", 1), _piece("SpecialToken", sep, 1)],
        "special_tokens": {name: {"id": name, "ids": [ids.get(name)], "tokens": [name]} for name in (cls, sep)},
    }
    bert = {"type": "BertProcessing", "sep": [sep, ids.get(sep)], "cls": [cls, ids.get(cls)]}
    return (
        model["type"] == "WordPiece"
        and model["unk_token"] == special["unk"]
        and model["continuing_subword_prefix"] == "##"
        and model["max_input_chars_per_word"] == LONGEST_WORD
        and isinstance(normalizer, dict)
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text", True) is True
        and data.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
        and data.get("post_processor") in (template, bert)
        and added.keys() == special_tokens
        and not any(one.get(how) for one in added.values() for how in ("single_word", "lstrip", "rstrip", "normalized"))
    )


def _piece(kind: str, name: str, segment: int) -> dict[str, Any]:
    return {kind: {"id": name, "type_id": segment}}


def _refuse_added(folder: Path, said: Mapping[str, Any], read: Vocabulary) -> None:
    """Refuses tokens that files beside the vocabulary add to it: transformers matches them whole."""
    beside = folder / "added_tokens.json"
    tables = [said.get("added_tokens_decoder"), said.get("additional_special_tokens")]
    named = list(_json(beside)) if beside.is_file() else []
    for table in tables:
        entries = table.values() if isinstance(table, dict) else table if isinstance(table, list) else []
        named += [_content(entry) for entry in entries]
    held = json.loads(read.file).get("added_tokens") or [] if read.file else []
    known = {MASK, *dict(read.special).values(), *(one["content"] for one in held)}
    if unknown := [token for token in named if token not in known]:
        raise Refused(
            f"{folder} adds the token {unknown[0]!r} to its vocabulary, and no tokenizer.json says so; expected one "
            f"that holds all added tokens: type AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained("
            f"{str(folder)!r}) with transformers."
        )


def _content(token: Any) -> str:
    """The text of a token that is given as text or as {"content": text}."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _special(said: Mapping[str, Any], default: Mapping[str, str]) -> dict[str, str]:
    """The names of the special tokens; tokenizer_config.json may give others, as text or as {"content": text}."""
    names = {}
    for role, token in default.items():
        names[role] = _content(said.get(f"{role}_token") or token)
    return names


def _json(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(pairs)) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise Refused(f"{path} has the entry {twice!r} twice; expected every entry once: its id is ambiguous.")
        return result

    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
        if not isinstance(data, dict):
            raise ValueError("it is no mapping")
        return data
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} cannot be read as JSON ({error}); expected what transformers writes.") from error

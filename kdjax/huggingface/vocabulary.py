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
_ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"}


class Vocabulary(NamedTuple):
    """What turns texts into ids, as data.

    Attributes:
      tokens: the entries in the order of their ids.
      special: {"pad": "[PAD]", "unk": ..., "cls": ..., "sep": ...}.
      lowercase, strip_accents, split_chinese: WordPiece's normalization; strip_accents None follows `lowercase`.
      file: the text of `tokenizer.json` where it is not plain WordPiece, else "".
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

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `vocab.txt` and `tokenizer_config.json`, or `tokenizer.json` where it is not plain WordPiece."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.file:
            write_json(folder / "tokenizer.json", json.loads(self.file))
            return
        write_text(folder / "vocab.txt", "".join(token + "\n" for token in self.tokens))
        said: dict[str, Any] = {
            "do_lower_case": self.lowercase,
            "tokenize_chinese_chars": self.split_chinese,
            "tokenizer_class": "BertTokenizer",
            **{f"{role}_token": token for role, token in self.special},
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
            are missing; files that disagree; a cased `vocab.txt` beside which nothing says whether to lower the case.
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
            return plain
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
    ids = dict(table)
    for added in data.get("added_tokens") or []:
        ids[added["content"]] = added["id"]
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise Refused(
            f"{path} gives {len(tokens)} entries ids that are not 0 to {len(tokens) - 1}; expected each id once."
        )
    data.update(truncation=None, padding=None)
    normalizer = data.get("normalizer") or {}
    plain = model.get("type", "WordPiece") == "WordPiece" and normalizer.get("type") == "BertNormalizer"
    if not plain:
        special = _special(said, _ROBERTA if _ROBERTA["cls"] in ids else SPECIAL)
        return Vocabulary.of_tokens(tokens, where=str(path), special=special, file=json.dumps(data, sort_keys=True))
    lowercase = bool(normalizer.get("lowercase"))
    if said.get("do_lower_case", lowercase) != lowercase:
        raise Refused(
            f"{path} says lowercase {lowercase} and tokenizer_config.json do_lower_case {said['do_lower_case']}; "
            "expected the same: correct one of them."
        )
    return Vocabulary.of_tokens(
        tokens,
        where=str(path),
        special=_special(said, SPECIAL),
        lowercase=lowercase,
        strip_accents=normalizer.get("strip_accents"),
        split_chinese=bool(normalizer.get("handle_chinese_chars", True)),
    )


def _special(said: Mapping[str, Any], default: Mapping[str, str]) -> dict[str, str]:
    """The names of the special tokens; tokenizer_config.json may give others, as text or as {"content": text}."""
    names = {}
    for role, token in default.items():
        given = said.get(f"{role}_token") or token
        names[role] = given["content"] if isinstance(given, dict) else str(given)
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

"""Texts to token ids by the library `tokenizers` (extra kdjax[text]), and a vocabulary of one's own, reproducibly."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.errors import Refused
from kdjax.huggingface.vocabulary import LONGEST_WORD, MASK, SPECIAL, Vocabulary
from kdjax.options import integer


class Tokenizer:
    """A vocabulary at work: WordPiece as BERT does it, or whatever a `tokenizer.json` says.

    Special tokens typed in a text become the special ids, as in transformers.

        Tokenizer(Vocabulary.from_folder(folder)).encode(["where is my card?"], max_length=32)

    Raises:
      Refused: `tokenizers` is not installed; a `tokenizer.json` that it cannot read.
    """

    def __init__(self, vocabulary: Vocabulary):
        library = _library()
        self.vocabulary = vocabulary
        self._tokenizer: Any = library.Tokenizer
        if vocabulary.file:
            try:
                self._tokenizer = library.Tokenizer.from_str(vocabulary.file)
            except Exception as error:  # the library raises Exception itself
                raise Refused(
                    f"the tokenizer.json cannot be read by tokenizers ({error}); upgrade tokenizers."
                ) from error
            return
        special = dict(vocabulary.special)
        ids = {token: i for i, token in enumerate(vocabulary.tokens)}
        model = library.models.WordPiece(ids, unk_token=special["unk"], max_input_chars_per_word=LONGEST_WORD)
        self._tokenizer = library.Tokenizer(model)
        self._tokenizer.add_special_tokens([*special.values(), *([MASK] if MASK in ids else [])])
        self._tokenizer.normalizer = _normalizer(library, vocabulary)
        self._tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        self._tokenizer.post_processor = library.processors.BertProcessing(
            (special["sep"], ids[special["sep"]]), (special["cls"], ids[special["cls"]])
        )

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> Tokenizer:
        """The tokenizer of a Hugging Face folder; see `Vocabulary.from_folder`."""
        vocabulary = Vocabulary.from_folder(Path(folder))
        assert vocabulary is not None
        return cls(vocabulary)

    @property
    def pad_id(self) -> int:
        return self.vocabulary.tokens.index(dict(self.vocabulary.special)["pad"])

    def encode(
        self, texts: Sequence[str], max_length: int, *, pairs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """[CLS] text [SEP], cut to `max_length` tokens and padded on the right to that length.

        Args:
          max_length: S, at least 2 (3 with pairs); what is cut is the end of the text, of the longer one in a pair.
          pairs: a second text for each, which gets segment 1.

        Returns:
          {"input_ids", "attention_mask", "token_type_ids"}, int32 [N, S]; the mask is 1 on every token that is not
          padding, also where a text holds the padding token itself.
        """
        integer(2 if pairs is None else 3)("max_length", max_length)
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        self._tokenizer.no_padding()
        rows = self._encode(texts, pairs)
        shape = (len(rows), max_length)
        result = {"input_ids": np.full(shape, self.pad_id, np.int32)}
        result |= {name: np.zeros(shape, np.int32) for name in ("attention_mask", "token_type_ids")}
        for i, row in enumerate(rows):
            n = len(row.ids)
            result["input_ids"][i, :n], result["attention_mask"][i, :n] = row.ids, 1
            result["token_type_ids"][i, :n] = row.type_ids
        return result

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of tokens, [CLS] and [SEP] among them, uncut. int64 [N]."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return np.array([len(row) for row in self._encode(texts, None)], np.int64)

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text, without [CLS] and [SEP]."""
        self._tokenizer.no_truncation()
        return self._tokenizer.encode(text, add_special_tokens=False).tokens

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files of `Vocabulary.save`."""
        self.vocabulary.save(folder)

    def _encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Any]:
        for what, given in (("text", texts), ("the second text of pair", pairs or ())):
            for i, text in enumerate(given):
                check_characters(f"{what} {i}", text)
        return self._tokenizer.encode_batch(list(texts) if pairs is None else list(zip(texts, pairs, strict=True)))


def check_characters(where: str, text: str) -> None:
    """Refuses halves of characters: they come from escapes cut apart, and neither encoders nor files take them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise Refused(
            f"{where} holds {half!r}, one half of a character; expected both halves together: remove it, or write the "
            "character anew."
        ) from error


def train_vocabulary(
    texts: Sequence[str], vocab_size: int, *, lowercase: bool = True, min_frequency: int = 2
) -> Vocabulary:
    """A WordPiece vocabulary of at most `vocab_size` entries: the same for the same texts, in any order of them.

    The library numbers the pieces "##x" of single characters in an order that differs between processes, and breaks
    ties of equal counts by those numbers. They are therefore given first, sorted; the vocabulary alone is kept, so that
    a "##x" typed in a text is text.

    Args:
      texts: of the training split alone, without what is held out.
      min_frequency: pairs seen less often are not joined.

    Raises:
      Refused: `tokenizers` is not installed; a `vocab_size` too small for the characters of the texts.
    """
    library = _library()
    integer(1)("vocab_size", vocab_size)
    settings = Vocabulary((), (), lowercase=lowercase)
    normalizer, splitter = _normalizer(library, settings), library.pre_tokenizers.BertPreTokenizer()
    words = [word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    given = [*SPECIAL.values(), MASK, *inner]
    least = len(given) + len({word[0] for word in words})
    if vocab_size < least:
        raise Refused(
            f"vocab_size is {vocab_size} and the texts have {least} different characters at the beginning of and "
            f"inside words; expected at least {least}."
        )
    tokenizer = library.Tokenizer(library.models.WordPiece(unk_token=SPECIAL["unk"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=given, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda token: ids[token])
    return Vocabulary.of_tokens(tokens, where="the trained vocabulary", lowercase=lowercase)


def _normalizer(library: Any, vocabulary: Vocabulary) -> Any:
    return library.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=vocabulary.split_chinese,
        strip_accents=vocabulary.strip_accents,
        lowercase=vocabulary.lowercase,
    )


def library_version() -> str:
    """Of `tokenizers`, without importing it.

    Raises:
      Refused: it is not installed.
    """
    _need_library()
    return importlib.metadata.version("tokenizers")


def _need_library() -> None:
    if importlib.util.find_spec("tokenizers") is None:
        raise Refused("encoding texts needs tokenizers, which is not installed; type pip install 'kdjax[text]'.")


def _library() -> Any:
    _need_library()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns, and may hang, in a forked worker
    import tokenizers

    return tokenizers

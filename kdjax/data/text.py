"""Texts as token ids: public sets by name, your own files, and the vocabulary that teacher and student share.

    data = load("banking77", path="FOLDER")                              # a vocabulary of 2,000 by the training split
    data = load("trec", tokenizer="bert-base-uncased", max_length=32)    # that of a Hugging Face folder
    data = load("text", path="mine.csv", vocab_size=1000)                # columns text and label

Inputs are {"input_ids", "attention_mask"} [N, S]; S is one length for all splits.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data import checks, text_sets
from kdjax.data.contents import digest
from kdjax.data.encoded import Encoded, kept
from kdjax.data.hold_out import carve, hold_out
from kdjax.data.source import Source, class_numbers
from kdjax.data.text_readers import Raw, Texts, read_own
from kdjax.errors import Refused
from kdjax.huggingface import Tokenizer
from kdjax.huggingface.tokenizer import train_vocabulary
from kdjax.huggingface.vocabulary import Vocabulary
from kdjax.options import flag, integer
from kdjax.prepare import Tokens
from kdjax.types import Dataset

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 256, 512)
"""Of these, the smallest that cuts at most `CUT` of the training texts is taken when no length is given."""
CUT = 0.01
WARN_ABOVE = 0.05
PARTS = ("train", "calibration", "test")
SPLIT: Mapping[str, Any] = {"split_seed": 0, "calibration_fraction": 0.1, "calibration_split": None, "classes": None}


def tokenized(
    raw: Raw,
    *,
    tokenizer: str | os.PathLike = "",
    vocab_size: int,
    lowercase: bool = True,
    max_length: int = 0,
    split_seed: int = 0,
    calibration_fraction: float = 0.1,
    calibration_split: str | None = None,
    classes: int | Sequence[int | str] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Source:
    """A set as a `Source` of token ids; the lengths of its texts are printed to stderr.

    Args:
      tokenizer: a Hugging Face folder (vocab.txt or tokenizer.json); "" trains a WordPiece vocabulary on the training
        texts of all classes, without those that the three options of the split hold out of the `classes` that are kept.
      vocab_size, lowercase: of a trained vocabulary.
      max_length: S; 0 takes the smallest of `LENGTHS` that cuts at most 1 % of the training texts.
      cache_dir: where the ids of a set that is not small are kept, as in `cache.default_folder`.

    Raises:
      Refused: what `Tokenizer.from_folder` and `train_vocabulary` refuse; a length below 3.
    """
    flag()("data.options.lowercase", lowercase)
    rows, how = kept_rows(raw, split_seed, calibration_fraction, calibration_split, classes)
    texts = {what: raw.splits[what].text for what in PARTS if what in raw.splits}
    hashes = {what: contents(of_split) for what, of_split in texts.items()}
    vocabulary = Vocabulary.from_folder(Path(tokenizer)) if tokenizer else None

    def build() -> Encoded:
        encoder = tokenizer_of(raw, rows, tokenizer=vocabulary or "", vocab_size=vocab_size, lowercase=lowercase)
        lengths = {what: encoder.lengths(of_split) for what, of_split in texts.items()}
        size = fixed_length(max_length, lengths["train"])
        ids = {what: encoder.encode(of_split, size)["input_ids"] for what, of_split in texts.items()}
        return Encoded(encoder.vocabulary, lengths, ids)

    encoded = kept(
        build,
        hashes=hashes,
        letters=sum(len(one) for of_split in texts.values() for one in of_split),
        how={"max_length": max_length, **({} if tokenizer else {"rows": digest(rows), "vocab_size": vocab_size})},
        vocabulary=vocabulary,
        lowercase=lowercase,
        cache_dir=cache_dir,
    )
    vocabulary, size = encoded.vocabulary, encoded.ids["train"].shape[1]
    report(raw.name, vocabulary, encoded.lengths, size)
    splits = {}
    for what in texts:
        index = np.arange(len(texts[what])) + (len(texts["train"]) if what == "calibration" else 0)
        splits[what] = checks.as_split(f"{raw.name} {what}", (encoded.inputs(what), raw.splits[what].label, index))
    prepare = Tokens(vocabulary.digest, vocabulary.size, size, vocabulary)
    return Source(
        name=raw.name,
        num_classes=raw.num_classes,
        train=splits["train"],
        test=splits["test"],
        calibration=splits.get("calibration"),
        label_names=raw.label_names,
        calibration_split=how,
        kind="text",
        contents=hashes,
        about=prepare.describe(),
        prepare=prepare,
        public=raw.public,
    )


def contents(texts: Sequence[str]) -> np.ndarray:
    """The hash of each text, whole: texts that differ only in what is cut are different examples. uint8 [N, 16]."""
    hashes = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16)


def kept_rows(
    raw: Raw, seed: int, fraction: float, how: str | None, classes: int | Sequence[int | str] | None = None
) -> tuple[np.ndarray, str]:
    """(positions of train that no hold-out takes, how it is drawn); `classes` are those that the data set keeps."""
    how = how or "stratified"
    train = raw.splits["train"]
    if "calibration" in raw.splits:
        return np.arange(len(train.text)), how
    if classes is None:
        return np.sort(hold_out(train.label, seed, fraction, how)[1]), how
    # The labels that the hold-out will be drawn by, see `select_classes`.
    numbers = class_numbers(raw, classes)
    table = np.full(raw.num_classes, -1)
    table[numbers] = np.arange(len(numbers))
    chosen = np.flatnonzero(table[train.label] >= 0)
    held, _ = hold_out(table[train.label[chosen]], seed, fraction, how)
    return np.setdiff1d(np.arange(len(train.text)), chosen[held]), how


def tokenizer_of(
    raw: Raw,
    rows: Sequence[int] | np.ndarray,
    *,
    tokenizer: str | os.PathLike | Vocabulary,
    vocab_size: int,
    lowercase: bool,
) -> Tokenizer:
    """That of a folder or a vocabulary, or one trained on these rows of the training texts, the same for the
    same texts and options."""
    if tokenizer:
        return Tokenizer(tokenizer) if isinstance(tokenizer, Vocabulary) else Tokenizer.from_folder(tokenizer)
    texts = raw.splits["train"].text
    return _trained(tuple(texts[i] for i in rows), vocab_size, lowercase)


@functools.lru_cache(maxsize=4)
def _trained(texts: tuple[str, ...], vocab_size: int, lowercase: bool) -> Tokenizer:
    return Tokenizer(train_vocabulary(texts, vocab_size, lowercase=lowercase))


def encode(encoder: Tokenizer, texts: Sequence[str], max_length: int) -> dict[str, np.ndarray]:
    """Inputs of a network: segments are left out, being 0 everywhere."""
    rows = encoder.encode(texts, max_length)
    return {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"].astype(np.int8)}


def fixed_length(max_length: int, lengths: np.ndarray) -> int:
    integer(0)("data.max_length", max_length)
    if max_length:
        return integer(3)("data.max_length", max_length)
    return next((size for size in LENGTHS if np.mean(lengths > size) <= CUT), LENGTHS[-1])


def report(name: str, vocabulary: Vocabulary, lengths: Mapping[str, np.ndarray], size: int) -> None:
    """Prints how long the texts are, how many are cut and how many are empty; warns where more than 5 % are cut."""
    for what, values in lengths.items():
        p50, p95 = np.percentile(values, [50, 95])
        cut, empty = float(np.mean(values > size)), int((values <= 2).sum())
        note = f", {empty} empty" if empty else ""
        loud = "; more than 5 % are cut: raise data.max_length" if cut > WARN_ABOVE else ""
        print(
            f"{name} {what}: {len(values)} texts of {p50:.0f} tokens (median), {p95:.0f} (95 %), {values.max()} "
            "(longest); "
            f"{cut:.1%} are cut at {size}{note}; vocabulary of {vocabulary.size}, "
            f"{vocabulary.digest[:12]}{loud}",
            file=sys.stderr,
        )


def user_texts(
    *,
    path: str | os.PathLike | None = None,
    num_classes: int | None = None,
    text_column: str = "text",
    label_column: str = "label",
    test_examples: int | None = None,
    skip_bad: bool = False,
) -> Raw:
    """Your own texts: a `.csv`, `.tsv` or `.jsonl` (packed by gzip or xz or not), or a folder with train, test and, if
    wanted, calibration or validation in one of them.

    Args:
      num_classes: K where labels are numbers; names are numbered in sorted order.
      text_column, label_column: names of the two columns.
      test_examples: of a single file, the number of texts for testing; a fifth of every class unless told.
      skip_bad: leave out empty texts, and say how many.

    Raises:
      Refused: what `text_readers.read_own` refuses; a text without a word in it, by its place.
    """
    raw = read_own(path, num_classes=num_classes, text_column=text_column, label_column=label_column)
    splits = {what: _not_empty(f"{path} {what}", split, skip_bad) for what, split in raw.splits.items()}
    if "test" not in splits:
        pool = splits["train"]
        test, train = carve(str(path), pool.label, test_examples)
        splits = {
            what: Texts([pool.text[i] for i in rows], pool.label[rows])
            for what, rows in (("train", train), ("test", test))
        }
    elif test_examples is not None:
        raise Refused(f"{path} has a test split of its own; expected no test_examples: remove it.")
    return raw._replace(splits=splits)


def _not_empty(where: str, split: Texts, skip_bad: bool) -> Texts:
    empty = [i for i, text in enumerate(split.text) if not text.strip()]
    if not empty:
        return split
    if not skip_bad:
        raise Refused(
            f"{where} has {len(empty)} empty texts, the first in example {empty[0]}; expected words: remove them, or "
            "set "
            "data.skip_bad=True to leave them out."
        )
    print(f"{where}: {len(empty)} empty texts are left out", file=sys.stderr)
    kept = [i for i, text in enumerate(split.text) if text.strip()]
    return Texts([split.text[i] for i in kept], split.label[kept])


READERS: dict[str, tuple[Callable[..., Raw], int]] = {
    "banking77": (text_sets.banking77, 2000),
    "clinc150": (text_sets.clinc150, 2000),
    "hwu64": (text_sets.hwu64, 2000),
    "trec": (text_sets.trec, 4000),
    "trec_fine": (text_sets.trec_fine, 4000),
    "sst2": (text_sets.sst2, 8000),
    "newsgroups20": (text_sets.newsgroups20, 8000),
    "ag_news_small": (text_sets.ag_news_small, 8000),
    "text": (user_texts, 2000),
}
"""What reads a set of this name, and the size of its vocabulary unless told."""


def read(name: str, options: Mapping[str, Any]) -> Raw:
    """The texts of a set, before they are tokenized; options that its reader does not know are left out."""
    reader, _ = READERS[name]
    reading = inspect.signature(reader).parameters
    return reader(**{key: value for key, value in options.items() if key in reading})


def _source_of(name: str) -> Callable[..., Source]:
    """The source of a set: its keyword arguments are those of the reader and of `tokenized`."""
    reader, size = READERS[name]
    reading, encoding = (inspect.signature(function).parameters for function in (reader, tokenized))

    def source(**options: Any) -> Source:
        raw = read(name, options)
        given = {key: value for key, value in options.items() if key not in reading}
        return tokenized(raw, **{"vocab_size": size, **given})

    names = [*reading, *(name for name in encoding if name != "raw")]
    kind = inspect.Parameter.KEYWORD_ONLY
    source.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=None) for name in names]
    )
    return source


SOURCES: dict[str, Callable[..., Source]] = {name: _source_of(name) for name in READERS}


def foreign(dataset: Dataset, texts: Sequence[str] | None = None, **options: Any) -> dict[str, np.ndarray]:
    """Other texts in the ids of a data set, such as those that are out of its scope.

        data = load("clinc150"); outside = foreign(data)               # its 1,000 texts that are out of scope
        data = load("banking77"); far = foreign(data, texts)           # any texts

    Args:
      dataset: of this module, loaded with the same options.
      texts: those of the set that are out of scope unless told.

    Raises:
      Refused: a data set of another kind, or loaded with other options; no texts where the set has none out of scope.
    """
    if dataset.name not in READERS or not isinstance(dataset.prepare, Tokens):
        raise Refused(f"{dataset.name!r} is no data set of texts by name; expected one of {', '.join(READERS)}.")
    raw, size = read(dataset.name, options), READERS[dataset.name][1]
    how: dict[str, Any] = {"tokenizer": "", "vocab_size": size, "lowercase": True} | {
        key: value for key, value in options.items() if key in ("tokenizer", "vocab_size", "lowercase")
    }
    split = [options.get(key, default) for key, default in SPLIT.items()]
    encoder = tokenizer_of(raw, kept_rows(raw, *split)[0], **how)
    if encoder.vocabulary.digest != dataset.prepare.vocabulary:
        raise Refused(
            f"these options give {dataset.name!r} another vocabulary than the data set has; expected the options that "
            "it "
            "was loaded with."
        )
    if texts is None:
        if "out_of_scope" not in raw.splits:
            raise Refused(f"{dataset.name!r} has no texts out of scope; expected texts=[...].")
        texts = raw.splits["out_of_scope"].text
    return encode(encoder, texts, dataset.prepare.max_length)

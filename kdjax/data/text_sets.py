"""Public sets of texts: where each one's splits and labels come from, and what is done to its texts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np

from kdjax.data import prepared
from kdjax.data.hold_out import stratified
from kdjax.data.records import Prepared, records
from kdjax.data.text_readers import Raw, Texts, read_folder
from kdjax.errors import Refused, one_of

POLICIES = ("body", "no_header", "as_is")
_QUOTE = re.compile(r"(writes in|writes:|wrote:|says:|said:|^In article|^Quoted from|^\||^>)")


def banking77(path: str | os.PathLike | None = None) -> Raw:
    """77 intents of bank customers, 10,003 and 3,080 texts; no calibration split of its own.

    Source: Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, arXiv 2003.04807.
    """
    return read_folder("banking77", path)


def hwu64(path: str | os.PathLike | None = None) -> Raw:
    """64 intents of a home assistant, 8,954 texts, 1,076 for calibration (70 of them twice) and 1,076 for testing.

    Source: Liu et al., Benchmarking Natural Language Understanding Services, arXiv 1903.05566, in the split of
    Mehri et al., DialoGLUE, arXiv 2009.13570.
    """
    return read_folder("hwu64", path)


def sst2(path: str | os.PathLike | None = None) -> Raw:
    """Sentences of film reviews, negative or positive: 6,920, 872 for calibration and 1,821 for testing.

    Source: Socher et al., EMNLP 2013.
    """
    return read_folder("sst2", path)


def newsgroups20(path: str | os.PathLike | None = None, *, policy: str = "body") -> Raw:
    """20 Newsgroups, split by date: 11,314 and 7,532 messages.

    Args:
      policy: "as_is", whole messages, whose headers and quotes give the group away; "no_header", what follows the first
        blank line; "body", without header, quoted lines and signature (`body`). Some messages are empty then; they are
        kept.

    Source: Lang, NewsWeeder, ICML 1995.
    """
    one_of("policy", policy, POLICIES)
    raw = read_folder("newsgroups20", path)
    policies: dict[str, Callable[[str], str]] = {"body": body, "no_header": without_header, "as_is": str}
    strip = policies[policy]
    splits = {what: split._replace(text=[strip(text) for text in split.text]) for what, split in raw.splits.items()}
    return raw._replace(splits=splits)


def without_header(text: str) -> str:
    """What follows the first blank line."""
    return text.partition("\n\n")[2]


def body(text: str) -> str:
    """A message without header, quoted lines and signature, each by the rule of `sklearn.datasets.fetch_20newsgroups`.

    The signature is what follows the last line that is blank or made of hyphens, unless that is the first line. Quoted
    lines go before it: in scikit-learn's order, signature first, 300 and 215 messages become empty, not 24 and 25.
    """
    lines = [line for line in without_header(text).split("\n") if not _QUOTE.search(line)]
    text = "\n".join(lines)
    lines = text.strip().split("\n")
    last = next((i for i in reversed(range(len(lines))) if lines[i].strip().strip("-") == ""), 0)
    return "\n".join(lines[:last]) if last > 0 else text


def ag_news_small(path: str | os.PathLike | None = None) -> Raw:
    """The 7,600 test texts of AG News (title and description), split 4,000 / 600 / 3,000 for good, 4 topics.

    It is another task than AG News, whose training split has 120,000 texts: results are not comparable.

    Source: Zhang et al., Character-level Convolutional Networks for Text Classification, arXiv 1509.01626.
    """
    raw = read_folder("ag_news_small", path, folder="ag_news_test_only", text_columns=("title", "text"))
    pool = raw.splits["test"]
    test, rest = stratified(pool.label, 3000 * len(pool.text) // 7600, 0, "test")
    chosen, others = stratified(pool.label[rest], 600 * len(pool.text) // 7600, 0, "calibration")
    parts = {"train": np.sort(rest[others]), "calibration": np.sort(rest[chosen]), "test": test}
    splits = {what: Texts([pool.text[i] for i in rows], pool.label[rows]) for what, rows in parts.items()}
    return raw._replace(splits=splits)


def clinc150(data_dir: str | os.PathLike | None = None) -> Raw:
    """150 intents: 15,000 texts, 3,000 for calibration and 4,500 for testing; 1,000 more that are out of scope.

    The out-of-scope texts have the label -1 and are never trained on: `text.foreign` gives them, tokenized alike.

    Source: Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction, EMNLP 2019.
    """
    parts = {"train": "train", "calibration": "validation", "test": "test", "out_of_scope": "test_oos"}
    described = _describe("clinc_oos", data_dir, "intent")
    splits = {what: _read(described, split) for what, split in parts.items()}
    outside = splits["out_of_scope"]
    splits["out_of_scope"] = outside._replace(label=np.full_like(outside.label, -1))
    names = [""] * 150
    for text in _features(described, "train"):
        names[text["intent"].int64_list.value[0]] = text["intent_name"].bytes_list.value[0].decode()
    return Raw("clinc150", splits, 150, tuple(names) if len(set(names)) == 150 else ())


def trec(data_dir: str | os.PathLike | None = None) -> Raw:
    """Questions by the 6 coarse kinds of their answers, 5,452 and 500. The test split has other shares than train.

    Source: Li and Roth, Learning Question Classifiers, COLING 2002.
    """
    return _trec("trec", "label-coarse", data_dir)


def trec_fine(data_dir: str | os.PathLike | None = None) -> Raw:
    """The questions of `trec` by 47 fine kinds, 8 of which do not occur in the test split."""
    return _trec("trec_fine", "label-fine", data_dir)


def _trec(name: str, label: str, data_dir: str | os.PathLike | None) -> Raw:
    described = _describe("trec", data_dir, label)
    splits = {what: _read(described, what) for what in ("train", "test")}
    return Raw(name, splits, described.num_classes, described.label_names)


def _describe(name: str, data_dir: str | os.PathLike | None, label: str) -> Prepared:
    return prepared.describe(name, prepared.default_data_dir(data_dir), text_label=label)


def _read(described: Prepared, split: str) -> Texts:
    texts, labels = [], []
    for features in _features(described, split):
        texts.append(features["text"].bytes_list.value[0].decode("utf-8", "replace"))
        labels.append(features[described.label].int64_list.value[0])
    return Texts(texts, np.array(labels, np.int32))


def _features(described: Prepared, split: str):
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    if split not in described.shards:
        raise Refused(f"{described.folder} has no split {split}; expected it: prepare {described.name} again.")
    for record in records(described, split):
        try:
            yield tf_example_pb2.Example.FromString(record).features.feature
        except DecodeError as error:
            raise Refused(f"a record in {described.folder} is damaged ({error}); prepare the set again.") from error

"""The linear reference of the text tables: TF-IDF and logistic regression on the very examples that networks see.

Words and pairs of words, sublinear counts, C = 10. It is fitted once, on the training split, and no seed enters it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.tables import Row
from kdjax import metrics, posthoc, stages
from kdjax.data import text
from kdjax.data.text_readers import Raw
from kdjax.errors import Refused
from kdjax.recipes import Data

NAME = "linear: TF-IDF + logistic regression"


class Texts(NamedTuple):
    """The texts of a recipe's data set as they were before they were tokenized, one for each example of a split."""

    train: list[str]
    calibration: list[str]
    test: list[str]


@functools.lru_cache(maxsize=8)
def raw(data: Data) -> Raw:
    """The set of a recipe as its reader gives it.

    Raises:
      Refused: a set that is none of texts.
    """
    if data.name not in text.READERS:
        raise Refused(f"{data.name!r} is no set of texts; expected one of {', '.join(text.READERS)}.")
    return text.read(data.name, data.given())


@functools.lru_cache(maxsize=8)
def texts(data: Data) -> Texts:
    """The texts of a recipe's splits, in the order of its data set's examples."""
    dataset, splits = stages.dataset(data), raw(data).splits
    pool = [*splits["train"].text, *(splits["calibration"].text if "calibration" in splits else [])]
    train, calibration = ([pool[i] for i in split.index] for split in (dataset.train, dataset.calibration))
    return Texts(train, calibration, [splits["test"].text[i] for i in dataset.test.index])


class Linear(NamedTuple):
    """A fitted reference: logits of texts, [N, K]."""

    classes: int
    vectorizer: object
    model: object

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        scores = self.model.decision_function(self.vectorizer.transform(texts))  # type: ignore[attr-defined]
        if scores.ndim == 1:  # of two classes scikit-learn gives the second one's alone
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        # A class without a training example can have no share; e^-30 of the least likely one is that in float32.
        logits = np.repeat(scores.min(1, keepdims=True) - 30, self.classes, axis=1)
        logits[:, self.model.classes_] = scores  # type: ignore[attr-defined]
        return logits.astype(np.float32)


@functools.lru_cache(maxsize=8)
def fitted(data: Data) -> Linear:
    """The reference of a recipe's data set, fitted once per process."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    dataset = stages.dataset(data)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(vectorizer.fit_transform(texts(data).train), dataset.train.label)
    return Linear(dataset.num_classes, vectorizer, model)


def scores(data: Data) -> Mapping[str, float]:
    """Its test metrics, as a stage has them."""
    dataset, known, linear = stages.dataset(data), texts(data), fitted(data)
    calibration, test = (linear.logits(split) for split in (known.calibration, known.test))
    refitted = posthoc.refitted(calibration, dataset.calibration.label, test, dataset.test.label)
    return {**metrics.evaluate(test, dataset.test.label), **refitted}


def row(data: Data, published: str = "") -> Row:
    return Row(reference=lambda: scores(data), published=published)

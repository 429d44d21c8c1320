"""Sets of texts as token ids, kept on disk like decoded images: to train a vocabulary and to encode takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.cache import Arrays, cached, default_folder
from kdjax.data.contents import digest
from kdjax.huggingface.tokenizer import library_version
from kdjax.huggingface.vocabulary import Vocabulary

KEPT_ABOVE = 1 << 18
"""Letters of a set; a smaller one is encoded as quickly as it is read."""
FORMAT = 1


class Encoded(NamedTuple):
    """A set in the ids of one vocabulary.

    Attributes:
      lengths: split -> numbers of tokens, uncut. int64 [N].
      ids: split -> int32 [N, S], cut and padded to one length for all splits.
    """

    vocabulary: Vocabulary
    lengths: Mapping[str, np.ndarray]
    ids: Mapping[str, np.ndarray]

    def inputs(self, what: str) -> dict[str, np.ndarray]:
        """Inputs of a network: segments are left out, being 0 everywhere."""
        ids, lengths = self.ids[what], self.lengths[what]
        mask = np.arange(ids.shape[1]) < np.minimum(lengths, ids.shape[1])[:, None]
        return {"input_ids": ids, "attention_mask": mask.astype(np.int8)}


def kept(
    build: Callable[[], Encoded],
    *,
    hashes: Mapping[str, np.ndarray],
    letters: int,
    how: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    lowercase: bool,
    cache_dir: str | os.PathLike | None,
) -> Encoded:
    """What `build` returned for the same texts and options, in this process or an earlier one.

    Args:
      hashes: split -> the hash of each of its texts.
      letters: of all texts together.
      how: whatever else decides what `build` returns, in JSON.
      vocabulary: that of a folder; None where `build` trains one, with or without `lowercase`.
      cache_dir: as in `cache.default_folder`.

    Raises:
      Refused: `tokenizers` is not installed; whatever `build` refuses.
    """
    if letters < KEPT_ABOVE:
        return build()

    def arrays() -> Arrays:
        made = build()
        tokens = json.dumps(made.vocabulary.tokens if vocabulary is None else []).encode()
        lengths = {f"{what}_lengths": values for what, values in made.lengths.items()}
        return {
            "tokens": np.frombuffer(tokens, np.uint8),
            **lengths,
            **{f"{w}_ids": ids for w, ids in made.ids.items()},
        }

    contents = {what: digest(rows) for what, rows in hashes.items()}
    said = [FORMAT, library_version(), contents, lowercase if vocabulary is None else vocabulary.digest, how]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    stored = cached(default_folder(cache_dir), f"texts-{key[:24]}", arrays)
    if vocabulary is None:
        tokens = json.loads(stored["tokens"].tobytes())
        vocabulary = Vocabulary.of_tokens(tokens, where="the vocabulary in the cache", lowercase=lowercase)
    lengths, ids = ({what: stored[f"{what}_{part}"] for what in hashes} for part in ("lengths", "ids"))
    return Encoded(vocabulary, lengths, ids)

"""Token ids exactly as the reference; vocabularies of one's own, the same bytes in every process; what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.huggingface import Tokenizer, Vocabulary
from kdjax.huggingface.tokenizer import train_vocabulary
from tests.text import golden

pytestmark = pytest.mark.fused

ENTRIES = {entry["name"]: entry for entry in golden.index()["tokenizers"]}
TEXTS = [
    "Where is my card?",
    "where is my new card",
    "The card has not arrived yet: why?",
    "my card, my card",
    "Why not",
]


@pytest.mark.parametrize("file", golden.FILES)
@pytest.mark.parametrize("name", ENTRIES)
def test_ids_are_those_of_transformers(name, file, tmp_path):
    case = golden.read(ENTRIES[name]["case"])
    folder = golden.ROOT / case["tokenizer"]
    for part in (file, "tokenizer_config.json"):
        (tmp_path / part).write_bytes((folder / part).read_bytes())
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocabulary.lowercase == case["lowercase"] and tokenizer.vocabulary.size == case["vocab_size"]
    assert tokenizer.vocabulary.digest == Vocabulary.from_folder(folder).digest, (
        "one vocabulary, whichever file holds it"
    )
    for text, pieces in zip(case["text"], case["tokens"], strict=True):
        assert tokenizer.tokens(text) == pieces, text
    for length, wanted in case["encoded"].items():
        same(tokenizer.encode(case["text"], int(length)), wanted, case["text"])
    first, second = zip(*case["pairs"], strict=True)
    for length, wanted in case["encoded_pairs"].items():
        same(tokenizer.encode(first, int(length), pairs=second), wanted, case["pairs"])
    assert np.array_equal(tokenizer.lengths(case["text"]), [len(pieces) + 2 for pieces in case["tokens"]])
    golden.compared("text tokenizers", f"{name}-{file}")


def same(found, wanted, texts):
    assert found.keys() == wanted.keys()
    for key, rows in wanted.items():
        wrong = [text for text, row, other in zip(texts, found[key], rows, strict=True) if list(row) != list(other)]
        assert not wrong, f"{key} of {wrong}"


TRAIN = """
import json, sys
from kdjax.huggingface.tokenizer import train_vocabulary
texts = json.load(sys.stdin)
print(json.dumps(train_vocabulary(texts, int(sys.argv[1])).tokens))
"""


def test_a_vocabulary_is_the_same_in_every_process_and_for_every_order_of_texts():
    letters = np.random.default_rng(0)
    words = ["".join(letters.choice(list("abcdefghijklmno"), letters.integers(1, 7))) for _ in range(400)]
    texts = [" ".join(letters.choice(words, 8)) for _ in range(300)]
    here = train_vocabulary(texts, 200)
    for seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", TRAIN, "200"],
            input=json.dumps(texts[::-1]),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(result.stdout) == list(here.tokens)
    assert here.tokens[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") and len(here.tokens) == 200


def test_a_trained_vocabulary_encodes_and_comes_back_from_its_folder(tmp_path):
    tokenizer = Tokenizer(train_vocabulary(TEXTS, 60))
    assert tokenizer.tokens("my card") == ["my", "card"]
    assert tokenizer.tokens("##a [SEP]")[:2] == ["#", "#"] or tokenizer.tokens("##a")[0] == "[UNK]"
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.vocabulary == tokenizer.vocabulary and again.vocabulary.digest == tokenizer.vocabulary.digest
    assert np.array_equal(again.encode(TEXTS, 12)["input_ids"], tokenizer.encode(TEXTS, 12)["input_ids"])


def test_half_a_character_is_refused():
    tokenizer = Tokenizer(train_vocabulary(TEXTS, 60))
    with pytest.raises(Refused, match=r"text 1 holds '\\ud83d', one half of a character"):
        tokenizer.encode(["my card", "a \ud83d b"], 12)


def test_digests_tell_vocabularies_apart():
    vocabulary = train_vocabulary(TEXTS, 60)
    cased = vocabulary._replace(lowercase=False)
    shorter = vocabulary._replace(tokens=vocabulary.tokens[:-1])
    assert len({vocabulary.digest, cased.digest, shorter.digest}) == 3


def test_a_mask_is_of_the_tokenizer_and_not_of_the_ids():
    tokenizer = Tokenizer(train_vocabulary(TEXTS, 60))
    rows = tokenizer.encode(["my [PAD] card", ""], 6)
    assert rows["input_ids"][0].tolist().count(tokenizer.pad_id) == 2 and rows["attention_mask"][0].sum() == 5
    assert rows["attention_mask"][1].tolist() == [1, 1, 0, 0, 0, 0]


def write(folder, vocab, **said):
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    if said:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.mark.parametrize(
    "vocab, said, says",
    [
        ([*SPECIAL, "a", "b", "a"], {}, "entry 'a' twice"),
        ([*SPECIAL[:3], "a"], {}, r"lacks the special token \[SEP\]"),
        ([*SPECIAL, "a"], {"cls_token": "<start>"}, "lacks the special token <start>"),
        ([*SPECIAL, "a"], {"cls_token": {"content": "<start>"}}, "lacks the special token <start>"),
        ([*SPECIAL, "Card"], {}, "do_lower_case"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, vocab, said, says):
    write(tmp_path, vocab, **said)
    with pytest.raises(Refused, match=says):
        Vocabulary.from_folder(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"has no tokenizer; expected vocab\.txt or tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_two_files_that_disagree_are_refused(tmp_path):
    name = next(iter(ENTRIES))
    folder = golden.ROOT / golden.read(ENTRIES[name]["case"])["tokenizer"]
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    lowercase = whole["normalizer"]["lowercase"]
    write(tmp_path, [*SPECIAL, "a"], do_lower_case=lowercase)
    with pytest.raises(Refused, match="disagree; expected one vocabulary"):
        Vocabulary.from_folder(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not lowercase}))
    with pytest.raises(Refused, match="do_lower_case"):
        Vocabulary.from_folder(tmp_path)


OTHERWISE = {
    "plain": {},
    "added": {"added_tokens": "@user"},
    "added special": {"added_tokens": "[URL]", "special": True},
    "no mask": {"added_tokens": None},
    "splits": {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    "no ends": {"post_processor": None},
    "long words": {"model": {"max_input_chars_per_word": 3}},
    "dirt": {"normalizer": {"clean_text": False}},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_file_that_differs_from_bert_in_any_part_is_used_itself(tmp_path, name):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    whole = json.loads((golden.ROOT / "tokenizers/uncased/tokenizer.json").read_text(encoding="utf-8"))
    for part, value in OTHERWISE[name].items():
        if part == "added_tokens":
            size, flags = len(whole["model"]["vocab"]), {**whole[part][0], "special": "special" in OTHERWISE[name]}
            whole[part] = [*whole[part], {**flags, "id": size, "content": value}] if value else whole[part][:4]
        elif part != "special":
            whole[part] = {**whole[part], **value} if part in ("model", "normalizer") else value
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    mine, library = Tokenizer.from_folder(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert bool(mine.vocabulary.file) == (name != "plain")
    for text in ("Where is my [URL] card, @user?", "don't it", "my [MASK] card", "my\u200b card\x00"):
        rows = mine.encode([text], 40)
        assert rows["input_ids"][0][rows["attention_mask"][0] == 1].tolist() == library.encode(text).ids, text
    mine.vocabulary.save(tmp_path / "again", max_length=40)
    said = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == ("BertTokenizer" if name == "plain" else "PreTrainedTokenizerFast")
    assert said["model_max_length"] == 40 and said["model_input_names"] == ["input_ids", "attention_mask"]
    assert Vocabulary.from_folder(tmp_path / "again") == mine.vocabulary


@pytest.mark.parametrize(
    "said", [{"added_tokens_decoder": {"9": {"content": "[URL]"}}}, {"additional_special_tokens": ["[URL]"]}, {}]
)
def test_tokens_that_are_added_beside_the_vocabulary_are_refused(tmp_path, said):
    write(tmp_path, [*SPECIAL, "card"], do_lower_case=True, **said)
    if not said:
        (tmp_path / "added_tokens.json").write_text('{"[URL]": 5}')
    with pytest.raises(Refused, match=r"adds the token '\[URL\]' to its vocabulary, and no tokenizer\.json says so"):
        Vocabulary.from_folder(tmp_path)


def test_a_lowercase_vocabulary_needs_no_word_about_it(tmp_path):
    write(tmp_path, [*SPECIAL, "card"])
    assert Vocabulary.from_folder(tmp_path).lowercase is True


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(Refused, match="different characters"):
        train_vocabulary(TEXTS, 8)


def test_without_the_library_the_extra_is_named(monkeypatch):
    vocabulary = Vocabulary.of_tokens([*SPECIAL, "a"], where="test")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'kdjax\[text\]'"):
        Tokenizer(vocabulary)

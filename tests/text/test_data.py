"""Texts from files to token ids: splits, vocabularies, lengths, what is counted, and what is refused."""

import gzip
import json

import jax
import numpy as np
import pytest

from kdjax import data, models
from kdjax.data import encoded, text, text_sets
from kdjax.errors import Refused
from kdjax.parts import parts
from kdjax.prepare import Tokens, from_description
from kdjax.recipes import Data, Distill, Recipe

CLASSES = ("billing", "card", "greeting")
WORDS = {"billing": "invoice refund charge", "card": "pin card blocked", "greeting": "hello good morning"}


def examples(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, class) pairs, each text another one."""
    lot = np.random.default_rng(seed)
    return [
        (f"{' '.join(lot.choice(WORDS[name].split(), 3))} number {seed}{i}", name)
        for i, name in enumerate(CLASSES[j % 3] for j in range(count))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train.csv, test.tsv and validation.jsonl.gz of one set."""
    path = tmp_path_factory.mktemp("own")
    rows = [f'"{words}",{name}' for words, name in examples(60, 1)]
    (path / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    rows = [f"{words}\t{name}" for words, name in [*examples(30, 2), ('"quoted" hello', "greeting")]]
    (path / "test.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    with gzip.open(path / "validation.jsonl.gz", "wt") as file:
        for words, name in examples(15, 3):
            file.write(json.dumps({"text": words, "label": name}) + "\n")
    return path


@pytest.fixture(scope="module")
def dataset(folder):
    return data.load("text", path=folder, vocab_size=90)


def test_own_texts_become_token_ids(dataset, capsys):
    assert dataset.kind == "text" and dataset.label_names == CLASSES and dataset.num_classes == 3
    assert [len(split.label) for split in (dataset.train, dataset.calibration, dataset.test)] == [60, 15, 31]
    inputs = dataset.train.inputs
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (60, dataset.prepare.max_length)
    assert inputs["input_ids"].max() < dataset.prepare.size <= 90
    assert (dataset.train.label == [i % 3 for i in range(60)]).all()
    assert isinstance(dataset.prepare, Tokens) and from_description(dataset.prepare.describe()) == dataset.prepare


def test_lengths_are_printed(folder, capsys):
    data.load("text", path=folder, vocab_size=90, max_length=5)
    said = capsys.readouterr().err
    assert "text train: 60 texts of" in said and "(median)" in said and "100.0% are cut at 5" in said
    assert "more than 5 % are cut: raise data.max_length" in said


def test_the_fingerprint_is_of_texts_and_vocabulary_and_not_of_places(folder, dataset, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert data.load("text", path=tmp_path, vocab_size=90).fingerprint == dataset.fingerprint
    others = [{"vocab_size": 80}, {"max_length": 16}, {"lowercase": False}]
    prints = {data.load("text", path=folder, **{"vocab_size": 90, **other}).fingerprint for other in others}
    assert len(prints | {dataset.fingerprint}) == 4


def test_where_a_tokenizer_lies_is_in_no_id():
    here, there, none = (
        Recipe(data=Data(name="text", path=f"{place}.csv", options={"tokenizer": place} if place else {}))
        for place in ("here", "there", "")
    )
    assert here.canonical() == there.canonical() == none.canonical()
    assert "here" not in json.dumps(here.resolved())
    longer = Recipe(data=Data(name="text", options={"tokenizer": "here", "max_length": 32}))
    assert longer.canonical() != here.canonical()


@pytest.mark.parametrize("classes", [None, 2, (2, 0), ("card", "billing")])
def test_what_is_held_out_does_not_shape_the_vocabulary(tmp_path, classes):
    """A word that occurs in held-out texts alone is no entry."""
    rows = examples(60, 1)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{w},{n}\n" for w, n in rows))
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"{w},{n}\n" for w, n in examples(12, 2)))
    options = {"path": tmp_path, "calibration_fraction": 0.2, "classes": classes}
    held = data.load("text", **options).calibration.index
    assert len(held) == 12 if classes is None else 8
    for i in held:
        rows[i] = (f"{rows[i][0]} zebrawood", rows[i][1])
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{w},{n}\n" for w, n in rows))
    marked = data.load("text", vocab_size=90, **options)
    assert not any(token.endswith("wood") for token in marked.prepare.entries.tokens)
    raw = text.user_texts(path=tmp_path)
    kept, _ = text.kept_rows(raw, 0, 0.2, None, classes)
    assert sorted({*range(60)} - {*kept.tolist()}) == marked.calibration.index.tolist() == held.tolist()
    encoder = text.tokenizer_of(raw, kept, tokenizer="", vocab_size=90, lowercase=True)
    assert encoder.vocabulary.digest == marked.prepare.vocabulary
    named = {key: value for key, value in options.items() if key != "path"}
    assert text.foreign(marked, ["a card"], path=tmp_path, vocab_size=90, **named)["input_ids"].shape[0] == 1


def test_the_tokenizer_of_a_folder_is_taken(folder, dataset, tmp_path):
    raw = text.user_texts(path=folder)
    encoder = text.tokenizer_of(raw, text.kept_rows(raw, 0, 0.1, None)[0], tokenizer="", vocab_size=90, lowercase=True)
    encoder.save(tmp_path)
    assert data.load("text", path=folder, tokenizer=tmp_path).fingerprint == dataset.fingerprint
    with pytest.raises(Refused, match="has no tokenizer"):
        data.load("text", path=folder, tokenizer=tmp_path / "nowhere")


def test_one_file_is_one_pool(tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"words": w, "class": CLASSES.index(n)}) + "\n" for w, n in examples(60, 1))
    )
    columns = {"text_column": "words", "label_column": "class"}
    with pytest.raises(Refused, match=r"set data\.num_classes=K"):
        data.load("text", path=tmp_path / "mine.jsonl", **columns)
    own = data.load("text", path=tmp_path / "mine.jsonl", num_classes=3, vocab_size=90, **columns)
    assert [len(split.label) for split in (own.train, own.calibration, own.test)] == [43, 5, 12]
    assert (
        data.load("text", path=tmp_path / "mine.jsonl", num_classes=3, test_examples=9, **columns).test.label.size == 9
    )
    with pytest.raises(Refused, match="did you mean words"):
        data.load("text", path=tmp_path / "mine.jsonl", num_classes=3, text_column="word", label_column="class")


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "text,label\nhello,x\n   ,y\n", "1 empty texts, the first in example 1"),
        ("a.csv", 'text,label\n"open,x\n', "cannot be read after line"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label,Split\nhello,x,train\n", "has a column 'Split', .*set data.path=FOLDER, or remove"),
        ("a.csv", "id,sentence,label\n1,hello,x\n", "known: id, label, sentence. .*data.options.text_column=sentence"),
        ("a.csv", "n,text,kind\n1,hello,x\n", "no 'label' in line 2; .* set data.options.label_column=kind"),
        ("a.csv", "text,label\nhello\n", "has 1 values in line 2 and 2 columns; .* fill in what is missing"),
        (
            "a.csv",
            "text,label\nhello,x\nhello, you,y\n",
            "3 values in line 3 and 2 columns; .* put quotes around values",
        ),
        ("a.tsv", "text\tlabel\nhello\tyou\ty\n", "3 values in line 2 and 2 columns; .* remove the tabs inside"),
        ("a.csv", "text,label,label\nhello,x,y\n", "has the column 'label' twice"),
        (
            "a.jsonl",
            '{"text": "hello", "label": "x"}\n{"text": "good", "label": "x", "label": "y"}\n',
            "has 'label' twice in line 2; expected each once",
        ),
        (
            "a.csv",
            'text,label\nhello,1\n"two\nlines",\n',
            "no 'label' in line 4; expected a value in every row: fill it",
        ),
        ("a.csv", "text,label\nhello, \n", "no 'label' in line 2; expected a value in every row: fill it in"),
        ("a.jsonl", '{"text": "x", "label": ""}\n', "no 'label' in line 1; expected a value in every row: fill it in"),
        ("a.jsonl", '{"text": "x \\ud83d", "label": 1}\n', r"line 1 of .*a\.jsonl holds '\\ud83d', one half of a char"),
        ("a.jsonl", '{"text": "x", "label": ' + "9" * 5000 + "}\n", "cannot be read after line 0"),
        ("a.tsv", 'text\tlabel\n"he said ""x"""\ty\n', r'has "he said ""x""" in line 2, .* write the table as \.csv'),
        ("a.tsv", '"text"\t"label"\n"x"\t"y"\n', r'has "text" in line 1, with the quotation marks'),
        ("a.txt", "hello", r"ends in \.txt; expected \.jsonl"),
        ("a.jsonl", '{"text": 3, "label": 1}\n', "expected a text, and a name or an integer as label"),
        ("a.jsonl", '{"text": "x"\n', "cannot be read after line 0"),
        (
            "a.jsonl",
            '{"text": "x", "label": 4}\n{"text": "y", "label": 0}\n',
            "has the label 4 in example 0; expected 0 to 1",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    options = {"num_classes": 2} if name.endswith("jsonl") else {}
    with pytest.raises(Refused, match=says):
        text.user_texts(path=tmp_path / name, **options)


def test_a_packed_file_that_is_damaged_is_refused(tmp_path):
    packed = bytearray(gzip.compress(b"text,label\nhello,x\n"))
    packed[10] = 0xFF  # no such kind of block
    (tmp_path / "a.csv.gz").write_bytes(packed)
    with pytest.raises(Refused, match="cannot be read after line 0 .*; expected UTF-8 csv"):
        text.user_texts(path=tmp_path / "a.csv.gz")


def test_blanks_around_a_label_are_no_part_of_it(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f"{w},{n}{' ' * (len(w) % 2)}\n" for w, n in examples(30, 1))
    )
    assert text.user_texts(path=tmp_path / "a.csv").label_names == CLASSES


@pytest.mark.parametrize(
    "options, says",
    [
        ({"lowercase": 0}, "data.options.lowercase is 0; expected True or False"),
        ({"lowercase": "no"}, "data.options.lowercase is 'no'; expected True or False"),
        ({"text_column": ["text"]}, r"data.options.text_column is \['text'\]; expected the name of one column"),
        ({"label_column": "text"}, "text_column and label_column are both 'text'; expected two columns"),
        ({"path": 3}, "data.path is 3; expected the path of a file or a folder"),
        ({"label_column": "id"}, "each of the 9 examples in .* is alone in its class"),
    ],
)
def test_options_of_texts_are_checked(tmp_path, options, says):
    rows = "".join(f"hello {i},{'yes' if i % 2 else 'no'},number {i}\n" for i in range(9))
    (tmp_path / "a.csv").write_text(f"text,label,id\n{rows}")
    with pytest.raises(Refused, match=says):
        data.load("text", **{"path": tmp_path / "a.csv", **options})


def test_val_is_the_calibration_split_of_a_folder(tmp_path):
    for what, n in (("train", 30), ("test", 12), ("val", 9)):
        rows = "".join(f"{w},{label},{what}\n" for w, label in examples(n, n))
        (tmp_path / f"{what}.csv").write_text(f"text,label,split\n{rows}")
    assert [len(split.text) for split in text.user_texts(path=tmp_path).splits.values()] == [30, 9, 12]
    (tmp_path / "val.csv").rename(tmp_path / "valid.csv")
    assert len(text.user_texts(path=tmp_path).splits["calibration"].text) == 9
    (tmp_path / "validation.csv").write_text("text,label\nhello,card\n")
    with pytest.raises(Refused, match="has valid.csv and validation.csv; expected one file for calibration"):
        text.user_texts(path=tmp_path)
    (tmp_path / "validation.csv").unlink()
    (tmp_path / "valid.csv").rename(tmp_path / "dev.csv")
    (tmp_path / "unlabeled.csv").write_text("text\nhello\n")
    with pytest.warns(UserWarning, match="also holds unlabeled.csv, which nothing reads"):
        assert len(text.user_texts(path=tmp_path).splits["calibration"].text) == 9
    (tmp_path / "unlabeled.csv").unlink()
    (tmp_path / "train.jsonl").write_text('{"text": "hello", "label": "card"}\n')
    with pytest.raises(Refused, match=r"has train\.jsonl and train\.csv; expected one file for train: keep one"):
        text.user_texts(path=tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with (tmp_path / "train.csv").open("a") as file:
        file.write("hello,card,test\n")
    with pytest.raises(
        Refused, match=r"train\.csv has 'train' and, in line 32, 'test' in its column 'split', .*remove"
    ):
        text.user_texts(path=tmp_path)


def test_empty_texts_can_be_left_out(tmp_path, capsys):
    rows = [*examples(30, 1), ("", "card")]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{w},{n}\n" for w, n in rows))
    raw = text.user_texts(path=tmp_path / "a.csv", skip_bad=True)
    assert sum(len(split.text) for split in raw.splits.values()) == 30
    assert "1 empty texts are left out" in capsys.readouterr().err


def token_arrays(n: int, **changes):
    ids = np.tile(np.arange(1, 7, dtype=np.int32), (n, 1)) + np.arange(n, dtype=np.int32)[:, None]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **changes}


def test_tokens_of_ones_own_are_checked_before_anything_compiles():
    label = np.arange(12) % 3
    test = (
        token_arrays(3, input_ids=np.full((3, 6), 30, np.int32) + np.arange(3, dtype=np.int32)[:, None]),
        np.arange(3),
    )
    with pytest.raises(Refused, match="train has 1 texts whose attention_mask is 0 everywhere, the first in example 4"):
        mask = np.ones((12, 6), np.int32)
        mask[4] = 0
        data.from_arrays((token_arrays(12, attention_mask=mask), label), test, num_classes=3)
    with pytest.raises(Refused, match="token ids outside the vocabulary.* no negative ones"):
        data.from_arrays((token_arrays(12, input_ids=-np.ones((12, 6), np.int32)), label), test, num_classes=3)
    own = data.from_arrays((token_arrays(12), label), test, num_classes=3)
    recipe = Recipe(model="bert_1l_8", model_options={"vocab_size": 20, "num_attention_heads": 2}, batch_size=4)
    with pytest.raises(Refused, match=r"ids outside the vocabulary.*expected 0 to 19, the rows of the word table"):
        parts(recipe, own)


def test_a_network_with_fewer_words_than_the_data_is_refused(dataset):
    recipe = Recipe(model="bert_1l_8", model_options={"vocab_size": 40, "num_attention_heads": 2}, batch_size=4)
    with pytest.raises(Refused, match=rf"set model_options\.vocab_size={dataset.prepare.size}"):
        parts(recipe, dataset)
    assert models.vocab_size("bert_1l_8", vocab_size=40) == 40 and models.vocab_size("conv") is None


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"vocab_size": 80}, "same tokenizer, vocab_size and lowercase"),
        ({"lowercase": False}, "same tokenizer, vocab_size and lowercase"),
        ({"max_length": 20}, "same max_length"),
    ],
)
def test_teacher_and_student_read_the_same_ids(folder, dataset, changes, says):
    data.verify_splits(dataset, dataset)
    other = data.load("text", path=folder, **{"vocab_size": 90, **changes})
    with pytest.raises(Refused, match=says):
        data.verify_splits(other, dataset)


def test_teacher_and_student_name_the_classes_alike(dataset):
    turned = dataset._replace(label_names=(CLASSES[1], CLASSES[0], CLASSES[2]))
    with pytest.raises(Refused, match="class 0 is 'card' in the teacher's .* and 'billing' in the student's"):
        data.verify_splits(turned, dataset)


@pytest.mark.parametrize("transform", ["pad_crop", "mixup", "two_views", "flip"])
def test_transforms_of_images_refuse_tokens(dataset, transform):
    options = {"vocab_size": 90, "num_attention_heads": 2}
    with pytest.raises(Refused, match=transform):
        parts(Recipe(model="bert_1l_8", model_options=options, transform=(transform,), batch_size=4), dataset)


@pytest.mark.parametrize("changes", [{"method": "mixup"}, {"distill": Distill("mlld")}], ids=["mixup", "mlld"])
def test_methods_that_change_images_refuse_tokens(dataset, changes):
    options = {"vocab_size": 90, "num_attention_heads": 2}
    with pytest.raises(Refused, match=r"method '(mixup|mlld)' changes its inputs as pixels can be changed"):
        parts(Recipe(model="bert_1l_8", model_options=options, batch_size=4, **changes), dataset)


def test_a_network_for_images_refuses_tokens(dataset):
    model = parts(Recipe(model="conv_tiny", batch_size=4), dataset).model
    with pytest.raises(Refused):
        jax.eval_shape(model.init, jax.random.key(0), dataset.train.inputs)


MESSAGE = "From: a@b\nSubject: rec.autos\n\nIn article <1> x writes:\n> old words\nNew words here.\n\n--\nName, Town\n"


def test_newsgroups_are_stripped_by_policy():
    assert text_sets.without_header(MESSAGE).startswith("In article")
    assert text_sets.body(MESSAGE) == "New words here.\n"
    assert text_sets.body("a header without a body") == ""


def test_public_sets_are_read_from_a_folder(tmp_path, monkeypatch):
    root = tmp_path / "banking77"
    root.mkdir()
    (root / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    for what, rows in (("train", examples(60, 1)), ("test", [*examples(12, 2), examples(60, 1)[0]])):
        lines = [json.dumps({"text": w, "label": CLASSES.index(n), "label_name": n}) for w, n in rows]
        (root / f"{what}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.delenv("KDJAX_TEXT_DIR", raising=False)
    with pytest.raises(Refused, match="KDJAX_TEXT_DIR"):
        data.load("banking77")
    monkeypatch.setenv("KDJAX_TEXT_DIR", str(tmp_path))
    with pytest.warns(UserWarning, match="1 of 13 test examples also occur in train"):
        read = data.load("banking77", vocab_size=90)
    assert read.num_classes == 3 and len(read.calibration.label) == 6
    outside = text.foreign(read, ["hello card", "zzz"], vocab_size=90)
    assert outside["input_ids"].shape == (2, read.prepare.max_length)
    with pytest.raises(Refused, match="another vocabulary"):
        text.foreign(read, ["hello"], vocab_size=80)
    with pytest.raises(Refused, match="no texts out of scope"):
        text.foreign(read, vocab_size=90)
    with pytest.raises(Refused, match="there is no folder .*hwu64; did you mean|there is no folder .*hwu64; known"):
        data.load("hwu64")
    with pytest.raises(Refused, match="policy"):
        data.load("newsgroups20", policy="headers")


@pytest.mark.parametrize("options", [{"vocab_size": 90}, {"vocab_size": 90, "max_length": 8, "lowercase": False}])
def test_a_set_is_encoded_once_and_comes_back_the_same(folder, tmp_path, monkeypatch, options):
    plain = data.load("text", path=folder, **options)
    monkeypatch.setattr(encoded, "KEPT_ABOVE", 0)
    first = data.load("text", path=folder, cache_dir=tmp_path, **options)
    plain.prepare.entries.save(tmp_path / "words")
    monkeypatch.setattr(text, "tokenizer_of", None)  # whoever encodes now, fails
    again = data.load("text", path=folder, cache_dir=tmp_path, **options)
    for one in (first, again):
        assert one.fingerprint == plain.fingerprint and one.prepare.entries == plain.prepare.entries
        assert jax.tree.all(jax.tree.map(np.array_equal, one.train, plain.train))
        assert jax.tree.map(lambda x: x.dtype, one.test) == jax.tree.map(lambda x: x.dtype, plain.test)
    for other in ({**options, "vocab_size": 80}, {**options, "max_length": 12}, {"tokenizer": tmp_path / "words"}):
        with pytest.raises(TypeError, match="not callable"):
            data.load("text", path=folder, cache_dir=tmp_path, **other)

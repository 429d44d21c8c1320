"""No golden case of text is left out in silence."""

from tests.text import golden

SWEPT = {"models", "training", "tokenizers", "loading"}


def test_the_index_holds_nothing_that_no_test_reads():
    assert golden.index().keys() <= SWEPT | {"set", "versions"}
    verdicts = {case["verdict"] for case in golden.read(golden.index()["loading"])["cases"]}
    assert verdicts == {"accept", "refuse"}


def test_every_file_of_the_set_is_listed():
    listed = {case.split("/")[-1] for case in golden.cases()["text folders"]}
    lying = {path.name for verdict in ("accept", "refuse") for path in (golden.ROOT / "loading" / verdict).iterdir()}
    assert lying == listed
    names = {entry["name"] for entry in golden.index()["models"]}
    assert {path.stem for path in (golden.ROOT / "cases").glob("*.json")} == names | {"training"}

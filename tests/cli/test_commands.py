"""What the commands read, say, measure and write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from html import escape
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from kdjax import metrics, posthoc
from kdjax.cli import main
from kdjax.cli.labels import class_names
from kdjax.cli.predictions import How, read
from kdjax.cli.snippet import snippet
from kdjax.errors import Refused
from tests.cli.files import LABELS, LOGITS, PROBS, K, N, npz, probabilities, table
from tests.test_report import Read

ROOT = Path(__file__).parents[2]
NAMES = np.array(["cat", "dog", "cow"])


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def same(predictions, labels=LABELS, probs=PROBS, atol=1e-6):
    np.testing.assert_allclose(softmax(predictions.logits, axis=1), probs, atol=atol)
    np.testing.assert_array_equal(predictions.labels, labels)
    assert predictions.labels.dtype == np.int64


def parquet(path, columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


class TestReading:
    def test_arrays_of_every_kind(self, tmp_path):
        from safetensors.numpy import save_file

        same(read(npz(tmp_path / "a.npz", logits=LOGITS, labels=LABELS), How()))
        same(
            read(npz(tmp_path / "b.npz", anything=LOGITS.astype(np.float16), else_=LABELS.astype(np.uint8)), How()),
            atol=1e-2,
        )
        same(read(npz(tmp_path / "c.npz", a=LOGITS, b=2 * LOGITS, y=LABELS), How(scores="a")))
        same(read(npz(tmp_path / "f.npz", logits=np.asfortranarray(LOGITS), y=LABELS.astype(">i4")), How()))
        np.savez_compressed(tmp_path / "d.npz", probs=PROBS, target=LABELS)
        same(read(tmp_path / "d.npz", How()))
        np.save(tmp_path / "e.npy", PROBS)
        np.save(tmp_path / "y.npy", LABELS)
        same(read(tmp_path / "e.npy", How(labels=str(tmp_path / "y.npy"))))
        save_file({"logits": LOGITS.astype(np.float32), "labels": LABELS}, tmp_path / "g.safetensors")
        same(read(tmp_path / "g.safetensors", How()))

    def test_bfloat16(self, tmp_path):
        import ml_dtypes
        from safetensors.numpy import save_file

        save_file({"logits": LOGITS.astype(ml_dtypes.bfloat16), "labels": LABELS}, tmp_path / "h.safetensors")
        same(read(tmp_path / "h.safetensors", How()), atol=0.02)

    def test_tables_of_every_kind(self, tmp_path):
        same(read(probabilities(tmp_path / "a.csv"), How()))
        rows = [[i, *p, NAMES[y], "x"] for i, (p, y) in enumerate(zip(PROBS, LABELS, strict=True))]
        mixed = read(table(tmp_path / "b.csv", ["id", "p_cat", "p_dog", "p_cow", "truth", "note"], rows), How())
        same(mixed)
        assert mixed.classes == tuple(NAMES) and "left out: 'id', 'note'" in mixed.said
        text = (tmp_path / "a.csv").read_text()
        (tmp_path / "c.tsv").write_text("\ufeff" + text.replace(",", "\t").replace("\n", "\r\n"))
        same(read(tmp_path / "c.tsv", How()))
        (tmp_path / "d.csv").write_text(
            text.replace("p_cat", '"p_cat"').replace("\n0.", '\n"0.', 1).replace(",", '",', 1)
        )
        quoted = "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines())
        (tmp_path / "d.csv").write_text(quoted)
        same(read(tmp_path / "d.csv", How()))
        same(read(tmp_path / "b.csv", How(scores="p_*", labels="truth")))
        (tmp_path / "e.csv").write_text("\n".join(",".join(map(str, row)) for row in PROBS))
        (tmp_path / "y.txt").write_text("\n".join(map(str, LABELS)))
        same(read(tmp_path / "e.csv", How(labels=str(tmp_path / "y.txt"))))
        columns = {f"p_{k}": PROBS[:, k] for k in range(K)}
        same(read(parquet(tmp_path / "f.parquet", {**columns, "label": LABELS}), How()))
        same(
            read(parquet(tmp_path / "g.parquet", {**columns, "label": NAMES[LABELS]}), How()),
            np.argsort(np.argsort(NAMES))[LABELS],
        )
        same(read(parquet(tmp_path / "h.parquet", {"probs": list(PROBS), "id": np.arange(N), "label": LABELS}), How()))

    def test_the_heading_that_pandas_writes_of_columns_without_names(self, tmp_path):
        """0,1,2 is no example; a column of labels called 0 has one line too many, and the sentence says what to do."""
        path = table(tmp_path / "p.csv", "012", PROBS)
        labels = table(tmp_path / "y.csv", ["label"], LABELS[:, None])
        same(read(path, How(labels=str(labels))))
        assert read(path, How()).classes == ()
        unnamed = table(tmp_path / "z.csv", "0", LABELS[:, None])
        with pytest.raises(Refused, match=r"60 examples and 61 labels .*is its first line a heading\? call it label"):
            read(path, How(labels=str(unnamed)))
        two = table(tmp_path / "two.csv", "01", PROBS[:, :2] / PROBS[:, :2].sum(1, keepdims=True))
        assert read(two, How()).logits.shape == (N, 2)

    def test_a_column_beside_the_scores_can_be_left_out(self, tmp_path):
        rows = [[*p, p.argmax(), y] for p, y in zip(PROBS, LABELS, strict=True)]
        path = table(tmp_path / "p.csv", ["p_cat", "p_dog", "p_cow", "pred", "label"], rows)
        same(read(path, How(scores="p_*")))

    def test_labels_from_one_and_as_strings_are_recognized_and_said(self, tmp_path):
        one = read(npz(tmp_path / "a.npz", logits=LOGITS, labels=LABELS + 1), How())
        same(one)
        assert "integers from 1, so 1 is subtracted (the largest is 3, of 3 classes)" in one.said[-1]
        same(read(npz(tmp_path / "b.npz", logits=LOGITS, labels=NAMES[LABELS], classes=NAMES), How()))
        alphabetical = read(npz(tmp_path / "c.npz", logits=LOGITS, labels=NAMES[LABELS]), How())
        same(alphabetical, np.argsort(np.argsort(NAMES))[LABELS])
        assert "alphabetical order, as scikit-learn numbers them (cat = 0, cow = 1, dog = 2)" in alphabetical.said[-1]
        same(read(probabilities(tmp_path / "d.csv", ("10", "20", "30"), 10 * (LABELS + 1)), How()))
        same(read(probabilities(tmp_path / "e.csv", ("p_1", "p_2", "p_3"), LABELS + 1), How()))

    def test_the_kind_of_the_scores_is_said_and_can_be_forced(self, tmp_path):
        path = npz(tmp_path / "a.npz", scores=PROBS, labels=LABELS)
        found = read(path, How())
        assert found.scores == "probabilities" and "every row sums to 1" in found.said[1]
        forced = read(path, How(kind="logits"))
        np.testing.assert_array_equal(forced.logits, PROBS)
        assert "but every row is a probability distribution" in forced.said[1]
        rounded = read(npz(tmp_path / "b.npz", p=PROBS.round(3), labels=LABELS), How())
        assert "is divided by its sum" in rounded.said[1]
        same(rounded, atol=2e-3)
        log = read(npz(tmp_path / "c.npz", p=log_softmax(LOGITS, axis=1), labels=LABELS), How())
        assert log.scores == "logits"
        zero = PROBS.copy()
        zero[0] = np.eye(K)[(LABELS[0] + 1) % K]
        assert (
            "1 labels have a probability of 0, an infinite NLL"
            in read(npz(tmp_path / "d.npz", p=zero, y=LABELS), How()).said[-1]
        )

    @pytest.mark.parametrize(
        ("heads", "names"),
        [
            (["p_cat", "p_car"], ("cat", "car")),
            (["prob_10", "prob_11"], ("10", "11")),
            (["class1", "class10"], ("1", "10")),
            (["cat", "dog"], ("cat", "dog")),
            (["0", "1"], ("0", "1")),
            (["x"], ("x",)),
        ],
    )
    def test_class_names_of_headings(self, heads, names):
        assert class_names(heads) == names

    def test_class_names_begin_where_the_labels_do(self):
        heads = ["p_big cat", "p_big dog"]
        assert class_names(heads) == ("cat", "dog")
        assert class_names(heads, ["big dog"]) == ("big cat", "big dog")
        assert class_names(heads, ["p_big dog"]) == tuple(heads)


def test_audit_writes_a_page_and_the_metrics_numbers(tmp_path, capsys):
    path, other = probabilities(tmp_path / "a.csv"), npz(tmp_path / "b.npz", logits=3 * LOGITS, labels=LABELS)
    assert main(["audit", str(path), str(other), "--calibration", str(path), "--out=page.html", "--bins=10"]) == 0
    out = capsys.readouterr().out
    data = json.loads((tmp_path / "page.json").read_text())
    for audit, logits in zip(data["audits"], (np.log(PROBS), 3 * LOGITS), strict=True):
        expected = metrics.evaluate(logits, LABELS, bins=10)
        for name, values in audit["metrics"].items():
            if name != "gap":
                assert values["value"] == pytest.approx(expected[name], abs=1e-6), name
            assert values["low"] <= values["value"] <= values["high"]
        assert sum(one["examples"] for one in audit["bins"]) == sum(c["examples"] for c in audit["per_class"]) == N
        assert 0.3 < audit["after_one_temperature"]["temperature"] < 10
    assert [c["class"] for c in data["audits"][0]["per_class"]] == list(NAMES)
    ece = 100 * data["audits"][1]["metrics"]["ece"]["value"]
    assert f"{ece:.2f} %" in out and "b.npz says" in out and "over-confident by" in out
    page = Read((tmp_path / "page.html").read_text())
    text = "".join(page.text)
    assert f"{ece:.2f} %" in text and "One temperature fitted on the calibration file" in text
    assert "fewer than 20 examples" in text
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 2 and tags.count("table") == 6 and "script" not in tags
    assert len((tmp_path / "page.html").read_text()) < 2**20


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_is_read_on_a_telephone_without_sideways_scrolling(tmp_path, capsys):
    rows = [[*PROBS[i], "a class of a rather long name"[: 5 + 8 * LABELS[i]]] for i in range(N)]
    heads = [f"p_{'a class of a rather long name'[: 5 + 8 * k]}" for k in range(K)]
    table(tmp_path / "predictions_of_a_model_with_quite_a_long_name.csv", [*heads, "label"], rows)
    assert main(["audit", "predictions_of_a_model_with_quite_a_long_name.csv"]) == 0
    html = (tmp_path / "audit.html").read_text()
    measure = """<script>addEventListener("load", () => {
      const boxes = [...document.querySelectorAll("table, img")];
      const wide = boxes.filter(box => box.scrollWidth > box.parentElement.clientWidth);
      const sizes = [document.documentElement.scrollWidth, innerWidth, wide.length];
      parent.document.title = [...sizes, document.querySelector("img").naturalWidth].join(" ");
    })</script>"""
    page = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", f"{measure}</body>")
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=420,800", "--dump-dom",
         (tmp_path / "audit.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr and "Numbers" in done.stdout
    framed = f'<title></title><iframe width="420" height="800" srcdoc="{escape(page)}"></iframe>'
    (tmp_path / "measured.html").write_text(framed)
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--window-size=420,800", "--dump-dom", (tmp_path / "measured.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert title, done.stderr[-500:]
    scroll, width, wider, picture = map(int, title.groups())
    assert width == 420 and scroll <= width and wider == 0 and picture > 300


def test_names_from_files_are_escaped_and_stripped(tmp_path, capsys):
    evil = "<script>alert(1)</script>"
    path = probabilities(tmp_path / "<b>a$x$\x1b[31m.csv", (f"p_{evil}", "p_\x1b]0;owned\x07\u202e", "p_&amp;"))
    assert main(["audit", str(path)]) == 0
    out, err = capsys.readouterr()
    html = (tmp_path / "audit.html").read_text()
    for written in (out, err, html):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", written)
    assert "<script" not in html and "<b>" not in html and "&lt;script&gt;" in html
    assert evil in "".join(Read(html).text)
    assert main(["audit", str(tmp_path / "\x1b[31mno.csv")]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["temperature", "classwise_temperature", "vector", "dirichlet", "isotonic"])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_the_printed_snippet_applies_the_calibrator(name, scores, tmp_path):
    params = posthoc.get(name).fit(LOGITS, LABELS)
    made = posthoc.Calibrator(**{**posthoc.fitted(name, params, num_classes=K).__dict__, "scores": scores})
    made.save(tmp_path / "it's.json")
    code = snippet(made, "it's.json")
    assert len(code.splitlines()) <= 10 and "kdjax" not in code and max(map(len, code.splitlines())) < 110
    np.save(tmp_path / f"{scores}.npy", LOGITS if scores == "logits" else PROBS)
    (tmp_path / "snippet.py").write_text(code + "\nnp.save('out.npy', p)\n")
    subprocess.run([sys.executable, "snippet.py"], check=True, cwd=tmp_path, timeout=60)
    expected = made(LOGITS) if scores == "logits" else made.of_probabilities(PROBS)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-9)


def larger(path, seed, sharpness=3.0, n=500):
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, K))
    labels = (z + rng.gumbel(size=(n, K))).argmax(1)
    npz(path, logits=sharpness * z, labels=labels)
    return sharpness * z, labels


class TestCalibrate:
    def test_picks_saves_and_measures(self, tmp_path, capsys):
        larger(tmp_path / "val.npz", 0)
        z, y = larger(tmp_path / "test.npz", 1)
        assert main(["calibrate", "--fit=val.npz", "--test=test.npz", "--methods=temperature,isotonic"]) == 0
        out = capsys.readouterr().out
        assert "Chosen by the NLL: temperature" in out and "on test.npz" in out
        assert out.index("temperature  ") < out.index("isotonic  ") < out.index("as it is  "), "best first, all shown"
        fitted = posthoc.load("calibrator.json")
        assert float(fitted.params["T"]) == pytest.approx(3.0, rel=0.15)
        measured = fitted.about["measured"]
        confidence, correct = metrics.top_label(z, y)
        assert measured["before"]["ece"] == pytest.approx(float(metrics.ece(confidence, correct)))
        assert measured["after"]["nll"] == pytest.approx(metrics.nll(np.log(fitted(z)), y))
        assert measured["after"]["ece"] < 0.5 * measured["before"]["ece"]
        code = "\n".join(
            line[4:] for line in out.partition("without kdjax:")[2].splitlines() if line.startswith("    ")
        )
        np.save("logits.npy", z)
        Path("snippet.py").write_text(code + "\nnp.save('out.npy', p)\n")
        subprocess.run([sys.executable, "snippet.py"], check=True, timeout=60)
        np.testing.assert_allclose(np.load("out.npy"), fitted(z), rtol=1e-9)

    def test_without_a_test_it_measures_out_of_fold(self, tmp_path, capsys):
        larger(tmp_path / "val.npz", 0)
        assert main(["calibrate", "--fit=val.npz"]) == 0
        out = capsys.readouterr().out
        assert "each fifth of it by a fit on the rest" in out
        table = re.findall(r"^  (\w[\w ]*\w)  +(\d\.\d{4})  ", out, re.MULTILINE)[:6]
        assert {name for name, _ in table} == {
            "as it is", "temperature", "vector", "dirichlet", "isotonic", "classwise_temperature"
        }  # fmt: skip
        assert [float(nll) for _, nll in table] == sorted(float(nll) for _, nll in table)

    def test_a_calibrated_model_is_left_alone(self, tmp_path, capsys):
        larger(tmp_path / "val.npz", 3, sharpness=1.0, n=300)
        assert main(["calibrate", "--fit=val.npz", "--methods=isotonic"]) == 0
        assert "No method lowers the NLL" in capsys.readouterr().out
        assert posthoc.load("calibrator.json").params == {"T": 1.0}

    def test_a_method_from_outside(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "halving.py").write_text(
            "import numpy as np\nfrom kdjax import posthoc\n"
            "def fit(logits, labels, *, weight=None): return {'f': np.float64(1 / 3)}\n"
            "def apply(params, logits): return logits * params['f']\n"
            "posthoc.register('halving', fit, apply)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr("kdjax.posthoc.registry.POSTHOC", dict(posthoc.POSTHOC))
        larger(tmp_path / "val.npz", 0)
        assert main(["calibrate", "--fit=val.npz", "--methods=halving", "--import=halving"]) == 0
        assert main(["apply", "calibrator.json", "val.npz", "--out=after.npy", "--import=halving"]) == 0
        expected = softmax(np.load("val.npz")["logits"] / 3, axis=1)
        np.testing.assert_allclose(np.load("after.npy"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "npz", "npy", "parquet", "safetensors"])
def test_apply_writes_what_audit_reads(ending, tmp_path, capsys):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    posthoc.fitted("temperature", {"T": np.float64(2.0)}, num_classes=K, classes=tuple(NAMES)).save("c.json")
    probabilities(tmp_path / "a.csv", labels=NAMES[LABELS])
    assert main(["apply", "c.json", "a.csv", f"--out=b.{ending}"]) == 0
    np.save("y.npy", LABELS)
    back = read(tmp_path / f"b.{ending}", How(labels="y.npy" if ending == "npy" else ""))
    same(back, probs=softmax(LOGITS / 2, axis=1))
    assert back.scores == "probabilities" and back.classes == (() if ending in ("npy", "safetensors") else tuple(NAMES))


def test_a_label_that_has_no_probability_is_told_and_leaves_the_rest(tmp_path, capsys):
    """Its NLL is infinite: null in the JSON, and of two such models neither is better."""
    masked = LOGITS.copy()
    masked[np.arange(4), LABELS[:4]] = -np.inf
    paths = [npz(tmp_path / f"{name}.npz", logits=z, labels=LABELS) for name, z in (("a", masked), ("b", 2 * masked))]
    assert main(["audit", str(paths[0]), "--out", "a.html"]) == 0
    assert "4 labels have a logit of -inf" in capsys.readouterr().out
    said = json.loads(Path("a.json").read_text())["audits"][0]["metrics"]
    assert said["nll"] == {"value": None, "low": None, "high": None} and said["ece"]["value"] > 0
    assert main(["compare", *map(str, paths)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("NLL")]
    assert line.split() == ["NLL", "inf", "inf", "-", "-"]
    small = PROBS.copy()
    small[0, LABELS[0]] = 1e-20
    small[0] /= small[0].sum()
    assert "below 1e-12" in read(npz(tmp_path / "c.npz", p=small, y=LABELS), How()).said[-1]


def test_one_temperature_leaves_an_error_of_the_same_bins(tmp_path):
    test, fitted = larger(tmp_path / "a.npz", 0), larger(tmp_path / "b.npz", 1)
    for bins in (5, 100):
        flags = ["--calibration", str(tmp_path / "b.npz"), "--bins", str(bins), "--out", "a.html"]
        assert main(["audit", str(tmp_path / "a.npz"), *flags]) == 0
        told = json.loads(Path("a.json").read_text())["audits"][0]["after_one_temperature"]
        assert told["ece_refit"] == pytest.approx(posthoc.refitted(*fitted, *test, bins=bins)["ece_refit"])


@pytest.mark.parametrize("method", ["dirichlet", "vector", "temperature", "isotonic"])
def test_an_infinite_logit_is_calibrated_or_refused_and_never_nan(method):
    """-inf leaves a class out; weights of other classes by it would be NaN."""
    fitted = posthoc.get(method).fit(LOGITS, LABELS)
    calibrator = posthoc.Calibrator(method, fitted, K, form=method)
    row = np.array([[1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]])
    backward = posthoc.Calibrator("vector", {"w": -np.ones(K), "b": np.zeros(K)}, K, form="vector")
    for refusing in (backward, *([calibrator] if method == "dirichlet" else [])):
        with pytest.raises(Refused, match=f"an infinity that {refusing.method} cannot take; expected finite numbers"):
            refusing(row)
    if method != "dirichlet":
        assert np.isfinite(calibrator(row)).all()
    for never in (np.inf, np.nan):
        with pytest.raises(Refused, match="the logits hold"):
            calibrator(np.where(np.isinf(row), never, row))


def test_compare_is_paired_and_names_the_better(tmp_path, capsys):
    z, y = larger(tmp_path / "a.npz", 0)
    npz(tmp_path / "b.npz", logits=z / 3, labels=y)
    assert main(["compare", "a.npz", "b.npz"]) == 0
    rows = {line[2:27].strip(): line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert rows["accuracy"][-1] == "-" and "+0.00" in rows["accuracy"]
    assert rows["ECE"][-1] == rows["NLL"][-1] == "B"
    assert rows["mean confidence"][-1] == "-"
    np.save(tmp_path / "c.npy", z)
    assert main(["compare", "b.npz", "c.npy"]) == 0, "the labels of one serve both"
    assert "same class for 100.0 %" in capsys.readouterr().out


def test_help_lists_every_flag(capsys):
    for command, flags in {
        "": ["audit", "calibrate", "apply", "compare"],
        "audit": ["FILE", "--labels", "--probabilities", "--logits", "--calibration", "--out", "--bins", "--max-gb"],
        "calibrate": ["--fit", "--test", "--out", "--methods", "--import", "--labels"],
        "apply": ["CALIBRATOR", "FILE", "--out", "--import"],
        "compare": ["A", "B", "--bins", "--scores"],
    }.items():
        with pytest.raises(SystemExit) as left:
            main([*([command] if command else []), "--help"])
        out = capsys.readouterr().out
        assert left.value.code == 0 and all(flag in out for flag in flags), command


def test_the_installed_command_and_the_module_are_this_one(tmp_path):
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"kdjax": "kdjax.cli:main"}
    done = subprocess.run([sys.executable, "-m", "kdjax", "audit", "no.csv"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr == "no.csv does not exist, or is no file.\n"


def test_the_example_of_the_readme_is_what_its_script_makes(tmp_path):
    folder = ROOT / "docs" / "examples"
    script = (folder / "digits_predictions.py").read_text()
    (tmp_path / "digits_predictions.py").write_text(script)
    subprocess.run([sys.executable, "digits_predictions.py"], check=True, cwd=tmp_path, timeout=120)
    for name in ("val.csv", "test.csv"):
        made, kept = (read(place / name, How()) for place in (tmp_path, folder))
        np.testing.assert_array_equal(made.labels, kept.labels)
        np.testing.assert_allclose(np.exp(made.logits), np.exp(kept.logits), atol=1e-3)

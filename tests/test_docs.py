"""Every example runs: Python blocks of the pages and of docstrings are executed, commands are read by their programs.
The cells of notebooks are executed where the site is built, by `make docs`.

A page is one session: its Python blocks share their names, from top to bottom. A docstring's example sees its module's
names and those of `Names` below. What cannot run here is listed in `NOT_RUN` with the reason.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from absl import flags
from flax import linen as nn

import kdjax
from experiments import command, common
from kdjax import cli, data, metrics, models, objectives, posthoc, runs, transforms, types
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "docs" / "_build"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "experiments").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if BUILT not in page.parents]
SOURCES = sorted(path for room in ("kdjax", "experiments", "configs") for path in (ROOT / room).rglob("*.py"))

NOT_RUN = {
    "from kdjax import register": "names of a reader's own; docs/extending.md registers one of each",
    'data = load("banking77"': "needs texts that are not part of the package; tests/text reads some",
    'data = load("clinc150")': "needs texts that are not part of the package; tests/text reads some",
    "class Net(nnx.Module)": "a sketch of a class",
    'data = load("cifar100"': "needs a prepared data set; tests/data reads one where it is there",
    "import jax.export, numpy": "reads an exported run; tests/cli/test_export_formats.py runs it on the quickstart's",
    "import onnxruntime, numpy": "reads an exported run; tests/cli/test_export_formats.py runs it on the quickstart's",
    "teacher = elsewhere.finished(": "needs a run of another folder; tests/test_elsewhere.py reads one",
    "Recipe(init=": "needs a folder of weights; tests/text/test_starts.py begins with small ones",
    'teacher = load("bert-base': "needs a folder of weights; tests/text reads small ones",
    "Tokenizer(Vocabulary.from_folder(folder))": "needs a folder with a vocabulary; tests/text reads small ones",
}
"""How an example starts -> why it is not run."""

SMALLER = {"folds=5": "folds=2", "num_classes=10": "num_classes=4"}
"""What an example says -> what the test runs in its place, to be quick."""

ON_SHAPES = ("kdjax/models/__init__.py:",)
"""Examples of whole networks, traced on shapes: nothing is compiled."""


class Example(NamedTuple):
    place: str
    text: str


def fenced(path: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every fenced block of a page; a directive of the site has braces for a language."""
    for _, language, text in re.findall(
        r"^(```+|~~~+)([^\n`]*)\n(.*?)^\1$", path.read_text(), re.DOTALL | re.MULTILINE
    ):
        yield language.strip(), text


def indented(documentation: str) -> Iterator[str]:
    """The blocks of a docstring that stand four spaces in, after an empty line."""
    block: list[str] = []
    before = ""
    for line in [*inspect.cleandoc(documentation).splitlines(), "end"]:
        if line.startswith("    ") and (block or not before.strip()):
            block.append(line)
        elif not line.strip() and block:
            block.append("")
        elif block:
            yield textwrap.dedent("\n".join(block)).strip()
            block = []
        before = line


def docstrings() -> Iterator[Example]:
    """Every indented block of every docstring, by its place."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "")
                for block in indented(text):
                    yield Example(f"{path.relative_to(ROOT)}:{name}", block)


def is_python(text: str) -> bool:
    """Code, and no formula or listing: it parses, and calls, assigns or imports something."""
    try:
        nodes = [*ast.walk(ast.parse(text))]
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Assign | ast.Import | ast.ImportFrom) for node in nodes)


def commands(text: str) -> Iterator[str]:
    """The lines of a shell block without comments; a line that ends in a backslash, or is indented, goes on."""
    joined = re.sub(r"\\?\n[ \t]+", " ", text)
    for line in joined.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if line:
            yield line


def shell_examples() -> Iterator[Example]:
    for page in PAGES:
        for language, text in fenced(page):
            if language in ("", "sh", "bash"):
                for line in commands(text):
                    yield Example(page.name, line)
    for place, text in docstrings():
        if text.startswith(("python -m", "make ", "pip ", "cp ")):
            for line in commands(text):
                yield Example(place, line)
    for path in SOURCES:  # docstrings whose commands stand unindented
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        for line in re.findall(r"^python -m experiments.*$", text, re.MULTILINE):
            yield Example(str(path.relative_to(ROOT)), re.sub(r"\s#.*", "", line))


class MyNet(nn.Module):
    """A network from outside, for examples that register one."""

    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))


@pytest.fixture(autouse=True)
def registries():
    """What an example registers is gone after it."""
    known: list[Any] = [objectives.METHODS, models.MODELS, posthoc.POSTHOC, transforms.TRANSFORMS, data.SOURCES]
    before = [{*registry} for registry in known]
    yield
    for module in ("my_methods", "my_nnx"):
        sys.modules.pop(module, None)
    for registry, names in zip(known, before, strict=True):
        for name in {*registry} - names:
            del registry[name]


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, Any]:
    """Names that examples use without defining them, of a data set of four classes."""
    folder = tmp_path_factory.mktemp("docs")
    x, y = tiny.arrays(40, 0)
    x_test, y_test = tiny.arrays(40, 1)
    rng = np.random.default_rng(0)
    logits, other_logits = rng.normal(size=(2, 40, tiny.CLASSES)).astype(np.float32) + 2 * np.eye(4)[y_test]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, correct = metrics.top_label(logits, y_test)
    model = models.build("mlp", num_classes=tiny.CLASSES)
    dataset = data.from_arrays(train=(x, y), test=(x_test, y_test), num_classes=tiny.CLASSES)
    return {
        **vars(metrics),
        **{"np": np, "jax": jax, "key": jax.random.key(0), "step": 3, "mean": (0.5,), "std": (0.2,)},
        **{"x": x, "y": y, "x2": x_test, "y2": y_test, "x_test": x_test, "y_test": y_test},
        **{"logits": logits, "other_logits": other_logits, "labels": y_test},
        **{"confidence": confidence, "correct": correct},
        **{"calibration_probs": probabilities, "calibration_labels": y_test},
        **{"test_probs": probabilities, "test_labels": y_test},
        "kdjax": kdjax,
        "MyNet": MyNet,
        "images": x[:2],
        "dataset": dataset,
        "recipe": tiny.recipe(tiny.npz(folder)),
        "distilled": tiny.student(tiny.npz(folder)),
        "model": model,
        "variables": model.init(jax.random.key(0), x),
        "params": posthoc.POSTHOC["temperature"].fit(logits, y_test),
        "batch": types.Batch(x[:4], y[:4], None, np.arange(4), None, None),
    }


STAGE = "runs/0123456789ab"
"""What examples call the directory of a finished stage."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a finished stage."""
    folder = tmp_path_factory.mktemp("runs")
    stage = Stage(tiny.recipe(tiny.npz(folder), epochs=1))
    runs.run_all([stage], Settings(workdir=str(folder), devices=1))
    return stage.directory(folder)


def reason(text: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if text.startswith(start)), None)


PYTHON = [example for example in docstrings() if is_python(example.text)]
SHELL = [*dict.fromkeys(shell_examples())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "\n```python" in page.read_text()], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    session: dict[str, Any] = {"__name__": page.stem}
    for language, text in fenced(page):
        if file := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / file[1]).write_text(text)  # a module of the reader's own, imported by what follows
        elif language == "python" and not reason(text):
            exec(compile(text, page.name, "exec"), session)
    if page.name == "own_loop.md":
        for loop in ("linen", "nnx", "optax"):
            assert np.ptp(session["states"][loop, "adafocal"].gamma) > 0, "refresh has moved the bins apart"
            counts = np.asarray(session["states"][loop, "crl"].counts)
            assert counts.max() == session["EPOCHS"] and 0 < counts.mean() < session["EPOCHS"], "every example counted"
    if page.name == "extending.md":
        assert cli.main(["export", str(session["stage"].directory(Path("runs")))]) == 0, "a reader's own network"
    if page.name == "README.md":
        printed = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
        assert printed["top1"] > 0.8 and 0 <= printed["ece"] < 0.2


@pytest.mark.parametrize("example", PYTHON, ids=lambda example: example.place)
def test_the_example_of_a_docstring_runs(example, names, tmp_path, monkeypatch, request):
    if why := reason(example.text):
        pytest.skip(why)
    monkeypatch.chdir(tmp_path)
    path = example.place.partition(":")[0]
    module = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    session = {**{name: getattr(kdjax, name) for name in kdjax.__all__}, **names, **vars(module)}
    text = example.text
    if STAGE in text:
        text = text.replace(STAGE, str(request.getfixturevalue("finished")))
    if "calibrator.json" in text:
        posthoc.fitted("temperature", names["params"], num_classes=4).save("calibrator.json")
    for published, small in SMALLER.items():
        text = text.replace(published, small)
    program = compile(text, example.place, "exec")
    if example.place in ON_SHAPES:
        jax.eval_shape(lambda: exec(program, session))
    else:
        exec(program, session)


@pytest.mark.parametrize("example", SHELL, ids=lambda example: f"{example.place}: {example.text}"[:110])
def test_a_command_is_one_that_its_program_reads(example, tmp_path, monkeypatch, request):
    words = shlex.split(example.text)
    if words[0] == "kdjax" and STAGE in words:
        words[words.index(STAGE)] = str(request.getfixturevalue("finished"))
    if words[:2] == ["python", "-m"]:
        _module(words[2], words[3:], tmp_path, monkeypatch)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        assert "[" in words[2] or words[2] in (".", "kdjax")
        extras = [extra for listed in re.findall(r"\[(.*?)\]", words[2]) for extra in listed.split(",")]
        assert all(re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE) for extra in extras)
        if words[3:4] == ["&&"]:
            assert words[4] == "kdjax" and _parses(words[5:])
    elif words[0] == "kdjax":
        _kdjax(words[1:], tmp_path, monkeypatch)
    else:
        assert words[0] == "cp" and (ROOT / words[2]).parent.is_dir()


def _parses(words: list[str]) -> bool:
    """Whether the command reads the words; it is not run."""
    return importlib.import_module("kdjax.cli.main")._parser().parse_args(words).command is not None


def _kdjax(words: list[str], folder: Path, monkeypatch) -> None:
    """Runs the command in a folder that holds the example files, and what the commands before it would have left."""
    monkeypatch.chdir(folder)
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    posthoc.fitted("temperature", {"T": np.float64(2.0)}, num_classes=10).save("calibrator.json")
    shutil.copy(folder / "docs" / "examples" / "test.csv", folder / "calibrated.csv")
    assert cli.main(words) == 0


def _module(name: str, words: list[str], folder: Path, monkeypatch) -> None:
    """Reads the words as the module would, and runs nothing."""
    words = [re.sub(r"[\[\]]", "", word) for word in words]
    module = importlib.import_module(name)
    if isinstance(getattr(module, "run", None), FunctionType) and "given" in inspect.signature(module.run).parameters:
        for text in (text for _, text in fenced(ROOT / "docs" / "extending.md") if text.startswith("# my_methods.py")):
            (folder / "my_methods.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        ignored = getattr(module, "IGNORED", common.ONLY)
        read = getattr(module, "read", command.read)
        given = read([name, *words], default="configs/digits.py", ignored=ignored)
        common.recipe(given.config, "teacher", 0)
        common.recipe(given.config, "student", 0)
        return
    source, flags_of = inspect.getsource(module), {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}
    for flag in (word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")):
        known = flag in flags_of or re.search(rf'(DEFINE_\w+\(|add_argument\()\s*"(--)?{flag}"', source)
        assert known, f"{name} has no flag --{flag}"


def test_the_examples_were_found():
    """The collectors see what they are for."""
    assert len(PYTHON) > 8 and len(SHELL) > 20
    assert any(example.place == "README.md" for example in SHELL)
    assert [*indented("Text.\n\n    a = 1\n\n    b = 2\n\nMore.\n    not an example")] == ["a = 1\n\nb = 2"]
    assert is_python("f(x)") and not is_python("lr  λ·w") and not is_python("a <- b")

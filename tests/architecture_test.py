"""The never-list of docs/architecture.md, walked over the syntax trees of every file."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import slow

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "kdjax").rglob("*.py"))

FLOORS = {
    "errors": 0,
    "options": 0,
    "prepare": 1,
    "types": 0,
    "source_code": 0,
    "losses": 1,
    "metrics": 1,
    "targets": 1,
    "transforms": 1,
    "theory": 1,
    "objectives": 2,
    "posthoc": 4,
    "models": 2,
    "teachers": 2,
    "optim": 2,
    "feeds": 1,
    "layout": 2,
    "programs": 3,
    "precompute": 3,
    "step": 3,
    "shapes": 3,
    "processes": 3,
    "data": 4,
    "checkpoints": 4,
    "provenance": 4,
    "recipes": 4,
    "recipe_text": 4,
    "starts": 4,
    "outputs": 4,
    "parts": 4,
    "tasks": 4,
    "elements": 4,
    "teacher_pass": 4,
    "cohort": 4,
    "trainer": 4,
    "stages": 5,
    "planning": 5,
    "claim": 5,
    "launch": 5,
    "signals": 5,
    "meeting": 5,
    "console": 5,
    "files": 4,
    "manifests": 4,
    "storage": 4,
    "limits": 4,
    "locks": 4,
    "signing": 4,
    "variables": 4,
    "register": 5,
    "outside": 5,
    "runs": 5,
    "stage_text": 5,
    "ray_cluster": 5,
    "worker": 5,
    "worker_count": 5,
    "workers": 5,
    "results": 5,
    "teacher_logits": 5,
    "settings": 4,
    "state_dict": 4,
    "writers": 4,
    "predictor": 5,
    "elsewhere": 5,
    "stage_run": 5,
    "grouping": 5,
    "cohort_stages": 5,
    "huggingface": 4,
    "report": 5,
    "cli": 6,
    "__init__": 7,
    "__main__": 7,
}
OUTSIDE = {
    "absl",
    "ml_collections",
    "orbax",
    "tensorflow_datasets",
    "grain",
    "array_record",
    "matplotlib",
    "tensorflow",
}
FILE_CALLS = {
    "open",
    "savez",
    "savez_compressed",
    "load",
    "write_text",
    "read_text",
    "write_bytes",
    "read_bytes",
    "mkdir",
    "save",
    "savetxt",
    "loadtxt",
    "tofile",
    "fromfile",
    "memmap",
    "unlink",
    "print",
    "input",
}
FILE_MODULES = {"pathlib", "io", "shutil", "tempfile", "subprocess", "socket", "urllib", "http", "safetensors"}


def room(path: Path) -> str:
    return path.relative_to(ROOT / "kdjax").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at whatever depth, with `from kdjax import x` spelled kdjax.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write kdjax.<room>"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(path: Path) -> Iterator[str]:
    """Dotted names of everything called or used as a decorator."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_every_room_has_a_floor():
    assert {room(p) for p in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    floor = FLOORS[room(path)]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "kdjax" and rest and rest.split(".")[0] in FLOORS:
            other = rest.split(".")[0]
            assert FLOORS[other] <= floor, f"{path} (floor {floor}) imports {name} (floor {FLOORS[other]})"
        assert top not in ("configs", "experiments"), f"{path} imports {name}"
        if floor <= 3:
            assert top not in OUTSIDE, f"{path} (floor {floor}) imports {name}"
        if room(path) in ("losses", "metrics", "targets"):
            assert top != "flax", f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if FLOORS[room(p)] <= 3], ids=lambda p: str(p.relative_to(ROOT)))
def test_low_floors_do_no_files(path):
    assert not FILE_MODULES & {name.split(".")[0] for name in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            assert called not in FILE_CALLS, f"{path}:{node.lineno} calls {called}"


def owners(module: str) -> set[str]:
    return {room(p) for p in FILES for name in imports(p) if name.split(".")[0] == module}


def test_one_room_owns_each_library():
    assert [str(p.relative_to(ROOT)) for p in FILES if any(n.startswith("orbax") for n in imports(p))] == [
        "kdjax/storage.py"
    ]
    assert owners("tensorflow_datasets") <= {"data"} and owners("grain") <= {"data"}
    assert owners("matplotlib") <= {"report"}
    assert owners("flax") <= {"models"}
    assert owners("ml_collections") == set()


def test_compilation_is_in_step():
    """`jax.jit` only in programs.py and step.py, and in shapes.py, which compiles nothing; posthoc and metrics may jit
    helpers at their public edge."""
    allowed = {"programs", "step", "shapes", "posthoc", "metrics"}
    for path in FILES:
        if room(path) not in allowed:
            assert not {"jax.jit", "jax.pmap"} & {*names(path), *imports(path)}, f"{path} compiles"
            assert not any("pjit" in name or "shard_map" in name for name in imports(path)), f"{path} compiles"


def test_messages_name_commands_of_the_wheel():
    """What a message tells people to type exists after `pip install`: experiments and configs are of a checkout."""
    for path in FILES:
        for typed in re.findall(r"python -m \w+|\bmake (?:quickstart|test)\b|configs/\w+\.py", path.read_text()):
            assert typed == "python -m kdjax", f"{path} names {typed}"


def test_the_version_is_written_once():
    import kdjax

    assert f"version: {kdjax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(kdjax.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_no_pickle_no_eval():
    for path in [*FILES, *(ROOT / "experiments").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & {n.split(".")[0] for n in imports(path)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}:{node.value.lineno}"


def test_no_method_names_outside_the_registry():
    """Nobody asks which method it is: no comparison with a registered name outside `objectives` and `configs`."""
    from kdjax.objectives import METHODS

    for path in [*FILES, *(ROOT / "experiments").rglob("*.py")]:
        if path.parts[-2] == "objectives":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not asks_which_method(node, METHODS), f"{path}:{node.lineno} compares with a method's name"


def asks_which_method(node: ast.AST, methods) -> bool:
    """`method == "kd"`, `recipe.method in ("kd", "rtc")`, `match objective.name: case "kd"`."""
    if not isinstance(node, ast.Compare | ast.Match):
        return False
    values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    about = ast.unparse(node.subject if isinstance(node, ast.Match) else node)
    return bool(values & set(methods)) and re.search(r"\b(method|objective)", about) is not None


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('method == "kd"', True),
        ('stage.recipe.method == "kd"', True),
        ('recipe.distill.method in ("kd", "rtc")', True),
        ('"kd" != config["method"]', True),
        ('match task.objective.name:\n  case "kd":\n    pass', True),
        ('name == "kd"', False),
        ('method == "other"', False),
    ],
)
def test_the_question_is_recognized_in_every_spelling(code, found):
    tree = ast.walk(ast.parse(code))
    assert any(asks_which_method(node, ("kd", "rtc")) for node in tree) is found


def test_files_read_in_one_sitting():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 325}
    assert not long


@pytest.mark.parametrize(
    "name", ["matplotlib", *slow("tensorflow", "tensorflow_datasets", "grain", "sklearn", "torch")]
)
def test_import_stays_light(name):
    code = f"import kdjax, kdjax.runs, sys; sys.exit({name!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, f"import kdjax pulls in {name}"


def test_every_name_of_the_front_door_is_there():
    import kdjax

    assert set(kdjax.__all__) <= set(dir(kdjax))
    for package in (kdjax, kdjax.posthoc):
        for name in package.__all__:
            assert getattr(package, name) is not None, name
    code = "import kdjax, kdjax.posthoc, sys; sys.exit(bool({'jax', 'flax', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, "import kdjax is no longer lazy"


BRITISH = re.compile(
    r"(normalis|standardis|optimis|initialis|regularis|minimis|maximis|randomis|solaris|posteris|generalis|serialis|"
    r"colour|neighbour|behaviour|flavour|labelled|\bcentre|_centre|centred|grey|licence|\bdistil\b|_distil\b)"
)
VAGUE = {"found", "own", "taught", "theirs", "wide", "present", "ruler", "whole"}


def public_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every public function, class, parameter of a public function and field of a public class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.lineno, node.name
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                yield from ((a.lineno, a.arg) for a in every)
            else:
                fields = (n.target for n in node.body if isinstance(n, ast.AnnAssign))
                yield from ((t.lineno, t.id) for t in fields if isinstance(t, ast.Name))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_plain_and_american(path):
    for line, name in public_names(path):
        assert not BRITISH.search(name), f"{path}:{line} {name} is spelled the British way"
        assert name not in VAGUE, f"{path}:{line} {name} does not say what it holds"
    assert "(floor " not in (ast.get_docstring(ast.parse(path.read_text())) or ""), f"{path} names its floor"


def reads_a_message(node: ast.AST) -> bool:
    """`"text" in str(error)`, `str(error).startswith("text")`, and the same of `error.args[0]`."""
    message = re.compile(r"str\((error|exc|exception|e|err)\)|(error|exc|exception|e|err)\.args\[0\]")
    if isinstance(node, ast.Compare):
        return any(isinstance(op, ast.In | ast.NotIn | ast.Eq) for op in node.ops) and bool(
            message.search(" ".join(ast.unparse(side) for side in node.comparators))
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("startswith", "endswith") and bool(message.search(ast.unparse(node.func.value)))
    return False


def test_no_control_flow_reads_an_errors_message():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not reads_a_message(node), f"{path}:{node.lineno} decides by the text of an error"


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ('"pickle" in str(error)', True),
        ('str(error).startswith("no")', True),
        ('error.args[0] == "x"', False),
        ('"x" == error.args[0]', True),
        ("error.errno == 28", False),
        ('print(f"{error}")', False),
    ],
)
def test_reading_a_message_is_recognized(code, reads):
    assert any(reads_a_message(node) for node in ast.walk(ast.parse(code))) is reads


def undefined(code: str) -> set[str]:
    """Names that are used somewhere in a module and bound nowhere in it, nor by Python."""
    pending, used = [symtable.symtable(code, "code", "exec")], set()
    bound = {*dir(builtins), "__file__", "__name__", "__doc__", "__class__"}
    while pending:
        table = pending.pop()
        if table.get_type() in ("module", "function", "class"):  # in annotations the letters of shapes are names too
            symbols = table.get_symbols()
            used |= {s.get_name() for s in symbols if s.is_referenced()}
            bound |= {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_parameter()}
            bound |= {s.get_name() for s in symbols if s.is_namespace()}
            pending += table.get_children()
    return used - bound


def test_every_name_is_defined():
    """Linters cannot ask: in `Float[Array, "N K"]` N is no name."""
    folders = ("kdjax", "configs", "experiments", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    unbound = {str(p.relative_to(ROOT)): names for p in files if (names := undefined(p.read_text()))}
    assert len(files) > 300 and not unbound
    assert undefined("from __future__ import annotations\ndef f(x: N) -> K:\n  return x + y\nprint(z)") == {"y", "z"}

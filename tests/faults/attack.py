"""A seeded attacker: `python -m tests.faults.attack --seconds 60 --seed 7`.

It trains two teachers and a student undisturbed, then again and again harms a copy of their folders, finished or
half-way, at random: bytes, files, folders, links, locks, other stages' files, kills, signals and limits. Each time the
same command must give the same bits again, or end in one sentence that names what is wrong. A wrong number, a
traceback, a hang or a harm done to files outside is reported with the seed and the act that repeat it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from kdjax import console, files, locks, manifests, programs, runs, stages
from kdjax.errors import Refused
from kdjax.results import Result
from kdjax.settings import Interrupted, Settings
from kdjax.stages import Stage
from kdjax.trainer import Diverged
from tests import tiny
from tests.processes import ROOT, environment

HANG = 120
"""Seconds after which a run counts as hanging; the process then ends with the place where it stands."""


class Scene(NamedTuple):
    """What is attacked.

    Attributes:
      chain: two teachers that differ in the seed, and the first one's student.
      finished: their untouched work directory.
      reference: stage id -> hash of all that a stage reports.
      outside: a folder that nothing may write to.
    """

    npz: str
    chain: list[Stage]
    finished: Path
    reference: dict[str, str]
    outside: Path


def chain(npz: str) -> list[Stage]:
    small = {"epochs": 2, "method": "adafocal"}
    first, second = (Stage(tiny.recipe(npz, seed=seed, **small), name=f"teacher {seed}") for seed in (0, 1))
    return [first, second, Stage(tiny.student(npz), first, name="student")]


def run(workdir: Path, stages_: list[Stage], every: int = 0) -> dict[str, str]:
    """Runs the stages, saving every so many steps beside the epochs; stage id -> hash of what it reports."""
    settings = Settings(workdir=str(workdir), checkpoint_epochs=1, checkpoint_steps=every, keep=2, devices=1)
    outcome = runs.run_all(stages_, settings, console.Silent())
    if outcome.failures:
        raise Diverged("; ".join(outcome.failures.values()))
    return {stage: reported(result) for stage, result in outcome.results.items()}


def reported(result: Result) -> str:
    parts = [result.logits(split)[0].tobytes() for split in ("calibration", "test")]
    parts.append((result.directory / "metrics.jsonl").read_bytes())
    parts.append(json.dumps({k: dict(v) for k, v in result.metrics.items()}, sort_keys=True).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


# Acts: each takes (dice, workdir, scene) and says what it did.


def some_file(dice: random.Random, workdir: Path, pattern: str = "*") -> Path:
    return dice.choice(sorted(path for path in workdir.rglob(pattern) if path.is_file() and not path.is_symlink()))


def some_folder(dice: random.Random, workdir: Path) -> Path:
    return dice.choice(sorted(path for path in workdir.rglob("*") if path.is_dir() and not path.is_symlink()))


def flip(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir)
    data = bytearray(path.read_bytes())
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        replace(path, bytes(data))
    return f"flip {path.relative_to(workdir)}"


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def truncate(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir)
    data = path.read_bytes()
    replace(path, data[: dice.randrange(len(data) + 1)])
    return f"truncate {path.relative_to(workdir)}"


def append(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir)
    replace(path, path.read_bytes() + dice.randbytes(dice.randrange(1, 99)))
    return f"append to {path.relative_to(workdir)}"


def remove(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir) if dice.random() < 0.6 else some_folder(dice, workdir)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"remove {path.relative_to(workdir)}"


def add(dice: random.Random, workdir: Path, scene: Scene) -> str:
    names = ["more", "99", "07", "-1", "٣", ".tmp-x", "4.tmp-elsewhere-1-7", "[bold]", "a\nb", "manifest.json"]
    path = some_folder(dice, workdir) / dice.choice(names)
    if not os.path.lexists(path):
        path.mkdir() if dice.random() < 0.4 else path.write_bytes(dice.randbytes(9))
    return f"add {path.relative_to(workdir)!r}"


def _copy(source: Path, target: Path) -> None:
    """A folder without the pipes that an earlier act left in it, which cannot be copied, or a file."""

    def special(folder: str, names: list[str]) -> list[str]:
        paths = {name: Path(folder, name) for name in names}
        return [name for name, path in paths.items() if not (path.is_dir() or path.is_file())]

    if source.is_dir():
        shutil.copytree(source, target, ignore=special)
    else:
        shutil.copy(source, target)


def exchange(dice: random.Random, workdir: Path, scene: Scene) -> str:
    """Swaps or copies stages, their checkpoints, their selected epochs, or single steps."""
    part = dice.choice(["", "checkpoints", "selected", "logits", "checkpoints/*", "selected/*", "*.json*", "logits/*"])
    places = sorted(path for stage in scene.chain for path in stage.directory(workdir).glob(part or "."))
    places = [path for path in places if path.is_dir() or path.is_file()]  # no pipes and no broken links
    if len(places) < 2:
        return "exchange nothing"
    a, b = dice.sample(places, 2)
    aside = workdir / "aside"
    copied = dice.random() < 0.5
    _copy(a, aside)
    shutil.rmtree(a) if a.is_dir() else a.unlink()
    if copied:
        _copy(b, a)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    else:
        b.rename(a)
        aside.rename(b)
    return f"{'copy' if copied else 'swap'} {b.relative_to(workdir)} and {a.relative_to(workdir)}"


def rename(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_folder(dice, workdir)
    target = path.with_name(dice.choice(["3", "4", "6", "8", "12", "selected", "checkpoints", "x"]))
    if not target.exists():
        path.rename(target)
    return f"rename {path.relative_to(workdir)} to {target.name}"


def link(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir) if dice.random() < 0.6 else some_folder(dice, workdir)
    target = dice.choice([scene.outside / "kept", scene.outside, scene.outside / "nowhere", path.parent])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)
    return f"link {path.relative_to(workdir)} to {target.name}"


def pipe(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir)
    if dice.random() < 0.3:
        path = dice.choice(scene.chain).directory(workdir) / ".lock"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
    else:
        path.unlink()
    os.mkfifo(path)
    return f"pipe {path.relative_to(workdir)}"


def lock(dice: random.Random, workdir: Path, scene: Scene) -> str:
    directory = dice.choice(scene.chain).directory(workdir)
    directory.mkdir(exist_ok=True)
    holder = {
        "pid": dice.choice([1, os.getpid(), 999_999, 2**31, 2**70, -1, 0, "x", None, True, 1.5]),
        "host": dice.choice(["elsewhere", "\x1b[31m", os.uname().nodename, 3]),
        "namespace": dice.choice([None, 7, files.namespace()]),
        "started": dice.choice([None, "boot:1", 7]),
    }
    (directory / ".lock").write_text(dice.choice([json.dumps(holder), "", "{", "[]", "\x00"]))
    with contextlib.suppress(OSError):
        os.utime(directory / ".lock", (dice.choice([0, time.time(), 2**33]),) * 2)
    return f"lock {directory.name} {holder}"


def nonsense(dice: random.Random, workdir: Path, scene: Scene) -> str:
    """JSON of another form, under a manifest made anew: no bit is wrong, and nothing fits.

    A folder that another act has already harmed is not sealed again: a manifest made over wrong numbers vouches for
    them, which is what signatures are for.
    """
    path = some_file(dice, workdir, "*.json")
    value = dice.choice([[], {}, None, 0, "x", [[]], {"step": []}, {"extra": 3}, {"metrics": [], "epoch": "x"}])
    if dice.random() < 0.5:
        with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError, IndexError):
            known = json.loads(path.read_text())
            key = dice.choice(sorted(known))
            value = {**known, key: value} if dice.random() < 0.7 else {k: v for k, v in known.items() if k != key}
    folders = (path.parent, path.parent.parent, path.parent.parent.parent)
    verified = [folder for folder in folders if not manifests.verify_manifest(folder)]
    replace(path, json.dumps(value).encode())
    for folder in verified:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
            old = json.loads((folder / "manifest.json").read_text())
            if path.name != "manifest.json":
                manifests.write_manifest(folder, old.get("owner"))
    return f"nonsense in {path.relative_to(workdir)}: {str(value)[:60]}"


def newer(dice: random.Random, workdir: Path, scene: Scene) -> str:
    path = some_file(dice, workdir, "manifest.json")
    body = json.loads(path.read_text())
    body.pop("sha256", None)
    body["format"] = files.FORMAT + dice.choice([1, 2, 10**9, 10**40])
    replace(path, json.dumps({**body, "sha256": manifests._seal(body)}).encode())
    return f"newer {path.relative_to(workdir)}"


def times(dice: random.Random, workdir: Path, scene: Scene) -> str:
    for path in workdir.rglob("*"):
        with contextlib.suppress(OSError):
            os.utime(path, (dice.choice([0, 1e9, 4e9]),) * 2, follow_symlinks=False)
    return "times"


FILES: list[Callable[[random.Random, Path, Scene], str]] = [
    *(flip, truncate, append, remove, add, exchange, exchange, exchange),
    *(rename, link, pipe, lock, nonsense, nonsense, newer, times),
]


def disturbed(dice: random.Random, workdir: Path, scene: Scene) -> str:
    """The command in a process of its own, killed, stopped or short of room at a random moment."""
    how = dice.choice(["kill", "kill", "term", "interrupt", "room"])
    size = int(10 ** dice.uniform(1, 5.5)) if how == "room" else 0
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.attack", f"--child={workdir}", f"--npz={scene.npz}", f"--room={size}"],
        cwd=ROOT,
        env={**environment(), "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}.get(how)
    said = f"{how} {size if how == 'room' else ''}"
    assert child.stdout is not None
    if number is not None:
        if child.stdout.readline() == "ready\n":
            pause = dice.uniform(0, 3) ** 2 / 3
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(pause)
            said = f"{how} after {pause:.3f} s"
        if child.poll() is None:
            child.send_signal(number)
    try:
        out, err = child.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)
        raise AssertionError(f"hang: {said}\n{child.communicate()[1][-3000:]}") from None
    codes = {0, 2, 74, 75} | ({-signal.SIGKILL} if how == "kill" else set())
    if child.returncode not in codes or "Traceback" in err:
        raise AssertionError(f"{said}: exit code {child.returncode}\n{out[-500:]}\n{err[-3000:]}")
    return f"{said}: {child.returncode}"


def trial(dice: random.Random, scene: Scene, folder: Path) -> tuple[str, str]:
    """(acts, how it ended): "same" or the kind of sentence."""
    workdir = folder / "runs"
    begun = dice.random()
    if begun < 0.85:
        shutil.copytree(scene.finished, workdir)
        if begun < 0.5:  # half-way: no manifest, perhaps without the last checkpoints
            for stage in scene.chain:
                if dice.random() < 0.7:
                    (stage.directory(workdir) / "manifest.json").unlink()
                    if dice.random() < 0.5:
                        shutil.rmtree(stage.directory(workdir) / "checkpoints" / "8", ignore_errors=True)
    else:
        workdir.mkdir()
    acts: list[str] = []
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        act = disturbed if dice.random() < 0.06 or not any(workdir.iterdir()) else dice.choice(FILES)
        try:
            acts.append(act(dice, workdir, scene))
        except (IndexError, FileNotFoundError, NotADirectoryError, FileExistsError):
            acts.append(f"no {act.__name__}")  # what an earlier act removed
    before = sorted(scene.outside.iterdir()), (scene.outside / "kept").read_bytes()
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        found = run(workdir, scene.chain)
        assert found == scene.reference, f"wrong numbers after {acts}"
        end = "same"
    except (Refused, Diverged, OSError, Interrupted) as error:
        assert "\n" not in str(error).strip(), f"not one sentence after {acts}: {error}"
        end = type(error).__name__
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert before == (sorted(scene.outside.iterdir()), (scene.outside / "kept").read_bytes()), f"outside, after {acts}"
    return "; ".join(acts), end


def stage_the_scene(folder: Path) -> Scene:
    npz = tiny.npz(folder)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    known = chain(npz)
    return Scene(npz, known, folder / "finished", run(folder / "finished", known), outside)


def attack(seconds: float, seed: int, say: Callable[[str], None] = print) -> Counter:
    """Trials until the time is up; how they ended, counted.

    Raises:
      AssertionError: a wrong number, an unforeseen error, several lines, or a write outside; with what repeats it.
    """
    ends: Counter = Counter()
    memory = Path("/dev/shm")  # hundreds of small files are flushed in each trial
    with (
        # A lock of a process that cannot be asked is waited for, and every trial runs the same programs.
        mock.patch.multiple(locks, FREE_AFTER=1.0),
        mock.patch.multiple(runs, WAIT_SECONDS=0.1),
        mock.patch.multiple(programs, forget_programs=lambda *_: None),
        warnings.catch_warnings(action="ignore"),
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name,
    ):
        scene = stage_the_scene(Path(name))
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            folder = Path(name) / "trial"
            folder.mkdir()
            try:
                acts, how = trial(random.Random(f"{seed} {number}"), scene, folder)
            except BaseException as error:
                say(f"seed {seed}, trial {number}: {type(error).__name__}")
                raise
            say(f"{number}: {acts} -> {how}")
            ends[how] += 1
            shutil.rmtree(folder)
            number += 1
    return ends


def child(workdir: str, npz: str, room: int) -> int:
    """The command that `disturbed` disturbs; with room it may write no larger file."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(75))  # as `experiments` does
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    known = chain(npz)
    for stage in known:
        stages.dataset(stage.recipe.data)
    print("ready", flush=True)
    try:
        run(Path(workdir), known, every=3)
    except (Refused, Diverged) as error:
        print(error, file=sys.stderr)
        return 2
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 75
    except OSError as error:
        print(error, file=sys.stderr)
        return 74
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--npz")
    parser.add_argument("--room", type=int, default=0)
    given = parser.parse_args()
    if given.child:
        code = child(given.child, given.npz, given.room)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as `experiments` does: an interpreter that shuts down has no handlers
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    ends = attack(given.seconds, seed, (lambda _: None) if given.quiet else print)
    print(f"seed {seed}: {ends.total()} trials, " + ", ".join(f"{n} {how}" for how, n in ends.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

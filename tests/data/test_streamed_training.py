"""Training from disk gives the numbers of training from memory, and goes on after kill -9 to the same bits."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from kdjax import data, recipes, trainer
from tests.processes import environment

pytest.importorskip("grain", reason="the extra kdjax[grain] is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label, name in enumerate("abcd"):
            folder = root / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3), np.uint8)
                pixels[4 * (label // 2) :, 4 * (label % 2) :] += 60
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return {"path": str(root / "set"), "cache_dir": str(root / "cache")}


RECIPE = recipes.Recipe(
    model="mlp", method="adafocal", epochs=2, batch_size=16, transform=("pad_crop", "flip"), precision="float32"
)


@pytest.fixture(scope="module")
def made(folders):
    """Trainers of the same task: data on the device, sent from memory, and read from disk."""
    options = {**folders, "calibration_fraction": 0.2, "class_weight": (1.0, 2.0, 1.0, 0.5)}
    resident, lazy = (data.load("folder", feed=feed, **options) for feed in ("resident", "streamed"))
    makers = (("resident", resident), ("streamed", resident), ("auto", lazy), ("resident", lazy))
    return [trainer.Trainer(trainer.task(RECIPE, dataset), devices=1, feed=feed, readers=2) for feed, dataset in makers]


def end(made, state=None):
    return jax.tree.map(np.asarray, list(made.epochs(state))[-1].state)


def test_every_feed_gives_the_same_numbers(made):
    expected = end(made[0])
    for other in made[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), end(other), expected)
    jax.tree.map(np.testing.assert_array_equal, end(made[1]), end(made[2]))
    jax.tree.map(np.testing.assert_array_equal, end(made[3]), expected)
    test = made[0].task.dataset.test, made[2].task.dataset.test
    logits = [t.predict(expected.variables, split) for t, split in zip((made[0], made[2]), test, strict=True)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_a_stream_resumes_in_mid_epoch_to_the_same_bits(made):
    expected = end(made[2])
    for progress in made[2].epochs(every=1):
        if progress.step == 6:  # of 4 steps an epoch
            half = jax.tree.map(np.asarray, progress.state)
            break
    jax.tree.map(np.testing.assert_array_equal, end(made[2], half), expected)


@pytest.mark.slow
def test_kill_9_in_mid_epoch_resumes_to_the_same_bits(folders, tmp_path):
    """The third epoch's second batch is being read when the process is killed."""
    program = f"""
    import os, signal, sys
    from kdjax import console, recipes, runs, settings, stages
    from kdjax.data import image_files, source

    source.STREAM_ABOVE = 0
    workdir, when = sys.argv[1], int(sys.argv[2])
    read, count = image_files.ImageFiles.read, [0]

    def counted(self, position):
        count[0] += 1
        if count[0] == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, position)

    image_files.ImageFiles.read = counted
    recipe = recipes.Recipe(
        data=recipes.Data(name="folder", path={folders["path"]!r}, calibration_fraction=0.2, normalization="none"),
        model="mlp", method="adafocal", epochs=3, batch_size=16,
    )
    run = settings.Settings(workdir=workdir, checkpoint_epochs=1, checkpoint_steps=1, devices=1)
    stage = stages.Stage(recipe)
    result = runs.run_all([stage], run, console.Silent()).results[stage.id]
    print(result.logits("test")[0].tobytes().hex(), count[0])
    """

    def run(workdir: str, when: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / workdir), str(when)]
        variables = {**environment(), "PYTHONPATH": str(ROOT), "KDJAX_CACHE": folders["cache_dir"]}
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, cwd=ROOT)

    undisturbed = run("undisturbed", 0)
    assert undisturbed.returncode == 0, undisturbed.stderr
    logits, reads = undisturbed.stdout.split()
    killed = run("killed", int(reads) - 100)
    assert killed.returncode == -signal.SIGKILL and os.listdir(tmp_path / "killed")
    resumed = run("killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split()[0] == logits and int(resumed.stdout.split()[1]) < int(reads)

"""Runs one tiny stage and, if asked, dies on the way: `python -m tests.faults.child WORKDIR NPZ METHOD [WHEN]`.

WHEN is step:N (kill -9 after step N), save:N (kill -9 inside the N-th save, data written and manifest not), end (kill
-9 between the last checkpoint and the stage's manifest), or term:N (SIGTERM after step N).
"""

from __future__ import annotations

import os
import signal
import sys

from kdjax import checkpoints, cohort, console, runs, settings, stages, storage
from kdjax.errors import Refused
from tests import tiny


def arm(when: str) -> None:
    what, _, number = when.partition(":")
    count = {"n": 0}

    def die(sig: int = signal.SIGKILL) -> None:
        os.kill(os.getpid(), sig)

    def after(owner: object, name: str, sig: int = signal.SIGKILL, generator: bool = False) -> None:
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            result = original(*args, **kwargs)
            count["n"] += 1
            if count["n"] == int(number or 1):
                die(sig)
            return result

        def stepped(*args, **kwargs):
            for item in original(*args, **kwargs):
                count["n"] += 1
                item[0][0].step.block_until_ready()
                if count["n"] == int(number):
                    die(sig)
                yield item

        setattr(owner, name, stepped if generator else counted)

    if what == "step":
        after(cohort.Cohort, "steps", generator=True)
    elif what == "term":
        after(cohort.Cohort, "steps", signal.SIGTERM, generator=True)
    elif what == "save":
        after(storage.ocp, "save")
    elif what == "end":
        original = checkpoints.write_manifest

        def last(directory, owner):
            if (directory / "result.json").exists():
                die()
            return original(directory, owner)

        checkpoints.write_manifest = last


def main(workdir: str, npz: str, method: str, when: str = "") -> int:
    arm(when)
    recipe = tiny.recipe(npz, method=method, epochs=3, select="best")
    run = settings.Settings(workdir=workdir, checkpoint_epochs=1, checkpoint_steps=3, devices=1)
    try:
        outcome = runs.run_all([stages.Stage(recipe)], run, console.Plain())
    except settings.Interrupted as error:
        print(error)
        return settings.EXIT_INTERRUPTED
    except (Refused, OSError) as error:
        print(error)
        return settings.EXIT_REFUSED
    return settings.EXIT_INTERNAL if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

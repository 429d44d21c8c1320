"""The stages of a command as tasks of a Ray cluster, which decides where each runs and starts lost ones anew.

A task is one stage. It waits for those of its parents, asks for devices and memory, and runs the stage in the work
directory that all nodes share, as a command there would: what another process holds it waits for, what was begun it
resumes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax import console, planning, runs, signals, stage_text, worker, worker_count, workers
from kdjax.errors import Refused
from kdjax.runs import Outcome
from kdjax.settings import Interrupted, Settings
from kdjax.stages import Stage

RETRIES = 3
"""Times that a stage is started anew after the process or the machine that ran it was lost."""
LEAVE = 60.0
"""Seconds in which tasks save and end after a signal."""
_FORWARDED = ("JAX_", "XLA_", "KDJAX_", "TFDS_", "NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")


def run_all(
    targets: Iterable[Stage], settings: Settings, reporter: console.Reporter, imports: Sequence[str] = ()
) -> Outcome:
    """As `kdjax.runs.run_all`, by a Ray cluster: the one of this process, else of RAY_ADDRESS, else on this machine.

    Args:
      settings: `devices` are those of one stage; 0 is one GPU where the cluster has any, and else a processor.
      imports: modules that register what the stages name.

    Raises:
      Refused: Ray is not installed, no cluster answers, or no node has what a stage asks for.
      Interrupted: a signal came, or a stage's process was lost too often.
      OSError, MemoryError: as one process, whichever task met it; the others save and stop.
    """
    targets = [*targets]
    if settings.cohort > 1:
        raise Refused(
            f"run.cohort is {settings.cohort}, and --executor=ray makes every stage a task of its own; set it to 1."
        )
    ray = _connected()
    planned = {row.stage.id: row for row in planning.plan(targets, Path(settings.workdir))}
    gpus = _gpus(ray, settings)
    there = dataclasses.replace(settings, workdir=str(Path(settings.workdir).absolute()))
    for row in planned.values():
        _check_batch(row.stage, max(settings.devices, 1))

    def demand(stage: Stage) -> dict[str, float]:
        return {"CPU": 1, "GPU": gpus, "memory": int(worker_count.needed(planned[stage.id]))}

    def compute(queue: Sequence[Stage], missing: Sequence[Stage], asked: signals.Asked) -> dict[str, str]:
        for stage in missing:
            _refuse_lacking(ray.nodes(), demand(stage), stage)
        tasks: dict[str, Any] = {}
        for stage in missing:
            asks = demand(stage)
            remote = ray.remote(run_stage).options(
                num_cpus=asks["CPU"],
                num_gpus=asks["GPU"],
                memory=asks["memory"],
                max_retries=RETRIES,
                runtime_env={"env_vars": {k: v for k, v in os.environ.items() if k.startswith(_FORWARDED)}},
            )
            given = {"settings": dataclasses.asdict(there), "imports": [*imports], "stages": stage_text.plain([stage])}
            given["folder"] = os.getcwd()
            parents = [tasks[parent.id] for parent in stage.parents if parent.id in tasks]
            tasks[stage.id] = remote.remote(json.dumps(given), *parents)
        return _attend(ray, {tasks[stage.id]: stage for stage in missing}, reporter, asked)

    return workers.by_others(targets, dataclasses.replace(there, devices=0), reporter, compute)


def run_stage(text: str, *parents: Mapping[str, str]) -> dict[str, str]:
    """One task: the failure of the stage and of its ancestors by id, or {"raised": kind, "text": ...}.

    Args:
      text: JSON of the settings, the modules to import, the stage after its ancestors, and the folder to be in.
      parents: what the tasks of its parents returned.
    """
    given = json.loads(text)
    failures = {stage: sentence for parent in parents for stage, sentence in parent.items()}
    if "raised" in failures:
        return failures
    try:
        os.chdir(given["folder"])
        for module in given["imports"]:
            importlib.import_module(module)
        with signals.watched() as asked:
            queue = stage_text.parse(given["stages"])
            settings = Settings(**given["settings"]).check()
            runs.refuse_early(queue, settings)
            runs.work(queue, settings, console.Silent(), asked, failures=failures)
    except Exception as error:
        kind = worker.kind_of_error(error)
        if not kind:
            raise
        return {"raised": kind, "text": str(error)}
    return failures


def _attend(ray: Any, tasks: dict[Any, Stage], reporter: console.Reporter, asked: signals.Asked) -> dict[str, str]:
    """The failures, once all tasks have ended."""
    total, failures = len(tasks), dict[str, str]()
    reporter.message(f"{total} stages are tasks of the Ray cluster.")
    try:
        while tasks:
            for task in ray.wait([*tasks], num_returns=1, timeout=0.2)[0]:
                stage = tasks.pop(task)
                answer = _answer(ray, task, stage)
                if "raised" in answer:
                    raise worker.raised(answer["raised"], answer["text"])
                failures |= answer
                end = failures.get(stage.id, "finished")
                reporter.message(f"[{total - len(tasks)}/{total}] {stage.name}: {end}")
            if asked:
                raise Interrupted("the tasks of the cluster were asked to save and end; run the same command to go on.")
    finally:
        for task in tasks:
            ray.cancel(task, force=False)
        if tasks:
            ray.wait([*tasks], num_returns=len(tasks), timeout=LEAVE)
    return failures


def _answer(ray: Any, task: Any, stage: Stage) -> dict[str, str]:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        line = (str(error).strip().splitlines() or [""])[-1]
        raise Refused(
            f"{stage.name} could not be begun on the Ray cluster ({line}); expected on every node what is installed "
            "here, and the same folders."
        ) from error
    except ray.exceptions.RayError as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Interrupted(
            f"{stage.name}: the process or machine that ran it was lost {RETRIES + 1} times ({line}); what is saved "
            "stays, run the same command to go on."
        ) from error


def _connected() -> Any:
    """Ray's module, connected to a cluster."""
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise Refused("--executor=ray needs Ray, which is not installed; type pip install 'kdjax[ray]'.") from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            where = "on this machine" if address == "auto" else f"at {address}"
            raise Refused(
                f"no Ray cluster answers {where}; start one with ray start --head, and name it in RAY_ADDRESS where it "
                "is another machine's."
            ) from error
    return ray


def _reach(address: str) -> None:
    """Raises OSError where nobody listens: Ray would try for a while, with a page of warnings."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


def _gpus(ray: Any, settings: Settings) -> int:
    """GPUs that a stage asks for."""
    some = os.environ.get("JAX_PLATFORMS") != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    return (settings.devices or 1) if some else 0


def _check_batch(stage: Stage, devices: int) -> None:
    size = stage.recipe.batch_size
    if size % devices:
        raise Refused(f"batch_size {size} is not a multiple of run.devices = {devices}; change one of them.")


def _refuse_lacking(nodes: Sequence[Mapping[str, Any]], demand: Mapping[str, float], stage: Stage) -> None:
    """Refuses a stage that would wait for ever."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in demand.items()) for node in alive):
        return
    most = {name: max((node.get(name, 0) for node in alive), default=0) for name in demand}
    words = [
        " and ".join(
            f"{amount / 1e9:.1f} GB" if name == "memory" else f"{amount:g} {name}" for name, amount in each.items()
        )
        for each in (demand, most)
    ]
    raise Refused(
        f"{stage.name} asks for {words[0]}, and no node of the Ray cluster has that (at most {words[1]}); add a node, "
        "or set run.devices."
    )

"""The whole path on real data in minutes: calibrate teachers, distill students, measure and report.

    python -m experiments.quickstart        # or make quickstart: the same command, in runs/quickstart

On noisy 8x8 digits and per seed: an NLL teacher and a calibrated teacher; the student alone, with NLL and with the
teacher's calibrator; and the student distilled from each teacher, KD(UC) and KD(C), at every temperature of the config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common, stored
from experiments.command import Command
from kdjax import metrics, provenance, report, stages
from kdjax.errors import Refused
from kdjax.recipes import Recipe
from kdjax.results import Result
from kdjax.stages import Stage
from kdjax.types import Dataset

Groups = dict[str, list[Stage]]
IGNORED = {
    "recipe.generations": common.ONLY["recipe.generations"],
    "recipe.student.distill.options.T": (
        "the quickstart compares the temperatures --config.recipe.temperatures=(1.0,4.0)"
    ),
}


def at_temperature(student: Recipe, T: float) -> Recipe:
    """The student's recipe with that distillation temperature."""
    if student.distill is None:
        raise Refused("the quickstart compares distilled students; set config.recipe.student.distill.method, e.g. kd.")
    options = {**student.distill.options, "T": float(T)}
    return dataclasses.replace(student, distill=dataclasses.replace(student.distill, options=options))


def declare(config: ConfigDict) -> Groups:
    """Table rows -> their stages, one a seed."""
    common.distinct("config.recipe.temperatures", config.recipe.temperatures, float)
    groups: Groups = {}
    for seed in config.seeds:
        calibrated, student = common.pair(config, seed)
        plain = Stage(dataclasses.replace(calibrated.recipe, method="nll", options={}), name=f"NLL teacher seed {seed}")
        calibrated = dataclasses.replace(calibrated, name=f"{calibrated.recipe.method} teacher seed {seed}")
        method = calibrated.recipe.method
        for name, like in (("NLL", plain), (method, calibrated)):
            alone = dataclasses.replace(
                student.recipe, distill=None, method=like.recipe.method, options=like.recipe.options
            )
            groups.setdefault(f"teacher, {name}", []).append(like)
            groups.setdefault(f"student alone, {name}", []).append(
                Stage(alone, name=f"student alone {name} seed {seed}")
            )
        for T in config.recipe.temperatures:
            for name, teacher in (("KD(UC)", plain), ("KD(C)", calibrated)):
                recipe = at_temperature(student.recipe, T)
                stage = Stage(recipe, teacher, name=f"{name} T={T:g} seed {seed}")
                groups.setdefault(f"student {name}, T={T:g}", []).append(stage)
    order = {"teacher": 0, "student alone": 1}
    return dict(sorted(groups.items(), key=lambda item: order.get(item[0].split(",")[0], 2)))


def differences(results: dict[str, Result], groups: Groups, temperatures: Sequence[float]) -> dict[str, dict]:
    """KD(C) - KD(UC) per temperature and metric: the mean over seeds of the paired difference, with its interval."""
    found: dict[str, dict] = {}
    for T in temperatures:
        sides = [
            [results[s.id].metrics["test"] for s in groups[f"student {name}, T={T:g}"]] for name in ("KD(C)", "KD(UC)")
        ]
        found[f"T={T:g}"] = {
            key: metrics.paired([m[key] for m in sides[0]], [m[key] for m in sides[1]])._asdict()
            for key in ("top1", "nll", "brier", "ece")
        }
    return found


def run(given: Command) -> None:
    config = given.config
    groups = declare(config)
    results = common.execute(given, [s for members in groups.values() for s in members])
    if results is None:
        return
    folder = Path(config.run.workdir)
    temperatures = list(config.recipe.temperatures)
    paired = differences(results, groups, temperatures) if len(config.seeds) > 1 else {}
    ids = {name: [s.id for s in members] for name, members in groups.items()}
    table = common.publish(given, "results", common.rows(results, groups), stages=ids, kdc_minus_kduc=paired)
    figure = folder / "reliability.png"
    report.reliability_diagram([(n, common.pooled(results, m)) for n, m in groups.items()], figure)
    last = closing(folder, temperatures[-1])
    sentences = [common.difference_sentence(where, p["ece"]) for where, p in paired.items()]
    report.page(
        folder / "report.html",
        title="Does calibration survive distillation?",
        summary=[last.removeprefix("quickstart: ") + ".", *sentences],
        tables=[("Test split, mean ± sd over seeds", table)],
        figures=[("Reliability on the test split, seeds pooled", figure)],
        notes=notes(config, provenance.environment()),
    )
    for sentence in sentences:
        print(sentence)
    print(f"report: {folder / 'report.html'}")
    print(last)


def notes(config: ConfigDict, environment: dict) -> list[str]:
    return [
        described(stages.dataset(common.recipe(config, "teacher", 0).data), config.recipe.data),
        f"Measured on {environment['device']}, {environment['cpus']} cores, jax {environment['versions']['jax']}.",
        "ECE: top-label, 15 equal-width bins. ACE: top-label, equal-mass bins.",
        "An interval resamples the paired differences of the seeds: with few of them it cannot leave their range and "
        "is shown for scale, not as a test.",
    ]


def described(dataset: Dataset, data: ConfigDict) -> str:
    """What was trained and measured on, in a sentence."""
    source = Path(data.path).name if data.path else dataset.name
    sizes = [f"{len(split.label):,}" for split in (dataset.train, dataset.calibration, dataset.test)]
    noise = f", with additive noise of sd {data.noise:g} of the pixel range" if data.noise else ""
    return (
        f"Data: {source}, {dataset.num_classes} classes{noise}; {sizes[0]} training examples, {sizes[1]} held out for "
        f"calibration, {sizes[2]} for the test, which is read once."
    )


def closing(folder: Path, T: float) -> str:
    """The last line, computed from the files of the work directory."""
    content = stored.read(folder / "results.json")
    mean = {row["name"]: 100 * sum(m["ece"] for m in row["metrics"]) / len(row["metrics"]) for row in content["rows"]}
    ours, theirs = mean[f"student KD(C), T={T:g}"], mean[f"student KD(UC), T={T:g}"]
    return f"quickstart: KD(C) ECE {ours:.2f}% vs KD(UC) ECE {theirs:.2f}% over {len(content['seeds'])} seeds"


if __name__ == "__main__":
    common.main(run, "configs/digits.py", workdir="runs/quickstart", ignored=IGNORED)

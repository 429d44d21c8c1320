"""A training set with a long tail: accuracy and calibration by how often a class was seen (CUD claims both, untested).

    python -m experiments.longtail --plan
    python -m experiments.longtail --config=configs/longtail.py:cpu --workdir runs/longtail_cpu

Class k keeps max(2, floor(n_max ρ^(-r_k / (K - 1)))) training examples, r_k its rank in a permutation by a seed of its
own (`kdjax.data.long_tail`). Calibration and test stay balanced: temperatures and epochs are chosen on balanced data,
which is another story than one deployed under the same tail. Head, middle and tail are the thirds of the classes by
their number of training examples. Sizes are described in configs/longtail.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import common, figures, linear, tables, text_fields, texts
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Part, Row
from experiments.texts import Bench
from kdjax import metrics, stages
from kdjax.recipes import Data
from kdjax.results import Result

THIRDS = ("head", "middle", "tail")
COLUMNS = ("top1", "nll", "ece", *(f"{metric}_{third}" for metric in ("top1", "ece", "nll") for third in THIRDS))
MORE_COLUMNS = (*COLUMNS, "top1_macro", "firing_rate")
MEASURES = {
    "top1_tail": ("top-1 in the tail", 1),
    "ece_tail": ("ECE in the tail", -1),
    "nll_tail": ("NLL in the tail", -1),
    "top1": ("top-1", 1),
    "ece": ("ECE", -1),
}


def thirds(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> classes, by training examples in falling order, ties by number."""
    order = np.argsort(-counts, kind="stable")
    return dict(zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True))


def by_third(data: Data, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, ECE and NLL of the test examples of each third of the classes, and the mean accuracy of classes."""
    dataset = stages.dataset(data)
    counts = np.bincount(dataset.train.label, minlength=dataset.num_classes)
    made: dict[str, float] = {}
    for third, classes in thirds(counts).items():
        chosen = np.isin(labels, classes)
        confidence, correct = metrics.top_label(logits[chosen], labels[chosen])
        made |= {
            f"top1_{third}": float(correct.mean()),
            f"ece_{third}": metrics.ece(confidence, correct),
            f"nll_{third}": metrics.nll(logits[chosen], labels[chosen]),
        }
    correct = logits.argmax(1) == labels
    made["top1_macro"] = float(np.mean([correct[labels == c].mean() for c in np.unique(labels)]))
    return made


def of_stage(result: Result) -> dict[str, float]:
    return {**by_third(result.stage.recipe.data, *result.logits("test")), **texts.fires(result)}


def of_reference(data: Data) -> Mapping[str, float]:
    """The linear reference by thirds, beside its test metrics."""
    test = linear.fitted(data).logits(linear.texts(data).test)
    return {**linear.scores(data), **by_third(data, test, stages.dataset(data).test.label)}


def benches(config: ConfigDict) -> list[Bench]:
    """One for each set and imbalance."""
    common.distinct("config.recipe.imbalances", config.recipe.imbalances, float)
    made = []
    for name in text_fields.at_hand(config)[0]:
        data = texts.data(config, name)
        for ratio in config.recipe.imbalances:
            cut = {"imbalance": float(ratio), "imbalance_seed": int(config.recipe.imbalance_seed)}
            made.append(
                Bench(config, f"{name} ρ = {ratio:g}", dataclasses.replace(data, options={**data.options, **cut}))
            )
    return made


def rows(config: ConfigDict) -> dict[str, Row]:
    """Every row by its name."""
    return texts.ablations(config, benches(config), of_stage, of_reference)


def run(given: Command) -> None:
    config = given.config
    every = rows(config)
    finished = tables.run(given, every)
    if finished is None:
        return
    names = [bench.name for bench in benches(config)]
    wheres = [f"{name}, {model}" for name in names for model in config.recipe.students]
    sentences = texts.sentences(texts.verdicts(finished.lines, wheres, measures=MEASURES))
    for name in names:
        sentences += texts.against_linear(finished.lines, name)
        sentences += texts.against_linear(finished.lines, name, "top1_tail", "accuracy in the tail")
    tables.publish(
        given,
        "longtail",
        Sheet(finished.lines, MORE_COLUMNS),
        finished,
        title="A long tail in training: who suffers?",
        summary=sentences or ["One seed, or failed ones: differences have no interval."],
        figures=drawn(config, finished, wheres),
        notes=[
            "Calibration and test splits are balanced, the training split alone is cut.",
            "Head, middle and tail: thirds of the classes by their number of training examples.",
            texts.FIRES,
            texts.MATCHED,
        ],
        parts=[Part(name, {row: "" for row in every if row.startswith(f"{name}, ")}, MORE_COLUMNS) for name in names],
        said=sentences,
    )


def drawn(config: ConfigDict, finished: tables.Finished, wheres: list[str]) -> list[tuple[str, Path]]:
    """Accuracy and ECE by third, bars of each method."""
    made, by_name = [], {line.name: line for line in finished.lines}
    methods = (texts.ALONE, texts.LKD, texts.CONTROL, texts.DUS, texts.WCLIP, texts.CUD)
    for where in wheres:
        lines = {method: by_name[f"{where}: {method}"] for method in methods}
        for metric, head in (("top1", "top-1 %"), ("ece", "ECE %")):
            groups = {
                third: {
                    method: tables.values(line, f"{metric}_{third}") for method, line in lines.items() if line.metrics
                }
                for third in THIRDS
            }
            if any(groups.values()):
                path = Path(config.run.workdir) / (figures.file_name("longtail", where, metric) + ".png")
                title = f"{where}: {head.removesuffix(' %')} by how often a class was seen"
                made.append((title, figures.bars(path, groups, ylabel=head, title=title)))
    return made


if __name__ == "__main__":
    common.main(run, "configs/longtail.py", workdir="runs/longtail", ignored=texts.IGNORED)

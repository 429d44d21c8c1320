"""Confidence on what the classes do not cover, for teachers, students and the linear reference (CUD, table 2).

    python -m experiments.ood --plan
    python -m experiments.ood --config=configs/ood.py:cpu --workdir runs/ood_cpu

CLINC150: trained and calibrated in scope, tested on 4,500 queries in scope against 1,000 of no class. Held-out classes:
a share of the classes is left out of training and calibration, and the test examples of the others are inside, theirs
outside. 20 Newsgroups: 15 groups inside, 5 outside. Nothing outside is ever trained or calibrated on.

Scores are high for known inputs: the largest probability, and the energy. FPR95 is the share of outside inputs that
pass the threshold which lets 95 % of the inside ones pass. Sizes are described in configs/ood.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import common, figures, linear, published_text, tables, text_fields, texts
from experiments.command import Command
from experiments.sheets import Sheet
from experiments.tables import Part, Row
from experiments.texts import Bench
from kdjax import metrics, predictor, stages
from kdjax.data import text
from kdjax.data.order import permutation
from kdjax.errors import Refused, within
from kdjax.recipes import Data
from kdjax.results import Result

COLUMNS = ("top1", "nll", "ece", "ood_auroc", "ood_fpr95", "ood_auroc_energy", "ood_fpr95_energy")
MORE_COLUMNS = (*COLUMNS, "ood_aupr_out", "ood_confidence", "ood_ece", "firing_rate")
OUTSIDE_GROUPS = (
    *("soc.religion.christian", "talk.politics.guns", "talk.politics.mideast", "talk.politics.misc"),
    "talk.religion.misc",
)
"""Of 20 Newsgroups, after Kong et al., EMNLP 2020, arXiv 2010.11506."""
OOD_MEASURES = {
    "ood_auroc": ("AUROC", 1),
    "ood_fpr95": ("FPR95", -1),
    "ood_auroc_energy": ("AUROC by energy", 1),
    "ece": ("ECE inside", -1),
}


@functools.lru_cache(maxsize=8)
def outside(data: Data) -> tuple[str, ...]:
    """The texts outside a data set: those that it has for that, or the test texts of the classes it leaves out.

    Raises:
      Refused: a set that has neither.
    """
    raw = linear.raw(data)
    if chosen := data.options.get("classes"):
        known = {raw.label_names.index(name) if isinstance(name, str) else int(name) for name in chosen}
        test = raw.splits["test"]
        return tuple(words for words, label in zip(test.text, test.label, strict=True) if int(label) not in known)
    if "out_of_scope" not in raw.splits:
        raise Refused(f"{data.name!r} has no texts out of scope; hold classes out, with config.recipe.held_out_shares.")
    return tuple(raw.splits["out_of_scope"].text)


def scores(inside: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """What a network knows of its limits, from logits inside [N, K] with labels and outside [M, K].

    Returns:
      `metrics.ood` by the largest probability and by the energy; `ood_confidence`, the mean confidence outside; and
      `ood_ece`, the ECE of both together, each outside input counted as an error.
    """
    by_confidence = metrics.ood(metrics.msp(inside), metrics.msp(logits))
    by_energy = metrics.ood(metrics.energy(inside), metrics.energy(logits))
    confidence, correct = metrics.top_label(inside, labels)
    both = np.concatenate([confidence, metrics.msp(logits)])
    hits = np.concatenate([correct, np.zeros(len(logits), bool)])
    return {
        "ood_auroc": by_confidence["auroc"],
        "ood_fpr95": by_confidence["fpr95"],
        "ood_aupr_out": by_confidence["aupr_out"],
        "ood_auroc_energy": by_energy["auroc"],
        "ood_fpr95_energy": by_energy["fpr95"],
        "ood_confidence": float(metrics.msp(logits).mean()),
        "ood_ece": metrics.ece(both, hits),
    }


@functools.lru_cache(maxsize=8)
def _tokens(data: Data) -> Mapping[str, np.ndarray]:
    given = {key: value for key, value in data.given().items() if key != "classes"}
    return text.foreign(stages.dataset(data), outside(data), **given)


def of_stage(result: Result) -> dict[str, float]:
    """The scores of a finished stage, and how often W-Clip fired."""
    logits = predictor.load(result.directory).logits(_tokens(result.stage.recipe.data))
    return {**scores(*result.logits("test"), logits), **texts.fires(result)}


def of_reference(data: Data) -> Mapping[str, float]:
    """The scores of the linear reference, beside its test metrics."""
    fitted, dataset = linear.fitted(data), stages.dataset(data)
    inside = fitted.logits(linear.texts(data).test)
    return {**linear.scores(data), **scores(inside, dataset.test.label, fitted.logits(outside(data)))}


def held_out(config: ConfigDict, name: str, share: float) -> Data:
    """A set without a share of its classes, drawn by `config.recipe.held_out_seed`; the kept ones are numbered anew."""
    data = texts.data(config, name)
    k = linear.raw(data).num_classes
    within("config.recipe.held_out_shares", share, 0, 1, open_low=True, open_high=True)
    kept = np.sort(permutation(k, "sample", int(config.recipe.held_out_seed))[: max(2, k - round(share * k))])
    return dataclasses.replace(data, options={**data.options, "classes": tuple(int(c) for c in kept)})


def benches(config: ConfigDict) -> list[Bench]:
    """One for each way to be outside."""
    if config.recipe.held_out_shares:
        common.distinct("config.recipe.held_out_shares", config.recipe.held_out_shares, float)
    made = []
    shares = [float(share) for share in config.recipe.held_out_shares]
    for name in text_fields.at_hand(config)[0]:
        data = texts.data(config, name)
        if "out_of_scope" in linear.raw(data).splits:
            made.append(Bench(config, f"{name} out of scope", data))
        benches_of = {f"{name} {share:.0%} held out": held_out(config, name, share) for share in shares}
        if len({*benches_of.values()}) < len(shares):
            raise Refused(
                f"config.recipe.held_out_shares is {tuple(shares)}, and two of them have one name or hold out the same "
                f"classes of {name}; expected shares that differ by whole percents, and by a class at least."
            )
        made += [Bench(config, title, data) for title, data in benches_of.items()]
    if config.recipe.newsgroups:
        data = texts.data(config, "newsgroups20")
        inside = tuple(name for name in linear.raw(data).label_names if name not in OUTSIDE_GROUPS)
        data = dataclasses.replace(data, options={**data.options, "classes": inside})
        made.append(Bench(config, "newsgroups20 15 of 20", data))
    if not made:
        raise Refused(
            "there is nothing outside: expected a set with texts out of scope, or config.recipe.held_out_shares."
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
    sentences = texts.sentences(texts.verdicts(finished.lines, wheres, measures=OOD_MEASURES))
    for name in names:
        sentences += texts.against_linear(finished.lines, name, "ood_auroc", "OOD AUROC")
    parts = [Part(name, {row: "" for row in every if row.startswith(f"{name}, ")}, MORE_COLUMNS) for name in names]
    tables.publish(
        given,
        "ood",
        Sheet(finished.lines, MORE_COLUMNS),
        finished,
        title="Outside the classes: who knows that it does not know?",
        summary=sentences or ["One seed, or failed ones: differences have no interval."],
        figures=drawn(config, finished, names),
        notes=[
            "Outside inputs are never trained or calibrated on. The vocabulary of pieces is made of all training "
            "texts, those of held-out classes included, without their labels.",
            f"What {published_text.CUD} prints for outliers could not be read, so there is no published column.",
            texts.FIRES,
            texts.MATCHED,
        ],
        parts=parts,
        said=sentences,
    )


def drawn(config: ConfigDict, finished: tables.Finished, names: list[str]) -> list[tuple[str, Path]]:
    """AUROC of every student by way to be outside."""
    groups: dict[str, dict[str, list[float]]] = {}
    by_name = {line.name: line for line in finished.lines}
    for name in names:
        model = config.recipe.students[-1]
        methods = (texts.ALONE, texts.LKD, texts.CONTROL, texts.DUS, texts.WCLIP, texts.CUD)
        lines = {method: by_name[f"{name}, {model}: {method}"] for method in methods}
        if shown := {method: tables.values(line, "ood_auroc") for method, line in lines.items() if line.metrics}:
            groups[name] = shown
    if not groups:
        return []
    title = "AUROC by the largest probability, inside against outside"
    path = figures.bars(Path(config.run.workdir) / "ood.png", groups, ylabel="AUROC %", title=title)
    return [(title, path)]


if __name__ == "__main__":
    common.main(run, "configs/ood.py", workdir="runs/ood", ignored=texts.IGNORED)

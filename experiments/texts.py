"""What the text tables share: sets, the stages of one set, the rows of every table, and sentences by interval.

Every table has the linear reference, a student trained by plain CE, and the control of CUD's teacher: an ordinary
teacher, tempered on the calibration split to the DUS teacher's mean entropy. What DUS gains over that is not softening.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import common, linear, tables
from experiments.sheets import Line
from experiments.tables import Row
from kdjax import data as sources
from kdjax import objectives, report, results, stages
from kdjax.errors import Refused
from kdjax.prepare import Tokens
from kdjax.recipes import Data, Distill, Recipe, from_dict
from kdjax.results import Result
from kdjax.stages import Stage

COLUMNS = ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "firing_rate")
SETS = (
    "the sets are --config.recipe.sets=('trec',), each described by --config.recipe.sizes.trec.options.max_length=24 "
    "and so on"
)
FIRES = "W-Clip fires: the share of the student's training rows on which the teacher's top class is not the label."
MATCHED = (
    "LKD, teacher as soft as DUS: the ordinary teacher's logits divided by the one temperature at which their mean "
    "entropy on the calibration split is the DUS teacher's."
)
IGNORED = {
    **common.ONLY,
    "recipe.data.name": SETS,
    "recipe.teacher.method": "the table trains an ordinary teacher and one by DUS",
    "recipe.student.distill.method": "the table compares methods of its own",
}
"""Fields that these tables would not look at."""


def data(config: ConfigDict, name: str) -> Data:
    """`config.recipe.sizes.NAME`, with the path and the tokenizer of `config.recipe.data` where it has none."""
    shared = config.recipe.data.to_dict()
    given = config.recipe.sizes[name].to_dict() if name in config.recipe.sizes else {}
    own = given.pop("options", {})
    if not isinstance(own, Mapping):
        raise Refused(f"config.recipe.sizes.{name}.options is {own!r}; expected fields, like options.max_length=24.")
    options = {**shared["options"], **own}
    path = {"path": shared["path"]} if shared["path"] and "path" in sources.options_of(name) else {}
    return from_dict(Data, {"name": name, **path, **given, "options": options}, f"config.recipe.sizes.{name}")


class Bench(NamedTuple):
    """The stages that can be declared on one data set.

    Attributes:
      name: begins the names of its rows.
      data: of all of them.
    """

    config: ConfigDict
    name: str
    data: Data

    def recipe(self, who: str, **changes: Any) -> Recipe:
        """`config.recipe.<who>` on this set; a network from scratch has as many words as the set's vocabulary."""
        made = common.recipe(self.config, who, 0, data=self.data, distill=None, **changes)
        if who == "student" and made.model in self.config.recipe.lr_of:
            made = tables.changed(made, optimizer={"lr": self.config.recipe.lr_of[made.model]})
        if self.data.name in self.config.recipe.epochs_of:
            epochs = self.config.recipe.epochs_of[self.data.name]
            share = made.optimizer.warmup_epochs / made.epochs
            optimizer = dataclasses.replace(made.optimizer, warmup_epochs=share * epochs)
            made = dataclasses.replace(made, epochs=epochs, optimizer=optimizer)
        prepare = stages.dataset(self.data).prepare
        if getattr(made, "init", "") or not isinstance(prepare, Tokens):
            return made
        rows = {"vocab_size": prepare.size, "max_position_embeddings": prepare.max_length}
        return dataclasses.replace(made, model_options={**rows, **made.model_options})

    def teacher(self, method: str = "nll", **options: Any) -> Stage:
        recipe = self.recipe("teacher", method=method, options={**objectives.options(method), **options})
        return Stage(recipe, name=f"{self.name} teacher {method}{_shown(options)}")

    def alone(self, model: str, method: str = "nll", **options: Any) -> Stage:
        """A student without a teacher."""
        recipe = self.recipe("student", model=model, method=method, options={**objectives.options(method), **options})
        return Stage(recipe, name=f"{self.name} {model} {method}")

    def student(
        self,
        model: str,
        teacher: Stage,
        method: str = "kd",
        *,
        as_soft_as: Stage | None = None,
        weights: Sequence[float] = (),
        posthoc: str = "",
        teacher_outputs: str = "",
        **options: Any,
    ) -> Stage:
        """A student of that teacher, at the distillation temperature of the configuration."""
        known = objectives.options(method)
        T = {"T": float(self.config.recipe.student.distill.options.T)} if "T" in known else {}
        term = Distill(
            method,
            {**known, **T, **options},
            weights=tuple(weights) or tuple(self.config.recipe.student.distill.weights),
            posthoc=posthoc,
        )
        more: dict[str, Any] = {"teacher_outputs": teacher_outputs} if teacher_outputs else {}
        recipe = dataclasses.replace(self.recipe("student", model=model), distill=term, **more)
        name = f"{self.name} {model} {method}{_shown(options)} from {teacher.name.removeprefix(self.name).strip()}"
        return Stage(recipe, teacher, name, as_soft_as)


def _shown(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in options.items())})" if options else ""


def crossfit(config: ConfigDict) -> str:
    """`config.recipe.folds` as a recipe's `teacher_outputs`; "" for none."""
    return f"crossfit:{config.recipe.folds}" if config.recipe.folds else ""


def fires(result: Result) -> dict[str, float]:
    """How often W-Clip had something to clip while the student was trained: the share of rows with k* != y, over all
    epochs; and the temperature that made the teacher as soft as another. Nothing for stages that have no such thing."""
    with (result.directory / "metrics.jsonl").open(encoding="utf-8") as file:
        rates = [json.loads(line)["train"].get("firing_rate") for line in file]
    known = [rate for rate in rates if rate is not None]
    made = {"firing_rate": sum(known) / len(known)} if known else {}
    if result.stage.as_soft_as is not None:
        made["matched_T"] = results.matching_temperature(result.stage, result.directory.parent)
    return made


LKD, CONTROL, DUS, WCLIP, CUD = "LKD", "LKD, teacher as soft as DUS", "LKD + DUS", "LKD + W-Clip", "CUD"
PROJECTED, PROJECTED_DUS = "LKD + exact projection", "DUS + exact projection"
CROSSED = ", cross-fitted"
ALONE = "alone, CE"
ROWS = (
    *(ALONE, LKD, CONTROL, DUS, WCLIP, CUD, PROJECTED, PROJECTED_DUS),
    *(LKD + CROSSED, WCLIP + CROSSED, PROJECTED + CROSSED),
)
"""The rows of `ablation`."""


def ablation(bench: Bench, model: str) -> dict[str, Row]:
    """CUD's ablation on one set, with its control, the exact projection of eq. (2), and cross-fitted outputs."""
    config = bench.config
    ordinary, shaped = bench.teacher(), bench.teacher("dus")
    clip: dict[str, Any] = {"method": "cud"}
    exact: dict[str, Any] = {"method": "kd", "target": config.recipe.projection}
    made = {
        ALONE: bench.alone(model),
        LKD: bench.student(model, ordinary),
        CONTROL: bench.student(model, ordinary, as_soft_as=shaped),
        DUS: bench.student(model, shaped),
        WCLIP: bench.student(model, ordinary, **clip),
        CUD: bench.student(model, shaped, **clip),
        PROJECTED: bench.student(model, ordinary, **exact),
        PROJECTED_DUS: bench.student(model, shaped, **exact),
    }
    if folds := crossfit(config):
        made[LKD + CROSSED] = bench.student(model, ordinary, teacher_outputs=folds)
        made[WCLIP + CROSSED] = bench.student(model, ordinary, teacher_outputs=folds, **clip)
        made[PROJECTED + CROSSED] = bench.student(model, ordinary, teacher_outputs=folds, **exact)
    return {f"{bench.name}, {model}: {name}": Row(stage, more=fires) for name, stage in made.items()}


def teachers(bench: Bench, published: str = "") -> dict[str, Row]:
    """The two teachers of one set."""
    network = bench.config.recipe.teacher.model
    return {
        f"{bench.name}, {network}: teacher": Row(bench.teacher(), published=published),
        f"{bench.name}, {network}: teacher, DUS": Row(bench.teacher("dus")),
    }


def ablations(
    config: ConfigDict,
    benches: Sequence[Bench],
    of_stage: Callable[[Result], Mapping[str, float]],
    of_reference: Callable[[Data], Mapping[str, float]],
) -> dict[str, Row]:
    """Linear reference, teachers and ablation of every bench, measured by functions of the table's own."""
    common.named("config.recipe.students", config.recipe.students)
    made: dict[str, Row] = {}
    for bench in benches:
        made[f"{bench.name}, {linear.NAME}"] = Row(reference=functools.partial(of_reference, bench.data))
        every = teachers(bench)
        for model in config.recipe.students:
            every |= ablation(bench, model)
        made |= {name: row._replace(more=of_stage) for name, row in every.items()}
    return made


CLAIMS = (
    ("DUS against an ordinary teacher as soft", DUS, CONTROL),
    ("DUS against LKD", DUS, LKD),
    ("W-Clip against LKD", WCLIP, LKD),
    ("W-Clip against LKD, both cross-fitted", WCLIP + CROSSED, LKD + CROSSED),
    ("W-Clip with DUS against DUS alone", CUD, DUS),
    ("CUD against LKD", CUD, LKD),
    ("CUD against an ordinary teacher as soft", CUD, CONTROL),
    ("The exact projection against W-Clip", PROJECTED, WCLIP),
    ("The exact projection against W-Clip, both cross-fitted", PROJECTED + CROSSED, WCLIP + CROSSED),
    ("LKD against the student alone", LKD, ALONE),
    ("Softening the teacher alone, against LKD", CONTROL, LKD),
)
"""(what is claimed, row, the control that it is held against)."""
MEASURES = {"top1": ("top-1", 1), "ece": ("ECE", -1), "nll": ("NLL", -1)}
"""metric -> (its name in sentences, 1 where more is better)."""


class Verdict(NamedTuple):
    """One claim on one set.

    Attributes:
      differences: metric -> mean, low, high, n of the paired differences, as `tables.paired` gives them.
    """

    claim: str
    where: str
    differences: Mapping[str, Mapping[str, float]]
    measures: Mapping[str, tuple[str, int]] = MEASURES

    def of(self, metric: str) -> str:
        """ "better", "worse", or "undecided" where the interval holds 0."""
        d, sign = self.differences[metric], self.measures[metric][1]
        if d["low"] <= 0 <= d["high"]:
            return "undecided"
        return "better" if sign * d["mean"] > 0 else "worse"

    def sentence(self) -> str:
        said = []
        for metric, (head, _) in self.measures.items():
            column = report.COLUMNS[metric]
            d, scale, digits = self.differences[metric], column.scale, column.digits
            interval = f"[{scale * d['low']:+.{digits}f}, {scale * d['high']:+.{digits}f}]"
            said.append(f"{head} {scale * d['mean']:+.{digits}f} {interval} {self.of(metric)}")
        n = int(next(iter(self.differences.values()))["n"])
        return f"{self.claim}, {self.where}: {'; '.join(said)}; n = {n} seeds."


def verdicts(
    lines: Sequence[Line],
    wheres: Sequence[str],
    claims: Sequence[tuple[str, str, str]] = CLAIMS,
    measures: Mapping[str, tuple[str, int]] = MEASURES,
) -> list[Verdict]:
    """Every claim wherever both of its rows finished; a row is named "WHERE: NAME"."""
    by_name = {line.name: line for line in lines}
    made = []
    for claim, one, other in claims:
        for where in wheres:
            first, second = (by_name.get(f"{where}: {name}") for name in (one, other))
            if first is None or second is None:
                continue
            if difference := tables.paired(first, second, names=tuple(measures)):
                made.append(Verdict(claim, where, difference, measures))
    return made


def tally(verdicts: Sequence[Verdict]) -> list[str]:
    """One plain sentence a claim: on how many sets its interval lies on the good side of 0, on the bad, or holds 0."""
    lines = []
    for claim in dict.fromkeys(verdict.claim for verdict in verdicts):
        of_claim = [verdict for verdict in verdicts if verdict.claim == claim]
        said = []
        for metric, (head, _) in of_claim[0].measures.items():
            answers = [verdict.of(metric) for verdict in of_claim]
            if len(answers) == 1:
                said.append(f"{head} {answers[0]}")
            else:
                counts = [f"{answers.count(a)} {a}" for a in ("better", "worse", "undecided") if a in answers]
                said.append(f"{head} {', '.join(counts)}")
        places = "" if len(of_claim) == 1 else f" on {len(of_claim)} sets"
        lines.append(f"{claim}{places}: {'; '.join(said)}.")
    return lines


def sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """The tally of the claims, then each verdict."""
    return [*tally(verdicts), *(verdict.sentence() for verdict in verdicts)]


def against_linear(lines: Sequence[Line], name: str, metric: str = "top1", head: str = "accuracy") -> list[str]:
    """How many networks the linear reference of a set beats, said plainly; a larger number is better."""
    of_set = [line for line in lines if line.name.startswith(f"{name}, ") and line.metrics]
    reference = next((line for line in of_set if line.name.startswith(f"{name}, linear")), None)
    if reference is None:
        return []
    linear = reference.metrics[0][metric]
    others = [line for line in of_set if line is not reference]
    below = [line for line in others if sum(m[metric] for m in line.metrics) / len(line.metrics) < linear]
    return [
        f"{name}: {len(below)} of {len(others)} rows lie below the linear reference's {head} of {100 * linear:.2f} %."
    ]

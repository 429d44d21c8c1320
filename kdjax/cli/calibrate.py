"""`kdjax calibrate`: which post-hoc method suits this model, fitted, measured and saved as one small JSON."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax import metrics, posthoc
from kdjax.cli import words
from kdjax.cli.audit import describe, refuse_one_class
from kdjax.cli.predictions import How, Predictions, read
from kdjax.cli.snippet import snippet
from kdjax.errors import Refused, one_of, printable
from kdjax.files import replaceable
from kdjax.posthoc import Calibrator
from kdjax.report import Grid

METHODS = ("temperature", "vector", "dirichlet", "isotonic", "classwise_temperature")
NOTHING = "as it is"
FOLDS = 5
# K² weights: beyond this many classes the fits take minutes, and the file is large.
_MOST_FOR_DIRICHLET = 50
_SHOWN = ("top1", "nll", "brier", "ece", "ece_over", "ece_under", "smece", "sce")


class Candidate(NamedTuple):
    """One method, cross-validated: probabilities' logits of examples that its fits did not see."""

    method: str
    nll: float
    logits: np.ndarray


def calibrate(fit: str, test: str, out: str, methods: str, how: How) -> list[str]:
    """Fits every method on folds of `fit`, saves the best, and returns the lines to print.

    Raises:
      Refused: a wrong file; labels of one class; too few examples.
    """
    target = Path(out)
    if target.suffix.lower() != ".json":
        raise Refused(f"--out is {out!r}; expected a name that ends in .json.")
    if not target.parent.is_dir():
        raise Refused(f"--out is {out!r}, and the directory {str(target.parent)!r} does not exist; make it first.")
    if not replaceable(target, "kind", "params"):
        raise Refused(f"--out is {out!r}, and that is a file of another kind already; give another name.")
    fitting = read(fit, how)
    testing = read(test, how) if test else None
    names = _methods(methods, fitting)
    check_pair(fitting, testing)
    lines = [describe(fitting), *([describe(testing)] if testing else []), ""]
    candidates = _cross_validated(fitting, names)
    best = min(candidates, key=lambda c: c.nll)
    chosen = _final(best.method, fitting)
    before, after = _before_and_after(chosen, best, fitting, testing)
    if not methods and len(names) < len(METHODS):
        lines += [
            f"dirichlet is left out beyond {_MOST_FOR_DIRICHLET} classes; --methods=dirichlet fits its K² weights.",
            "",
        ]
    lines += [words.aligned(_candidates(candidates, fitting)), "", _choice(best, candidates[0])]
    measured = f"on {testing.name}" if testing else f"on {fitting.name}, each fifth of it by a fit on the rest"
    lines += ["", f"before and after, {measured}:", "", words.aligned(_changes(before, after)), ""]
    about = {
        "fitted_on": {"file": fitting.name, "examples": len(fitting.logits)},
        "cross_validated_nll": {c.method: c.nll for c in candidates},
        "measured": {"on": measured, "before": _plain(before), "after": _plain(after)},
    }
    Calibrator(**{**chosen.__dict__, "about": about}).save(target)
    lines += [f"wrote {target}; to apply it: kdjax apply {target} FILE --out OUT, or, without kdjax:", ""]
    return [*lines, *("    " + line for line in snippet(chosen, str(target)).splitlines())]


def check_pair(fitting: Predictions, testing: Predictions | None) -> None:
    """Refuses examples that nothing can be fitted on, and a test of another model or of the same examples."""
    labels = fitting.truth
    refuse_one_class(fitting)
    if len(labels) < 10 * FOLDS:
        raise Refused(
            f"{fitting.name} has {len(labels)} examples; expected at least {10 * FOLDS}, better a thousand, to fit on."
        )
    if testing is None:
        return
    _ = testing.truth
    if testing.logits.shape[1] != fitting.logits.shape[1]:
        raise Refused(
            f"{fitting.name} has {fitting.logits.shape[1]} classes and {testing.name} has {testing.logits.shape[1]}; "
            "expected predictions of the same model."
        )
    if fitting.classes and testing.classes and fitting.classes != testing.classes:
        raise Refused(f"{fitting.name} and {testing.name} name their classes differently, or in another order.")
    if fitting.logits.shape == testing.logits.shape and np.array_equal(fitting.logits, testing.logits):
        raise Refused(f"{fitting.name} and {testing.name} hold the same examples; a test needs others than the fit.")


def _methods(given: str, fitting: Predictions) -> list[str]:
    if not given:
        num_classes = fitting.logits.shape[1]
        return [m for m in METHODS if m != "dirichlet" or num_classes <= _MOST_FOR_DIRICHLET]
    return [one_of("--methods", name.strip(), posthoc.POSTHOC, registered=True) for name in given.split(",")]


def _fitted(method: str, logits: np.ndarray, labels: np.ndarray) -> Calibrator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the warnings say is seen in the table
        params = posthoc.get(method).fit(logits, labels)
    return posthoc.fitted(method, params, num_classes=logits.shape[1])


def _cross_validated(fitting: Predictions, names: list[str]) -> list[Candidate]:
    """The logits as they are, and each method's out-of-fold ones."""
    logits, labels = fitting.logits.astype(np.float64), fitting.truth
    if not np.isfinite(logits).all():
        raise Refused(f"{fitting.name} holds logits of -inf; expected finite ones to fit on (-100 excludes a class).")
    # Every class is dealt evenly, so that a rare one is not all in one fold.
    fold = np.empty(len(labels), np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % FOLDS
    made = [Candidate(NOTHING, metrics.nll(logits, labels), logits)]
    for name in names:
        if sys.stderr.isatty():
            print(f"fitting {name} ...", file=sys.stderr)
        held_out = np.empty_like(logits)
        for f in range(FOLDS):
            inside, outside = fold != f, fold == f
            held_out[outside] = _fitted(name, logits[inside], labels[inside]).logits(logits[outside])
        made.append(Candidate(name, metrics.nll(held_out, labels), held_out))
    return made


def _final(method: str, fitting: Predictions) -> Calibrator:
    logits = fitting.logits.astype(np.float64)
    if method == NOTHING:
        made = posthoc.fitted("temperature", {"T": np.float64(1.0)}, num_classes=logits.shape[1])
    else:
        made = _fitted(method, logits, fitting.truth)
    return Calibrator(**{**made.__dict__, "classes": fitting.classes, "scores": fitting.scores})


def _before_and_after(
    chosen: Calibrator, best: Candidate, fitting: Predictions, testing: Predictions | None
) -> tuple[metrics.Resampled, metrics.Resampled]:
    if testing is None:
        labels, plain, changed = fitting.truth, fitting.logits, best.logits
    else:
        labels, plain, changed = testing.truth, testing.logits, chosen.logits(testing.logits)
    return metrics.resampled(plain, labels), metrics.resampled(changed, labels)


def _candidates(candidates: list[Candidate], fitting: Predictions) -> Grid:
    rows = []
    for one in sorted(candidates, key=lambda c: c.nll):
        confidence, correct = metrics.top_label(one.logits, fitting.truth)
        ece, top1 = float(metrics.ece(confidence, correct)), float(correct.mean())
        rows.append([one.method, f"{one.nll:.4f}", f"{100 * ece:.2f} %", f"{100 * top1:.2f} %"])
    return Grid(("method, cross-validated", "NLL", "ECE", "accuracy"), rows)


def _choice(best: Candidate, as_it_is: Candidate) -> str:
    if best.method == NOTHING:
        return "No method lowers the NLL: the model is left as it is, and the file holds a temperature of 1."
    return f"Chosen by the NLL: {printable(best.method)} ({as_it_is.nll:.4f} -> {best.nll:.4f})."


def _changes(before: metrics.Resampled, after: metrics.Resampled) -> Grid:
    change = metrics.differences(after, before)
    rows = [
        [
            words.METRICS[name][0],
            words.number(name, before.values[name]),
            words.number(name, after.values[name]),
            words.ranged(name, change[name], signed=True),
        ]
        for name in _SHOWN
    ]
    return Grid(("metric", "before", "after", "change [95 % interval]"), rows)


def _plain(result: metrics.Resampled) -> dict[str, float]:
    return {name: value for name, value in result.values.items() if np.isfinite(value)}

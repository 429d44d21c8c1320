"""Does confidence rank right above wrong, and known above unknown?. On the host, in float64.

Everywhere a larger score means "more confident" (right; in-distribution), and ties count half, as in the expectation
over a random order: no value depends on the order of the examples.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from kdjax.errors import Refused, one_of, positive, within
from kdjax.metrics import _check


def _scores(score: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ranks of the scores, equal ones sharing one; hits): nothing here asks for more, and an infinity has a rank."""
    score, correct = np.asarray(score, np.float64), np.asarray(correct)
    if score.ndim != 1 or score.shape != correct.shape or score.size == 0:
        raise Refused(
            f"scores have shape {score.shape} and hits {correct.shape}; expected two equal shapes [N], N >= 1."
        )
    if np.isnan(score).any():
        raise Refused(f"{int(np.isnan(score).sum())} of {score.size} scores are NaN; expected numbers.")
    _check.hits(correct)
    return np.unique(score, return_inverse=True)[1], correct.astype(bool)


def risk_coverage(score: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"]) -> Float[np.ndarray, "N"]:
    """Selective risk after the 1, 2, ..., N most confident examples: their error rate, [N].

    Within a tie every example carries the tie's mean error.
    """
    score, correct = _scores(score, correct)
    _, group, size = np.unique(-score, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, ~correct)
    errors = np.cumsum(np.repeat(wrong / size, size))
    return errors / np.arange(1, score.size + 1)


def aurc(score: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"]) -> float:
    """Area under the risk-coverage curve: mean over n of the error rate among the n most confident, in [0, 1].

    Source: Geifman, Uziel & El-Yaniv 2019; CRL's code agrees but orders ties as they come (and prints 1000 times it).
    """
    return float(risk_coverage(score, correct).mean())


def eaurc(score: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"]) -> float:
    """Excess AURC over a perfect ranking of the same accuracy: AURC - [R + (1 - R) log(1 - R)], R the error rate.

    The optimum is the continuous limit, so that for small N the value can be slightly negative; R = 1: the term in
    the logarithm is 0. Source: Geifman et al. 2019, as coded by CRL.
    """
    risk = risk_coverage(score, correct)
    rate = float(risk[-1])
    return float(risk.mean() - rate - ((1 - rate) * np.log1p(-rate) if rate < 1 else 0.0))


def auroc(score: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"]) -> float:
    """Probability that a right prediction scores above a wrong one, ties half, in [0, 1]; 0.5 is chance.

    If all are right, or all wrong, nothing can be ranked: 0.5 (scikit-learn warns and returns NaN).
    """
    score, correct = _scores(score, correct)
    if correct.all() or not correct.any():
        return 0.5
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(correct, score))


def aupr(
    score: Float[ArrayLike, "N"], correct: Bool[ArrayLike, "N"], *, positives: Literal["correct", "errors"] = "correct"
) -> float:
    """Average precision, in [0, 1], of finding the right predictions by high or the errors by low score.

    Chance is the fraction of positives, so it is compared only at equal accuracy. Without positives: 0. Step-wise
    (scikit-learn), not the trapezoidal area. Source: Hendrycks & Gimpel 2017; CRL's AUPR-error is `positives="errors"`.
    """
    one_of("positives", positives, ("correct", "errors"))
    score, correct = _scores(score, correct)
    if positives == "errors":
        score, correct = -score, ~correct
    if not correct.any():
        return 0.0
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(correct, score))


def fpr_at_tpr(
    score: Float[ArrayLike, "N"],
    correct: Bool[ArrayLike, "N"],
    *,
    tpr: float = 0.95,
    rule: Literal["at_least", "nearest"] = "at_least",
) -> float:
    """Fraction of the wrong (unknown) above the threshold that lets the fraction `tpr` of the right (known) pass.

    Args:
      tpr: in (0, 1]; 0.95 gives FPR95.
      rule: "at_least": the first threshold whose rate reaches `tpr`; "nearest": the corner of the curve whose rate is
        nearest to it, the first of several, as CRL's code does (scikit-learn drops the points between two corners).

    Returns:
      Fraction in [0, 1]; 0 if there is no negative or no positive.
    """
    one_of("rule", rule, ("at_least", "nearest"))
    within("tpr", tpr, 0.0, 1.0, open_low=True)
    score, correct = _scores(score, correct)
    if correct.all() or not correct.any():
        return 0.0
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(correct, score, drop_intermediate=rule == "nearest")
    where = np.argmax(true >= tpr) if rule == "at_least" else np.argmin(np.abs(true - tpr))
    return float(false[where])


def msp(logits: Float[ArrayLike, "N K"]) -> Float[np.ndarray, "N"]:
    """Maximum softmax probability, in [1/K, 1]: high for known inputs. Source: Hendrycks & Gimpel 2017."""
    z = _check.logits(logits).astype(np.float64)
    # Not exp(max - logsumexp): its rounding grows with the logits and would reorder confidences that are close to 1.
    return 1 / np.exp(z - z.max(1, keepdims=True)).sum(1)


def max_logit(logits: Float[ArrayLike, "N K"]) -> Float[np.ndarray, "N"]:
    """The largest logit: high for known inputs; not invariant to shifts. Source: Hendrycks et al. 2022."""
    return _check.logits(logits).astype(np.float64).max(1)


def energy(logits: Float[ArrayLike, "N K"], *, T: float = 1.0) -> Float[np.ndarray, "N"]:
    """Negative free energy T log Σ_j exp(z_j / T): high for known inputs.

    Source: Liu et al. 2020, who call the negative of this the energy.
    """
    positive("T", T)
    z = _check.logits(logits).astype(np.float64)
    return T * logsumexp(z / T, axis=1)


def ood(known: Float[ArrayLike, "N"], unknown: Float[ArrayLike, "M"]) -> dict[str, float]:
    """Out-of-distribution detection from one score of in-distribution and one of foreign examples (high = known).

    Returns:
      `auroc`; `aupr_in` (known are the positives, ranked by high score) and `aupr_out` (unknown, by low score);
      `fpr95`, the fraction of unknown accepted when at least 95 % of the known are.

    Raises:
      Refused: an empty or NaN score.
    """
    known, unknown = np.atleast_1d(known), np.atleast_1d(unknown)
    if known.size == 0 or unknown.size == 0:
        raise Refused(f"{known.size} known and {unknown.size} unknown scores; expected at least one of each.")
    score = np.concatenate([known, unknown])
    inside = np.arange(score.size) < known.size
    return {
        "auroc": auroc(score, inside),
        "aupr_in": aupr(score, inside),
        "aupr_out": aupr(score, inside, positives="errors"),
        "fpr95": fpr_at_tpr(score, inside),
    }

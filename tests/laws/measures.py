"""What a metric needs to be held to the laws: how it is called, and its documented range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from kdjax import metrics

INF = float("inf")


class Evaluation(NamedTuple):
    """N examples of one model and of its teacher."""

    logits: np.ndarray
    labels: np.ndarray
    teacher: np.ndarray

    @property
    def probs(self) -> np.ndarray:
        return softmax(np.asarray(self.logits, np.float64), axis=1)

    @property
    def top(self) -> tuple[np.ndarray, np.ndarray]:
        return metrics.top_label(np.asarray(self.logits, np.float64), self.labels)


class Measure(NamedTuple):
    """A metric and what its docstring promises.

    Attributes:
      inputs: Evaluation -> its arguments.
      low, high: (N, K) -> the documented interval; numbers for constants.
      calibrated: value 0 on a perfectly calibrated sample.
      rows: returns one value an example, which moves with the examples.
      shift: unchanged by a constant added to the logits of a row.
      bins: takes `bins`.
      device: computes JAX arrays where they are, under jit too.
    """

    inputs: Callable[[Evaluation], tuple]
    low: float | Callable[[int, int], float] = 0.0
    high: float | Callable[[int, int], float] = 1.0
    calibrated: bool = False
    rows: bool = False
    shift: bool = True
    bins: bool = False
    device: bool = False

    def bounds(self, n: int, k: int) -> tuple[float, float]:
        low, high = (b(n, k) if callable(b) else b for b in (self.low, self.high))
        return low, high


def of_top(e: Evaluation) -> tuple:
    return e.top


def of_probs(e: Evaluation) -> tuple:
    return e.probs, e.labels


def _logits(e: Evaluation) -> tuple:
    return e.logits, e.labels


def _alone(e: Evaluation) -> tuple:
    return (e.logits,)


def _pair(e: Evaluation) -> tuple:
    return e.logits, e.teacher


_BINNED = Measure(of_top, calibrated=True, bins=True, device=True)
MEASURES: Mapping[str, Measure] = {
    "ece": _BINNED,
    "ece_over": _BINNED,
    "ece_under": _BINNED,
    "mce": _BINNED,
    "oe": _BINNED,
    "rms": _BINNED,
    "average_ce": _BINNED,
    "ace": Measure(of_top, calibrated=True, bins=True),
    "debiased_l2": Measure(of_top, calibrated=True, bins=True),
    "smece": Measure(of_top),
    "kde_ece": Measure(of_top),
    "sce": Measure(of_probs, high=lambda n, k: 2 / k, calibrated=True, bins=True),
    "ace_classwise": Measure(of_probs, calibrated=True, bins=True),
    "ace_classwise_kdc": Measure(of_probs, high=lambda n, k: 2 / k, calibrated=True, bins=True),
    "tace": Measure(of_probs, calibrated=True, bins=True),
    "kde_ce": Measure(of_probs, high=2.0),
    "likeliest_bandwidth": Measure(lambda e: (e.probs,)),
    "brier": Measure(of_probs, high=2.0),
    "brier_decomposition": Measure(of_probs, low=-2.0, high=2.0, bins=True),
    "nll": Measure(_logits, high=INF),
    "entropy": Measure(_alone, high=lambda n, k: np.log(k)),
    "top_k": Measure(_logits),
    "agreement": Measure(_pair),
    "kl_to_teacher": Measure(_pair, high=INF),
    "js_to_teacher": Measure(_pair, high=np.log(2)),
    "teacher_fidelity": Measure(_pair, high=INF),
    "aurc": Measure(of_top),
    # The optimum is a continuous limit: R + (1-R) log(1-R) exceeds the least possible sum by less than 1/N a step.
    "eaurc": Measure(of_top, low=lambda n, k: -(1 + np.log(n)) / n),
    "auroc": Measure(of_top),
    "aupr": Measure(of_top),
    "fpr_at_tpr": Measure(of_top),
    "risk_coverage": Measure(of_top),
    "msp": Measure(_alone, low=lambda n, k: 1 / k, rows=True),
    "max_logit": Measure(_alone, low=-INF, high=INF, rows=True, shift=False),
    "energy": Measure(_alone, low=-INF, high=INF, rows=True, shift=False),
    "ood": Measure(lambda e: (metrics.msp(e.logits), metrics.msp(e.teacher))),
    "top_label": Measure(_logits, rows=True, device=True),
    "binned_errors": Measure(_logits, bins=True),
    "evaluate": Measure(_logits, low=lambda n, k: -(1 + np.log(n)) / n, high=INF, bins=True),
    "reliability": Measure(_logits, high=INF, bins=True),
}

# Public names that are no metric of one evaluation, each with what it is and who proves it.
TOOLS: Mapping[str, str] = {
    "Bins": "the mergeable statistic: law 8 below",
    "binned": "makes Bins: law 8 below",
    "BrierParts": "what brier_decomposition returns",
    "Interval": "what bootstrap returns",
    "Paired": "what paired returns",
    "Spread": "what over_seeds returns",
    "ClassTable": "part of what resampled returns",
    "Resampled": "what resampled returns",
    "bootstrap": "of any metric",
    "differences": "of two models: tests/metrics/test_resampling.py",
    "intervals": "of one model: tests/metrics/test_resampling.py",
    "resampled": "holds the values of the metrics above: tests/metrics/test_resampling.py",
    "over_seeds": "over runs",
    "paired": "over runs",
    "conformal": "a module: coverage is tested on exchangeable data",
    "interpolated_edges": "edges of bins",
    "rounded_edges": "edges of bins",
    "stride_edges": "edges of bins",
}


def numbers(found: Any) -> dict[str, np.ndarray]:
    """A metric's value, tuple or dictionary by name, as float64."""
    if isinstance(found, dict):
        return {name: np.asarray(value, np.float64) for name, value in found.items()}
    if isinstance(found, tuple):
        names = getattr(found, "_fields", range(len(found)))
        return {str(name): np.asarray(value, np.float64) for name, value in zip(names, found, strict=True)}
    return {"": np.asarray(found, np.float64)}


def value(name: str, e: Evaluation, **options: Any) -> dict[str, np.ndarray]:
    return numbers(getattr(metrics, name)(*MEASURES[name].inputs(e), **options))

"""The numbers of one evaluation: what the trainer logs and the report prints."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from kdjax.metrics import calibration, ranking, smooth
from kdjax.metrics._rows import rows
from kdjax.metrics.bins import Bins, binned
from kdjax.metrics.classwise import errors_of


def evaluate(logits: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15) -> dict[str, float]:
    """Every metric of a split that needs no second model, on the host in float64.

    Args:
      logits: [N, K], any float dtype. They are read once in chunks; float32 input is not copied.
      labels: [N], integers in [0, K).
      bins: M, for all binned errors.

    Returns:
      Fractions (not percent), nats for `nll` and `entropy`; never NaN:
      `top1`, `top5` (only if K > 5), `nll`, `brier`, `entropy`, `confidence` (mean of the predicted class);
      `ece`, `ece_over`, `ece_under`, `mce`, `oe`, `rms`, `average_ce`, `ace`, `sce`, `ace_classwise_kdc`,
      `ace_classwise`, `smece`, `debiased_l2`; and by the confidence as score `aurc`, `eaurc`, `auroc`, `aupr`,
      `aupr_errors`, `fpr95`. Each is the function of its name in `kdjax.metrics`.

    Raises:
      Refused: N = 0, a wrong rank, NaN or +inf logits, labels that are no integers in [0, K), bins < 1. Logits that
        look like probabilities only warn.
    """
    examples = rows(logits, labels)
    confidence, correct = examples.confidence, examples.rank == 0
    errors = errors_of(examples, logits, labels, bins)
    return {
        "top1": float(correct.mean()),
        **({"top5": float((examples.rank < 5).mean())} if np.shape(logits)[1] > 5 else {}),
        "nll": float(examples.nll.mean()),
        "brier": float(examples.brier.mean()),
        "entropy": float(examples.entropy.mean()),
        "confidence": float(confidence.mean()),
        **errors,
        "smece": smooth.smece(confidence, correct),
        "debiased_l2": calibration.debiased_l2(confidence, correct, bins=bins),
        "aurc": ranking.aurc(confidence, correct),
        "eaurc": ranking.eaurc(confidence, correct),
        "auroc": ranking.auroc(confidence, correct),
        "aupr": ranking.aupr(confidence, correct),
        "aupr_errors": ranking.aupr(confidence, correct, positives="errors"),
        "fpr95": ranking.fpr_at_tpr(confidence, correct),
    }


def reliability(logits: Float[ArrayLike, "N K"], labels: Int[ArrayLike, "N"], *, bins: int = 15) -> Bins:
    """Top-label `Bins` [M] for the reliability diagram, float64 NumPy: `.weight`, `.mean_confidence`, `.accuracy`.

    Raises:
      Refused: as `evaluate`.
    """
    examples = rows(logits, labels)
    return binned(examples.confidence, examples.rank == 0, bins=bins)

"""How closely a student follows its teacher, whatever the labels say. On the host, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.special import log_softmax, rel_entr

from kdjax.errors import Refused, positive
from kdjax.metrics import _check


def _pair(logits: Any, teacher_logits: Any) -> tuple[np.ndarray, np.ndarray]:
    student, teacher = _check.logits(logits), _check.logits(teacher_logits, "teacher_logits")
    if student.shape != teacher.shape:
        raise Refused(
            f"student logits have shape {student.shape}, teacher logits {teacher.shape}; "
            "expected the same examples and classes."
        )
    return student.astype(np.float64), teacher.astype(np.float64)


def agreement(logits: Float[ArrayLike, "N K"], teacher_logits: Float[ArrayLike, "N K"]) -> float:
    """Fraction of examples on which student and teacher predict the same class, in [0, 1]; lowest index on ties.

    Source: Stanton et al. 2021, "Does knowledge distillation really work?" (top-1 agreement).

    Raises:
      Refused: N = 0, shapes that differ, NaN or +inf logits.
    """
    student, teacher = _pair(logits, teacher_logits)
    return float((student.argmax(1) == teacher.argmax(1)).mean())


def kl_to_teacher(logits: Float[ArrayLike, "N K"], teacher_logits: Float[ArrayLike, "N K"], *, T: float = 1.0) -> float:
    """Mean KL(teacher ‖ student) of softmax(z/T) in nats, >= 0; not multiplied by T².

    A class to which the teacher gives exactly 0 contributes 0; inf if the student gives 0 where the teacher does not.

    Raises:
      Refused: as `agreement`, and T <= 0.
    """
    positive("T", T)
    student, teacher = _pair(logits, teacher_logits)
    log_p, log_q = log_softmax(student / T, axis=1), log_softmax(teacher / T, axis=1)
    q = np.exp(log_q)
    # From logarithms, so that a student probability that underflows still costs its finite price.
    gap = np.subtract(log_q, log_p, out=np.zeros_like(q), where=q > 0)
    return max(float((q * gap).sum(1).mean()), 0.0)


def js_to_teacher(logits: Float[ArrayLike, "N K"], teacher_logits: Float[ArrayLike, "N K"], *, T: float = 1.0) -> float:
    """Mean Jensen–Shannon divergence of the two predictions in nats, in [0, log 2]: symmetric and never infinite.

    Raises:
      Refused: as `kl_to_teacher`.
    """
    positive("T", T)
    student, teacher = _pair(logits, teacher_logits)
    p, q = np.exp(log_softmax(student / T, axis=1)), np.exp(log_softmax(teacher / T, axis=1))
    middle = (p + q) / 2
    return float(0.5 * (rel_entr(p, middle) + rel_entr(q, middle)).sum(1).mean())


def teacher_fidelity(logits: Float[ArrayLike, "N K"], teacher_logits: Float[ArrayLike, "N K"]) -> dict[str, float]:
    """`agreement`, `kl_to_teacher` and `js_to_teacher` at T = 1, by name."""
    return {f.__name__: f(logits, teacher_logits) for f in (agreement, kl_to_teacher, js_to_teacher)}

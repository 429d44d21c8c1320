"""Theorems 1 and 2 of KD(C) for linear networks: closed forms, exact students, and what can be checked."""

from kdjax.theory.checks import CHECKS, Check, Measurement, run_checks
from kdjax.theory.linear import (
    descent_limit,
    interpolating_logits,
    matched_offset,
    mean_gap,
    population_ece,
    population_student,
    stationarity,
    student,
    student_multiclass,
    theorem1,
    theorem1_printed,
    theorem2_gap,
    third_order_gap,
)

__all__ = [
    "CHECKS",
    "Check",
    "Measurement",
    "descent_limit",
    "interpolating_logits",
    "matched_offset",
    "mean_gap",
    "population_ece",
    "population_student",
    "run_checks",
    "stationarity",
    "student",
    "student_multiclass",
    "theorem1",
    "theorem1_printed",
    "theorem2_gap",
    "third_order_gap",
]

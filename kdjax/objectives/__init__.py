"""Objectives: the triple, its combinators, and every method by name."""

from kdjax.objectives.core import Method, Objective, Terms, blend, need, stateless, weighted_mean
from kdjax.objectives.registry import METHODS, build, checked, distilled, options, register
from kdjax.objectives.rows import as_rows
from kdjax.objectives.terms import term

__all__ = [
    "METHODS",
    "Method",
    "Objective",
    "Terms",
    "as_rows",
    "blend",
    "build",
    "checked",
    "distilled",
    "need",
    "options",
    "register",
    "stateless",
    "term",
    "weighted_mean",
]

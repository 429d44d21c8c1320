"""Objectives: the triple, its combinators, and every method by name."""

from kdjax.objectives.core import Method, Objective, Terms, blend, need, stateless, weighted_mean
from kdjax.objectives.registry import METHODS, build, checked, distilled, options

__all__ = [
    "METHODS",
    "Method",
    "Objective",
    "Terms",
    "blend",
    "build",
    "checked",
    "distilled",
    "need",
    "options",
    "stateless",
    "weighted_mean",
]

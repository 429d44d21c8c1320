"""Shaping of a teacher's distribution: tempering, W-Clip, swaps, and exact projections."""

from kdjax.targets.projection import (
    Projected,
    masses,
    masses_l2,
    match_entropy,
    multipliers,
    project,
    simplex,
    top1,
)
from kdjax.targets.simple import entropy, margin, mistaken, standardize, swap, temper, top, wclip

__all__ = [
    "Projected",
    "entropy",
    "margin",
    "masses",
    "masses_l2",
    "match_entropy",
    "mistaken",
    "multipliers",
    "project",
    "simplex",
    "standardize",
    "swap",
    "temper",
    "top",
    "top1",
    "wclip",
]

"""Distillation methods by name (floor 2)."""
from kdjax.objectives.core import Method

DISTILLERS: dict[str, Method] = {}

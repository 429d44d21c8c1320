"""Calibrators by name (floor 2)."""
from kdjax.objectives.core import Method

CALIBRATORS: dict[str, Method] = {}

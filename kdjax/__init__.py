"""kdjax: train classifiers whose confidence can be trusted, and distill that trust into small ones, in JAX."""

from kdjax import losses, metrics, models, objectives, optim, posthoc, step, targets, teachers, theory, transforms
from kdjax.errors import Refused
from kdjax.objectives import Objective, Terms, blend, stateless
from kdjax.types import Batch, Dataset, Model, Output, Spec, Split

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Dataset",
    "Model",
    "Objective",
    "Output",
    "Refused",
    "Spec",
    "Split",
    "Terms",
    "blend",
    "losses",
    "metrics",
    "models",
    "objectives",
    "optim",
    "posthoc",
    "stateless",
    "step",
    "targets",
    "teachers",
    "theory",
    "transforms",
]

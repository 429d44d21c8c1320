"""kdjax: train classifiers whose confidence can be trusted, and distill that trust into small ones, in JAX.

Each name below is imported at its first use, so that `kdjax.posthoc.load` works without importing JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdjax import (
        data,
        losses,
        metrics,
        models,
        objectives,
        optim,
        posthoc,
        prepare,
        runs,
        stages,
        step,
        targets,
        teachers,
        theory,
        trainer,
        transforms,
    )
    from kdjax.cohort import Cohort
    from kdjax.errors import Refused
    from kdjax.objectives import Objective, Terms, blend, stateless
    from kdjax.options import Options
    from kdjax.predictor import Predictor, load
    from kdjax.recipes import Distill, Optimizer, Recipe
    from kdjax.runs import run_all
    from kdjax.settings import Settings
    from kdjax.stages import Stage
    from kdjax.tasks import task
    from kdjax.trainer import Trainer, cross_fitted, fit
    from kdjax.types import Batch, Clock, Dataset, Model, Output, Spec, Split

__version__ = "0.1.0"

# name -> the module that defines it; a module stands for itself.
_HOME = {
    "Batch": "types",
    "Cohort": "cohort",
    "Dataset": "types",
    "Distill": "recipes",
    "Model": "types",
    "Objective": "objectives",
    "Optimizer": "recipes",
    "Output": "types",
    "Recipe": "recipes",
    "Refused": "errors",
    "Spec": "types",
    "Split": "types",
    "Stage": "stages",
    "Terms": "objectives",
    "Clock": "types",
    "Options": "options",
    "Predictor": "predictor",
    "Settings": "settings",
    "Trainer": "trainer",
    "cross_fitted": "trainer",
    "load": "predictor",
    "run_all": "runs",
    "task": "tasks",
    "blend": "objectives",
    "fit": "trainer",
    "stateless": "objectives",
}
_MODULES = (
    "data",
    "losses",
    "metrics",
    "models",
    "objectives",
    "optim",
    "posthoc",
    "prepare",
    "runs",
    "stages",
    "step",
    "targets",
    "teachers",
    "theory",
    "trainer",
    "transforms",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kdjax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"kdjax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'kdjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Batch",
    "Clock",
    "Cohort",
    "Dataset",
    "Distill",
    "Model",
    "Objective",
    "Optimizer",
    "Options",
    "Output",
    "Predictor",
    "Recipe",
    "Refused",
    "Settings",
    "Spec",
    "Split",
    "Stage",
    "Terms",
    "Trainer",
    "blend",
    "cross_fitted",
    "data",
    "fit",
    "load",
    "losses",
    "metrics",
    "models",
    "objectives",
    "optim",
    "posthoc",
    "prepare",
    "run_all",
    "runs",
    "stages",
    "stateless",
    "step",
    "targets",
    "task",
    "teachers",
    "theory",
    "trainer",
    "transforms",
]

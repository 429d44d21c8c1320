"""Code from outside the package, under names that recipes, configs and the command line may use.

`objective` takes a loss or a builder of an Objective, `model` a Linen or NNX class or a function that returns one,
`dataset` a function that returns a Source, `transform` a factory of a transform, `posthoc` a pair of fit and apply;
`docs/extending.md` shows each.

Put the calls into a module and type `--import=that_module`, or import it before the recipe is made. What stands for the
code goes into the ids of stages: the SHA-256 of the module's source, or the `version` that its author gives. So changed
code is another stage, and is never taken for the same.
"""

from kdjax.data import register as dataset
from kdjax.models import register as model
from kdjax.objectives import register as objective
from kdjax.posthoc import register as posthoc
from kdjax.transforms import register as transform

__all__ = ["dataset", "model", "objective", "posthoc", "transform"]

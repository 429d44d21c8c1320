"""Code from outside the package, under names that recipes, configs and the command line may use.

    from kdjax import register

    register.objective("my_loss", my_loss)           # a loss, or a builder of an Objective
    register.model("my_net", MyNet)                  # a Linen or NNX class, or a function that returns one
    register.dataset("my_set", my_source)            # a function that returns a Source
    register.transform("my_crop", my_crop, kind="image")
    register.posthoc("my_scaling", fit, apply)

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

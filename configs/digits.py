"""scikit-learn's 8x8 digits, made ambiguous by noise: minutes on a laptop, no download.

python -m experiments.quickstart
python -m experiments.distill --config=configs/digits.py:conv_small,adafocal,conv_tiny,kd
"""

from ml_collections import ConfigDict

from configs.base import base, finish


def get_config(arg: str = "") -> ConfigDict:
    config = base()
    data = config.recipe.data
    data.name = "digits"
    # Additive Gaussian noise in units of the pixel range: it makes the posterior soft, so that confidence matters.
    data.noise = 0.5
    data.train_examples = 800
    data.calibration_fraction = 0.2
    for part, model in ((config.recipe.teacher, "conv_small"), (config.recipe.student, "conv_tiny")):
        part.model = model
        part.epochs = 40
        part.batch_size = 64
        part.select = "last"
        part.optimizer.lr = 0.05
        part.optimizer.schedule = "cosine"
        part.optimizer.weight_decay = 1e-4
    config.recipe.teacher.method = "mdca"
    config.recipe.teacher.options = {"gamma": 3.0, "beta": 1.0}
    config.recipe.student.distill.options = {"T": 1.0}
    config.seeds = (0, 1, 2)
    return finish(config, arg)

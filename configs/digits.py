"""scikit-learn's 8x8 digits, made ambiguous by noise: minutes on a laptop, no download.

python -m experiments.quickstart
python -m experiments.distill --config=configs/digits.py:conv_small,adafocal,conv_tiny,kd
"""

from ml_collections import ConfigDict

from configs.base import base, choose, finish


def get_config(arg: str = "") -> ConfigDict:
    config = base("digits")
    for part, model in ((config.recipe.teacher, "conv_small"), (config.recipe.student, "conv_tiny")):
        part.model = model
        part.epochs = 40
        part.batch_size = 64
        part.select = "last"
        part.optimizer.lr = 0.05
        part.optimizer.schedule = "cosine"
        part.optimizer.weight_decay = 1e-4
    choose(config.recipe.teacher, "mdca")
    config.seeds = (0, 1, 2)
    return finish(config, arg)

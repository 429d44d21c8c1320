"""CUD's tables 1, 3, 4 and 5, its sweep of gamma and its learning curves.

    python -m experiments.cud --plan
    python -m experiments.cud --config=configs/cud.py:cpu

Sizes: `paper` or none (BERT-base to 6 layers of 768 and 4 of 256, 20 epochs, `--config.recipe.teacher.init=FOLDER` for
pretrained weights), `short` (6 layers of 512 to 4 of 256, from scratch, for one GPU), `cpu` (2 layers of 64 to 1 of 64
on 1,500 questions of TREC and 1,500 commands of HWU64, 5 seeds).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.base import finish
from configs.text_tables import fine_tuned, from_scratch, short

PKD: dict[str, Any] = {"method": "pkd", "T": 10.0}
TINYBERT: dict[str, Any] = {"method": "tinybert"}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Four layers do not divide six, so PKD's are named.
    "short": {
        **short(),
        "recipe.features": ConfigDict({"PKD": {**PKD, "layers": ("cls1:cls2", "cls2:cls3", "cls3:cls5")}}),
    },
    "cpu": from_scratch(
        {
            "trec": {"train_examples": 1500, "options": {"max_length": 24, "vocab_size": 2000}},
            "hwu64": {"train_examples": 1500, "options": {"max_length": 16, "vocab_size": 2000}},
        },
        teacher=14,
        student=10,
        seeds=range(5),
        text="1,500 questions of TREC and 1,500 commands of HWU64;",
        sensitivity_set="trec",
        axes=ConfigDict({"lambda_h": (0.1, 0.4), "m": (0.1, 0.7), "eta": (0.1, 0.5), "lambda_kd": (0.2, 0.8)}),
        gammas=(0.0, 3.0, 10.0),
        # By default PKD leaves the student's last layer out; this student has no other, so its layer is named.
        features=ConfigDict({"PKD": {**PKD, "layers": ("cls1:cls2",)}, "TinyBERT": TINYBERT}),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    sets = ("banking77", "clinc150", "trec", "ag_news", "massive", "hwu64", "ag_news_small", "sst2")
    config = fine_tuned(sets)
    # Rows of table 1 beside LKD and CUD: name -> `method`, a distiller; its options; `weights` of label and soft term,
    # by default the method's own; and `students`, the networks that have the row, by default all. CUD prints no
    # TinyBERT for bert_4l_256: it has 4 attention heads and the teacher 12, and TinyBERT compares head with head.
    config.recipe.features = ConfigDict({"PKD": PKD, "TinyBERT": {**TINYBERT, "students": ("bert_6l_768",)}})
    # Table 5, one axis at a time, and the sweep of gamma, on one set with the last of the students.
    config.recipe.sensitivity_set = "banking77"
    config.recipe.axes = ConfigDict(
        {
            "lambda_h": (0.1, 0.2, 0.3, 0.4),
            "m": (0.1, 0.3, 0.5, 0.7, 0.9),
            "eta": (0.1, 0.3, 0.5, 0.7, 0.9),
            "lambda_kd": (0.2, 0.4, 0.6, 0.8),
        }
    )
    config.recipe.gammas = (0.0, 1.0, 3.0, 5.0, 10.0)
    return finish(config, arg, PRESETS)

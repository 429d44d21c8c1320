"""Texts: BERT-family teachers and students on intents, questions, reviews and news. The default is CUD's pair.

    python -m experiments.distill --config=configs/text.py:banking77,bert_base,dus,bert_4l_256,cud --plan
    python -m experiments.distill --config=configs/text.py:trec,cpu

The first name is the data set: banking77, clinc150, hwu64, trec, trec_fine, sst2, newsgroups20, ag_news_small, or text
for a file of your own. Where it lies is `--config.recipe.data.path=FOLDER` or the environment variable KDJAX_TEXT_DIR;
clinc150 and trec are prepared tfds sets. What turns texts into ids are options of the data set:

    --config.recipe.data.options.tokenizer=FOLDER      a Hugging Face folder's vocabulary; else one is trained
    --config.recipe.data.options.vocab_size=4000       entries of a trained one
    --config.recipe.data.options.max_length=64         tokens of each text; else what cuts at most 1 % of them

Fine-tuning as in CUD: AdamW, weight decay 0.01 on matrices and tables alone, clipped at norm 1, warm-up over a tenth of
the run and then a linear decay, batch 32. `cpu` is for two cores: 2 layers of 128 teach 1 layer of 64, from scratch, at
batch 64; its accuracy is below that of a linear model.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.base import DATA_NAME, base, choose, finish, roles
from kdjax.data.text import READERS
from kdjax.models import transformer_names

EPOCHS = {"newsgroups20": 5, "sst2": 3, "ag_news_small": 3}
"""Of fine-tuning; 20 for the small sets of intents and questions."""

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "recipe.teacher.model": "bert_2l_128",
        "recipe.student.model": "bert_1l_64",
        "recipe.teacher.epochs": 12,
        "recipe.student.epochs": 20,
        "recipe.teacher.optimizer.lr": 1e-3,
        "recipe.student.optimizer.lr": 2e-3,
        "recipe.teacher.optimizer.warmup_epochs": 1.2,
        "recipe.student.optimizer.warmup_epochs": 2.0,
        **{f"recipe.{who}.batch_size": 64 for who in ("teacher", "student")},
        **{f"recipe.{who}.select": "last" for who in ("teacher", "student")},
        "size": "cpu: small networks from scratch, with a vocabulary of their own; below a linear model in accuracy.",
    },
}


def get_config(arg: str = "") -> ConfigDict:
    named = roles(arg, PRESETS)
    data_set = next((name for name, field in named if field == DATA_NAME), "banking77")
    student = next((name for name, field in named if field == "recipe.student.model"), "bert_4l_256")
    config = base(data_set)
    epochs = EPOCHS.get(data_set, 20)
    for part in (config.recipe.teacher, config.recipe.student):
        part.epochs = epochs
        part.batch_size = 32
        part.optimizer = ConfigDict(
            {
                **part.optimizer.to_dict(),
                "name": "adamw",
                "weight_decay": 0.01,
                "decay_mask": "kernels",
                "clip_norm": 1.0,
                "schedule": "linear",
                "warmup_epochs": epochs / 10,
            }
        )
    config.recipe.teacher.model, config.recipe.student.model = "bert_base", "bert_4l_256"
    config.recipe.teacher.optimizer.lr = 5e-5
    config.recipe.student.optimizer.lr = learning_rate(student)
    choose(config.recipe.teacher, "dus")
    choose(config.recipe.student.distill, "cud")
    if "cpu" in (name for name, field in named if not field):
        for part in (config.recipe.teacher, config.recipe.student):
            part.model_options = ConfigDict({"vocab_size": READERS[data_set][1], "max_position_embeddings": 128})
        config.recipe.data.options = ConfigDict({"max_length": 128} if data_set == "newsgroups20" else {})
    return finish(config, arg, PRESETS)


def learning_rate(model: str) -> float:
    """Of fine-tuning: narrow networks want more."""
    width = (transformer_names.named(model) or {"hidden_size": 768})["hidden_size"]
    return 1e-3 if width <= 128 else 3e-4 if width <= 256 else 5e-5

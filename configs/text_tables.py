"""What the tables on texts share: fine-tuning as CUD does it, and small networks from scratch for two cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.base import base, choose
from configs.text import EPOCHS, learning_rate

FROM_SCRATCH = (
    "small networks from scratch on a part of the training texts, with a vocabulary of their own; they lie below the "
    "linear reference in accuracy and show effects, not quality; not comparable with the published column, which is "
    "shown for its order."
)


def fine_tuned(sets: Sequence[str], **fields: Any) -> ConfigDict:
    """CUD's recipe: AdamW, batch 32, weight decay 0.01, clipped at norm 1, warm-up over a tenth, then a cosine.

    BERT-base teaches 6 layers of 768 and 4 of 256. Pretrained weights and their vocabulary are
    `--config.recipe.teacher.init=FOLDER`; without, everything starts from scratch.
    """
    config = base("trec")
    for part in (config.recipe.teacher, config.recipe.student):
        optimizer = {"name": "adamw", "weight_decay": 0.01, "decay_mask": "kernels", "clip_norm": 1.0}
        schedule = {"schedule": "cosine", "warmup_epochs": 2.0}
        part.optimizer = ConfigDict({**part.optimizer.to_dict(), **optimizer, **schedule})
        part.epochs, part.batch_size, part.precision, part.select = 20, 32, "bfloat16", "last"
    config.recipe.teacher.model, config.recipe.teacher.optimizer.lr = "bert_base", learning_rate("bert_base")
    choose(config.recipe.student.distill, "kd")
    # CUD prints no temperature; KD(C) found students best calibrated at T = 1.
    config.recipe.student.distill.options.T = 1.0
    # CUD's sensitivity table: 0.8 for the teacher, 0.2 for the labels; the same for every method, so that rows compare.
    config.recipe.student.distill.weights = (0.2, 0.8)
    config.recipe.sets = tuple(sets)
    # Set -> fields of its data section; one length for a set, which cuts no intents (CUD trains at 128).
    config.recipe.sizes = ConfigDict()
    # Set -> epochs of teacher and student, where they differ from those of the recipes.
    config.recipe.epochs_of = ConfigDict({name: n for name, n in EPOCHS.items() if name in sets})
    config.recipe.students = ("bert_6l_768", "bert_4l_256")
    # Learning rates of students by network, where they differ from that of the student's recipe.
    config.recipe.lr_of = ConfigDict({model: learning_rate(model) for model in config.recipe.students})
    # The target that solves CUD's eq. (2) exactly: the label keeps 0.4, the teacher's wrong top class at most 0.1.
    config.recipe.projection = "project(near_mass=0.4)"
    # Cross-fitted teacher outputs: as many teachers, each without the fold that it predicts; 0 for none.
    config.recipe.folds = 5
    config.seeds = (0, 1, 2)
    for name, value in fields.items():
        config.recipe[name] = value
    return config


def short() -> dict[str, Any]:
    """A preset for one GPU: 6 layers of 512 teach 4 of 256, from scratch, on whole sets."""
    return {
        "recipe.teacher.model": "bert_6l_512",
        "recipe.teacher.optimizer.lr": 1e-4,
        "recipe.students": ("bert_4l_256",),
        "size": "short: 6 layers of 512 teach 4 of 256, from scratch, with a vocabulary of their own.",
    }


def from_scratch(
    sizes: Mapping[str, Mapping[str, Any]],
    *,
    teacher: int,
    student: int,
    seeds: Sequence[int],
    text: str,
    **fields: Any,
) -> dict[str, Any]:
    """A preset for two cores: 2 layers of 64 teach 1 layer of 64, at batch 32, for so many epochs.

    Weights begin with a standard deviation of 0.1: with BERT's 0.02, which is meant for a width of 768, so narrow a
    network is still under-confident and at half the accuracy when the same run ends.
    """
    both = {"batch_size": 32, "precision": "float32", "model_options.initializer_range": 0.1}
    networks = {"teacher": ("bert_2l_64", teacher, 2e-3), "student": ("bert_1l_64", student, 2e-3)}
    made: dict[str, Any] = {}
    for who, (model, epochs, lr) in networks.items():
        given = {**both, "model": model, "epochs": epochs, "optimizer.lr": lr, "optimizer.warmup_epochs": epochs / 10}
        made |= {f"recipe.{who}.{field}": value for field, value in given.items()}
    return {
        **made,
        "recipe.sets": tuple(sizes),
        "recipe.sizes": ConfigDict({name: dict(fields) for name, fields in sizes.items()}),
        "recipe.epochs_of": ConfigDict(),
        "recipe.lr_of": ConfigDict(),
        "recipe.students": ("bert_1l_64",),
        "size": f"cpu: {text} {FROM_SCRATCH}",
        "seeds": tuple(seeds),
        "run.checkpoint_epochs": max(teacher, student),
        **{f"recipe.{field}": value for field, value in fields.items()},
    }

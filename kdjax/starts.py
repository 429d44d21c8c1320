"""How a run begins: from scratch, from a Hugging Face folder, from a PyTorch state_dict, or from its teacher's layers.

    Recipe(init="bert-base-uncased-finetuned", epochs=0)                    # a classifier as it is
    Recipe(init="bert-base-uncased", epochs=5)                              # an encoder below a new head
    Recipe(init="bert-base-uncased", init_layers=(0, 2, 4, 7, 9, 11))       # as DistilBERT began
    Recipe(model="bert_2l_128", init="teacher", init_layers=(0, 3))         # two layers of the stage's teacher
    Recipe(model="resnet32x4", init="resnet32x4.safetensors", epochs=0)     # mdistiller's or KD(C)'s weights

A folder brings its network: `model` may be left at its default. What the folder holds goes into the id, where it lies
does not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from kdjax import huggingface, state_dict
from kdjax.errors import Refused, one_of
from kdjax.huggingface.config import read_config
from kdjax.huggingface.folder import Pretrained, check_label_names, classifier_rows, network_of
from kdjax.huggingface.layers import architecture_of
from kdjax.huggingface.weights import Weights
from kdjax.models import transformer_names
from kdjax.models.transformer_names import SHAPE, Architecture
from kdjax.options import Options
from kdjax.prepare import Tokens
from kdjax.types import Dataset, PyTree

log = logging.getLogger(__name__)

TEACHER = "teacher"
"""As `init`: the network that the stage's teacher has become."""
HEADS = ("auto", "keep", "new")
_HASH = "sha256:"
_FREE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
"""What a recipe may say otherwise than the folder."""


def is_folder(init: str) -> bool:
    """Whether `init` names a folder that can be read."""
    return init not in ("", TEACHER) and not init.startswith(_HASH) and not state_dict.is_file(init)


def begins_trained(recipe: Any) -> bool:
    """Whether a recipe may train for 0 epochs: it begins with a whole classifier, and nobody teaches it."""
    return recipe.init not in ("", TEACHER) and not recipe.init_layers and recipe.distill is None


def completed(recipe: Any, *, default: str) -> tuple[str, Options]:
    """(model, model_options) of a recipe as its folder has them, with the dropout rates that the recipe gives.

    Args:
      default: the name that stands for a network left open.

    Raises:
      Refused: no folder there, or one whose `config.json` is refused; a network or an option that differs from the
        folder's; layers that it does not have; layers or a choice of head without `init`.
    """
    model, options, init, layers = recipe.model, recipe.model_options, recipe.init, recipe.init_layers
    one_of("init_head", recipe.init_head, HEADS)
    if not init and (layers or recipe.init_head != "auto"):
        name = "init_layers" if layers else "init_head"
        raise Refused(f"{name} is {getattr(recipe, name)!r} and init ''; expected init=FOLDER, or init='teacher'.")
    if state_dict.is_file(init):
        state_dict.check_options(recipe)
    if not is_folder(init):
        return model, options
    net = read_config(_folder(init)).architecture
    given = None if model == default else transformer_names.named(model)
    if model != default and given is None:
        raise Refused(f"model is {model!r} and init the folder {init}, a {_name(net)}; expected no model: remove it.")
    if layers:
        net = architecture_of(net, layers, "distilbert" if given is None else given["family"])
    if given is not None and any(given[key] != getattr(net, key) for key in SHAPE):
        raise Refused(
            f"model is {model!r} and {init} gives {_name(net)}; expected the folder's network: leave model out, or "
            "set init_layers."
        )
    usual = transformer_names.named(_name(net))
    assert usual is not None
    stated = {key: value for key, value in dataclasses.asdict(net).items() if key not in SHAPE}
    for key, value in options.items():
        if key in stated and key not in _FREE and value != stated[key]:
            raise Refused(f"model_options.{key} is {value!r} and {init} says {stated[key]!r}; remove the option.")
    differing = {key: value for key, value in stated.items() if value != usual.get(key, _default(key))}
    return (model if given is not None else _name(net)), Options({**differing, **options})


def _default(attribute: str) -> Any:
    return Architecture.__dataclass_fields__[attribute].default


def _name(net: Architecture) -> str:
    return f"{net.family}_{net.num_hidden_layers}l_{net.hidden_size}"


def _folder(init: str) -> Path:
    folder = Path(init).expanduser()
    if init.startswith(_HASH):
        raise Refused(f"init is {init[:19]}..., what a folder held and not where it lies; expected the folder.")
    if not folder.is_dir():
        raise Refused(f"init is {init!r}, and there is no such folder; expected one with config.json and weights.")
    return folder


def identity(init: str) -> str:
    """What stands for `init` in an id and in recipe.json: "sha256:..." over the weights, the network, the names of the
    classes and the vocabulary of a folder, or over a file; anything else as it is."""
    if state_dict.is_file(init):
        return _HASH + state_dict.fingerprint(init)
    return _identity(_folder(init), _signature(_folder(init))) if is_folder(init) else init


def _signature(folder: Path) -> tuple:
    """Changes where a file of the folder does."""
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@functools.lru_cache(maxsize=64)
def _identity(folder: Path, signature: tuple) -> str:
    said = read_config(folder)
    vocabulary = huggingface.Vocabulary.from_folder(folder, optional=True)
    content = [
        dataclasses.asdict(said.architecture),
        said.label_names,
        Weights(folder).fingerprint(),
        vocabulary.digest if vocabulary else "",
    ]
    return _HASH + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Wanted(NamedTuple):
    """What decides whether a folder fits; hashable."""

    init: str
    layers: tuple[int, ...]
    head: str
    family: str
    epochs: int
    num_classes: int
    label_names: tuple[str, ...]
    vocabulary: str
    data: str


def check(recipe: Any, dataset: Dataset) -> None:
    """Reads the folder that a recipe begins with, whole, and refuses it if it does not fit the data set.

    Raises:
      Refused: whatever `huggingface.load` refuses; a folder without tokenizer, or with another vocabulary than the data
        set's; classes in another order; `epochs=0` without a head for these very classes.
    """
    if state_dict.is_file(recipe.init):
        state_dict.check(recipe, dataset)
    if is_folder(recipe.init):
        _checked(_wanted(recipe, dataset), _signature(_folder(recipe.init)))


def variables(recipe: Any, dataset: Dataset) -> PyTree:
    """The variables at step 0: the parameters, and the statistics of BatchNorm where a file has them.

    Raises:
      Refused: as `check` and `params`.
    """
    if not state_dict.is_file(recipe.init):
        return {"params": params(recipe, dataset)}
    return state_dict.variables(recipe, dataset)


def params(recipe: Any, dataset: Dataset) -> PyTree:
    """The parameters at step 0; a new head is drawn by the recipe's seed.

    Raises:
      Refused: as `check`; `init` is no folder.
    """
    if recipe.init == TEACHER:
        raise Refused(
            "init is 'teacher' in a task without stages; expected start=..., or a kdjax.Stage with a teacher."
        )
    return _read(_wanted(recipe, dataset), recipe.seed).variables["params"]


def _wanted(recipe: Any, dataset: Dataset) -> Wanted:
    attributes = transformer_names.named(recipe.model)
    assert attributes is not None
    return Wanted(
        init=recipe.init,
        layers=recipe.init_layers,
        head=recipe.init_head,
        family=attributes["family"],
        epochs=recipe.epochs,
        num_classes=dataset.num_classes,
        label_names=dataset.label_names,
        vocabulary=dataset.prepare.vocabulary if isinstance(dataset.prepare, Tokens) else "",
        data=dataset.name,
    )


@functools.lru_cache(maxsize=64)
def _checked(wanted: Wanted, signature: tuple) -> None:
    if wanted.vocabulary:
        _check_vocabulary(wanted)
    _read(wanted, seed=0)


def _read(wanted: Wanted, seed: int) -> Pretrained:
    folder, new = _folder(wanted.init), _new_head(wanted)
    names = wanted.label_names if not new else ()
    classes = wanted.num_classes
    loaded = huggingface.load(folder, num_classes=classes, new_head=new, label_names=names, seed=seed)
    if not wanted.layers:
        return loaded
    return huggingface.from_layers(loaded, wanted.layers, family=wanted.family, num_classes=classes, seed=seed)


def _check_vocabulary(wanted: Wanted) -> None:
    vocabulary = huggingface.Vocabulary.from_folder(_folder(wanted.init))
    assert vocabulary is not None
    if vocabulary.digest != wanted.vocabulary:
        raise Refused(
            f"{wanted.init} reads ids of a vocabulary of {vocabulary.size} entries ({vocabulary.digest[:12]}) and data "
            f"set {wanted.data!r} has those of another ({wanted.vocabulary[:12]}); expected one for both: set "
            f"data.options.tokenizer={wanted.init}."
        )


def _new_head(wanted: Wanted) -> bool:
    """Whether the head is drawn anew.

    Raises:
      Refused: the classes are the data's in another order; `epochs=0` with a head that is not known to be for them.
    """
    if wanted.layers or wanted.head != "auto":
        new, why = bool(wanted.layers) or wanted.head == "new", f"init_head is {wanted.head!r}"
    else:
        folder = _folder(wanted.init)
        rows, names = classifier_rows(folder), read_config(folder).label_names
        if rows is None:
            new, why = True, "it has no classifier"
        elif rows != wanted.num_classes:
            new, why = True, f"its classifier has {rows} classes"
        elif not names or not wanted.label_names:
            new, why = True, f"the {'data has' if names else 'folder has'} no names of classes to compare"
        else:
            if sorted(names) == sorted(wanted.label_names):
                check_label_names(names, wanted.label_names, wanted.init)
            new = names != wanted.label_names
            why = "its classes have other names"
    if new and not wanted.epochs:
        remedy = " (init_head='keep' takes a head of as many classes as it is)" if "no names" in why else ""
        raise Refused(
            f"epochs is 0 and {wanted.init} would get a new head for the {wanted.num_classes} classes of "
            f"{wanted.data!r}: {why}; expected epochs of training{remedy}."
        )
    if new and not wanted.layers:
        log.info("%s: a new head for %d classes: %s", wanted.init, wanted.num_classes, why)
    return new


def check_teacher(recipe: Any, teacher: Any) -> None:
    """Refuses a student that cannot begin with its teacher's layers; both are recipes.

    Raises:
      Refused: a teacher that is no transformer; layers that it does not have; a network of the student's that differs
        from what the layers make, naming the option.
    """
    wanted = begun_with(_architecture(teacher, "teacher"), recipe)
    student = _architecture(recipe, "student")
    for name, value in dataclasses.asdict(wanted).items():
        if name not in _FREE and getattr(student, name) != value:
            what = "model" if name in SHAPE else f"model_options.{name}"
            raise Refused(
                f"{what} of the student gives {name} {getattr(student, name)!r} and init='teacher' {value!r}; expected "
                f"the teacher's: type model={_name(wanted)!r} and the teacher's model_options."
            )


def begun_with(teacher: Architecture, recipe: Any) -> Architecture:
    """The network that a recipe's `init_layers` make of the teacher's; without layers, the teacher's own."""
    if not recipe.init_layers:
        return teacher
    student = transformer_names.named(recipe.model)
    return architecture_of(teacher, recipe.init_layers, "distilbert" if student is None else student["family"])


def _architecture(recipe: Any, whose: str) -> Architecture:
    attributes = transformer_names.named(recipe.model)
    if attributes is None:
        raise Refused(
            f"the {whose}'s model is {recipe.model!r} and the student begins with init='teacher'; expected a "
            "transformer such as bert_2l_128 for both."
        )
    return Architecture(**{**attributes, **recipe.model_options})


def of_teacher(recipe: Any, teacher: Any, variables: PyTree, num_classes: int) -> PyTree:
    """The student's parameters at step 0 out of its teacher's trained `variables`; with `init_layers` the head is
    new."""
    if not recipe.init_layers:
        return variables["params"]
    net = _architecture(teacher, "teacher")
    whole = Pretrained(network_of(net, num_classes, "float32"), net, num_classes, variables)
    family = begun_with(net, recipe).family
    begun = huggingface.from_layers(whole, recipe.init_layers, family=family, seed=recipe.seed)
    return begun.variables["params"]

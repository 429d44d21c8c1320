"""A finished stage as a predictor, without its training data, its config, or the defaults of today's code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import checkpoints, layout, models, prepare, programs, step
from kdjax.data.checks import check_finite
from kdjax.data.text import encode
from kdjax.errors import Refused
from kdjax.huggingface import Tokenizer, Vocabulary
from kdjax.options import integer, plain
from kdjax.recipes import Recipe
from kdjax.tasks import example
from kdjax.types import Dataset, Model, Prepare, PyTree, Variables
from kdjax.variables import refuse_not_finite

FILE = "model.json"
"""In a stage's directory: what prediction needs beside the variables."""
TOKENIZER = "tokenizer"
"""In the directory of a network for texts: the folder of its vocabulary, as Hugging Face's have it."""


def describe(recipe: Recipe, dataset: Dataset, temperature: float) -> dict[str, Any]:
    """What prediction needs beside the variables, as JSON: network, constants of `prepare`, label names, the shape of
    one example, and the temperature fitted on the calibration split."""
    leaves = checkpoints.named({"inputs": example(dataset.train)})
    return {
        "model": recipe.model,
        "model_version": models.version(recipe.model),
        "model_options": plain(models.resolved(recipe.model, **recipe.model_options)),
        "precision": recipe.precision,
        "num_classes": dataset.num_classes,
        "label_names": list(dataset.label_names),
        "kind": dataset.kind,
        "prepare": dataset.prepare.describe(),
        "inputs": {name: [str(leaf.dtype), list(leaf.shape[1:])] for name, leaf in leaves.items()},
        "temperature": temperature,
    }


def save_vocabulary(directory: Path, dataset: Dataset) -> None:
    """Keeps what turned texts into token ids beside the network, so that it is used without its training data."""
    if (vocabulary := getattr(dataset.prepare, "entries", None)) is not None:
        vocabulary.save(directory / TOKENIZER)


def load(directory: str | Path) -> Predictor:
    """The student, or teacher, of a stage's directory.

        predictor = kdjax.load("runs/0123456789ab")
        probabilities = predictor.predict(images)        # or texts, of a network for texts

    Raises:
      Refused: not a finished stage's directory, or files that no longer verify; a network from outside the package that
        is not registered, or whose code is another.
    """
    directory = Path(directory)
    if not (directory / FILE).is_file():
        raise Refused(
            f"{directory} holds no {FILE}; expected the directory of a finished stage, such as runs/0123456789ab."
        )
    if problems := checkpoints.verify_manifest(directory):
        raise Refused(f"{directory} is not finished or not intact ({problems[0]}); run the stage again.")
    described = checkpoints.read_json(directory / FILE)
    try:
        model, made, raw = _built(directory, described)
        variables = jax.eval_shape(lambda x: model.init(programs.random_key(0), made(x)), raw)
    except Refused:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            f"{directory / FILE} describes no network as kdjax writes it ({type(error).__name__}: {error}); delete "
            f"{directory} and run the stage again."
        ) from error
    everywhere = layout.replicated(layout.mesh(1))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})},
    )
    store = checkpoints.Checkpoints(directory / "selected", keep=1)
    restored = store.restore(like)
    if restored is None:
        raise Refused(f"{directory} holds no selected checkpoint; run the stage again.")
    refuse_not_finite(store.directory, restored.tree)
    return Predictor(model, restored.tree, made, described, raw, _vocabulary(directory, made))


def _built(directory: Path, described: Any) -> tuple[Model, Prepare, PyTree]:
    """(network, prepare, shapes of one raw example) of a description."""
    if described.get("model_version", "") != models.version(described["model"]):
        raise Refused(
            f"{directory} was trained with other code of the model {described['model']!r}; import the module that "
            "registered it then."
        )
    names, temperature = described["label_names"], described["temperature"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("label_names are no names")
    if isinstance(temperature, bool) or not 0 < float(temperature) < math.inf:
        raise ValueError("temperature is no number above 0")
    model = models.build(
        described["model"],
        num_classes=described["num_classes"],
        dtype=described["precision"],
        **described["model_options"],
    )
    made = prepare.from_description(described["prepare"])
    shapes = {
        name: jax.ShapeDtypeStruct((1, *shape), np.dtype(dtype)) for name, (dtype, shape) in described["inputs"].items()
    }
    return model, made, checkpoints.nested(shapes)["inputs"]


def _vocabulary(directory: Path, made: Any) -> Vocabulary | None:
    if not (directory / TOKENIZER).is_dir():
        return None
    vocabulary = Vocabulary.from_folder(directory / TOKENIZER)
    if vocabulary is None or vocabulary.digest != made.vocabulary:
        raise Refused(
            f"{directory / TOKENIZER} is another vocabulary than the network was trained with; run the stage again."
        )
    return vocabulary


class Predictor:
    """A trained network that takes raw inputs, as its training data held them.

    Attributes:
      model, variables: the network.
      label_names: K names, or () where the data set had none.
      temperature: fitted on the calibration split; `predict` divides the logits by it.
      inputs: shapes and dtypes of one raw example, with a leading axis of 1.
      vocabulary: what turns texts into inputs; None of a network for anything else.
    """

    def __init__(
        self,
        model: Model,
        variables: Variables,
        prepare: Prepare,
        described: Mapping[str, Any],
        inputs: PyTree,
        vocabulary: Vocabulary | None = None,
    ):
        self.model, self.variables, self.prepare = model, variables, prepare
        self.described = dict(described)
        self.label_names = tuple(described["label_names"])
        self.temperature = float(described["temperature"])
        self.inputs = inputs
        self.vocabulary = vocabulary
        self._program = step.predict_step(model=model, prepare=prepare, mesh=layout.mesh(1))

    def logits(self, inputs: PyTree, *, batch_size: int = 500) -> np.ndarray:
        """[N, K] (or [N, R, K]) float32, uncalibrated.

        Args:
          inputs: raw inputs as the training data held them, or a list of N texts.

        Raises:
          Refused: a batch size below 1; inputs of another shape or type than the training data's, or not finite; texts
            for a network without a vocabulary.
        """
        integer(1)("batch_size", batch_size)
        if isinstance(inputs, str) or (
            isinstance(inputs, Sequence) and inputs and all(isinstance(text, str) for text in inputs)
        ):
            inputs = self._encoded(inputs)
        if isinstance(inputs, list | tuple):
            raise Refused(
                f"predict got a {type(inputs).__name__}; expected arrays as the training data held them: type "
                "np.asarray(inputs)."
            )
        inputs = jax.tree.map(np.asarray, inputs)
        self._check(inputs)
        check_finite("what predict got", inputs)
        n = len(jax.tree.leaves(inputs)[0])
        size = min(batch_size, n)
        feed = layout.resident(inputs, np.zeros(n, np.int32), layout.mesh(1))
        positions = [np.resize(np.arange(start, min(start + size, n)), size) for start in range(0, n, size)]
        rows = [np.asarray(self._program(self.variables, feed, p.astype(np.int32))) for p in positions]
        return np.concatenate([r[: min(size, n - i * size)] for i, r in enumerate(rows)])

    def predict(self, inputs: PyTree, *, batch_size: int = 500) -> np.ndarray:
        """Probabilities [N, K], calibrated by the fitted temperature.

        Raises:
          Refused: as `logits`.
        """
        logits = self.logits(inputs, batch_size=batch_size).astype(np.float64) / self.temperature
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    def _encoded(self, texts: str | Sequence[str]) -> PyTree:
        if isinstance(texts, str):
            raise Refused(f"predict got one text; expected a list of texts: type [{texts[:20]!r}].")
        if self.vocabulary is None:
            raise Refused(
                "predict got texts, and this run keeps no vocabulary; expected inputs as its training data held them."
            )
        return encode(Tokenizer(self.vocabulary), texts, int(self.described["prepare"]["max_length"]))

    def _check(self, inputs: PyTree) -> None:
        wanted, there = jax.tree.flatten(self.inputs), jax.tree.flatten(inputs)
        same = str(wanted[1]) == str(there[1]) and all(
            w.shape[1:] == x.shape[1:] and (w.dtype == x.dtype or (w.dtype.kind == x.dtype.kind == "f"))
            for w, x in zip(wanted[0], there[0], strict=True)
        )
        if not same or not len(there[0][0]):
            expected = ", ".join(f"{w.dtype} [N, {', '.join(map(str, w.shape[1:]))}]" for w in wanted[0])
            received = ", ".join(f"{x.dtype} {list(x.shape)}" for x in there[0])
            raise Refused(
                f"this network was trained on inputs {expected} and got {received}; convert them, scale included."
            )

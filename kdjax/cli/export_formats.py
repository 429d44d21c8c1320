"""What `kdjax export` writes: each format as the bytes of its files and a function that runs those very bytes.

Normalization and the fitted temperature are inside a StableHLO or ONNX program; a safetensors file and a Hugging Face
folder hold weights, and say both beside them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

import kdjax
from kdjax import huggingface, variables
from kdjax.cli import export_onnx
from kdjax.errors import Refused, literal, printable
from kdjax.models.transformer_names import Architecture, named
from kdjax.predictor import Predictor
from kdjax.programs import Program
from kdjax.types import PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
CONFIG_TEMPERATURE = "calibration_temperature"
"""The key of `config.json` by which the logits are to be divided."""


class Exported(NamedTuple):
    """A network as files.

    Attributes:
      files: name -> content; the name "" is the file itself.
      check: raw inputs -> logits, computed from `files` alone.
    """

    files: Mapping[str, bytes]
    check: Callable[[PyTree], np.ndarray]


class Format(NamedTuple):
    """A kind of file.

    Attributes:
      suffix: of its name; "" of a folder.
      make: (predictor, whether these logits are right, raw inputs) -> `Exported`.
      lines: what to type to use it without kdjax.
    """

    suffix: str
    make: Callable[[Predictor, Callable[[np.ndarray], bool], PyTree], Exported]
    lines: Callable[[Path, Predictor], list[str]]


def about(predictor: Predictor) -> dict[str, Any]:
    """What a reader of the file needs to know: network, normalization, label names, temperature."""
    return {"kdjax": kdjax.__version__, **predictor.described}


def _stablehlo(predictor: Predictor, right: Callable, inputs: PyTree) -> Exported:
    names = np.frombuffer("\n".join(predictor.label_names).encode(), np.uint8)

    def network(inputs: PyTree) -> dict[str, jax.Array]:
        logits = predictor.model.apply(predictor.variables, predictor.prepare(inputs), train=False)[0].logits
        outputs = {"logits": logits, "probabilities": jax.nn.softmax(logits / jnp.float32(predictor.temperature))}
        return {**outputs, "label_names": jnp.asarray(names)} if names.size else outputs

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), predictor.inputs)
    try:
        exported = jax.export.export(Program(network).jitted, platforms=PLATFORMS)(shapes)
    except Refused:
        raise
    except Exception as error:  # the network ran for one example: what it raises now, of every kind, is of the batch
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Refused(
            f"the network {predictor.described['model']!r} cannot be written for batches of any size "
            f"({printable(reason, 200)}); write x.shape[0] in place of len(x) or of a fixed batch size, or type "
            "--format safetensors."
        ) from error
    try:
        content = bytes(exported.serialize())
    except ImportError as error:
        raise Refused("stablehlo files need flatbuffers; type pip install 'kdjax[export]'.") from error

    def check(inputs: PyTree) -> np.ndarray:
        return np.asarray(jax.export.deserialize(bytearray(content)).call(inputs)["logits"])

    return Exported({"": content}, check)


def _stablehlo_lines(target: Path, predictor: Predictor) -> list[str]:
    return [
        "import jax.export",
        f"network = jax.export.deserialize(bytearray(open({str(target)!r}, 'rb').read()))",
        f"inputs = ...  # {_kinds(predictor)}, as the training data held them",
        f"outputs = network.call(inputs)  # logits and probabilities{_columns(predictor)}",
    ]


def _safetensors(predictor: Predictor, right: Callable, inputs: PyTree) -> Exported:
    arrays = {name: np.asarray(array, order="C") for name, array in variables.named(predictor.variables).items()}
    content = save(arrays, metadata={"kdjax": json.dumps(about(predictor), sort_keys=True)})

    def check(inputs: PyTree) -> np.ndarray:
        from safetensors.numpy import load as read

        tree = variables.nested({name: jnp.asarray(array) for name, array in read(content).items()})
        restored = {"params": tree["params"], "batch_stats": tree.get("batch_stats", {})}
        logits = predictor.model.apply(restored, predictor.prepare(inputs), train=False)[0].logits
        return np.asarray(logits, np.float32)

    return Exported({"": content}, check)


def _safetensors_lines(target: Path, predictor: Predictor) -> list[str]:
    return [
        "import json",
        "from safetensors import safe_open",
        f"with safe_open({str(target)!r}, framework='numpy') as file:",
        "    about, weights = json.loads(file.metadata()['kdjax']), {n: file.get_tensor(n) for n in file.keys()}",
    ]


def _onnx(predictor: Predictor, right: Callable, inputs: PyTree) -> Exported:
    metadata = {"kdjax": json.dumps(about(predictor), sort_keys=True)}
    content = export_onnx.convert(predictor, right, inputs, metadata)
    return Exported({"": content}, lambda inputs: export_onnx.run(content, inputs)[0])


def _onnx_lines(target: Path, predictor: Predictor) -> list[str]:
    names = export_onnx.input_names(predictor.inputs)
    feed = ", ".join(f"{name!r}: {name}" for name in names)
    return [
        "import onnxruntime",
        f"network = onnxruntime.InferenceSession({str(target)!r})",
        f"{' = '.join(names)} = ...  # {_kinds(predictor)}, as the training data held them",
        f"logits, probabilities = network.run(None, {{{feed}}}){_columns(predictor, '  # columns: ')}",
    ]


def _huggingface(predictor: Predictor, right: Callable, inputs: PyTree) -> Exported:
    attributes = named(predictor.described["model"])
    if attributes is None:
        raise Refused(
            f"the network is {predictor.described['model']!r}, and Hugging Face folders hold BERT, DistilBERT and "
            "RoBERTa; type --format stablehlo, onnx or safetensors."
        )
    network = huggingface.Pretrained(
        model=predictor.model,
        architecture=Architecture(**{**attributes, **predictor.described["model_options"]}),
        num_classes=int(predictor.described["num_classes"]),
        variables=predictor.variables,
        label_names=predictor.label_names,
    )
    with tempfile.TemporaryDirectory() as folder:
        length = predictor.described["prepare"].get("max_length")
        huggingface.save(folder, network, vocabulary=predictor.vocabulary, max_length=length)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    config = {**json.loads(files["config.json"]), CONFIG_TEMPERATURE: predictor.temperature}
    files["config.json"] = json.dumps(config, indent=2, sort_keys=True).encode()

    def check(inputs: PyTree) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            loaded = huggingface.load(folder, dtype=predictor.described["precision"])
        logits = loaded.model.apply(loaded.variables, predictor.prepare(inputs), train=False)[0].logits
        return np.asarray(logits, np.float32)

    return Exported(files, check)


def _huggingface_lines(target: Path, predictor: Predictor) -> list[str]:
    encoded = "tokenizer(['a text'], truncation=True, return_tensors='pt')"
    kept = predictor.vocabulary is not None
    columns = _columns(predictor, "  # columns: ")
    return [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        f"model = AutoModelForSequenceClassification.from_pretrained({str(target)!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({str(target)!r})"
        if kept
        else "tokenizer = ...  # the one that made the token ids of the training data",
        f"logits = model(**{encoded}).logits",
        f"probabilities = (logits / model.config.{CONFIG_TEMPERATURE}).softmax(-1){columns}",
    ]


def _kinds(predictor: Predictor) -> str:
    described = jax.tree.leaves(predictor.inputs)
    return " and ".join(f"{x.dtype} [N, {', '.join(map(str, x.shape[1:]))}]" for x in described)


def _columns(predictor: Predictor, before: str = ", columns: ") -> str:
    names = predictor.label_names
    return literal(f"{before}{', '.join(names[:4])}{', ...' * (len(names) > 4)}") if names else ""


FORMATS = {
    "stablehlo": Format(".stablehlo", _stablehlo, _stablehlo_lines),
    "onnx": Format(".onnx", _onnx, _onnx_lines),
    "safetensors": Format(".safetensors", _safetensors, _safetensors_lines),
    "huggingface": Format("", _huggingface, _huggingface_lines),
}
"""Programs from raw inputs to logits and calibrated probabilities, of JAX and of ONNX; the variables by name; and a
folder that transformers reads."""

"""`kdjax export`: a trained network as a file for others, compared with its run before it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

import kdjax
from kdjax import stages, variables
from kdjax.data import is_lazy
from kdjax.errors import Refused, literal, one_of
from kdjax.files import Damaged, read_json, write_bytes, write_json
from kdjax.predictor import Predictor, load
from kdjax.recipes import Data, from_dict
from kdjax.step import Program
from kdjax.types import PyTree

FORMATS = {"safetensors": ".safetensors", "stablehlo": ".stablehlo"}
PLATFORMS = ("cpu", "cuda", "tpu")
_COMPARED = 500

Check = Callable[[PyTree], np.ndarray]


def export(run: str, kind: str, out: str, data: str) -> list[str]:
    """Writes the selected network of a run, and returns the lines to print.

    Args:
      run: a finished stage's directory.
      kind: "stablehlo", a program from raw inputs to logits and calibrated probabilities that JAX runs without kdjax;
        or "safetensors", the variables by name, with what is needed to rebuild the network as metadata.
      out: where to; "" for model.<kind> in the current directory.
      data: the data set's file or folder, where the run was made from one; "" for what the run says.

    Raises:
      Refused: not a finished run; a file that does not reproduce the run's logits, which is then not kept.
    """
    suffix = FORMATS[one_of("--format", kind, FORMATS)]
    target = Path(out or f"model{suffix}")
    if target.suffix != suffix:
        raise Refused(f"--out is {out!r}; expected a name that ends in {suffix}.")
    if not target.parent.is_dir():
        raise Refused(f"--out is {out!r}, and the directory {str(target.parent)!r} does not exist; make it first.")
    predictor = load(run)
    inputs, stored, origin = _examples(Path(run), predictor, data)
    content, check = (_stablehlo if kind == "stablehlo" else _safetensors)(predictor)
    difference = float(np.abs(check(inputs) - stored).max())
    allowed = (5e-2 if predictor.described["precision"] == "bfloat16" else 1e-4) * (1 + float(np.abs(stored).max()))
    if not difference <= allowed:
        raise Refused(
            f"the exported network differs from {origin} by {difference:.3g} (allowed {allowed:.1g}); nothing was "
            "written. Is the data set another one, or the file of --data?"
        )
    write_bytes(target, content)
    about = target.with_suffix(".json")
    write_json(about, _about(predictor))
    return [
        f"largest difference from {origin}: {difference:.2g} (logits of {len(stored)} examples)",
        f"wrote {target} ({len(content) / 2**20:.1f} MiB) and {about}; to use it without kdjax:",
        "",
        *("    " + line for line in _lines(kind, target, predictor)),
    ]


def _about(predictor: Predictor) -> dict[str, Any]:
    return {"kdjax": kdjax.__version__, **predictor.described}


def _examples(run: Path, predictor: Predictor, data: str) -> tuple[PyTree, np.ndarray, str]:
    """(raw inputs, logits to be reproduced, what those are): of the test split where it is at hand, else of noise."""
    try:
        stored = read_json(run / "recipe.json")
        which = from_dict(Data, {**stored["data"], **({"path": data} if data else {})}, "recipe.data")
        split = stages.dataset(which).test
    except (Refused, Damaged, OSError, KeyError, ImportError) as error:
        if data:
            raise Refused(f"--data={data} is not the data set of {run}: {error}") from error
        return (*_noise(predictor), "the run's own network, on noise (give --data to compare the stored logits)")
    if is_lazy(split) or np.ndim(split.label) != 1:
        return (*_noise(predictor), "the run's own network, on noise (the data set is not in memory)")
    exists = np.flatnonzero(np.asarray(split.label) >= 0)[:_COMPARED]
    with np.load(run / "logits" / "test.npz", allow_pickle=False) as file:
        logits, labels = file["logits"][:_COMPARED], file["label"][:_COMPARED]
    if len(exists) != len(labels) or not np.array_equal(np.asarray(split.label)[exists], labels):
        raise Refused(
            f"the test split of {which.path or which.name} has other labels than {run}; give its own by --data."
        )
    return jax.tree.map(lambda x: np.asarray(x)[exists], split.inputs), logits, "the run's stored logits"


def _noise(predictor: Predictor) -> tuple[PyTree, np.ndarray]:
    rng = np.random.default_rng(0)

    def draw(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        size = (8, *shape.shape[1:])
        integers = np.issubdtype(shape.dtype, np.integer)
        return (rng.integers(0, 2, size) if integers else rng.random(size)).astype(shape.dtype)

    inputs = jax.tree.map(draw, predictor.inputs)
    return inputs, predictor.logits(inputs)


def _stablehlo(predictor: Predictor) -> tuple[bytes, Check]:
    def network(inputs: PyTree) -> dict[str, jax.Array]:
        logits = predictor.model.apply(predictor.variables, predictor.prepare(inputs), train=False)[0].logits
        return {"logits": logits, "probabilities": jax.nn.softmax(logits / jnp.float32(predictor.temperature))}

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), predictor.inputs)
    exported = jax.export.export(Program(network).jitted, platforms=PLATFORMS)(shapes)
    try:
        content = bytes(exported.serialize())
    except ImportError as error:
        raise Refused("stablehlo files need flatbuffers; type pip install 'kdjax[export]'.") from error

    def check(inputs: PyTree) -> np.ndarray:
        return np.asarray(jax.export.deserialize(bytearray(content)).call(inputs)["logits"])

    return content, check


def _safetensors(predictor: Predictor) -> tuple[bytes, Check]:
    arrays = {name: np.asarray(array, order="C") for name, array in variables.named(predictor.variables).items()}
    content = save(arrays, metadata={"kdjax": json.dumps(_about(predictor), sort_keys=True)})

    def check(inputs: PyTree) -> np.ndarray:
        from safetensors.numpy import load as read

        tree = variables.nested({name: jnp.asarray(array) for name, array in read(content).items()})
        restored = {"params": tree["params"], "batch_stats": tree.get("batch_stats", {})}
        logits = predictor.model.apply(restored, predictor.prepare(inputs), train=False)[0].logits
        return np.asarray(logits, np.float32)

    return content, check


def _lines(kind: str, target: Path, predictor: Predictor) -> list[str]:
    names = predictor.label_names
    shown = f"  # columns: {', '.join(names[:4])}{', ...' * (len(names) > 4)}" if names else ""
    if kind == "stablehlo":
        described = jax.tree.leaves(predictor.inputs)
        kinds = " and ".join(f"{x.dtype} [N, {', '.join(map(str, x.shape[1:]))}]" for x in described)
        return [
            "import jax.export",
            f"network = jax.export.deserialize(bytearray(open({str(target)!r}, 'rb').read()))",
            f"inputs = ...  # {kinds}, as the training data held them",
            f"probabilities = network.call(inputs)['probabilities']{literal(shown)}",
        ]
    return [
        "import json",
        "from safetensors import safe_open",
        f"with safe_open({str(target)!r}, framework='numpy') as file:",
        "    about, weights = json.loads(file.metadata()['kdjax']), {n: file.get_tensor(n) for n in file.keys()}",
    ]

"""A predictor as an ONNX program, by jax2onnx, and ONNX programs by onnxruntime (extra kdjax[onnx])."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import variables
from kdjax.errors import Refused, printable
from kdjax.predictor import Predictor
from kdjax.types import PyTree

OUTPUTS = ("logits", "probabilities")


def convert(
    predictor: Predictor, right: Callable[[np.ndarray], bool], inputs: PyTree, metadata: Mapping[str, str]
) -> bytes:
    """From raw inputs of any batch size to logits and calibrated probabilities.

    The converter knows layers of Flax, and primitives of JAX; neither way holds every network (pooling is wrong in the
    one, grouped convolutions in the other), so that the first whose logits are right on `inputs` is taken.

    Raises:
      Refused: jax2onnx or onnxruntime is not installed; no way holds the network, with the converter's reason.
    """
    missing = [name for name in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f"ONNX files need {missing[0]}, which is not installed; type pip install 'kdjax[onnx]'.")
    leaves, tree = jax.tree.flatten(predictor.inputs)
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]

    def network(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        raw = jax.tree.unflatten(tree, arrays)
        logits = predictor.model.apply(predictor.variables, predictor.prepare(raw), train=False)[0].logits
        return logits, jax.nn.softmax(logits / jnp.float32(predictor.temperature))

    def primitives() -> Callable:
        return jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(network)(*shapes))

    reasons = []
    for program in (lambda: network, primitives):
        try:
            with _quiet():
                content = _converted(program(), shapes, input_names(predictor.inputs), metadata)
                if right(run(content, inputs)[0]):
                    return content
            reasons.append("other logits than the network's")
        except Exception as error:  # the converter raises of every kind
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    raise Refused(
        f"the network {predictor.described['model']!r} cannot be written as ONNX by jax2onnx "
        f"({printable(reasons[0], 200)}); type --format stablehlo."
    )


def _converted(
    program: Callable, shapes: list[jax.ShapeDtypeStruct], names: list[str], metadata: Mapping[str, str]
) -> bytes:
    import jax2onnx

    proto: Any = jax2onnx.to_onnx(program, shapes, model_name="kdjax", input_names=names, output_names=list(OUTPUTS))
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString()


def run(content: bytes, inputs: PyTree) -> list[np.ndarray]:
    """[logits, probabilities] of raw inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    arrays = dict(zip(input_names(inputs), map(np.asarray, jax.tree.leaves(inputs)), strict=True))
    return session.run(list(OUTPUTS), arrays)


def input_names(inputs: PyTree) -> list[str]:
    """The program's inputs: "inputs" of one array, else the names of the arrays."""
    if hasattr(inputs, "shape"):
        return ["inputs"]
    return [name.replace("/", "_") for name in variables.named(inputs)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter prints for its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

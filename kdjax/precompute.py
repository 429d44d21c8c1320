"""The part of a function that depends on its variables alone, computed once: of a frozen teacher, the casts of its
kernels and the scales of its BatchNorms, which a step would else compute again every time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from kdjax.errors import Refused
from kdjax.programs import Program
from kdjax.types import PyTree

Apply = Callable[[PyTree, PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Rest:
    """What is left of a function `apply(variables, inputs)`: called with what was computed in place of variables.

    Equal ones are the same function, so that compiled programs are shared. Inputs may have another batch size than
    those it was made with.

    Raises:
      Refused: while tracing, where what was computed depends on shapes that these inputs do not have.
    """

    apply: Apply
    variables: tuple[jax.tree_util.PyTreeDef, tuple[jax.ShapeDtypeStruct, ...]]

    def __call__(self, computed: tuple[Any, ...], inputs: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(inputs)
        split = _split(self, structure, tuple(map(_abstract, leaves)))
        expected = [(x.shape, x.dtype) for x in split.rest.in_avals[: len(computed)]]
        if [(x.shape, x.dtype) for x in computed] != expected:
            raise Refused(
                "a teacher got inputs of another kind than those of the data set of its task; call "
                "task(recipe, dataset, teacher) with the data set that these are of."
            )
        return jax.tree.unflatten(split.result, core.jaxpr_as_fun(split.rest)(*computed, *leaves))


def precomputed(apply: Apply, variables: PyTree, inputs: PyTree) -> tuple[Apply, PyTree]:
    """(apply', variables') with apply'(variables', inputs) = apply(variables, inputs); the same pair where nothing can
    be computed beforehand.

    An operation is taken out where every operand that is no constant depends on variables alone, and where the result
    is not larger than its operands: nothing is unfolded in memory.

    Args:
      variables: arrays, or their shapes; then so is the second result.
      inputs: arrays or shapes, of which only shapes matter.
    """
    leaves, structure = jax.tree.flatten(variables)
    rest = Rest(apply, (structure, tuple(map(_abstract, leaves))))
    inputs, inputs_structure = jax.tree.flatten(inputs)
    split = _split(rest, inputs_structure, tuple(map(_abstract, inputs)))
    if not split.first.eqns:
        return apply, variables
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return rest, tuple(_like(x, leaves) for x in jax.eval_shape(core.jaxpr_as_fun(split.first), *leaves))
    return rest, tuple(_first(rest, inputs_structure, tuple(map(_abstract, inputs)))(*leaves))


class _Split(NamedTuple):
    first: core.ClosedJaxpr
    rest: core.ClosedJaxpr
    result: jax.tree_util.PyTreeDef


@functools.lru_cache(maxsize=64)
def _split(rest: Rest, structure: jax.tree_util.PyTreeDef, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> _Split:
    tree, leaves = rest.variables

    def flat(leaves, inputs):
        return rest.apply(jax.tree.unflatten(tree, leaves), jax.tree.unflatten(structure, inputs))

    closed, result = jax.make_jaxpr(flat, return_shape=True)(leaves, inputs)
    jaxpr = closed.jaxpr
    given = jaxpr.invars[: len(leaves)]
    before, after, known = [], [], {*given}
    for equation in jaxpr.eqns:
        operands = [x for x in equation.invars if isinstance(x, core.Var)]
        fits = sum(map(_size, equation.outvars)) <= sum(map(_size, operands))
        if operands and known.issuperset(operands) and not equation.effects and fits:
            before.append(equation)
            known.update(equation.outvars)
        else:
            after.append(equation)
    read = [x for equation in after for x in equation.invars] + list(jaxpr.outvars)
    passed = [*dict.fromkeys(x for x in read if isinstance(x, core.Var) and x in known)]
    about = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    first = core.Jaxpr([], given, passed, before, debug_info=about)
    then = core.Jaxpr(
        jaxpr.constvars, [*passed, *jaxpr.invars[len(leaves) :]], jaxpr.outvars, after, jaxpr.effects, debug_info=about
    )
    return _Split(core.ClosedJaxpr(first, []), core.ClosedJaxpr(then, closed.consts), jax.tree.structure(result))


@functools.lru_cache(maxsize=64)
def _first(rest: Rest, structure: jax.tree_util.PyTreeDef, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> Program:
    return Program(core.jaxpr_as_fun(_split(rest, structure, inputs).first))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax.numpy.shape(leaf), jax.dtypes.result_type(leaf))


def _like(shape: jax.ShapeDtypeStruct, leaves: list[Any]) -> jax.ShapeDtypeStruct:
    """Where the variables are placed, what is computed from them is too."""
    return shape.update(sharding=getattr(leaves[0], "sharding", None))


def _size(variable: Any) -> int:
    return variable.aval.size * variable.aval.dtype.itemsize

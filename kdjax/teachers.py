"""Teachers as data: a pure function and its variables.

    teacher = calibrated(frozen(model, variables), posthoc.POSTHOC["temperature"].apply, params)
    output = teacher.apply(teacher.variables, batch)

The step passes `teacher.variables` as an argument, so that no weight becomes a constant of the compiled program; every
constructor here keeps its own numbers (temperatures, logits, post-hoc parameters) in `variables` for the same reason,
and all of them compose. A teacher never receives a gradient.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize

from kdjax.errors import Refused, positive
from kdjax.objectives.core import need
from kdjax.targets import temper
from kdjax.types import Batch, Dataset, Model, Output, PyTree

Apply = Callable[[PyTree, Batch], Output]


class ByEpoch(NamedTuple):
    """Logits that were kept of each epoch, where the inputs are changed in every one of them.

    Attributes:
      live: the teacher that computes them; on the inputs as the student sees them in that epoch.
      read: epoch, counted from 0 -> logits [N, K], or None where they are not at hand.
      write: (epoch, logits) keeps them.
      dtype: of the logits that are kept.
      variables: logits of an epoch -> the variables of the teacher in it.
    """

    live: Teacher
    read: Callable[[int], np.ndarray | None]
    write: Callable[[int, np.ndarray], None]
    dtype: Any = np.float32
    variables: Callable[[Any], PyTree] = lambda logits: logits


class Teacher(NamedTuple):
    """What a student learns from.

    Attributes:
      apply: (variables, Batch) -> Output; pure, usable inside jit with `variables` as an argument.
      variables: pytree of arrays; of their shapes where `by_epoch` has them.
      num_examples: N, of a teacher that knows the training examples one by one; None of any other.
      by_epoch: where its variables are others in every epoch; None of any other.
    """

    apply: Apply
    variables: PyTree
    num_examples: int | None = None
    by_epoch: ByEpoch | None = None


def frozen(model: Model, variables: PyTree) -> Teacher:
    """A trained model in evaluation mode: running statistics, no dropout, no gradient.

    It sees the transformed batch, so that teacher and student look at the same pixels.

    Raises:
      Refused: something else than a `Model` and its variables.
    """
    if not isinstance(model, Model) or not isinstance(variables, Mapping) or "params" not in variables:
        raise Refused(
            f"frozen got a {type(model).__name__} and a {type(variables).__name__}; expected a network and its "
            "variables: type teachers.frozen(trainer.task.parts.model, state.variables)."
        )
    return Teacher(_frozen(model), variables)


# Equal teachers are the same function object, so that students that differ only in the seed share a compiled step.
@functools.lru_cache(maxsize=256)
def _frozen(model: Model) -> Apply:
    def apply(variables, batch):
        output, _ = model.apply(variables, batch.inputs, train=False)
        return jax.lax.stop_gradient(output)

    return apply


def _mapped(teacher: Teacher, name: str, own: PyTree, change: Callable[[PyTree, Array, Batch], Array]) -> Teacher:
    """A teacher whose logits are changed by a function with variables of its own; features pass through."""

    def variables(inner: PyTree) -> PyTree:
        return {"teacher": inner, name: own}

    epochs = teacher.by_epoch
    if epochs is not None:
        inner = epochs.variables
        epochs = epochs._replace(variables=lambda logits: variables(inner(logits)))
    return Teacher(_changed(teacher.apply, name, change), variables(teacher.variables), teacher.num_examples, epochs)


@functools.lru_cache(maxsize=256)
def _changed(inner: Apply, name: str, change: Callable[[PyTree, Array, Batch], Array]) -> Apply:
    def apply(variables, batch):
        output = inner(variables["teacher"], batch)
        return output._replace(logits=change(variables[name], output.logits, batch))

    return apply


def _divided(T: Array, logits: Array, batch: Batch) -> Array:
    return logits / T


@functools.lru_cache(maxsize=256)
def _posthoc(apply: Callable[[PyTree, Array], Array]) -> Callable[[PyTree, Array, Batch], Array]:
    return lambda params, logits, batch: apply(params, logits)


def scaled(teacher: Teacher, T: Any) -> Teacher:
    """Logits divided by T > 0: RTC's teacher-only temperature, or one fitted on held-out data.

    Raises:
      Refused: a Python number T <= 0.
    """
    T = jnp.asarray(positive("T", T), jnp.float32)
    return _mapped(teacher, "T", T, _divided)


def calibrated(teacher: Teacher, apply: Callable[[PyTree, Array], Array], params: PyTree) -> Teacher:
    """The teacher followed by a fitted post-hoc calibrator, `apply(params, logits) -> logits`."""
    return _mapped(teacher, "posthoc", params, _posthoc(apply))


def shaped(teacher: Teacher, target_fn: Callable[..., Array]) -> Teacher:
    """The teacher with a shaped distribution: logits become `target_fn(log_p, labels)`, log-probabilities.

    `target_fn` is a function of `kdjax.targets` with its options bound, e.g. `partial(wclip, eta=0.5, m=0.7)`. As
    an option of a distiller (`target="wclip"`) the same shaping also logs how often it fires.

    Raises:
      Refused: while tracing, if the batch has no labels.
    """

    def change(_, logits, batch):
        labels = need(batch, "label", f"shaped teacher ({getattr(target_fn, '__name__', 'target')})")
        return jax.lax.stop_gradient(target_fn(temper(logits, 1.0), labels))

    return _mapped(teacher, "target", (), change)


def ensemble(*teachers: Teacher) -> Teacher:
    """The mean of the teachers' probabilities, as log-probabilities; without features.

    The mean of probabilities, not of logits: a proper mixture. Temper after (`scaled`) rather than before.

    Raises:
      Refused: no teachers, or something else; remembered ones that differ in rows; while tracing, other classes.
    """
    if not teachers or not all(isinstance(teacher, Teacher) for teacher in teachers):
        given = ", ".join(type(teacher).__name__ for teacher in teachers) or "no teachers"
        raise Refused(f"ensemble was given {given}; expected at least one Teacher: type ensemble(first, second).")
    if any(t.by_epoch is not None for t in teachers):
        raise Refused(
            "a teacher in an ensemble is remembered by epoch; expected frozen ones: remember the ensemble instead."
        )

    def apply(variables, batch):
        logits = [t.apply(v, batch).logits for t, v in zip(teachers, variables, strict=True)]
        shapes = {tuple(x.shape) for x in logits}
        if len(shapes) > 1:
            raise Refused(
                f"the teachers of an ensemble return shapes {sorted(shapes)}; they must have the same classes."
            )
        log_p = jnp.stack([temper(x, 1.0) for x in logits])
        return Output(jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.float32(len(teachers))))

    known = {t.num_examples for t in teachers} - {None}
    if len(known) > 1:
        counts = " and ".join(map(str, sorted(known, key=str)))
        raise Refused(f"the remembered teachers have {counts} rows; expected as many: remembered(logits, of=dataset).")
    return Teacher(apply, tuple(t.variables for t in teachers), next(iter(known), None))


def remembered(logits: Float[Array | np.ndarray, "N K"], *, of: Dataset | None = None) -> Teacher:
    """Logits computed beforehand, one row per training example, gathered by `batch.index`.

        teachers.remembered(logits)                # row n is of the n-th example of dataset.train
        teachers.remembered(logits, of=dataset)    # row n is of the n-th example of your own train, all of it

    For teachers outside JAX, for caches, and for cross-fitted outputs (row n from a teacher that was not trained on
    example n; a fine-tuned teacher is nearly always right on its own training set, so that W-Clip then hardly fires).

    The rows know nothing of augmentation: under `two_views`, which repeats the index, both views of an example get the
    same row, and under random crops the teacher has not seen the student's pixels. Mixup drops no index but makes the
    row wrong; use a frozen teacher there. An index outside [0, N) gives NaN, which stops training with the term's name,
    rather than another example's row.

    Args:
      logits: [N, K] floating point (float16 is enough for storage); column k is of class k, `dataset.label_names[k]`.
      of: the data set whose source the rows are of, in the source's order, before the calibration split was taken out
        and before `train_examples` kept a part: the rows of `of.train` are picked by its `index`. A test split that
        was drawn from a file of texts, a table or a folder of images has no rows; from one pool of arrays it has. Where
        you numbered the examples (a triple of `from_arrays`), row n is of the example with the number n.

    Raises:
      Refused: not [N, K] or not floating point; probabilities; with `of`, another number of rows than the source has;
        in `task`, another number of rows than the training split has examples; while tracing, a batch without indices.
    """
    table = np.asarray(logits) if of is not None else jnp.asarray(logits)
    if table.ndim != 2 or not jnp.issubdtype(table.dtype, jnp.floating):
        raise Refused(f"remembered logits are {table.dtype} {list(table.shape)}; expected floating point [N, K].")
    if not isinstance(table, jax.core.Tracer):
        _refuse_probabilities(np.asarray(table))
    if of is not None:
        table = _rows_of(np.asarray(table), of)
        _compare_columns(table, of)
    return table_of(jnp.asarray(table))


def _refuse_probabilities(table: np.ndarray) -> None:
    """Their softmax is nearly uniform, so that a student of them would learn next to nothing."""
    # The first rows say it of nearly every table of logits, so that few are read whole.
    for part in (table[:100], table):
        if not part.size or not (part.min() >= 0 and part.max() <= 1):
            return
        if np.abs(part.sum(1, dtype=np.float64) - 1).max() > 1e-2:
            return
    raise Refused(
        f"remembered logits {list(table.shape)} are probabilities: every row lies in [0, 1] and sums to 1; expected "
        "logits: type remembered(np.log(np.maximum(p, 1e-12)))."
    )


def _compare_columns(table: np.ndarray, dataset: Dataset) -> None:
    """Warns where the columns in another order would agree with the training labels far more often."""
    labels = np.asarray(dataset.train.label)
    if labels.ndim != 1 or table.shape[1] != dataset.num_classes:
        return
    counts = np.zeros((table.shape[1],) * 2, np.int64)  # labels x columns
    np.add.at(counts, (labels, table.argmax(1)), labels >= 0)
    label, column = optimize.linear_sum_assignment(counts, maximize=True)
    n = max(1, counts.sum())
    now, best = np.trace(counts) / n, counts[label, column].sum() / n
    # The best of all orders agrees a little more also by luck; four standard deviations are none.
    if best > 0.2 and now < best / 2 and best - now > 4 / np.sqrt(n):
        warnings.warn(
            f"the largest logit is that of the label in {now:.0%} of the training examples of {dataset.name!r}, and "
            f"would be in {best:.0%} with the columns in another order; expected column k to be of class k of "
            "dataset.label_names (names are numbered in sorted order, as scikit-learn's classes_).",
            stacklevel=3,
        )


def remembered_by_epoch(
    live: Teacher,
    num_examples: int,
    num_classes: int,
    read: Callable[[int], np.ndarray | None],
    write: Callable[[int, np.ndarray], None],
    *,
    dtype: Any = np.float32,
) -> Teacher:
    """The logits of a teacher on augmented inputs, computed once an epoch by whoever needs them first.

        kept, n = {}, len(dataset.train.label)
        live = frozen(model, variables)
        teacher = remembered_by_epoch(live, n, dataset.num_classes, kept.get, kept.__setitem__)

    All that is drawn in a step is a function of (seed, step), and the order of examples of (seed, epoch). So students
    of one seed, data set, batch size and transform see the same pixels in the same steps, whatever their method, T,
    alpha or network; what the teacher says of them is the same, and need not be computed again for each student.

    Args:
      live: the teacher, without what is composed onto it (`scaled`, `calibrated`), which the student may have its own.
      num_examples, num_classes: N of the training split, and K.
      read: epoch, counted from 0 -> [N, K], row n of the n-th example of the training split, or None.
      write: keeps an epoch's logits; rows of the examples that the epoch leaves out are NaN.
      dtype: float32, or float16 for half the room: each logit z is then rounded by at most |z| / 2048.

    Raises:
      Refused: another dtype, or a live teacher that has tables itself.
    """
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise Refused(f"dtype of remembered logits is {np.dtype(dtype)}; expected float32 or float16.")
    if live.by_epoch is not None or live.num_examples is not None:
        raise Refused("remembered_by_epoch was given a teacher that is remembered already; give it a frozen one.")
    table = jax.ShapeDtypeStruct((num_examples, num_classes), dtype)
    return table_of(table)._replace(by_epoch=ByEpoch(live, read, write, np.dtype(dtype)))


def table_of(table: Any) -> Teacher:
    """`remembered` without its checks; a table of shape and dtype alone will do while shapes are traced."""
    return Teacher(_row, table, table.shape[0])


# One function for all tables, so that students that differ only in the seed share a compiled step.
def _row(variables: Float[Array, "N K"], batch: Batch) -> Output:
    index = need(batch, "index", "remembered teacher")
    # Negative numbers would count from the end.
    index = jnp.where(index < 0, variables.shape[0], index)
    rows = jnp.take(variables, index, axis=0, mode="fill", fill_value=jnp.nan)
    return Output(rows.astype(jnp.promote_types(rows.dtype, jnp.float32)))


def _rows_of(table: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The rows of `dataset.train` out of those of its source."""
    index, n, numbered = np.asarray(dataset.train.index), len(table), dataset.numbered
    if n == numbered or (numbered is None and n > index.max()):
        return table[index]
    if numbered is None:
        source = f"the training examples of {dataset.name!r} have numbers of your own up to {int(index.max())}"
    else:
        ours, test = np.concatenate([index, dataset.calibration.index]), np.asarray(dataset.test.index)
        pooled = test.max() < numbered and not np.isin(test, ours).any()
        source = f"the source of {dataset.name!r} numbers {numbered} examples, " + (
            "those for testing too" if pooled else "those of train before any is held out, without those for testing"
        )
    raise Refused(
        f"there are {n} rows of logits and {source}; expected one row for each example of the source, in its order; "
        f"type remembered(logits) if row n is of the n-th example of dataset.train, {len(index)} rows."
    )

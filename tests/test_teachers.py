"""Teachers: frozen, composed, and as arguments of a compiled function."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, precompute, teachers
from kdjax.errors import Refused
from kdjax.targets import wclip
from kdjax.types import Batch, Model, Output

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)


def model():
    def apply(variables, inputs, *, train, key=None):
        assert train is False and key is None
        logits = inputs @ variables["params"]["w"]
        return Output(logits, {"hidden": inputs}), variables["batch_stats"]

    return Model(init=lambda key, inputs: {}, apply=apply, name="linear")


def teacher(w=W):
    return teachers.frozen(model(), {"params": {"w": w}, "batch_stats": {}})


def run(t, batch=None):
    return jax.jit(t.apply)(t.variables, Batch(X) if batch is None else batch)


def test_frozen_is_the_model_in_evaluation_mode_without_gradient():
    t = teacher()
    np.testing.assert_allclose(run(t).logits, X @ W, rtol=1e-6)
    np.testing.assert_array_equal(run(t).features["hidden"], X)
    grad = jax.grad(lambda v: jnp.sum(t.apply(v, Batch(X)).logits ** 2))(t.variables)
    assert all(np.all(g == 0) for g in jax.tree.leaves(grad))


def test_variables_are_arguments_not_constants():
    t = teachers.scaled(teacher(), 2.0)
    apply = jax.jit(t.apply)
    other = {"teacher": {"params": {"w": 2 * W}, "batch_stats": {}}, "T": jnp.float32(4.0)}
    first, second = apply(t.variables, Batch(X)).logits, apply(other, Batch(X)).logits
    np.testing.assert_allclose(first, X @ W / 2, rtol=1e-6)
    np.testing.assert_allclose(second, X @ W / 2, rtol=1e-6)
    assert apply._cache_size() == 1


def test_scaled_keeps_features_and_refuses_bad_temperatures():
    assert "hidden" in run(teachers.scaled(teacher(), 1.5)).features
    with pytest.raises(Refused, match="T is 0"):
        teachers.scaled(teacher(), 0)


def test_ensemble_is_the_mean_of_probabilities():
    a, b = teacher(), teachers.scaled(teacher(-W), 0.5)
    log_p = run(teachers.ensemble(a, b)).logits
    wanted = (jax.nn.softmax(X @ W) + jax.nn.softmax(-2 * X @ W)) / 2
    np.testing.assert_allclose(jnp.exp(log_p), wanted, rtol=1e-5)
    np.testing.assert_allclose(run(teachers.ensemble(a)).logits, jax.nn.log_softmax(X @ W), rtol=1e-5, atol=1e-6)
    with pytest.raises(Refused, match="no teachers"):
        teachers.ensemble()
    with pytest.raises(Refused, match="same classes"):
        run(teachers.ensemble(a, teacher(W[:, :2])))
    with pytest.raises(Refused, match=r"was given list; .*ensemble\(first, second\)"):
        teachers.ensemble([a, b])
    rows = [teachers.remembered(np.zeros((n, 3), np.float32)) for n in (4, 5)]
    for order in (rows, rows[::-1], [rows[0], a, rows[1]]):
        with pytest.raises(Refused, match="have 4 and 5 rows; expected as many"):
            teachers.ensemble(*order)
    assert teachers.ensemble(a, rows[1]).num_examples == 5
    with pytest.raises(Refused, match="got a tuple and a dict; expected a network"):
        teachers.frozen((), {})


def test_remembered_gathers_by_index_also_for_two_stacked_views():
    table = jnp.asarray(RNG.normal(size=(10, 3)), jnp.float16)
    t = teachers.remembered(table)
    index = jnp.array([7, 0, 9])
    out = run(t, Batch(X[:3], index=index)).logits
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, table[index].astype(jnp.float32))
    both = run(t, Batch(X, index=jnp.concatenate([index, index]))).logits
    np.testing.assert_array_equal(both[:3], out)
    np.testing.assert_array_equal(both[3:], out)


def test_remembered_never_returns_another_row():
    t = teachers.remembered(jnp.ones((4, 3)))
    out = run(t, Batch(X[:3], index=jnp.array([3, 4, -1]))).logits
    assert np.all(np.isfinite(out[0])) and np.all(np.isnan(out[1:]))
    with pytest.raises(Refused, match=r"batch\.index"):
        run(t)
    with pytest.raises(Refused, match="expected floating point"):
        teachers.remembered(jnp.ones(4))


def test_shaped_applies_the_target_to_the_distribution():
    labels = jnp.argmin(X @ W, axis=-1)
    t = teachers.shaped(teacher(), partial(wclip, eta=0.5, m=0.7))
    out = run(t, Batch(X, label=labels)).logits
    np.testing.assert_allclose(out, wclip(X @ W, labels), rtol=1e-5)
    with pytest.raises(Refused, match=r"batch\.label"):
        run(t)


def test_calibrated_composes_with_every_other():
    def vector(params, logits):
        return params["w"] * logits + params["b"]

    params = {"w": jnp.array([1.0, 2.0, 0.5]), "b": jnp.array([0.0, 1.0, -1.0])}
    t = teachers.scaled(teachers.calibrated(teacher(), vector, params), 3.0)
    np.testing.assert_allclose(run(t).logits, (params["w"] * (X @ W) + params["b"]) / 3, rtol=1e-5)
    again = teachers.calibrated(teachers.ensemble(t, t), vector, params)
    wanted = params["w"] * jax.nn.log_softmax(run(t).logits) + params["b"]
    np.testing.assert_allclose(run(again).logits, wanted, rtol=1e-4, atol=1e-5)


def dataset_in_the_users_order(n=30, k=3):
    """(the user's own inputs and labels, the data set made of them): a tenth is held out for calibration."""
    from kdjax import data

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 4)).astype(np.float32), np.arange(n) % k
    return x, data.from_arrays(train=(x, y), test=(x[:6] + 9, y[:6]), num_classes=k)


def test_rows_in_the_users_order_reach_the_examples_they_belong_to():
    x, dataset = dataset_in_the_users_order()
    logits = np.stack([np.arange(len(x)), x[:, 0], x[:, 1]], axis=1).astype(np.float32)
    t = teachers.remembered(logits, of=dataset)
    rows = run(t, Batch(X, index=jnp.arange(len(dataset.train.label)))).logits
    np.testing.assert_array_equal(rows[:, 1], dataset.train.inputs[:, 0])
    np.testing.assert_array_equal(rows[:, 0], dataset.train.index)


@pytest.mark.parametrize("form", ["text", "files", "one pool", "own numbers", "classes"])
def test_only_as_many_rows_as_the_source_numbers_are_taken(tmp_path, form):
    """Where a test split is drawn from one file of texts or one table, the examples that are left are numbered anew."""
    from PIL import Image

    from kdjax import data

    x, y = RNG.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8), np.arange(30) % 3
    path, numbered, options = tmp_path / "mine.csv", 30, {}
    if form == "text":
        path.write_text("text,label\n" + "".join(f"red car {i},k{i % 3}\n" for i in range(30)))
        numbered, options = 24, {"vocab_size": 90}
    elif form in ("files", "classes"):
        for i, pixels in enumerate(x):
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        path.write_text("path,label\n" + "".join(f"{i}.png,k{i % 3}\n" for i in range(30)))
        numbered, options = 24, {"classes": 2} if form == "classes" else {}
    if form == "one pool":
        np.savez(path := tmp_path / "mine.npz", inputs=x, label=y, num_classes=3)
    if form == "own numbers":  # nobody knows how many rows there are
        dataset = data.from_arrays(train=(x[:24], y[:24], 2 * np.arange(24)), test=(x[24:], y[24:]), num_classes=3)
        counts, numbered = (int(dataset.train.index.max()),), 60
    else:
        name = {"text": "text", "one pool": "arrays"}.get(form, "files")
        dataset = data.load(name, path=path, **options)
        counts = ({24, 25, 29, 30, 31} - {numbered}) | {len(dataset.train.label)}
    for count in counts:
        with pytest.raises(Refused, match=f"there are {count} rows of logits and the .*one row for each example"):
            teachers.remembered(np.zeros((count, dataset.num_classes), np.float32), of=dataset)
    rows = np.arange(float(numbered))[:, None] - np.arange(dataset.num_classes)
    taken = np.asarray(teachers.remembered(rows, of=dataset).variables)[:, 0]
    np.testing.assert_array_equal(taken, dataset.train.index)


def test_probabilities_are_no_logits():
    p = np.asarray(jax.nn.softmax(RNG.normal(size=(300, 5))))
    for given in (p, jnp.asarray(p, jnp.float16), np.eye(5)):
        with pytest.raises(Refused, match=r"are probabilities: .*type remembered\(np.log"):
            teachers.remembered(given)
    teachers.remembered(np.log(p))
    teachers.remembered(np.concatenate([p, p + 1]))


@pytest.mark.parametrize("order, warned", [((0, 1, 2), False), ((1, 2, 0), True), ((1, 0, 2), True)])
def test_columns_in_another_order_are_seen(order, warned):
    _, dataset = dataset_in_the_users_order(300)
    logits = np.eye(3)[np.arange(300) % 3] * 3 + RNG.normal(size=(300, 3)) / 2
    logits[:60] = 0  # a teacher that does not know them all
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        teachers.remembered(logits[:, order], of=dataset)
        teachers.remembered(RNG.normal(size=(300, 3)), of=dataset)
    assert [("columns in another order" in str(one.message)) for one in noted] == [True] * warned


def test_rows_of_another_number_are_refused_before_training():
    from kdjax.recipes import Distill, Recipe
    from kdjax.tasks import task

    x, dataset = dataset_in_the_users_order()
    n = len(dataset.train.label)
    recipe = Recipe(model="mlp", distill=Distill("kd"), batch_size=8)
    for count in (len(x), n - 1):
        with pytest.raises(Refused, match=rf"has {count} rows of logits and 'arrays' has {n} .*of=dataset"):
            task(recipe, dataset, teachers.remembered(np.zeros((count, 3), np.float32)))
    soft = teachers.scaled(teachers.remembered(np.zeros((n - 1, 3), np.float32)), 2.0)
    with pytest.raises(Refused, match=f"has {n - 1} rows of logits"):
        task(recipe, dataset, soft)
    with pytest.raises(Refused, match=r"type remembered\(logits\) if row n is of the n-th example"):
        teachers.remembered(np.zeros((n, 3), np.float32), of=dataset)
    for count in (5, n + 1, len(x) + 6):  # the last as if the test examples had rows too
        with pytest.raises(Refused, match="numbers 30 examples.* expected one row for each example of the source"):
            teachers.remembered(np.zeros((count, 3), np.float32), of=dataset)
    task(recipe, dataset, teachers.remembered(np.zeros((n, 3), np.float32)))


def test_what_depends_on_the_variables_alone_is_computed_once_and_the_outputs_stay_the_same():
    """Casts of kernels and scales of BatchNorm; whatever the batch size, of shapes too, and nothing is unfolded."""
    network = models.build("conv_tiny", num_classes=3, dtype=jnp.bfloat16)
    images = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32)
    frozen = teachers.scaled(teachers.frozen(network, jax.jit(network.init)(jax.random.key(0), images)), 2.0)
    apply, computed = precompute.precomputed(frozen.apply, frozen.variables, Batch(images))
    for inputs in (images, images[:1]):
        logits = jax.jit(frozen.apply)(frozen.variables, Batch(inputs)).logits
        np.testing.assert_array_equal(jax.jit(apply)(computed, Batch(inputs)).logits, logits)
    operations = str(jax.make_jaxpr(apply)(computed, Batch(images)))
    assert "rsqrt" in str(jax.make_jaxpr(frozen.apply)(frozen.variables, Batch(images))) and "rsqrt" not in operations
    assert sum(x.nbytes for x in computed) < sum(x.nbytes for x in jax.tree.leaves(frozen.variables))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), frozen.variables)
    again, abstract = precompute.precomputed(frozen.apply, shapes, Batch(images))
    assert again == apply and hash(again) == hash(apply), "equal ones share compiled programs"
    assert [(x.shape, x.dtype) for x in abstract] == [(x.shape, x.dtype) for x in computed]

    def unfolding(variables, batch):
        return Output(batch.inputs @ jnp.broadcast_to(variables, (4, 3)))

    assert precompute.precomputed(unfolding, jnp.ones(3), Batch(X))[0] is unfolding

    def cut(variables, batch):
        return Output(batch.inputs + variables[: batch.inputs.shape[1]] * 2)

    apply, computed = precompute.precomputed(cut, jnp.ones(9), Batch(X))
    with pytest.raises(Refused, match="inputs of another kind than those of the data set of its task"):
        apply(computed, Batch(X[:, :2]))

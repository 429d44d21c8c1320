"""Networks from outside the package: Linen and NNX modules, names registered by their author, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax import data, models
from kdjax.errors import Refused
from kdjax.recipes import Optimizer, Recipe
from kdjax.tasks import task
from kdjax.trainer import Trainer
from kdjax.types import Output
from tests import tiny
from tests.models.drawing import variables_of

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)


class Told(nn.Module):
    """Dense, BatchNorm, dropout; counts its training calls in a collection of its own."""

    width: int = 4

    @nn.compact
    def __call__(self, x, deterministic: bool):
        calls = self.variable("calls", "n", jnp.zeros, ())
        if not deterministic:
            calls.value += 1
        hidden = nn.BatchNorm(use_running_average=deterministic)(nn.Dense(self.width)(x))
        hidden = nn.Dropout(0.5)(hidden, deterministic=deterministic)
        return nn.Dense(3)(hidden), hidden


class ByAttribute(nn.Module):
    """Told by an attribute whether it trains."""

    use_running_average: bool | None = None

    @nn.compact
    def __call__(self, x):
        return Output(nn.BatchNorm(use_running_average=self.use_running_average)(nn.Dense(3)(x)), {"inputs": x})


class Untold(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return x * mask


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


class Modern(nnx.Module):
    """Two layers in a list, BatchNorm and dropout."""

    def __init__(self, width: int = 4, num_classes: int = 3, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, num_classes, rngs=rngs)])
        self.norm = nnx.BatchNorm(num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.norm(x))


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def run(model, variables, *, train, key=None):
    return model.apply(variables, X, train=train, key=key)


def gradient_norms(model, variables):
    def loss(params):
        return jnp.square(model.apply({**variables, "params": params}, X, train=True, key=KEY)[0].logits).sum()

    return [float(np.abs(g).sum()) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"]))]


def test_a_linen_network_with_state_and_dropout():
    model = models.linen(Told())
    variables = variables_of(model, X)
    assert set(variables["batch_stats"]) == {"BatchNorm_0", "@calls"}
    output, stats = run(model, variables, train=True, key=KEY)
    assert output.logits.shape == (6, 3) and output.features["penultimate"].shape == (6, 4)
    assert stats["@calls"]["n"] == 1 and (stats["BatchNorm_0"]["mean"] != 0).all()
    assert (output.features["penultimate"] == 0).any()
    again, _ = run(model, variables, train=True, key=KEY)
    other, _ = run(model, variables, train=True, key=jax.random.key(1))
    np.testing.assert_array_equal(output.logits, again.logits)
    assert (output.logits != other.logits).any()

    trained = {**variables, "batch_stats": stats}
    evaluated, unchanged = run(model, trained, train=False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, stats)
    collections = {"params": variables["params"], "batch_stats": {"BatchNorm_0": stats["BatchNorm_0"]}}
    expected, _ = jax.jit(Told().apply, static_argnames="deterministic")(
        {**collections, "calls": stats["@calls"]}, X, deterministic=True
    )
    np.testing.assert_allclose(evaluated.logits, expected, rtol=1e-6, atol=1e-6)
    assert all(gradient_norms(model, variables))


def test_a_linen_network_told_by_an_attribute():
    model = models.linen(ByAttribute(), name="mine")
    variables = variables_of(model, X)
    trained, stats = run(model, variables, train=True)
    np.testing.assert_allclose(trained.logits.mean(0), 0, atol=1e-6)
    evaluated, _ = run(model, variables, train=False)
    assert (evaluated.logits != trained.logits).any() and set(evaluated.features) == {"inputs"}
    assert model.name == "mine" and (stats["BatchNorm_0"]["var"] != 1).all()


def test_an_nnx_network_with_state_and_dropout():
    model = models.nnx(Modern)
    init = jax.jit(model.init)
    variables = init(KEY, X)
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes["params"]["layers"] == {"0": {"bias": (4,), "kernel": (3, 4)}, "1": {"bias": (3,), "kernel": (4, 3)}}
    assert shapes["batch_stats"] == {"norm": {"mean": (3,), "var": (3,)}}
    output, stats = run(model, variables, train=True, key=KEY)
    other, _ = run(model, variables, train=True, key=jax.random.key(1))
    assert (output.logits == 0).any() and (output.logits != other.logits).any()
    assert (stats["norm"]["mean"] != 0).all()

    network = Modern(rngs=nnx.Rngs(KEY))
    network.eval()
    evaluated, unchanged = run(model, variables, train=False)
    np.testing.assert_allclose(evaluated.logits, network(X), rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables["batch_stats"])
    assert all(gradient_norms(model, variables))
    assert (
        jax.jit(model.init)(jax.random.key(1), X)["params"]["layers"]["0"]["kernel"] != network.layers[0].kernel
    ).any()


def test_equal_networks_are_the_same_model_and_others_have_another_version():
    assert models.linen(Told()) is models.linen(Told(4))
    assert models.linen(Told()).version != models.linen(Told(5)).version
    wider = functools.partial(Modern, width=5)
    versions = {models.nnx(Modern).version, models.nnx(wider).version, models.nnx(functools.partial(Modern, 5)).version}
    assert len(versions) == 3
    assert models.linen(Told(), version="2").version == "2"


def test_changed_source_is_another_version(tmp_path, monkeypatch):
    source = "from flax import linen as nn\nclass Net(nn.Module):\n    def __call__(self, x):\n        return x * {}\n"
    versions = []
    monkeypatch.syspath_prepend(tmp_path)
    for factor in (1, 2):
        name = f"outside_net_{factor}"
        (tmp_path / f"{name}.py").write_text(source.format(factor))
        versions.append(models.linen(__import__(name).Net()).version)
    assert versions[0] != versions[1] and all(len(v) == 64 for v in versions)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: models.linen(Told), r"Told is a class; .*kdjax.models.linen\(Told\(\)\)"),
        (lambda: models.linen(len), "got a builtin_function_or_method; expected a flax.linen.Module"),
        (lambda: models.linen(Masked()), "Masked.__call__ needs the argument 'mask'"),
        (lambda: models.linen(Told(), version=2), "version of Told is 2; expected a text"),
        (lambda: models.nnx(Modern(rngs=nnx.Rngs(0))), r"already has its values; .*kdjax.models.nnx\(Modern\)"),
        (lambda: models.nnx(Told), "takes rngs=nnx.Rngs"),
        (lambda: models.nnx(lambda rngs: (rngs,)), "made a tuple; expected a flax.nnx.Module"),
        (lambda: models.nnx(lambda depth, rngs: Modern(rngs=rngs)), "could not be made from rngs alone"),
    ],
)
def test_networks_that_do_not_fit_are_refused(call, words):
    with pytest.raises(Refused, match=words):
        call()


def test_state_without_a_flag_and_results_that_are_no_logits_are_refused():
    with pytest.raises(Refused, match=r"Untold has state \(batch_stats\) and no way to be told whether it trains"):
        jax.eval_shape(models.linen(Untold()).init, KEY, X)
    flat = models.linen(Flat())
    with pytest.raises(Refused, match=r"Flat returned float32 \(6,\); expected float logits"):
        jax.eval_shape(lambda: flat.apply(flat.init(KEY, X), X, train=False))
    for model in (models.linen(Told()), models.nnx(Modern)):
        with pytest.raises(Refused, match="key=None"):
            jax.eval_shape(lambda model=model: model.apply(model.init(KEY, X), X, train=True))


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    models._build.cache_clear()


class Named(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.Dense(self.width)(x))


def test_a_registered_network_is_built_by_name(registry):
    models.register("my_net", Named, describe="a toy of ours")
    model = models.build("my_net", num_classes=5, width=7)
    assert models.describe("my_net", 5, X, width=7) == (3 * 7 + 7 + 7 * 5 + 5, "a toy of ours")
    assert model.name == "my_net" and model.version == models.version("my_net") and len(model.version) == 64
    assert models.version("resnet8") == ""
    with pytest.raises(Refused, match="'my_net' has no option 'widht'; did you mean width"):
        models.build("my_net", num_classes=5, widht=7)
    with pytest.raises(Refused, match="takes no dtype"):
        models.build("my_net", num_classes=5, dtype="bfloat16")
    with pytest.raises(Refused, match="did you mean .*my_net"):
        models.build("my_nets", num_classes=5)
    models.register("my_net", Named)  # the same module, imported once more
    with pytest.raises(Refused, match="'my_net' exists already"):
        models.register("my_net", Modern)


def test_an_nnx_class_and_a_function_can_be_registered(registry):
    models.register("modern", Modern, version="1")
    assert models.describe("modern", 3, X, width=6).parameters == 3 * 6 + 6 + 6 * 3 + 3 + 2 * 3
    models.register("made", lambda num_classes: models.linen(Named(num_classes), version="x"), version="3")
    model = models.build("made", num_classes=2)
    assert (model.name, model.version) == ("made", "3")
    models.register("wrong", lambda num_classes: 3)
    with pytest.raises(Refused, match="'wrong' made a int; expected a Flax module"):
        models.build("wrong", num_classes=2)


@pytest.mark.parametrize(
    ("name", "factory", "words"),
    [
        ("resnet8", Named, r"'resnet8' exists already \(KD\(C\)'s"),
        ("wrn_10_1", Named, "'wrn_10_1' exists already"),
        ("my net", Named, "expected a name of letters"),
        ("my_net", Told, "with the parameter num_classes"),
        ("my_net", 3, "with the parameter num_classes"),
    ],
)
def test_registrations_that_do_not_fit_are_refused(registry, name, factory, words):
    with pytest.raises(Refused, match=words):
        models.register(name, factory)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        return nn.Dense(4)(nn.relu(hidden))


class Layers(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden, self.norm = nnx.Linear(64, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x.reshape(x.shape[0], -1)))))


@pytest.fixture(scope="module")
def quadrants():
    return data.from_arrays(tiny.arrays(72, 0), tiny.arrays(16, 1), num_classes=tiny.CLASSES)


@pytest.mark.parametrize("make", [lambda: models.linen(TwoLayers()), lambda: models.nnx(Layers)])
def test_a_network_from_outside_trains_through_the_one_step(quadrants, make):
    recipe = Recipe(epochs=5, batch_size=16, optimizer=Optimizer(lr=0.1, schedule="constant"))
    trainer = Trainer(task(recipe, quadrants, model=make()))
    (first, *_, last) = list(trainer.epochs(trainer.init()))
    accuracy = [logs["accuracy"].mean() for logs in (first.logs, last.logs)]
    assert accuracy[1] > max(0.5, accuracy[0])
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(last.state.batch_stats))
    assert make() is make()  # so equal tasks share a compiled step


def test_a_network_of_the_users_own_in_a_recipe_is_told_where_to_go():
    with pytest.raises(Refused, match=r"task\(recipe, dataset, model=kdjax.models.linen\("):
        Recipe(model=Told())

"""Values and all gradients of the networks against the reference, in float64 and float32; what must not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import Refused
from kdjax.models import build
from tests.processes import but_first
from tests.text import golden, networks

pytestmark = pytest.mark.fused

MODELS = {entry["name"]: entry for entry in golden.index()["models"]}
FIRST = next(iter(MODELS))
TINY = {"num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30, "max_position_embeddings": 8}


@functools.cache
def program(name: str, dtype: str):
    """(params, inputs, label) -> ((loss, Output), gradients), compiled once for a network."""
    model, _ = networks.network(golden.read(MODELS[name]["case"])["model"], dtype)

    def total(params, inputs, label):
        output, _ = model.apply({"params": params}, inputs, train=False)
        return networks.mean_loss(output.logits, label), output

    return networks.compiled(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize("dtype", but_first(golden.DTYPES))
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name, dtype):
    case = golden.read(MODELS[name]["case"])
    arrays, limits = golden.arrays(case["arrays"]), case["tolerance"][dtype]
    exact = {key: limits[key] for key in ("rtol", "atol")} if dtype == "float64" else None

    def match(found, wanted, what):
        golden.close(found, arrays[wanted], what, **(exact or {"atol": limits[what]}))

    with jax.enable_x64(dtype == "float64"):
        loaded = networks.load(case["model"])
        _, params = networks.network(case["model"], dtype)
        label = jnp.asarray(arrays["in/label"])
        (loss, output), grads = program(name, dtype)(params, networks.inputs(arrays), label)
    assert loaded.num_classes == case["num_labels"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case["parameters"]
    depth = loaded.architecture.num_hidden_layers
    features = output.features
    match(output.logits, "out/logits", "logits")
    golden.close(loss, arrays["out/loss"], "loss", **(exact or {"atol": limits["logits"]}))
    match(features["penultimate"], "out/pooled", "hidden")
    for i in range(depth + 1):
        match(features[f"layer{i}"], f"out/hidden/{i}", "hidden")
        golden.close(features["cls"][:, i], features[f"layer{i}"][:, 0], "cls")
        golden.close(features[f"cls{i}"], features["cls"][:, i], "cls")
    for i in range(depth):
        match(features[f"attention{i + 1}"], f"out/attention/{i}", "attention")
    masked = arrays["in/attention_mask"] == 0
    assert not np.asarray(features["attention1"]).max(axis=(1, 2))[masked].any(), "attention on a padded key"
    for i in (0, depth - 1):
        # Scores are sums over the width of products of order 1: their rounding is that of the hidden states, not of
        # probabilities.
        golden.close(features[f"scores{i + 1}"], arrays[f"out/scores/{i}"], "scores", **(exact or {"atol": 2e-5}))
        found = networks.in_file_layout(loaded, grads)
    assert {f"grad/{tensor}" for tensor in found} == {key for key in arrays if key.startswith("grad/")}
    for tensor, grad in found.items():
        wanted = arrays[f"grad/{tensor}"]
        golden.close(grad, wanted, f"gradient of {tensor}", **(exact or {"atol": limits["grad"]}))
    golden.compared("text models", f"{name}-{dtype}")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_masked_does_not_matter(name):
    """Rows 2 and 7 have other ids under the mask; an order of rows changes nothing; no real token at all is finite."""
    case = golden.read(MODELS[name]["case"])
    arrays = golden.arrays(case["arrays"])
    _, params = networks.network(case["model"], "float32")
    inputs, label = networks.inputs(arrays), jnp.asarray(arrays["in/label"])
    (_, output), _ = program(name, "float32")(params, inputs, label)
    assert np.array_equal(output.logits[2], output.logits[7])
    order = np.array([3, 1, 7, 0, 5, 2, 6, 4])
    (_, turned), _ = program(name, "float32")(params, {k: v[order] for k, v in inputs.items()}, label)
    golden.close(turned.logits, output.logits[order], "rows in another order", atol=1e-6)
    nothing = {**inputs, "attention_mask": inputs["attention_mask"].at[0].set(0)}
    (_, output), grads = program(name, "float32")(params, nothing, label)
    assert np.isfinite(output.logits).all() and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_padding_further_changes_nothing():
    case = golden.read(MODELS[FIRST]["case"])
    arrays = golden.arrays(case["arrays"])
    model, params = networks.network(case["model"], "float32")
    inputs = networks.inputs(arrays)
    longer = {key: jnp.pad(value, ((0, 0), (0, 5))) for key, value in inputs.items()}
    output = predict(model, {"params": params}, longer)
    golden.close(output.logits, arrays["out/logits"], "logits", atol=1e-5)


def predict(model, variables, inputs, key=None):
    """The output in training mode with a key, in evaluation mode without."""
    training = key is not None
    key = jax.random.key(key) if training else None
    return networks.compiled(lambda v, x: model.apply(v, x, train=training, key=key)[0])(variables, inputs)


COUNTS = {
    ("bert_base", 20, ()): 109_497_620,
    ("bert_base", 77, (("vocab_size", 28_996),)): 108_369_485,
    ("bert_6l_768", 77, ()): 67_014_221,
    ("distilbert", 20, ()): 66_968_852,
    ("distilbert", 6, (("vocab_size", 28_996),)): 65_786_118,
    ("bert_8l_512", 150, ()): 41_450_134,
    ("bert_4l_512", 2, ()): 28_764_674,
    ("bert_4l_256", 77, ()): 11_190_349,
    ("bert_2l_128", 6, ()): 4_386_694,
    ("bert_12l_384", 20, (("num_attention_heads", 12),)): 33_367_700,
    ("bert_4l_312", 77, (("num_attention_heads", 12), ("intermediate_size", 1200))): 14_374_349,
    ("roberta_base", 77, ()): 124_704_845,
    ("distilroberta", 150, ()): 82_233_750,
    ("bert_4l_256", 150, (("vocab_size", 4096), ("max_position_embeddings", 64))): 4_329_366,
    ("bert_1l_64", 77, (("vocab_size", 4096), ("max_position_embeddings", 64))): 325_645,
}


@pytest.mark.parametrize("name, num_classes, options", COUNTS)
def test_parameter_counts_by_name(name, num_classes, options):
    model = build(name, num_classes=num_classes, **dict(options))
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"input_ids": ids, "attention_mask": ids})
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == COUNTS[name, num_classes, options]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


@pytest.fixture(scope="module")
def tiny():
    """A small BERT that is trained with dropout, its start and a batch."""
    model = build("bert_1l_8", num_classes=3, **TINY)
    ids = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    inputs = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    return model, jax.jit(model.init)(jax.random.key(0), inputs), inputs


def test_the_start_is_the_papers(tiny):
    model = build("bert_1l_8", num_classes=3, **{**TINY, "vocab_size": 4000})
    variables = jax.jit(model.init)(jax.random.key(0), tiny[2])
    params = variables["params"]
    word = np.asarray(params["embed"]["word"]["embedding"])
    assert not word[0].any() and abs(word[1:].std() - 0.02) < 3e-4
    assert not np.asarray(params["layer1"]["up"]["bias"]).any()
    assert (np.asarray(params["layer1"]["output_norm"]["scale"]) == 1).all()
    assert 0.01 < np.asarray(params["layer1"]["up"]["kernel"]).std() < 0.03


def test_dropout_hangs_on_the_key_alone(tiny):
    model, variables, inputs = tiny
    train = networks.compiled(lambda v, x, key: model.apply(v, x, train=True, key=key)[0].logits)
    one, two, again = (train(variables, inputs, jax.random.key(k)) for k in (1, 2, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, two)
    with pytest.raises(Refused, match="dropout and got key=None"):
        model.apply(variables, inputs, train=True, key=None)


RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@pytest.mark.slow
@pytest.mark.parametrize("rate", (None, *RATES))
def test_every_rate_drops_something_and_no_rate_nothing(tiny, rate):
    _, variables, inputs = tiny
    rates = dict.fromkeys(RATES, 0.0) | ({} if rate is None else {rate: 0.5})
    model = build("bert_1l_8", num_classes=3, **TINY, **rates)
    # Attention is nearly uniform at the start: larger weights let a lost token show.
    variables = jax.tree.map(lambda leaf: 10 * leaf, variables)
    trained, evaluated = (predict(model, variables, inputs, key).logits for key in (1, None))
    assert np.array_equal(trained, evaluated) if rate is None else np.abs(trained - evaluated).max() > 1e-3


def test_half_precision_keeps_what_is_measured_exact(tiny):
    model, variables, inputs = tiny
    output = predict(build("bert_1l_8", num_classes=3, **TINY, dtype="bfloat16"), variables, inputs)
    assert output.logits.dtype == jnp.float32 and {f.dtype.name for f in output.features.values()} == {"float32"}
    error = np.abs(output.features["layer1"] - predict(model, variables, inputs).features["layer1"]).max()
    assert 1e-5 < error < 0.05, "bfloat16 products differ from float32 ones, and by no more than their rounding"


@pytest.mark.parametrize(
    "inputs, says",
    [
        (jnp.zeros((2, 8, 8, 1)), "got an array of shape"),
        ({"input_ids": jnp.ones((2, 4), int)}, "got inputs named input_ids; expected a dict"),
        ({"input_ids": jnp.ones((2, 4), int), "attention_mask": jnp.ones((2, 5), int)}, "expected one shape"),
        (
            {"input_ids": jnp.ones((2, 4)), "attention_mask": jnp.ones((2, 4), int)},
            "float32 input_ids; expected int",
        ),
        ({"input_ids": jnp.ones((2, 9), int), "attention_mask": jnp.ones((2, 9), int)}, "data.max_length=8"),
    ],
)
def test_inputs_are_refused_while_tracing(tiny, inputs, says):
    model, variables, _ = tiny
    with pytest.raises(Refused, match=says):
        model.apply(variables, inputs, train=False)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("bert_4l_100", {"num_attention_heads": 3}, "divides the width"),
        ("bert_2l_64", {"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ("bert_2l_64", {"hidden_dropout_prob": 1.0}, r"expected a number in \[0, 1\)"),
        ("bert_2l_64", {"hidden_size": 32}, "has no option 'hidden_size'"),
        ("bert_2l_64", {"pad_token_id": 40, "vocab_size": 40}, "below vocab_size"),
        ("distilbert_2l_64", {"type_vocab_size": 2}, "which has no segments"),
        ("bert_bas", {}, "did you mean bert_base"),
    ],
)
def test_impossible_networks_are_refused(name, options, says):
    with pytest.raises(Refused, match=says):
        build(name, num_classes=3, **options)

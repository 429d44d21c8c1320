"""Patient KD and TinyBERT on real networks: their formulas, which layers meet which, padding, and the two stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import Refused
from kdjax.objectives import METHODS, build, distilled, options
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at

B, S, K = 3, 6, 2
WORDS = {"vocab_size": 20, "max_position_embeddings": S, "intermediate_size": 16}
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], np.int32)
IDS = np.random.default_rng(0).integers(1, 20, (B, S)).astype(np.int32)
INPUTS = {"input_ids": jnp.asarray(IDS * MASK), "attention_mask": jnp.asarray(MASK)}


def network(name, heads, seed):
    """The output of a network whose weights are large enough for its layers to differ."""
    model = models.build(name, num_classes=K, num_attention_heads=heads, **WORDS)

    @jax.jit
    def output(key):
        variables = jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim > 1 else leaf, model.init(key, INPUTS))
        return model.apply(variables, INPUTS, train=False)[0]

    return output(jax.random.key(seed))


@pytest.fixture(scope="module")
def teacher():
    return network("bert_4l_16", 4, 0)


@pytest.fixture(scope="module")
def student():
    return network("bert_2l_8", 2, 1)


@pytest.fixture(scope="module")
def twin():
    """As deep, as wide and with as many heads as the teacher."""
    return network("bert_4l_16", 4, 2)


def shapes(output):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(output.features))


def params_of(objective, student, teacher):
    return objective.init(Spec(8, K, 8, shapes(student), shapes(teacher)), KEY)


def value(objective, student, teacher, progress=0.0, inputs=INPUTS, params=None):
    """(loss, its terms, its gradient by the student's output)."""
    made, state = params_of(objective, student, teacher)

    @jax.jit
    def run(features, logits, inputs):
        batch = Batch(inputs=inputs, label=jnp.zeros(B, jnp.int32), teacher=teacher)
        output = student._replace(features=features, logits=logits)
        terms = objective.apply(made if params is None else params, state, batch, output, at(progress))[0]
        return terms.total, terms

    differentiated = jax.value_and_grad(run, (0, 1), has_aux=True)
    (total, terms), gradient = differentiated(dict(student.features), student.logits, inputs)
    return total, terms, gradient


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def kl(t, z):
    log_t, log_z = jax.nn.log_softmax(t), jax.nn.log_softmax(z)
    return np.mean(np.sum(np.exp(log_t) * (log_t - log_z), -1))


@pytest.mark.slow
def test_pkd_is_its_formula_and_skips_as_the_paper_does(teacher, student, twin):
    objective = build("pkd", T=3.0, kd=0.4, beta=7.0)
    params = params_of(objective, student, teacher)[0]
    assert jax.tree.map(jnp.shape, params) == ((), {"cls1_to_cls2": (8, 16)}), "the last layer is left out"
    total, terms, _ = value(objective, student, teacher)
    mapped = np.asarray(student.features["layer1"][:, 0] @ params[1]["cls1_to_cls2"])
    patience = np.mean((unit(mapped) - unit(np.asarray(teacher.features["layer2"][:, 0]))) ** 2)
    soft = 9.0 * kl(teacher.logits / 3, student.logits / 3)
    assert set(terms.losses) == {"pkd_logits", "pkd_layers"}
    np.testing.assert_allclose(total, 0.4 * soft + 7.0 * patience, rtol=1e-4)
    # Three pairs of 16 entries: the code's mean is the paper's sum over 48.
    layers = {"kd": 0.0, "beta": 1.0}
    by_code = value(build("pkd", **layers), twin, teacher)[0]
    by_paper = value(build("pkd", normalization="paper", **layers), twin, teacher)[0]
    np.testing.assert_allclose(by_paper, 48 * by_code, rtol=1e-5)
    named = value(build("pkd", layers=("cls1:cls1", "cls2:cls2", "cls3"), **layers), twin, teacher)[0]
    np.testing.assert_allclose(named, by_code, rtol=1e-6)


def test_pkd_of_the_code_is_a_mean_over_all_entries_whatever_one_calls_the_layers(twin, teacher):
    """The states of all layers in one feature, or in one for each; and the pixels of a convolution's."""
    alone = {"kd": 0.0, "beta": 1.0}
    layers = tuple(f"cls{i}" for i in range(5))
    together = value(build("pkd", layers=("cls",), **alone), twin, teacher)[0]
    np.testing.assert_allclose(together, value(build("pkd", layers=layers, **alone), twin, teacher)[0], rtol=1e-5)
    maps = [jax.random.normal(jax.random.key(i), (len(twin.logits), 5, 5, 3)) for i in range(2)]
    objective = build("pkd", layers=("stage1",), **alone)
    found = value(objective, *(x._replace(features={"stage1": m}) for x, m in zip((twin, teacher), maps, strict=True)))[
        0
    ]
    np.testing.assert_allclose(found, np.mean((unit(maps[0]) - unit(maps[1])) ** 2), rtol=1e-5)


def test_the_label_weight_that_pkd_brings_along_is_one_minus_its_kd():
    label, soft = METHODS["pkd"].weights
    assert (label, soft) == (1 - options("pkd")["kd"], 1.0)


def test_tinybert_learns_layers_first_and_logits_after(teacher, student):
    objective = build("tinybert", first_stage=0.5)
    hidden, heads, _ = params = params_of(objective, student, teacher)[0]
    assert jax.tree.map(jnp.shape, params) == (
        {"8_to_16": (8, 16)},
        {"scores1_to_scores2": (2, 4), "scores2_to_scores4": (2, 4)},
        (),
    ), "one matrix for all layers, one for the heads of each pair"
    real = MASK.astype(bool)
    wanted = 0.0
    for s, t in ((0, 0), (1, 2), (2, 4)):
        squared = (student.features[f"layer{s}"] @ hidden["8_to_16"] - teacher.features[f"layer{t}"]) ** 2
        wanted += np.mean([np.mean(row[keep]) for row, keep in zip(np.asarray(squared), real, strict=True)])
    for s, t in ((1, 2), (2, 4)):
        mixed = jnp.einsum("bsqk,st->btqk", student.features[f"scores{s}"], heads[f"scores{s}_to_scores{t}"])
        squared = np.asarray((mixed - teacher.features[f"scores{t}"]) ** 2)
        wanted += np.mean([np.mean(row[:, keep][:, :, keep]) for row, keep in zip(squared, real, strict=True)])
    total, terms, (by_features, by_logits) = value(objective, student, teacher)
    np.testing.assert_allclose(total, wanted, rtol=1e-4)
    assert not by_logits.any() and by_features["layer2"].any() and terms.logs["tinybert_first_stage"] == 1
    for progress in (0.5, 0.9):
        total, terms, (by_features, by_logits) = value(objective, student, teacher, progress)
        np.testing.assert_allclose(total, kl(teacher.logits, student.logits) / K, rtol=1e-4)
        assert by_logits.any() and not any(g.any() for g in by_features.values())
        assert terms.logs["tinybert_first_stage"] == 0
    just_before = value(objective, student, teacher, float(np.nextafter(np.float32(0.5), np.float32(0))))
    assert just_before[1].logs["tinybert_first_stage"] == 1


def test_equal_networks_need_no_matrix_and_lose_nothing(teacher):
    for name in ("tinybert", "pkd"):
        objective = build(name)
        assert not jax.tree.leaves(params_of(objective, teacher, teacher)[0])
        for progress in (0.0, 0.9):
            assert abs(value(objective, teacher, teacher, progress)[0]) < 1e-9


@pytest.mark.parametrize("name", ["hidden_state", "attention"])
def test_padding_does_not_count(name, teacher, twin):
    kind = "layer" if name == "hidden_state" else "scores"
    objective = build(name, layers=(f"{kind}2",))
    real = MASK[:, :, None] if kind == "layer" else MASK[:, None, :, None] * MASK[:, None, None, :]
    x = twin.features[f"{kind}2"]
    other = twin._replace(features={**twin.features, f"{kind}2": jnp.where(real, x, x + 5.0)})
    total, _, (gradient, _) = value(objective, twin, teacher)
    assert total == value(objective, other, teacher)[0] > 0
    assert not np.where(real, 0.0, gradient[f"{kind}2"]).any()
    without = {"input_ids": INPUTS["input_ids"], "attention_mask": jnp.ones_like(INPUTS["attention_mask"])}
    assert value(objective, twin, teacher, inputs=without)[0] != value(objective, other, teacher, inputs=without)[0]


def test_as_many_layers_as_tokens_are_not_taken_for_tokens(teacher, twin):
    """ "cls" is [B, L + 1, H]: with L + 1 = S the mask of the tokens has its shape."""
    cut = {key: x[:, :5] for key, x in INPUTS.items()}
    assert teacher.features["cls"].shape[1] == 5
    total = value(build("hidden_state", layers=("cls",)), twin, teacher, inputs=cut)[0]
    wanted = np.mean((twin.features["cls"] - teacher.features["cls"]) ** 2)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)


def test_depths_that_do_not_fit_are_refused_in_one_sentence(teacher):
    three, one = network("bert_3l_8", 2, 3), network("bert_1l_8", 2, 4)
    for name in ("pkd", "tinybert"):
        with pytest.raises(Refused, match=r"3 layers do not divide 4; set layers, e.g. layers=\('"):
            params_of(build(name), three, teacher)
    with pytest.raises(Refused, match=r"set scores, e.g. scores=\('scores3:scores4'"):
        params_of(build("tinybert", layers=("layer3:layer4",)), three, teacher)
    with pytest.raises(Refused, match=r"leaves the student's last layer out, and it has no other.*cls1:cls4"):
        params_of(build("pkd"), one, teacher)
    assert np.isfinite(value(build("pkd", layers=("cls1:cls4",)), one, teacher)[0])
    for wrong in ({"first_stage": 1.0}, {"T": 0.0}):
        with pytest.raises(Refused, match="expected a number"):
            build("tinybert", **wrong)
    with pytest.raises(Refused, match="normalization"):
        build("pkd", normalization="mean")


def test_other_networks_compare_the_features_that_they_share():
    rng = np.random.default_rng(5)
    x, y = (jnp.asarray(rng.normal(size=(B, 4, 4, 5)), jnp.float32) for _ in range(2))
    logits = jnp.asarray(rng.normal(size=(B, K)), jnp.float32)
    one, other = Output(logits, {"stage1": x}), Output(2 * logits, {"stage1": y})
    total, terms, _ = value(build("tinybert"), one, other, inputs=jnp.zeros((B, 1)))
    np.testing.assert_allclose(total, np.mean((x - y) ** 2), rtol=1e-5)
    assert set(terms.losses) == {"tinybert_hidden", "tinybert_logits"}
    assert value(distilled(build("nll"), build("pkd"), weights=METHODS["pkd"].weights), one, other)[0] > 0

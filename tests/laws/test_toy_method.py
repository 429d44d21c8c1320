"""A method from outside takes one pure function and one line: then it trains from a recipe and obeys the laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import objectives
from kdjax.errors import Refused
from kdjax.losses import nll
from kdjax.objectives import METHODS, Objective, register, stateless, term
from kdjax.options import at_least, hyper
from kdjax.targets import entropy, temper
from kdjax.trainer import Trainer
from tests.laws import door, laws, members, training
from tests.laws.test_losses import SHAPE


@hyper(beta=at_least(0))
def toy(logits, labels, *, beta=0.5):
    """NLL + beta (1 - H(p) / log K)²: the one pure function."""
    h = entropy(temper(logits, 1.0)) / jnp.log(logits.shape[-1])
    return nll(logits, labels) + beta * (1 - h) ** 2


@pytest.fixture
def registered():
    yield register("toy", toy)
    del METHODS["toy"]


def test_one_line_says_all_the_rest(registered):
    assert objectives.options("toy") == {"beta": 0.5}
    assert registered[1:3] == ("calibrator", ("label",)) and registered.formula.startswith("NLL + beta")
    assert len(registered.version) == 64 and register("toy", toy) == METHODS["toy"]
    with pytest.raises(Refused, match=r"toy\.beta is -1\.0; expected a number in \[0"):
        objectives.build("toy", beta=-1)
    assert METHODS["nll"].version == ""


def test_it_is_selected_by_name_and_trains(registered):
    recipe = training.recipe("toy")
    assert recipe.method == "toy" and dict(recipe.options) == {"beta": 0.5}
    _, logs = training.train(Trainer(training.of("toy"), devices=1))
    assert np.isfinite(logs["toy"]).all() and logs["toy"][-1] < logs["toy"][0]


def test_it_obeys_the_laws(registered):
    assert "toy" in {m.name for m in members.everyone()}
    (member,) = members.of_method("toy")
    draw = door.Draw(1, 2.0, SHAPE)
    laws.precisions(member, draw)
    for law in laws.LAWS.values():
        law(member, draw)
    laws.finite(member, SHAPE)


def test_a_builder_and_a_loss_against_a_teacher_can_be_registered_too():
    def builder(*, scale=1.0):
        return stateless("mine", lambda batch, output, clock: scale * nll(output.logits, batch.label))

    def soft(logits, teacher_logits, *, power=2.0):
        return jnp.sum(jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(teacher_logits)) ** power, axis=-1)

    try:
        assert register("mine", builder, needs=("label",), version="1").version == "1"
        assert isinstance(objectives.build("mine", scale=2.0), Objective)
        line = register("soft", soft, formula="Σ_j |p_j - q_j|^power")
        assert line.role == "distiller" and line.needs == ("teacher",)
        assert objectives.options("soft") == {"T_c": 1.0, "power": 2.0}, "a loss that reads a teacher takes T_c"
        with pytest.raises(Refused, match="exists already, with other code"):
            register("mine", builder, needs=("label",), version="2")
    finally:
        METHODS.pop("mine", None), METHODS.pop("soft", None)


def _no_default(logits, labels, *, beta):
    return beta * nll(logits, labels)


@pytest.mark.parametrize(
    ("name", "method", "more", "sentence"),
    [
        ("two words", toy, {}, r"named 'two words'; expected a name such as"),
        ("nll", toy, {}, r"'nll' exists already"),
        ("toy2", "toy", {}, r"is 'toy'; expected a loss or a function"),
        ("toy2", lambda probs, labels: probs, {}, r"takes the argument 'probs'; expected logits, labels, target"),
        ("toy2", _no_default, {}, r"option 'beta' of the method 'toy2' has no default"),
        ("toy2", lambda *, a=1.0: None, {}, r"does not say what it reads; type needs="),
        ("toy2", toy, {"role": "teacher"}, r"role is 'teacher', which does not exist"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_a_sentence(name, method, more, sentence):
    with pytest.raises(Refused, match=sentence):
        register(name, method, **more)
    assert "toy2" not in METHODS


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("mcda", {}, r"method is 'mcda', which does not exist; did you mean mdca"),
        (3, {}, r"the method is 3; expected a name such as 'nll'"),
        ("focal", {"gama": 1.0}, r"focal has no option 'gama'; did you mean gamma"),
        ("focal", {"gamma": "three"}, r"focal\.gamma is 'three'; expected a number"),
        ("ttm", {"eta": 0.5}, r"ttm has no option 'eta'"),
    ],
)
def test_wrong_names_and_kinds_are_refused_in_a_sentence(name, given, sentence):
    with pytest.raises(Refused, match=sentence):
        objectives.build(name, **given)


def wrong_member(loss) -> members.Member:
    return members.Member("wrong", "wrong", term(loss, "wrong"), ("label",))


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        ("permuted examples", lambda logits, labels: nll(logits, labels) * jnp.arange(len(labels))),
        ("permuted classes", lambda logits, labels: nll(logits, labels) * (1 + labels)),
        ("shifted logits", lambda logits, labels: nll(logits, labels) + 0.1 * jnp.sum(logits**2, -1)),
        ("absent examples", lambda logits, labels: nll(logits, labels) - jnp.mean(nll(logits, labels))),
        (
            "finite differences",
            lambda logits, labels: jax.lax.stop_gradient(jax.nn.softmax(logits).max(-1)) * nll(logits, labels),
        ),
    ],
)
def test_the_laws_catch_what_they_are_for(law, wrong):
    with pytest.raises(AssertionError):
        laws.LAWS[law](wrong_member(wrong), door.Draw(1, 2.0, SHAPE))


def test_law_5_catches_a_logarithm_of_zero():
    def wrong(logits, labels):
        return -jnp.log(jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], 1)[:, 0])

    with pytest.raises(AssertionError, match="wrong at huge|wrong at wrong"):
        laws.finite(wrong_member(wrong), SHAPE)


def test_law_1_catches_half_precision():
    def half(logits, labels):
        return nll(logits.astype(jnp.bfloat16).astype(jnp.float32), labels)

    with pytest.raises(AssertionError):
        s = door.sample(door.Draw(1, 2.0, SHAPE), dtype=np.float32)
        door.same(door.run(wrong_member(half), s).value, np.mean(nll(s.logits, s.label)), rtol=1e-6)

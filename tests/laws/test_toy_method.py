"""Adding a method takes one pure function and one registry line: then it trains from a recipe and obeys the laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import objectives
from kdjax.losses import nll
from kdjax.objectives import METHODS, Method
from kdjax.objectives.rows import per_example
from kdjax.targets import entropy, temper
from kdjax.trainer import Trainer
from tests.laws import door, laws, members, training
from tests.laws.test_losses import SHAPE


def toy(logits, labels, *, beta):
    """NLL + beta (1 - H(p) / log K)²: the one pure function."""
    h = entropy(temper(logits, 1.0)) / jnp.log(logits.shape[-1])
    return nll(logits, labels) + beta * (1 - h) ** 2


def build(*, beta: float = 0.5):
    return per_example("toy", "toy", lambda z, y: toy(z, y, beta=beta))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Method(build, "calibrator", ("label",), "NLL + β(1 - H/log K)²", "this test"))


def test_it_is_selected_by_name_and_trains(registered):
    assert objectives.options("toy") == {"beta": 0.5}
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


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        ("permuted examples", lambda z, y: nll(z, y) * jnp.arange(len(y))),
        ("permuted classes", lambda z, y: nll(z, y) * (1 + y)),
        ("shifted logits", lambda z, y: nll(z, y) + 0.1 * jnp.sum(z**2, -1)),
        ("absent examples", lambda z, y: nll(z, y) - jnp.mean(nll(z, y))),
        ("finite differences", lambda z, y: jax.lax.stop_gradient(jax.nn.softmax(z).max(-1)) * nll(z, y)),
    ],
)
def test_the_laws_catch_what_they_are_for(law, wrong):
    member = members.Member("wrong", "wrong", per_example("wrong", "wrong", wrong), ("label",))
    with pytest.raises(AssertionError):
        laws.LAWS[law](member, door.Draw(1, 2.0, SHAPE))


def test_law_5_catches_a_logarithm_of_zero():
    wrong = per_example(
        "wrong", "wrong", lambda z, y: -jnp.log(jnp.take_along_axis(jax.nn.softmax(z), y[:, None], 1)[:, 0])
    )
    with pytest.raises(AssertionError, match="wrong at huge|wrong at wrong"):
        laws.finite(members.Member("wrong", "wrong", wrong, ("label",)), SHAPE)


def test_law_1_catches_half_precision():
    half = per_example("half", "half", lambda z, y: nll(z.astype(jnp.bfloat16).astype(jnp.float32), y))
    with pytest.raises(AssertionError):
        member = members.Member("half", "half", half, ("label",))
        s = door.sample(door.Draw(1, 2.0, SHAPE), dtype=np.float32)
        door.same(door.run(member, s).value, np.mean(nll(s.logits, s.label)), rtol=1e-6)

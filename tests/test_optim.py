"""Optimizers against hand-written loops, schedules at their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import models, optim
from kdjax.errors import Refused
from kdjax.recipes import Optimizer, Recipe


def run(transformation, gradients, params):
    state = transformation.init(params)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def torch_sgd(gradients, w, *, rates, momentum, nesterov, weight_decay):
    """`torch.optim.SGD.step`, written out."""
    buffer = None
    for g, lr in zip(gradients, rates, strict=True):
        g = g + weight_decay * w
        if momentum:
            buffer = g.copy() if buffer is None else momentum * buffer + g
            g = g + momentum * buffer if nesterov else buffer
        w = w - lr * g
    return w


def torch_adamw(gradients, w, *, rates, beta1, weight_decay):
    """`torch.optim.AdamW.step`, written out."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        w = w * (1 - lr * weight_decay)
        m, v = beta1 * m + (1 - beta1) * g, 0.999 * v + 0.001 * g * g
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(12, 5))
START = RNG.normal(size=5)
STEPPED = {"schedule": "multistep", "lr": 0.1, "milestones": (4, 8), "gamma": 0.1, "total_steps": 12}
RATES = np.repeat([0.1, 0.01, 0.001], 4)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_is_torch(momentum, nesterov, weight_decay):
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    with jax.enable_x64(True):
        found = run(optim.build(name="sgd", **options, **STEPPED), jnp.asarray(GRADIENTS), jnp.asarray(START))
    np.testing.assert_allclose(found, torch_sgd(GRADIENTS, START, rates=RATES, **options), rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_adamw_is_torch(weight_decay):
    with jax.enable_x64(True):
        found = run(
            optim.build(name="adamw", momentum=0.8, weight_decay=weight_decay, **STEPPED),
            jnp.asarray(GRADIENTS),
            jnp.asarray(START),
        )
    expected = torch_adamw(GRADIENTS, START, rates=RATES, beta1=0.8, weight_decay=weight_decay)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_decay_mask_on_a_real_model(name):
    """With zero gradients only the decay moves parameters."""
    model = models.build("conv_small", num_classes=3)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    params = jax.tree.map(lambda p: p + 1.0, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    names = set()
    for mask in optim.DECAY_MASKS:
        transformation = optim.build(
            name=name, weight_decay=0.1, decay_mask=mask, lr=0.5, schedule="constant", total_steps=1
        )
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), run(transformation, [zeros], params), params)
        for path, value in jax.tree_util.tree_leaves_with_path(moved):
            names.add(path[-1].key)
            assert value == (mask == "all" or path[-1].key not in ("bias", "scale")), path
    assert names >= {"kernel", "bias", "scale"}


@pytest.mark.parametrize(("norm", "factor"), [(0.0, 1.0), (2.5, 0.5), (10.0, 1.0)])
def test_clip_is_global_and_precedes_the_decay(norm, factor):
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    transformation = optim.build(
        momentum=0.0, weight_decay=1.0, clip_norm=norm, lr=1.0, schedule="constant", total_steps=1
    )
    found = run(transformation, [gradient], params)
    np.testing.assert_allclose([found["a"][0], found["b"][0]], [-3 * factor, -4 * factor], rtol=1e-6)


def rates(steps, **shape):
    return [float(optim.schedule(**shape)(step)) for step in steps]


def test_multistep_drops_at_the_milestone():
    shape = {"schedule": "multistep", "lr": 0.1, "milestones": (100, 150), "gamma": 0.1, "total_steps": 200}
    found = rates([0, 99, 100, 149, 150, 199], **shape)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    # Milestones are counted from the start of the run, not from the end of the warm-up.
    warm = rates([0, 5, 10, 99, 100, 150], warmup_steps=10, **shape)
    np.testing.assert_allclose(warm, [0, 0.05, 0.1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_decays_end_at_zero():
    np.testing.assert_allclose(
        rates([0, 25, 50, 100], schedule="cosine", lr=2.0, total_steps=100),
        [2, 1 + np.cos(np.pi / 4), 1, 0],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        rates([0, 10, 20, 60, 100], schedule="cosine", lr=2.0, total_steps=100, warmup_steps=20),
        [0, 1, 2, 1, 0],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        rates([0, 5, 10, 55, 100], schedule="linear", lr=1.0, total_steps=100, warmup_steps=10),
        [0, 0.5, 1, 0.5, 0],
        atol=1e-6,
    )


def test_constant_and_onecycle():
    np.testing.assert_allclose(rates([0, 5, 99], schedule="constant", lr=0.3, total_steps=100), 0.3, rtol=1e-6)
    found = rates([0, 30, 100], schedule="onecycle", lr=1.0, total_steps=100)
    np.testing.assert_allclose(found, [1 / 25, 1.0, 1 / 250000], rtol=1e-4)


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_runs_stay_finite(name, total):
    found = rates(range(total + 1), schedule=name, lr=0.1, total_steps=total)
    assert np.isfinite(found).all() and min(found) >= 0 and max(found) <= 0.1 + 1e-6


def test_a_schedule_is_traceable():
    made = optim.schedule(**STEPPED)
    np.testing.assert_allclose(jax.jit(jax.vmap(made))(jnp.arange(12)), RATES, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 0.0}, "optimizer.lr is 0.0"),
        ({"lr": float("nan")}, "optimizer.lr is nan"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ({"name": "adam"}, "did you mean adamw"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"decay_mask": "kernel"}, "did you mean kernels"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"warmup_steps": 12}, "warmup_steps is 12"),
        ({"milestones": (4, 12)}, "before 12"),
        ({"milestones": (8, 4)}, "strictly increasing"),
        ({"milestones": (4,), "warmup_steps": 4}, "after 4"),
        ({"schedule": "cosine"}, "milestones is"),
        ({"schedule": "onecycle", "milestones": (), "warmup_steps": 3}, "warms up by itself"),
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov is True"),
        ({"nesterov": True, "name": "adamw"}, "nesterov is True"),
        ({"schedule": "cosine"}, r"milestones is \(4, 8\) \(steps\) and optimizer.schedule 'cosine' has none"),
    ],
)
def test_refusals(options, sentence):
    with pytest.raises(Refused, match=sentence):
        optim.build(**{**STEPPED, **options})


def moved(**options):
    with jax.enable_x64(True):
        return run(optim.build(**options, **STEPPED), jnp.asarray(GRADIENTS), jnp.asarray(START))


def test_nesterov_is_what_fits_the_optimizer_unless_it_is_said():
    np.testing.assert_array_equal(moved(name="sgd"), moved(name="sgd", nesterov=True))
    np.testing.assert_array_equal(moved(name="sgd", momentum=0.0), moved(name="sgd", momentum=0.0, nesterov=False))
    np.testing.assert_array_equal(moved(name="adamw"), moved(name="adamw", nesterov=False))
    assert (moved(name="sgd") != moved(name="sgd", nesterov=False)).any()


@pytest.mark.parametrize("change", [{"name": "adamw"}, {"momentum": 0.0}])
def test_a_recipe_with_another_optimizer_need_not_mention_nesterov(change):
    recipe = Recipe(model="mlp", optimizer=Optimizer(lr=0.01, **change), epochs=2)
    recipe.optimizer.build(recipe.epochs, steps_per_epoch=10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": "cosine", "milestones": (2.0,)}, r"milestones is \(2.0,\) \(epochs\) and .* 'cosine' has none"),
        ({"milestones": (3.0, 2.0)}, r"milestones is \(3.0, 2.0\) \(epochs\); expected strictly increasing epochs"),
        ({"milestones": (1.0,), "warmup_epochs": 2.0}, "after 2.0 .* before 4"),
        ({"schedule": "onecycle", "warmup_epochs": 2.0}, "warmup_epochs is 2.0 and the schedule 'onecycle'"),
    ],
)
def test_a_recipe_is_refused_in_the_epochs_that_were_typed(options, sentence):
    with pytest.raises(Refused, match=sentence):
        Recipe(model="mlp", optimizer=Optimizer(**options), epochs=4)

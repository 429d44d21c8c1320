"""Distillation methods as objectives: what each setting means, what is logged, what is remembered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import targets
from kdjax.errors import Refused
from kdjax.losses import distillation, uncertainty
from kdjax.objectives import METHODS, build, checked, distilled, options
from kdjax.objectives.distillers import DISTILLERS
from kdjax.objectives.rows import as_rows
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at
from tests.processes import slow

RNG = np.random.default_rng(2)
B, K = 6, 4
Z, T = (jnp.asarray(2 * RNG.normal(size=(B, K)), jnp.float32) for _ in range(2))
Y = jnp.array([0, 1, 2, 3, 0, 1])
H, G = (jnp.asarray(RNG.normal(size=(B, 3, 3, 5)), jnp.float32) for _ in range(2))
SPEC = Spec(num_examples=B, num_classes=K, epochs=10)
CORE = ("kd", "rtc", "ttm", "wttm", "lskd", "cud", "knowledge_adjustment")


def batch(t=T, **fields):
    return Batch(inputs=jnp.zeros((B, 1)), teacher=Output(t, {"stage": G}), **{"label": Y, **fields})


def run(objective, z=Z, data=None, progress=0.0, state=None):
    """(loss, logs, state, gradient with respect to the student's logits)."""
    params, first = objective.init(SPEC, KEY)
    state = first if state is None else state

    def loss(z):
        rows = as_rows(batch() if data is None else data, Output(z, {"stage": H}))
        terms, new = objective.apply(params, state, *rows, at(progress, SPEC.epochs))
        return terms.total, (terms.logs, new)

    (value, (logs, new)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(z)
    return value, logs, new, grad


@pytest.mark.slow
def test_every_setting_of_the_core_is_the_loss_of_its_paper():
    clipped = targets.wclip(T, Y, eta=0.5, m=0.7)
    wanted = {
        "kd": distillation.kd(Z, T, T=4.0),
        "rtc": distillation.kd(Z, T, T=1.0, T_c=1.5),
        "ttm": distillation.ttm(Z, T, T=10.0),
        "wttm": distillation.ttm(Z, T, T=10.0, weighted=True),
        "lskd": distillation.lskd(Z, T, T=2.0),
        "cud": distillation.kd(Z, clipped, T=4.0),
        "knowledge_adjustment": distillation.kd(Z, targets.swap(T, Y), T=4.0),
    }
    assert set(wanted) == set(CORE)
    for name, values in wanted.items():
        np.testing.assert_allclose(run(build(name))[0], jnp.mean(values), rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_settings_turn_into_one_another():
    same = [
        (build("rtc", T=3.0, T_c=1.0), build("kd", T=3.0)),
        (build("ttm", T_c=2.0), build("rtc", T_c=2.0)),
        (build("wttm"), build("kd", T=1.0, T_c=10.0, weighting="power_sum")),
        (build("cud", eta=1.0, m=1.0), build("knowledge_adjustment")),
        (build("cud", eta=0.3), build("kd", target="wclip(eta=0.3, m=0.7)")),
        (build("cud", eta=0.3), build("kd", target=partial(targets.wclip, eta=0.3))),
        (build("kd", target="project(far_mass=1.0)"), build("kd")),
        (build("kd", target="project(far_mass=1.0, distance='l2')"), build("kd")),
    ]
    for a, b in same:
        np.testing.assert_allclose(run(a)[0], run(b)[0], rtol=1e-5)
        np.testing.assert_allclose(run(a)[3], run(b)[3], rtol=1e-3, atol=1e-6)


def test_firing_and_shaping_are_counted_under_weights():
    t = jnp.full((B, K), 0.0).at[jnp.arange(B), jnp.array([0, 1, 2, 3, 1, 2])].set(3.0)
    logs = run(build("cud"), data=batch(t))[1]
    np.testing.assert_allclose([logs["firing_rate"], logs["shaped_rate"]], 2 / 6, rtol=1e-6)
    # Rows left alone stay uncounted whatever the compiler's rounding: 64 random teachers, each right about its label.
    right = jnp.asarray(RNG.normal(size=(64, 10)), jnp.float32)
    data = Batch(None, label=jnp.argmax(right, -1), teacher=Output(right))
    for target in ("wclip", "swap", "top1", "margin"):
        objective = build("kd", target=target)
        logs = jax.jit(lambda z, o=objective: o.apply((), (), data, Output(z), at(0.0))[0].logs)(jnp.zeros_like(right))
        assert float(logs["shaped_rate"]) == 0.0, target
    weighted = batch(t, weight=jnp.array([1.0, 1, 1, 0, 2, 0]))
    np.testing.assert_allclose(run(build("cud"), data=weighted)[1]["firing_rate"], 2 / 5, rtol=1e-6)
    plain = run(build("kd"), data=batch(t))[1]
    np.testing.assert_allclose([plain["firing_rate"], plain["shaped_rate"]], [2 / 6, 0.0], rtol=1e-6)
    # The margin reaches right examples whose lead is too small; here their lead is 0.87 - 0.04.
    wide = run(build("kd", target="margin(c=0.9)"), data=batch(t))[1]
    np.testing.assert_allclose([wide["firing_rate"], wide["shaped_rate"]], [2 / 6, 1.0], rtol=1e-6)


def test_the_control_has_the_mean_entropy_of_the_shaped_target_and_none_of_its_shape():
    shaped = targets.wclip(T, Y)
    _, logs, _, _ = run(build("cud", control="entropy"))
    tempered = targets.temper(T, logs["control_T"])
    np.testing.assert_allclose(jnp.mean(targets.entropy(tempered)), jnp.mean(targets.entropy(shaped)), rtol=1e-4)
    wanted = jnp.mean(distillation.kd(Z, tempered, T=4.0))
    np.testing.assert_allclose(run(build("cud", control="entropy"))[0], wanted, rtol=1e-4)
    assert abs(float(wanted) - float(run(build("cud"))[0])) > 1e-3


def test_the_control_can_take_the_entropy_of_another_teacher():
    value, logs, _, _ = run(build("kd", control="entropy(nats=1.2)"))
    tempered = targets.temper(T, logs["control_T"])
    np.testing.assert_allclose(jnp.mean(targets.entropy(tempered)), 1.2, rtol=1e-5)
    np.testing.assert_allclose(value, jnp.mean(distillation.kd(Z, tempered, T=4.0)), rtol=1e-4)
    with pytest.raises(Refused, match="no target, so there is no entropy to match"):
        build("kd", control="entropy")


@pytest.mark.slow
def test_projection_options_reach_the_projection():
    near = np.eye(K, dtype=bool) | np.eye(K, dtype=bool)[:, ::-1]
    log_p = targets.temper(T, 1.0)
    top = jax.nn.one_hot(targets.top(T), K, dtype=bool)
    found = targets.project(log_p, jnp.asarray(near)[Y], top & ~near[Y], alpha=0.6, eps=0.05)
    objective = build("kd", target=f"project(near={near.tolist()}, near_mass=0.6, far_mass=0.05)")
    wanted = jnp.mean(distillation.kd(Z, found.log_q, T=4.0))
    np.testing.assert_allclose(run(objective)[0], wanted, rtol=1e-4)
    flat = batch(jnp.zeros((B, K)))
    assert float(run(build("kd", target="project(ceiling=0.5)"), data=flat)[1]["ceiling_failed"]) == 1.0
    p_y = jnp.exp(log_p)[jnp.arange(B), Y]
    low = targets.project(log_p, near[Y], ~near[Y], h_min=0.9 * (1 - p_y) * np.log(K))
    objective = build("kd", target="project(far_mass=1.0, floor=0.9)")
    np.testing.assert_allclose(run(objective)[0], jnp.mean(distillation.kd(Z, low.log_q, T=4.0)), rtol=1e-4)


def test_a_neighborhood_of_another_shape_is_refused():
    with pytest.raises(Refused, match=r"near has shape \[2, 2\]; expected"):
        run(build("kd", target="project(near=((1, 0), (0, 1)))"))


@pytest.mark.parametrize("name", ["kd", *slow("dkd", "dist", "mlld", "ctkd")])
def test_a_teacher_calibrated_first_is_rtc_under_any_loss(name):
    value, _, _, grad = run(build(name, T_c=1.5), progress=0.5)
    other, _, _, slope = run(build(name), data=batch(T / 1.5), progress=0.5)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-6)
    assert abs(float(value) - float(run(build(name), progress=0.5)[0])) > 1e-4
    with pytest.raises(Refused, match="T_c"):
        build(name, T_c=0.0)


@pytest.mark.parametrize("name", [n for n in DISTILLERS if DISTILLERS[n].role == "distiller"])
def test_a_row_of_weight_zero_is_absent_and_the_state_keeps_its_structure(name):
    weight = jnp.array([1.0, 1, 1, 1, 1, 1]).at[jnp.array([1, 4])].set(0.0)
    given = {"layers": ("stage:stage",)} if "layers" in options(name) else {}
    if name == "mlld":  # both views of an example go together
        weight = jnp.array([1.0, 0, 1, 1, 0, 1])
    objective = build(name, **given)
    z, t = (x.at[weight == 0].set(jnp.nan) for x in (Z, T))
    value, logs, state, grad = run(objective, z, batch(t, weight=weight), progress=0.5)
    other = run(objective, Z.at[weight == 0].set(9.0), batch(T, weight=weight), progress=0.5)
    np.testing.assert_allclose(value, other[0], rtol=1e-6)
    assert np.isfinite(value) and np.all(np.isfinite(grad))
    np.testing.assert_array_equal(grad[weight == 0], 0.0)
    assert all(np.all(np.isfinite(v)) for v in logs.values())
    start = objective.init(SPEC, KEY)[1]
    assert jax.tree.structure(state) == jax.tree.structure(start)
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(start)]


@pytest.mark.parametrize("name", [*CORE, "dkd", "dist", "mlld", "ctkd"])
def test_a_student_that_equals_a_right_teacher_has_no_gradient(name):
    given = {"T_c": 1.0} if "T_c" in options(name) else {}
    t = T.at[jnp.arange(B), Y].set(9.0)
    value, _, _, grad = run(build(name, **given), t, batch(t), progress=0.9)
    assert float(value) == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_options_may_be_traced():
    @jax.jit
    def loss(T_, T_c, eta):
        objective = build("cud", T=T_, T_c=T_c, eta=eta)
        return objective.apply((), (), batch(), Output(Z), at(0.0))[0].total

    np.testing.assert_allclose(loss(2.0, 1.5, 0.3), run(build("cud", T=2.0, T_c=1.5, eta=0.3))[0], rtol=1e-5)
    slope = jax.grad(loss)(2.0, 1.5, 0.3)
    assert np.isfinite(slope) and slope != 0


@pytest.mark.parametrize("name", ["cud", "knowledge_adjustment", "dkd"])
def test_methods_that_need_labels_say_so_and_kd_does_without(name):
    with pytest.raises(Refused, match=r"batch\.label"):
        run(build(name), data=batch(label=None))
    _, logs, _, _ = run(build("kd"), data=batch(label=None))
    assert "firing_rate" not in logs


def test_no_teacher_or_one_of_other_classes_is_refused():
    for name in ("kd", "mlld", "hidden_state"):
        with pytest.raises(Refused, match=r"batch\.teacher"):
            run(build(name), data=batch()._replace(teacher=None))
        with pytest.raises(Refused, match="same classes"):
            run(build(name), data=batch(T[:, :3]))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"T": 0}, r"kd\.T is 0.*expected a number in \(0"),
        ({"T_c": -1.0}, r"kd\.T_c is -1\.0"),
        ({"divergence": "kl"}, r"kd\.divergence is 'kl'"),
        ({"weighting": "y"}, r"kd\.weighting is 'y'"),
        ({"target": "wklip"}, r"kd\.target is 'wklip', which does not exist; did you mean wclip"),
        ({"target": "wclip(c=0.1)"}, r"wclip has no option 'c'; known: eta, m"),
        ({"target": "swap(eta=0.1)"}, r"swap has no option 'eta'; it has none"),
        ({"target": "wclip(eta=0.0)"}, r"wclip\.eta is 0\.0; expected a number in \(0, 1\]"),
        ({"target": "wclip(eta='half')"}, r"wclip\.eta is 'half'"),
        ({"target": "wclip(0.5)"}, r"expected options as in 'wclip\(option=0\.3\)'"),
        ({"target": "wclip(eta=len(x))"}, r"expected options as in"),
        ({"target": "wclip("}, r"expected a name, or a name with options"),
        ({"target": "none(c=1)"}, r"'none' has no options"),
        ({"target": "margin(c=1.0)"}, r"margin\.c is 1\.0"),
        ({"target": "project(far_mass=2.0)"}, r"project\.far_mass is 2\.0"),
        ({"target": "project(ceiling=0.0)"}, r"project\.ceiling"),
        ({"control": "x"}, r"kd\.control is 'x'"),
        ({"target": "swap", "control": "entropy(nats=-1)"}, r"entropy\.nats is -1"),
        ({"eta": 0.5}, r"kd has no option 'eta'"),
        ({"target": 3}, r"kd\.target is 3; expected text"),
    ],
)
def test_wrong_settings_are_refused_when_built(wrong, sentence):
    with pytest.raises(Refused, match=sentence):
        build("kd", **wrong)


def test_euclid_has_no_entropy_bounds():
    with pytest.raises(Refused, match="handles masses only"):
        run(build("kd", target="project(distance='l2', floor=0.1)"))


def test_equal_spellings_of_a_target_are_one_option():
    for given in ("wclip", "wclip()", " wclip( m = 0.7,eta=0.5)"):
        assert checked("kd", {"target": given})["target"] == "wclip"
    assert checked("kd", {"target": "wclip(m=1, eta=0.3)"})["target"] == "wclip(eta=0.3, m=1.0)"


def test_dkd_warms_up_by_epochs():
    full = run(build("dkd", warmup=0))[0]
    objective = build("dkd", warmup=4)
    for progress, share in [(0.0, 0.25), (0.1, 0.5), (0.29, 0.75), (0.3, 1.0), (0.95, 1.0)]:
        np.testing.assert_allclose(run(objective, progress=progress)[0], share * full, rtol=1e-5)


def test_ctkd_trains_its_temperature_against_the_student():
    objective = build("ctkd", loops=10)
    params, state = objective.init(SPEC, KEY)
    T0 = 1 + 20 / (1 + np.exp(-1.0))

    def loss_at(theta):
        return jnp.mean(distillation.kd(Z, T, T=1 + 20 * jax.nn.sigmoid(theta)))

    @jax.jit
    def by_params(params, clock):
        return jax.value_and_grad(lambda p: objective.apply(p, state, batch(), Output(Z), clock)[0].total)(params)

    slope = jax.grad(loss_at)(1.0)
    for progress, e in [(0.0, 1), (0.45, 5), (0.99, 10)]:
        value, grad = by_params(params, at(progress, SPEC.epochs))
        np.testing.assert_allclose(value, jnp.mean(distillation.kd(Z, T, T=T0)), rtol=1e-4)
        strength = 0.5 * (1 - np.cos(np.pi * e / 10))
        np.testing.assert_allclose(grad["theta"], -strength * slope, rtol=1e-3, atol=1e-7)
    optimizer = optax.sgd(0.1)
    moments = optimizer.init(params)
    for _ in range(3):
        updates, moments = optimizer.update(by_params(params, at(0.99, SPEC.epochs))[1], moments, params)
        params = optax.apply_updates(params, updates)
    assert loss_at(params["theta"]) > loss_at(1.0), "the student's optimizer, descending, makes the temperature climb"


@pytest.mark.slow
def test_mlld_brings_two_views_that_its_objective_takes():
    method = METHODS["mlld"]
    make = method.transform(num_classes=K, **{view: options("mlld")[view] for view in ("weak", "strong")})
    images = jnp.asarray(RNG.uniform(0, 255, (3, 8, 8, 1)), jnp.float32).astype(jnp.uint8)
    both = make(jax.random.key(0), Batch(images, label=Y[:3], index=jnp.arange(3)))
    np.testing.assert_array_equal(both.inputs[:3], images)
    assert both.inputs.shape == (6, 8, 8, 1) and np.any(both.inputs[3:] != images)
    np.testing.assert_array_equal(both.label, jnp.tile(Y[:3], 2))
    np.testing.assert_array_equal(both.index, jnp.tile(jnp.arange(3), 2))
    value, logs, _, _ = run(build("mlld"))
    np.testing.assert_allclose(value, logs["mlld_instance"] + logs["mlld_category"] + logs["mlld_batch"], rtol=1e-6)


def test_dus_is_a_calibrator():
    assert METHODS["dus"].role == "calibrator"
    np.testing.assert_allclose(run(build("dus", rho=0.5))[0], jnp.mean(uncertainty.dus(Z, Y, rho=0.5)), rtol=1e-5)
    with pytest.raises(Refused, match="tau"):
        build("dus", tau=2.0)


def test_the_label_term_is_blended_outside():
    hard, soft = build("nll"), build("kd")
    both = run(distilled(hard, soft, alpha=0.7))[0]
    np.testing.assert_allclose(both, 0.3 * run(hard)[0] + 0.7 * run(soft)[0], rtol=1e-5)

"""The calibrators against the authors' own numbers: loss and gradient, through the door of the Objective."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, objectives
from kdjax.transforms import mix
from kdjax.types import Batch, Output, Spec
from tests.clocks import KEY, at
from tests.parity import golden
from tests.processes import but_first

pytestmark = [pytest.mark.fused, pytest.mark.usefixtures("as_users_compile")]


def bare(loss, **options):
    """A statistic of the batch without a label loss."""
    return objectives.stateless(loss.__name__, lambda b, o, _: loss(o.logits, b.label, **options))


def flsd(hp):
    gammas, thresholds = tuple(hp["gammas"]), tuple(hp["p_thresholds"])
    return objectives.build("flsd", gamma=hp["gamma_above_half"], gammas=gammas, thresholds=thresholds)


# variant -> how its case becomes a registered objective; "sum" cases are the mean times the batch size.
STATELESS = {
    "ce": {"ce": lambda hp: objectives.build("nll")},
    "brier_loss": {"brier_sum_over_classes": lambda hp: objectives.build("brier")},
    "label_smoothing": {
        "ls_offtarget": lambda hp: objectives.build("label_smoothing", **hp),
        "ls_uniform": lambda hp: objectives.build("label_smoothing", form="uniform", **hp),
    },
    "focal": {
        "focal_mean": lambda hp: objectives.build("focal", **hp),
        "focal_sum": lambda hp: objectives.build("focal", **hp),
    },
    "flsd": {
        "flsd_mean": lambda hp: flsd(hp),
        "flsd_sum": lambda hp: flsd(hp),
    },
    "mdca": {
        "mdca_term": lambda hp: bare(losses.mdca, **hp),
        "nll_mdca": lambda hp: objectives.build("mdca", **hp),
        "fl_mdca": lambda hp: objectives.build("mdca", **hp),
        "ls_mdca": lambda hp: objectives.build("mdca", **hp),
    },
    "dca": {
        "ce_plus_dca": lambda hp: objectives.build("dca", **hp),
        "ce_plus_dca_orig": lambda hp: objectives.build("dca", **hp),
    },
    "mmce": {
        "mmce_m": lambda hp: bare(losses.mmce, width=hp["kernel_width"]),
        "mmce_w": lambda hp: bare(losses.mmce_weighted, width=hp["kernel_width"]),
        "ce_plus_mmce_m": lambda hp: objectives.build(
            "mmce", form="unweighted", beta=hp["lam"], width=hp["kernel_width"]
        ),
        "ce_plus_mmce_w": lambda hp: objectives.build("mmce", beta=hp["beta"], width=hp["kernel_width"]),
    },
    "mbls": {"mbls": lambda hp: objectives.build("mbls", **hp)},
    "acls": {"acls": lambda hp: objectives.build("acls", **hp)},
}

COVERS = {objective: set(variants) for objective, variants in STATELESS.items()} | {
    "adafocal": {"adafocal", "state_update_sequence"},
    "mixup": {"mixup"},
    "crl": {"softmax", "entropy", "margin", "hazard"},
    "pskd": {"pskd"},
}


START = at(0.0)


def door(objective):
    """(batch, logits, state, clock) -> (loss, gradient, terms, state), compiled once per shape."""

    def loss(logits, batch, state, clock):
        terms, new = objective.apply((), state, batch, Output(logits), clock)
        return terms.total, (terms, new)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def apply(batch, logits, state=(), clock=START):
        (value, (terms, new)), grad = compiled(logits, batch, state, clock)
        assert value.dtype == grad.dtype == np.asarray(logits).dtype
        return value, grad, terms, new

    return apply


PAIRS = [pair for name, variants in STATELESS.items() for pair in but_first([(name, v) for v in variants])]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_stateless(pair):
    objective, variant = pair

    # Built inside the trace, so that hyper-parameters are traced scalars and one compile serves all of their values.
    @jax.jit
    def value_and_grad(logits, labels, hparams):
        built = STATELESS[objective][variant](hparams)

        def loss(z):
            terms, _ = built.apply(*built.init(Spec(1, 2), KEY), Batch(None, label=labels), Output(z), at(0.0))
            return terms.total, terms

        return jax.value_and_grad(loss, has_aux=True)(logits)

    def check(case):
        STATELESS[objective][variant](case.hparams)  # outside the trace: records what is read, and checks the ranges
        (loss, terms), grad = value_and_grad(case["logits"], case["labels"], case.hparams.entries)
        assert loss.dtype == grad.dtype == case.dtype
        scale = len(case["labels"]) if case.get("reduction") == "sum" else 1
        loss, grad = scale * loss, scale * grad
        golden.match(case, loss)
        # MMCE's tied gradients are rounding noise in the reference; all others follow the first maximum.
        golden.match_gradient(case, grad, ties=objective != "mmce")
        hp = case.hparams
        parts = {
            "loss_ce": lambda: terms.losses["nll"],
            "loss_margin": lambda: jnp.mean(losses.mbls(case["logits"], margin=hp["margin"])),
            "reg": lambda: terms.losses["acls"] / hp["alpha"],
        }
        for name in parts.keys() & case.expected.keys():
            golden.match(case, parts[name](), name)

    golden.sweep(objective, variant, check)


def test_mixup():
    apply = door(objectives.build("mixup"))

    def check(case):
        objectives.build("mixup", alpha=case.hparams["beta_alpha"])  # of the draw alone, whose outcome is given
        logits, labels, lam, perm = case["logits"], case["labels"], case["lam"], case["perm"]
        mixed = mix(Batch(case["x"], label=labels), lam, perm, logits.shape[1])
        assert mixed.label is None
        batch = mixed._replace(target=mixed.target.astype(logits.dtype))
        loss, grad, _, _ = apply(batch, logits)
        # The transform is float32 at most, as pixels are; so is the target, to 6e-8.
        np.testing.assert_allclose(mixed.inputs, case.expected["mixed_x"], rtol=1e-5, atol=1e-6)
        golden.match(case, loss, rtol=1e-6)
        exact = lam * jax.nn.one_hot(labels, logits.shape[1]) + (1 - lam) * jax.nn.one_hot(
            case.expected["labels_b"], logits.shape[1]
        )
        loss, grad, _, _ = apply(batch._replace(target=exact), logits)
        golden.match(case, loss)
        golden.match_gradient(case, grad)

    golden.sweep("mixup", "mixup", check)


def test_adafocal():
    apply = {kind: door(objectives.build("adafocal", reduction=kind)) for kind in ("sum", "mean")}

    def check(case):
        assert len(case["gamma"]) == case.hparams["num_bins"]
        state = losses.AdaFocalState(case["gamma"], case["bin_lower"], case["bin_upper"])
        batch = Batch(None, label=case["labels"])
        loss, grad, _, _ = apply[case.get("reduction", "sum")](batch, case["logits"], state)
        golden.match(case, loss)
        golden.match_gradient(case, grad)
        chosen = losses.adafocal_bin(losses.true_probability(case["logits"], case["labels"]), state)
        golden.match(case, state.gamma[chosen], "gamma_per_sample")

    golden.sweep("adafocal", "adafocal", check)


def logits_of(confidence, prediction):
    """Logits whose prediction is right and whose confidence is as given: the rest is shared by the other classes."""
    k = int(max(prediction.max() + 1, np.ceil(1 / confidence.min()) + 1))
    p = np.repeat(((1 - confidence) / (k - 1))[:, None], k, axis=1)
    p[np.arange(len(p)), prediction] = confidence
    return np.log(np.maximum(p, 1e-300))


def test_adafocal_updates():
    def check(case):
        hp = case.hparams
        options = {"lam": hp["lam"], "num_bins": hp["num_bins"], "gamma": hp["gamma_initial"]}
        options |= {"switch": hp["switch"], "gamma_min": hp["gamma_min"], "gamma_max": hp["gamma_max"]}
        objective = objectives.build("adafocal", **options)
        refresh = jax.jit(objective.refresh)
        pure = door = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), objective.init(Spec(1, 2), KEY)[1])
        for step in case.steps:
            r, predicted, label = (
                case.cast(step["inputs"][f"val_{n}"]) for n in ("confidences", "predictions", "labels")
            )
            gap, _ = losses.adafocal_gap(r, predicted == label, hp["num_bins"])
            golden.match(case, gap, step["expected"]["calibration_gap"])
            keywords = {key: hp[key] for key in ("lam", "switch", "gamma_min", "gamma_max")}
            pure = losses.adafocal_update(pure, r, predicted == label, **keywords)
            golden.match(case, pure.gamma, step["expected"]["gamma"])
            golden.match(case, pure.lower, step["expected"]["bin_lower"])
            golden.match(case, pure.upper, step["expected"]["bin_upper"])
            door = refresh(door, logits_of(r, predicted), label)
            golden.match(case, door.upper, step["expected"]["bin_upper"])
            golden.match(case, door.gamma, step["expected"]["gamma"])

    golden.sweep("adafocal", "state_update_sequence", check)


@pytest.mark.parametrize("variant", ["softmax", "entropy", "margin"])
def test_crl(variant):
    def check(case):
        hp, steps = case.hparams, case.steps
        normalizer = hp["entropy_normaliser"]  # of the entropy alone
        entropy_only = {"normalizer": normalizer} if hp["rank_target"] == "entropy" else {}
        objective = objectives.build("crl", confidence=hp["rank_target"], weight=hp["rank_weight"], **entropy_only)
        apply = door(objective)
        n, k = len(steps[0]["inputs"]["correctness_before"]), steps[0]["inputs"]["batches"][0]["logits"].shape[-1]
        state = objective.init(Spec(n, k, epochs=len(steps)), KEY)[1]
        for step in steps:
            golden.match(case, np.maximum(state.counts, 0), step["inputs"]["correctness_before"])
            for batch, expected in zip(step["inputs"]["batches"], step["expected"]["batches"], strict=True):
                index, labels, logits = (case.cast(batch[name]) for name in ("index", "labels", "logits"))
                clock = at((step["epoch"] - 1) / len(steps), len(steps))
                full = Batch(None, label=labels, index=index)
                loss, grad, terms, state = apply(full, logits, state, clock)
                golden.match(case, terms.losses["nll"], np.asarray(expected["ce"]))
                golden.match(case, terms.losses["crl"], np.asarray(expected["ranking"]) * hp["rank_weight"])
                golden.match(case, loss, np.asarray(expected["loss"]))
                golden.match(case, grad, expected["grad_logits"], rtol=1e-7, atol=1e-9)
            golden.match(case, np.maximum(state.counts, 0), step["expected"]["correctness_after"])

    golden.sweep("crl", variant, check)


def test_crl_all_correct():
    def check(case):
        counts, most, index = case["correctness"], int(case["max_correctness"]), case["index"]
        golden.match(case, losses.crl_history(counts[index], counts.min(), most), "rank_margin")
        here = counts[index]
        np.testing.assert_array_equal(np.sign(here - np.roll(here, -1)), case.expected["rank_target"])
        logits = jnp.tile(jnp.arange(5.0), (len(index), 1))
        value, grad = jax.jit(jax.value_and_grad(losses.crl))(logits, here, span=most - counts.min())
        assert value == 0 and not grad.any()

    golden.sweep("crl", "hazard", check)


def test_pskd():
    def check(case):
        hp, steps = case.hparams, case.steps
        objective = objectives.build("pskd", alpha_T=hp["alpha_T"])
        apply = door(objective)
        n, k = steps[0]["expected"]["predictions_after"].shape
        state = objective.init(Spec(n, k, hp["total_epochs"]), KEY)[1]
        state = jax.tree.map(lambda x: x.astype(jnp.float64), state)
        for step in steps:
            for batch, expected in zip(step["inputs"]["batches"], step["expected"]["batches"], strict=True):
                index, labels, logits = (case.cast(batch[name]) for name in ("index", "labels", "logits"))
                clock = at(step["epoch"] / hp["total_epochs"], hp["total_epochs"])
                full = Batch(None, label=labels, index=index)
                loss, grad, terms, state = apply(full, logits, state, clock)
                if step["epoch"] > 0:
                    golden.match(case, terms.logs["pskd_alpha"], np.asarray(step["alpha_t"]))
                golden.match(case, loss, np.asarray(expected["loss"]))
                golden.match(case, grad, expected["grad_logits"], rtol=1e-7, atol=1e-9)
            golden.match(case, state.predictions, step["expected"]["predictions_after"])

    golden.sweep("pskd", "pskd", check)

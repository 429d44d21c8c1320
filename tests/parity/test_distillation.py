"""KD, DKD, LSKD and MLLD against the authors' code."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from kdjax.losses.distillation import dkd, kd, lskd
from kdjax.losses.mlld import mlld
from kdjax.targets import standardize
from tests.parity import golden
from tests.processes import but_first

pytestmark = [pytest.mark.fused, pytest.mark.usefixtures("as_users_compile")]

COVERS = {
    "kd": {"kdc_vanilla", "mdistiller_kd"},
    "dkd": {"dkd", "dkd_total"},
    "lskd": {"lskd_kd", "lskd_dkd"},
    "mlld": {"mlld", "mlld_logit_stand"},
}


def ce(z, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))


def of(soft):
    """Loss, its two parts and the gradient of hard * NLL + weight * mean(soft); hyper-parameters are traced, so that
    cases of one shape share a compiled function."""

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def total(z, t, y, hard, weight, options):
        parts = hard * ce(z, y), weight * jnp.mean(soft(z, t, y, **options))
        return sum(parts), parts

    return total


TOTALS = {
    "kd": of(lambda z, t, y, **o: kd(z, t, **o)),
    "dkd": of(lambda z, t, y, **o: dkd(z, t, y, **o)),
    "lskd": of(lambda z, t, y, **o: lskd(z, t, **o)),
    "lskd_dkd": of(lambda z, t, y, *, eps, **o: dkd(standardize(z, eps=eps), standardize(t, eps=eps), y, **o)),
}


@partial(jax.jit, static_argnames=("temperatures", "standardize"))
@partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def mlld_total(weak, strong, t, y, hard, soft, T, *, temperatures, standardize):
    both = jnp.concatenate([weak, strong])
    levels = mlld(both, t, T=T, temperatures=temperatures, standardize=standardize)
    return hard * (ce(weak, y) + ce(strong, y)) + soft * sum(levels), levels


def against(case, loss, hard, weight, **options):
    (value, parts), grad = TOTALS[loss](case["logits"], case["teacher_logits"], case["labels"], hard, weight, options)
    golden.match(case, value)
    golden.match_gradient(case, grad)
    for name, part in zip(("loss_ce", "loss_kd"), parts, strict=True):
        if name in case.expected:
            golden.match(case, part, name)


@pytest.mark.parametrize("variant", sorted(COVERS["kd"]))
def test_kd(variant):
    def check(case):
        h = case.hparams
        soft = h["kd_weight"] if "kd_weight" in h else h["alpha"]
        against(case, "kd", h["ce_weight"] if "ce_weight" in h else 1 - soft, soft, T=h["T"])

    golden.sweep("kd", variant, check)


@pytest.mark.parametrize("variant", but_first(sorted(COVERS["dkd"])))
def test_dkd(variant):
    def check(case):
        h = case.hparams
        ramp = min(h["epoch"] / h["warmup"], 1.0) if "warmup" in h else 1.0
        against(case, "dkd", h.get("ce_weight", 0.0), ramp, alpha=h["alpha"], beta=h["beta"], T=h["T"])

    golden.sweep("dkd", variant, check)


def test_lskd_kd():
    def check(case):
        h = case.hparams
        golden.only(case, ddof=1)
        against(case, "lskd", h["ce_weight"], h["kd_weight"], T=h["base_T"], eps=h["eps"])

    golden.sweep("lskd", "lskd_kd", check)


def test_lskd_dkd():
    def check(case):
        h = case.hparams
        golden.only(case, ddof=1)
        against(case, "lskd_dkd", 0.0, 1.0, alpha=h["alpha"], beta=h["beta"], T=h["T"], eps=h["eps"])

    golden.sweep("lskd", "lskd_dkd", check)


@pytest.mark.parametrize("variant", but_first(sorted(COVERS["mlld"])))
def test_mlld(variant):
    def check(case):
        h = case.hparams
        t = jnp.concatenate([case["teacher_logits"], case["teacher_logits_strong"]])
        (loss, levels), grads = mlld_total(
            case["logits"],
            case["logits_strong"],
            t,
            case["labels"],
            h["ce_weight"],
            h["kd_weight"],
            h["base_T"],
            temperatures=tuple(h["fixed_temperatures"]),
            standardize=variant == "mlld_logit_stand",
        )
        golden.match(case, loss)
        hard = h["ce_weight"] * (ce(case["logits"], case["labels"]) + ce(case["logits_strong"], case["labels"]))
        golden.match(case, hard, "loss_ce")
        for name, level in zip(("loss_kd", "loss_cc", "loss_bc"), levels, strict=True):
            golden.match(case, h["kd_weight"] * level, name)
        golden.match_gradient(case, grads[0])
        golden.match_gradient(case, grads[1], "grad_logits_strong")

    golden.sweep("mlld", variant, check)

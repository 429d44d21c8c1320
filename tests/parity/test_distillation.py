"""KD, DKD, LSKD and MLLD against the authors' code."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from kdjax.losses.distillation import dkd, kd, lskd
from kdjax.losses.mlld import mlld
from kdjax.targets import standardize
from tests.parity import golden

COVERS = {
    "kd": {"kdc_vanilla", "mdistiller_kd"},
    "dkd": {"dkd", "dkd_total"},
    "lskd": {"lskd_kd", "lskd_dkd"},
    "mlld": {"mlld", "mlld_logit_stand"},
}


def ce(z, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))


# Hyper-parameters are traced, so that cases of one shape share a compiled function.


@jax.jit
@jax.value_and_grad
def kd_total(z, t, y, hard, soft, T):
    return hard * ce(z, y) + soft * jnp.mean(kd(z, t, T=T))


@jax.jit
@jax.value_and_grad
def lskd_total(z, t, y, hard, soft, T):
    return hard * ce(z, y) + soft * jnp.mean(lskd(z, t, T=T))


@jax.jit
@jax.value_and_grad
def dkd_total(z, t, y, hard, ramp, alpha, beta, T):
    return hard * ce(z, y) + ramp * jnp.mean(dkd(z, t, y, alpha=alpha, beta=beta, T=T))


@jax.jit
@jax.value_and_grad
def lskd_dkd_total(z, t, y, alpha, beta, T):
    return jnp.mean(dkd(standardize(z), standardize(t), y, alpha=alpha, beta=beta, T=T))


@partial(jax.jit, static_argnames=("temperatures", "standardize"))
@partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def mlld_total(weak, strong, t, y, hard, soft, T, *, temperatures, standardize):
    both = jnp.concatenate([weak, strong])
    levels = mlld(both, t, T=T, temperatures=temperatures, standardize=standardize)
    return hard * (ce(weak, y) + ce(strong, y)) + soft * sum(levels), levels


def against(case, total, *options):
    loss, grad = total(case["logits"], case["teacher_logits"], case["labels"], *options)
    golden.match(case, loss)
    golden.match_gradient(case, grad)


@pytest.mark.parametrize("variant", sorted(COVERS["kd"]))
def test_kd(variant):
    def check(case):
        h = case.hparams
        soft = h.get("kd_weight", h.get("alpha"))
        against(case, kd_total, h.get("ce_weight", 1 - soft), soft, h["T"])

    golden.sweep("kd", variant, check)


@pytest.mark.parametrize("variant", sorted(COVERS["dkd"]))
def test_dkd(variant):
    def check(case):
        h = case.hparams
        ramp = min(h["epoch"] / h["warmup"], 1.0) if "warmup" in h else 1.0
        against(case, dkd_total, h.get("ce_weight", 0.0), ramp, h["alpha"], h["beta"], h["T"])

    golden.sweep("dkd", variant, check)


def test_lskd_kd():
    def check(case):
        h = case.hparams
        against(case, lskd_total, h["ce_weight"], h["kd_weight"], h["base_T"])

    golden.sweep("lskd", "lskd_kd", check)


def test_lskd_dkd():
    def check(case):
        h = case.hparams
        against(case, lskd_dkd_total, h["alpha"], h["beta"], h["T"])

    golden.sweep("lskd", "lskd_dkd", check)


@pytest.mark.parametrize("variant", sorted(COVERS["mlld"]))
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
        for name, level in zip(("loss_kd", "loss_cc", "loss_bc"), levels, strict=True):
            golden.match(case, h["kd_weight"] * level, name)
        golden.match_gradient(case, grads[0])
        golden.match_gradient(case, grads[1], "grad_logits_strong")

    golden.sweep("mlld", variant, check)

"""KD, DKD, LSKD and MLLD against the authors' code."""

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


def against(case, total):
    z = jnp.asarray(case["logits"])
    loss, grad = jax.jit(jax.value_and_grad(total))(z)
    golden.match(case, loss)
    golden.match_gradient(case, grad)


@pytest.mark.parametrize("variant", sorted(COVERS["kd"]))
def test_kd(variant):
    def check(case):
        y, t, h = case["labels"], case["teacher_logits"], case.hparams
        soft = h.get("kd_weight", h.get("alpha"))
        hard = h.get("ce_weight", 1 - soft)
        against(case, lambda z: hard * ce(z, y) + soft * jnp.mean(kd(z, t, T=h["T"])))

    golden.sweep("kd", variant, check)


@pytest.mark.parametrize("variant", sorted(COVERS["dkd"]))
def test_dkd(variant):
    def check(case):
        y, t, h = case["labels"], case["teacher_logits"], case.hparams
        ramp = min(h["epoch"] / h["warmup"], 1.0) if "warmup" in h else 1.0
        options = {k: h[k] for k in ("alpha", "beta", "T")}
        against(
            case,
            lambda z: h.get("ce_weight", 0.0) * ce(z, y) + ramp * jnp.mean(dkd(z, t, y, **options)),
        )

    golden.sweep("dkd", variant, check)


def test_lskd_kd():
    def check(case):
        y, t, h = case["labels"], case["teacher_logits"], case.hparams
        against(
            case,
            lambda z: h["ce_weight"] * ce(z, y) + h["kd_weight"] * jnp.mean(lskd(z, t, T=h["base_T"])),
        )

    golden.sweep("lskd", "lskd_kd", check)


def test_lskd_dkd():
    def check(case):
        y, t, h = case["labels"], standardize(case["teacher_logits"]), case.hparams
        options = {k: h[k] for k in ("alpha", "beta", "T")}
        against(case, lambda z: jnp.mean(dkd(standardize(z), t, y, **options)))

    golden.sweep("lskd", "lskd_dkd", check)


@pytest.mark.parametrize("variant", sorted(COVERS["mlld"]))
def test_mlld(variant):
    def check(case):
        y, h = case["labels"], case.hparams
        t = jnp.concatenate([case["teacher_logits"], case["teacher_logits_strong"]])

        def total(weak, strong):
            levels = mlld(
                jnp.concatenate([weak, strong]),
                t,
                T=h["base_T"],
                temperatures=tuple(h["fixed_temperatures"]),
                standardise=variant == "mlld_logit_stand",
            )
            hard = h["ce_weight"] * (ce(weak, y) + ce(strong, y))
            return hard + h["kd_weight"] * sum(levels), levels

        z = jnp.asarray(case["logits"]), jnp.asarray(case["logits_strong"])
        (loss, levels), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*z)
        golden.match(case, loss)
        for name, level in zip(("loss_kd", "loss_cc", "loss_bc"), levels, strict=True):
            golden.match(case, h["kd_weight"] * level, name)
        golden.match_gradient(case, grads[0])
        golden.match_gradient(case, grads[1], "grad_logits_strong")

    golden.sweep("mlld", variant, check)

"""Temperature fits and the Dirichlet loss against the published codes."""

import numpy as np
import pytest

from kdjax import metrics, posthoc
from tests.parity import golden

pytestmark = [pytest.mark.fused, pytest.mark.usefixtures("as_users_compile")]

GRIDS = {
    "kdc_grid_0.2_to_3": ("temperature_grid_kdc", {}),
    "mdca_grid_0.1_to_10": ("temperature_grid_mdca", {}),
    "torrvision_grid_ece": ("temperature_grid_torrvision", {"criterion": "ece"}),
    "torrvision_grid_nll": ("temperature_grid_torrvision", {"criterion": "nll"}),
}
COVERS = {"posthoc": {*GRIDS, "gpleiss_lbfgs", "kdc_dirichlet_loss"}}


@pytest.mark.parametrize("variant", sorted(GRIDS))
def test_grid(variant):
    name, options = GRIDS[variant]

    def check(case):
        hparams = {key: case.hparams[key] for key in ("batch_size",) if key in case.hparams}
        if "n_bins" in case.hparams:
            hparams["bins"] = case.hparams["n_bins"]
        method = posthoc.get(name)
        params = method.fit(case["logits"], case["labels"], **options, **hparams)
        golden.match(case, params["T"], "T")
        nll = metrics.nll(method.apply(params, case["logits"]), case["labels"])
        golden.match(case, nll, "nll_at_T")
        golden.only(case, criterion="sum over batches of the batch-mean NLL")
        golden.only(case, grid="see expected.grid" if "grid" in case.expected else "0.1 then 99 additions of 0.1")
        if "grid" in case.expected:
            assert np.isclose(case.expected["grid"], params["T"], rtol=1e-12).sum() == 1

    golden.sweep("posthoc", variant, check)


def test_the_published_optimizer_is_an_upper_bound():
    def check(case):
        method = posthoc.get("temperature")
        params = method.fit(case["logits"], case["labels"])
        nll = metrics.nll(method.apply(params, case["logits"]), case["labels"])
        assert nll < case.expected["nll_upper_bound"]
        golden.not_ours(case, "init", "lr", "max_iter")
        case.expected.get("T_reference")  # of an optimizer that stops early: a bound on the NLL, not on T
        golden.compared(case)

    golden.sweep("posthoc", "gpleiss_lbfgs", check)


def test_dirichlet_loss():
    def check(case):
        params = {"W": case["W"], "b": case["b"]}
        lam, mu = case.hparams["lambda"], case.hparams["mu"]
        z, y = case["logits"], case["labels"]
        loss, grad = posthoc.dirichlet_loss(params, z, y, lam=lam, mu=mu)
        data_term, _ = posthoc.dirichlet_loss(params, z, y, lam=0.0, mu=0.0)
        golden.match(case, loss)
        golden.match(case, loss - data_term, "regularizer", atol=1e-12)
        golden.match_gradient(case, grad["W"], "grad_W")
        golden.match_gradient(case, grad["b"], "grad_b")
        golden.match(case, posthoc.get("dirichlet").apply(params, z[:1])[0], "output_row0")

    golden.sweep("posthoc", "kdc_dirichlet_loss", check)

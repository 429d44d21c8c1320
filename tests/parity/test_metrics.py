"""Every metric of the golden set: each published code is a composition of public functions plus its own edge rule."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from kdjax import metrics
from tests.parity import golden

pytestmark = [pytest.mark.fused, pytest.mark.usefixtures("as_users_compile")]


def _probs(case):
    return case["probs"] if case.has("probs") else softmax(case["logits"], axis=1)


def _top(case):
    probs = _probs(case)
    return probs.max(1), probs.argmax(1) == case["labels"]


def _onehot(case):
    return np.eye(_probs(case).shape[1])[case["labels"]]


def _bins(case):
    return case.hparams["n_bins"]


def _threshold(case):
    return case.hparams["threshold"]


def _inner(bins):
    """Error summed over all bins but the extra first one, whose members lie in no bin of the reference."""
    return (bins.weight * abs(bins.gap))[..., 1:].sum(-1)


def _top_bins(case, **rule):
    return metrics.binned(*_top(case), bins=_bins(case), **rule)


def _strided(case, hit):
    """`ACELoss` and its like, with any definition of a hit."""
    errors = []
    for p, h in zip(_probs(case).T, hit.T, strict=True):
        edges = metrics.stride_edges(np.sort(p), _bins(case))
        errors.append(_inner(metrics.binned(p, h, bins=edges, ends="extra")))
    return np.mean(errors)


def _jonathan_pearce(case):
    """Hit if "the prediction is j" and "the label is j" are both true or both false."""
    predicted = np.eye(_probs(case).shape[1])[_probs(case).argmax(1)]
    return predicted == _onehot(case)


def _torchmetrics(case):
    bins = _top_bins(case, closed="left", ends="extra")
    return {"l1": bins.ece, "l2": bins.rms, "max": bins.mce}[case.hparams["norm"]]


def _gce_sce(case):
    """Exact zeros are dropped before binning, and exactly 1 has a bin of its own."""
    errors = []
    for p, h in zip(_probs(case).T, _onehot(case).T, strict=True):
        errors.append(metrics.binned(p[p > 0], h[p > 0], bins=_bins(case), closed="left", ends="extra").ece)
    return np.mean(errors)


def _netcal_equal_mass(case):
    confidence, correct = _top(case)
    edges = np.quantile(confidence, np.linspace(0, 1, _bins(case) + 1))
    return metrics.binned(confidence, correct, bins=edges, closed="left").ece


def _midway_edges(values, bins):
    """verified_calibration 0.1.4: M nearly equal chunks of the sorted values, edges midway between neighbors."""
    chunks = [chunk for chunk in np.array_split(np.sort(values), bins) if chunk.size]
    inner = [(below[-1] + above[0]) / 2 for below, above in itertools.pairwise(chunks)]
    return np.array([0.0, *inner, 1.0])


def _midway(confidence, correct, bins):
    return metrics.binned(confidence, correct, bins=_midway_edges(confidence, bins)).ece


def _torrvision_adaece(case):
    confidence, correct = _top(case)
    edges = metrics.interpolated_edges(confidence, _bins(case))
    return _inner(metrics.binned(confidence, correct, bins=edges, ends="extra"))


REFERENCES = {
    "kdc_ece": lambda c: metrics.ece(*_top(c), bins=_bins(c)),
    "kdc_mce": lambda c: metrics.mce(*_top(c), bins=_bins(c)),
    "kdc_oe": lambda c: metrics.oe(*_top(c), bins=_bins(c)),
    "kdc_sce": lambda c: _inner(metrics.binned(_probs(c), _onehot(c), bins=_bins(c), ends="extra")).mean(),
    "kdc_ace": lambda c: metrics.ace_classwise_kdc(_probs(c), c["labels"], bins=_bins(c)),
    "kdc_tace_0.01": lambda c: metrics.ace_classwise_kdc(
        _probs(c), c["labels"], bins=_bins(c), threshold=_threshold(c)
    ),
    "kdc_brier": lambda c: metrics.brier(_probs(c), c["labels"]),
    "jp_sce": lambda c: _inner(metrics.binned(_probs(c), _jonathan_pearce(c), bins=_bins(c), ends="extra")).mean(),
    "jp_ace": lambda c: _strided(c, _jonathan_pearce(c)),
    "torrvision_ece": lambda c: metrics.ece(*_top(c), bins=_bins(c)),
    "torrvision_adaece": _torrvision_adaece,
    "torrvision_classwise_ece": lambda c: (
        metrics.binned(_probs(c), _onehot(c), bins=_bins(c)).ece[: c["labels"].max() + 1].mean()
    ),
    "torrvision_ece_fn": lambda c: metrics.ece(*_top(c), bins=_bins(c)),
    "torrvision_mce_fn": lambda c: metrics.mce(*_top(c), bins=_bins(c)),
    "torrvision_average_ce": lambda c: metrics.average_ce(*_top(c), bins=_bins(c)),
    "torrvision_l2_error": lambda c: metrics.rms(*_top(c), bins=_bins(c)),
    "adafocal_adaece": _torrvision_adaece,
    "gce_ece": lambda c: _top_bins(c, closed="left", ends="extra").ece,
    "gce_sce": _gce_sce,
    "gce_ace": lambda c: metrics.ace_classwise(_probs(c), c["labels"], bins=_bins(c)),
    "gce_tace_0.01": lambda c: metrics.tace(_probs(c), c["labels"], bins=_bins(c), threshold=_threshold(c)),
    "gce_top_adaptive": lambda c: (
        metrics.binned(*_top(c), bins=metrics.rounded_edges(np.sort(_top(c)[0]), _bins(c)), closed="left").ece
    ),
    "netcal_ece": lambda c: _top_bins(c, closed="left").ece,
    "netcal_ace": lambda c: _top_bins(c, closed="left").average,
    "netcal_mce": lambda c: _top_bins(c, closed="left").mce,
    "netcal_ece_equal_mass": _netcal_equal_mass,
    "torchmetrics_l1": _torchmetrics,
    "torchmetrics_l2": _torchmetrics,
    "torchmetrics_max": _torchmetrics,
    "verified_ece": lambda c: metrics.ece(*_top(c), bins=_bins(c)),
    "verified_ece_equal_mass": lambda c: _midway(*_top(c), _bins(c)),
    "verified_marginal_l1": lambda c: np.mean(
        [_midway(p, h, _bins(c)) for p, h in zip(_probs(c).T, _onehot(c).T, strict=True)]
    ),
    "crl_brier": lambda c: metrics.brier(_probs(c), c["labels"]),
    "nll": lambda c: metrics.nll(c["logits"], c["labels"]),
    "crl_aurc": lambda c: metrics.aurc(*_top(c)),
    "crl_eaurc": lambda c: metrics.eaurc(*_top(c)),
    "crl_aupr_error": lambda c: metrics.aupr(*_top(c), positives="errors"),
    "crl_fpr95": lambda c: metrics.fpr_at_tpr(*_top(c), rule="nearest"),
    "pskd_ece10_percent": lambda c: 100 * metrics.ece(*_top(c), bins=c.hparams.get("n_bins", 10)),
}
TOP_K = {"kdc_top1_percent", "kdc_topk_percent"}
COVERS = {"metrics": set(REFERENCES) | TOP_K}


@pytest.mark.parametrize("variant", sorted(REFERENCES))
def test_metric(variant):
    golden.sweep("metrics", variant, lambda case: golden.match(case, REFERENCES[variant](case), "value"))


@pytest.mark.parametrize("variant", sorted(TOP_K))
def test_top_k(variant):
    """`torch.topk` orders ties as its sort leaves them: where the label is in a tie at the border, both values must lie
    between the worst and the best order."""

    def check(case):
        z, k = case["logits"], case.hparams.get("k", 1)
        own = z[np.arange(len(z)), case["labels"]][:, None]
        best = 100 * ((z > own).sum(1) < k).mean()
        worst = 100 * ((z >= own).sum(1) <= k).mean()
        found = 100 * metrics.top_k(z, case["labels"], k=k)
        if best == worst:
            return golden.match(case, found, "value")
        assert worst <= found <= best and worst <= case.expected["value"] <= best
        golden.compared(case)

    golden.sweep("metrics", variant, check)

"""Is the confidence right, does it rank, is the student faithful, do the sets cover?

Top-label measures take (confidence, correct), see `top_label`; class-wise ones and the Brier score (probs, labels);
NLL, top-k and `evaluate` take (logits, labels). Everything is a fraction. `Bins` is the form that streams.
"""

from kdjax.metrics import conformal
from kdjax.metrics.bins import Bins, binned, interpolated_edges, rounded_edges, stride_edges, top_label
from kdjax.metrics.calibration import ace, average_ce, debiased_l2, ece, ece_over, ece_under, mce, oe, rms
from kdjax.metrics.classwise import ace_classwise, ace_classwise_kdc, binned_errors, sce, tace
from kdjax.metrics.fidelity import agreement, js_to_teacher, kl_to_teacher, teacher_fidelity
from kdjax.metrics.intervals import Interval, Paired, Spread, bootstrap, over_seeds, paired
from kdjax.metrics.ranking import aupr, aurc, auroc, eaurc, energy, fpr_at_tpr, max_logit, msp, ood, risk_coverage
from kdjax.metrics.report import evaluate, reliability
from kdjax.metrics.resampling import ClassTable, Resampled, differences, intervals, resampled
from kdjax.metrics.scores import BrierParts, brier, brier_decomposition, entropy, nll, top_k
from kdjax.metrics.smooth import kde_ce, kde_ece, likeliest_bandwidth, smece

__all__ = [
    "Bins",
    "BrierParts",
    "ClassTable",
    "Interval",
    "Paired",
    "Resampled",
    "Spread",
    "ace",
    "ace_classwise",
    "ace_classwise_kdc",
    "agreement",
    "aupr",
    "aurc",
    "auroc",
    "average_ce",
    "binned",
    "binned_errors",
    "bootstrap",
    "brier",
    "brier_decomposition",
    "conformal",
    "debiased_l2",
    "differences",
    "eaurc",
    "ece",
    "ece_over",
    "ece_under",
    "energy",
    "entropy",
    "evaluate",
    "fpr_at_tpr",
    "interpolated_edges",
    "intervals",
    "js_to_teacher",
    "kde_ce",
    "kde_ece",
    "kl_to_teacher",
    "likeliest_bandwidth",
    "max_logit",
    "mce",
    "msp",
    "nll",
    "oe",
    "ood",
    "over_seeds",
    "paired",
    "reliability",
    "resampled",
    "risk_coverage",
    "rms",
    "rounded_edges",
    "sce",
    "smece",
    "stride_edges",
    "tace",
    "teacher_fidelity",
    "top_k",
    "top_label",
]

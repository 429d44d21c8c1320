"""Pure losses: logits in, one value per example or one statistic of the batch out."""

from kdjax.losses.adafocal import (
    AdaFocalState,
    adafocal,
    adafocal_bin,
    adafocal_gap,
    adafocal_start,
    adafocal_update,
    true_probability,
)
from kdjax.losses.calibration import crl, crl_history, dca, mdca, mmce, mmce_weighted
from kdjax.losses.margins import acls, cpc_discrimination, cpc_exclusion, mbls
from kdjax.losses.proper import brier, dual_focal, flsd, focal, label_smoothing, nll, soft_nll

__all__ = [
    "AdaFocalState",
    "acls",
    "adafocal",
    "adafocal_bin",
    "adafocal_gap",
    "adafocal_start",
    "adafocal_update",
    "brier",
    "cpc_discrimination",
    "cpc_exclusion",
    "crl",
    "crl_history",
    "dca",
    "dual_focal",
    "flsd",
    "focal",
    "label_smoothing",
    "mbls",
    "mdca",
    "mmce",
    "mmce_weighted",
    "nll",
    "soft_nll",
    "true_probability",
]

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
from kdjax.losses.distillation import dist, dkd, kd, lskd, ttm
from kdjax.losses.features import attention, attention_transfer, hidden_state, pkd
from kdjax.losses.margins import acls, cpc_discrimination, cpc_exclusion, mbls
from kdjax.losses.mlld import mlld
from kdjax.losses.proper import brier, dual_focal, flsd, focal, label_smoothing, nll, soft_nll
from kdjax.losses.uncertainty import dus

__all__ = [
    "AdaFocalState",
    "acls",
    "adafocal",
    "adafocal_bin",
    "adafocal_gap",
    "adafocal_start",
    "adafocal_update",
    "attention",
    "attention_transfer",
    "brier",
    "cpc_discrimination",
    "cpc_exclusion",
    "crl",
    "crl_history",
    "dca",
    "dist",
    "dkd",
    "dual_focal",
    "dus",
    "flsd",
    "focal",
    "hidden_state",
    "kd",
    "label_smoothing",
    "lskd",
    "mbls",
    "mdca",
    "mlld",
    "mmce",
    "mmce_weighted",
    "nll",
    "pkd",
    "soft_nll",
    "true_probability",
    "ttm",
]

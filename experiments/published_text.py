"""What KD(C) and CUD print for texts, for the published column; all values in percent.

CUD's Tables 2 and 3 (outliers, calibration) and 6 to 12 could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping

CUD = "Trust the uncertain teacher (CUD), arXiv 2602.12687 v1"
SETS = ("banking77", "clinc150", "trec", "ag_news", "massive")
"""The order of CUD's columns."""
NOT_AT_HAND: Mapping[str, str] = {
    "massive": "not at hand: MASSIVE has no reader here; HWU64 is the nearest set, of the same scheme of scenes",
    "ag_news": "not at hand: AG News' training split is not here; ag_news_small splits its 7,600 test texts anew",
}
"""Sets that a paper used and that cannot be loaded here, and why."""
NOT_BUILT = "not built: this method compares relations or attributions and needs code of its own"

# KD(C), table 3: 20 Newsgroups, DistilBERT, teacher BERT-base; top-1 / ECE / AECE (equal mass, top-label: our `ace`).
TABLE3: Mapping[str, tuple[float, float, float]] = {
    "nll": (91.75, 2.70, 2.85),
    "label_smoothing": (92.02, 5.87, 5.60),
    "mmce": (89.18, 2.37, 2.83),
    "pskd": (92.12, 1.84, 2.33),
    "mdca": (91.22, 2.93, 2.67),
    "adafocal": (90.93, 5.60, 5.33),
    "cpc": (91.62, 3.23, 2.98),
    "kd from nll + temperature": (91.06, 1.41, 1.86),
    "kd from mdca": (90.19, 1.90, 2.16),
    "kd from label_smoothing": (90.88, 5.33, 4.69),
    "kd from cpc": (90.64, 1.69, 1.62),
}

TEACHER: tuple[float, ...] = (93.70, 96.35, 97.40, 94.69, 89.47)

# CUD, table 1: (student, method) -> (accuracy, spread over three runs) in the order of SETS.
_SIX, _FOUR = "bert_6l_768", "bert_4l_256"
TABLE1: Mapping[tuple[str, str], tuple[tuple[float, float], ...]] = {
    (_SIX, "TinyBERT"): ((89.47, 0.50), (88.43, 0.06), (96.13, 0.12), (94.18, 0.15), (88.84, 0.40)),
    (_SIX, "MGSKD"): ((91.58, 0.04), (95.42, 0.05), (87.60, 0.20), (94.64, 0.15), (88.56, 0.32)),
    (_SIX, "PKD"): ((89.87, 0.15), (95.09, 0.17), (96.40, 0.20), (94.54, 0.24), (88.17, 0.20)),
    (_SIX, "LKD"): ((93.03, 0.11), (93.51, 0.44), (96.07, 0.23), (94.23, 0.29), (88.94, 0.21)),
    (_SIX, "AD-KD"): ((92.66, 0.45), (95.42, 0.37), (96.00, 0.35), (94.57, 0.31), (89.30, 0.28)),
    (_SIX, "CKD"): ((93.54, 0.24), (95.93, 0.17), (97.53, 0.46), (94.72, 0.15), (89.30, 0.25)),
    (_SIX, "CUD"): ((93.83, 0.06), (96.07, 0.14), (97.40, 0.35), (94.91, 0.12), (89.44, 0.06)),
    (_FOUR, "LKD"): ((80.79, 0.44), (88.31, 0.05), (95.80, 0.00), (94.28, 0.04), (82.00, 0.04)),
    (_FOUR, "AD-KD"): ((82.22, 0.57), (91.35, 0.08), (95.06, 0.12), (94.03, 0.05), (84.17, 0.47)),
    (_FOUR, "PKD"): ((86.60, 0.39), (93.27, 0.15), (95.80, 0.53), (94.37, 0.13), (87.23, 0.07)),
    (_FOUR, "CKD"): ((89.86, 0.19), (91.70, 0.15), (95.40, 0.35), (94.24, 0.09), (86.60, 0.22)),
    (_FOUR, "CUD"): ((91.22, 0.02), (93.45, 0.05), (96.47, 0.23), (94.11, 0.27), (87.22, 0.07)),
}

# CUD, table 4: the ablation at 4L-256, in the order of SETS.
TABLE4: Mapping[str, tuple[float, ...]] = {
    "LKD": (80.61, 88.35, 95.80, 94.31, 82.04),
    "LKD + DUS": (90.62, 93.24, 96.40, 94.17, 86.76),
    "LKD + W-Clip": (89.25, 93.02, 95.40, 94.28, 86.37),
    "CUD": (91.22, 93.45, 96.47, 94.11, 87.22),
}

# CUD, table 5: Banking77 at 4L-256, one axis at a time: axis -> value -> accuracy.
TABLE5: Mapping[str, Mapping[float, float]] = {
    "λ_H": {0.1: 91.22, 0.2: 91.16, 0.3: 91.04, 0.4: 91.13},
    "m": {0.1: 91.21, 0.3: 91.22, 0.5: 91.22, 0.7: 91.23, 0.9: 91.22},
    "η": {0.1: 91.19, 0.3: 91.22, 0.5: 91.23, 0.7: 91.22, 0.9: 91.24},
    "λ_KD": {0.2: 90.73, 0.4: 91.04, 0.6: 91.21, 0.8: 91.22},
}


def of_set(values: tuple[float, ...] | tuple[tuple[float, float], ...] | None, name: str) -> str:
    """The entry of one set as it is printed, "91.22 ± 0.02" or "91.22"; "" where the source has none."""
    if values is None or name not in SETS:
        return ""
    value = values[SETS.index(name)]
    return f"{value[0]:.2f} ± {value[1]:.2f}" if isinstance(value, tuple) else f"{value:.2f}"

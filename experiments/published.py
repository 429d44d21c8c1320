"""What the papers print, for the published column of our tables; keyed by (network, row).

A row is a method for training alone, "kd from NAME" for a student taught by that teacher, and "NAME + temperature" for
temperature scaling after training. All values in percent.
"""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[tuple[str, str], tuple[float, ...]]

KDC = "KD(C), Calibration Transfer via Knowledge Distillation, ACCV 2024"
MDISTILLER = "megvii-research/mdistiller, README"
RTC = "The Role of Teacher Calibration in Knowledge Distillation, IEEE Access 13 (2025)"
COLUMNS = ("top1", "ece", "sce", "ace")
"""What the values of TABLE1 and TABLE2 are; their ACE is top-label, equal mass."""

# Table 1: CIFAR-100, teacher WRN-40-2.
TABLE1: Figures = {
    ("wrn_40_2", "nll"): (74.39, 13.04, 0.32, 13.04),
    ("wrn_40_1", "nll"): (70.04, 11.16, 0.3, 11.19),
    ("mobilenet_v2", "nll"): (66.09, 7.76, 0.25, 7.8),
    ("wrn_40_2", "label_smoothing"): (75.15, 2.32, 0.21, 2.08),
    ("wrn_40_1", "label_smoothing"): (70.07, 1.3, 0.21, 1.49),
    ("mobilenet_v2", "label_smoothing"): (66.96, 4.24, 0.23, 4.18),
    ("wrn_40_2", "nll + temperature"): (74.39, 2.68, 0.2, 2.6),
    ("wrn_40_1", "nll + temperature"): (70.04, 2.57, 0.19, 2.5),
    ("mobilenet_v2", "nll + temperature"): (66.09, 2.33, 0.19, 2.37),
    ("wrn_40_2", "mmce"): (72.82, 5.62, 0.22, 5.58),
    ("wrn_40_1", "mmce"): (69.69, 7.34, 0.25, 7.37),
    ("mobilenet_v2", "mmce"): (62.9, 3.21, 0.21, 3.15),
    ("wrn_40_2", "mixup"): (76.23, 4.76, 0.22, 4.63),
    ("wrn_40_1", "mixup"): (72.04, 2.57, 0.21, 2.52),
    ("mobilenet_v2", "mixup"): (67.53, 8.69, 0.28, 9.73),
    ("wrn_40_2", "crl"): (70.86, 11.97, 0.32, 11.88),
    ("wrn_40_1", "crl"): (65.8, 13.91, 0.37, 13.91),
    ("mobilenet_v2", "crl"): (67.05, 12.06, 0.33, 12.06),
    ("wrn_40_2", "pskd"): (75.22, 7.82, 0.24, 7.82),
    ("wrn_40_1", "pskd"): (72.56, 3.73, 0.2, 3.72),
    ("mobilenet_v2", "pskd"): (69.09, 6.95, 0.23, 6.94),
    ("wrn_40_2", "mdca"): (74.17, 1.57, 0.2, 1.61),
    ("wrn_40_1", "mdca"): (68.51, 1.35, 0.21, 1.34),
    ("mobilenet_v2", "mdca"): (66.96, 1.61, 0.2, 1.92),
    ("wrn_40_2", "adafocal"): (73.12, 2.24, 0.2, 2.28),
    ("wrn_40_1", "adafocal"): (67.36, 2.1, 0.21, 1.97),
    ("mobilenet_v2", "adafocal"): (65.34, 1.83, 0.2, 1.53),
    ("wrn_40_2", "cpc"): (74.92, 10.7, 0.27, 10.65),
    ("wrn_40_1", "cpc"): (69.99, 7.61, 0.23, 7.55),
    ("mobilenet_v2", "cpc"): (67.3, 4.17, 0.22, 4.07),
    ("wrn_40_2", "mbls"): (74.79, 7.81, 0.23, 7.78),
    ("wrn_40_1", "mbls"): (69.97, 5.37, 0.22, 5.37),
    ("mobilenet_v2", "mbls"): (67.32, 3.27, 0.2, 2.33),
    ("wrn_40_2", "acls"): (74.9, 6.03, 0.22, 6.01),
    ("wrn_40_1", "acls"): (69.92, 7.0, 0.23, 6.99),
    ("mobilenet_v2", "acls"): (66.26, 3.27, 0.21, 3.35),
    ("wrn_40_1", "kd from nll"): (69.6, 15.18, 0.37, 15.18),
    ("mobilenet_v2", "kd from nll"): (67.15, 6.05, 0.22, 6.02),
    ("wrn_40_1", "kd from mixup"): (72.48, 1.21, 0.2, 1.17),
    ("mobilenet_v2", "kd from mixup"): (71.97, 2.94, 0.24, 2.91),
    ("wrn_40_1", "kd from adafocal"): (71.7, 1.19, 0.19, 1.34),
    ("mobilenet_v2", "kd from adafocal"): (69.47, 2.44, 0.21, 2.41),
    ("wrn_40_1", "kd from cpc"): (70.0, 9.02, 0.26, 9.01),
    ("mobilenet_v2", "kd from cpc"): (67.78, 3.64, 0.2, 3.66),
    ("wrn_40_1", "kd from mdca"): (71.07, 0.98, 0.2, 1.1),
    ("mobilenet_v2", "kd from mdca"): (68.67, 1.52, 0.2, 1.64),
    ("wrn_40_1", "kd from mmce"): (72.08, 2.02, 0.19, 1.95),
    ("mobilenet_v2", "kd from mmce"): (68.49, 1.83, 0.19, 1.68),
}

# Table 2: CIFAR-10, teacher MobileNetV2; ResNet-50 is (a), small to big, MobileNetV2 is (b), self-distillation.
TABLE2: Figures = {
    ("resnet50", "nll"): (88.55, 6.65, 1.39, 6.65),
    ("mobilenet_v2", "nll"): (89.87, 3.3, 0.75, 3.28),
    ("resnet50", "label_smoothing"): (87.73, 6.17, 1.36, 7.69),
    ("mobilenet_v2", "label_smoothing"): (89.6, 7.1, 1.78, 6.75),
    ("resnet50", "nll + temperature"): (88.55, 1.91, 0.65, 2.18),
    ("mobilenet_v2", "nll + temperature"): (89.9, 0.96, 0.4, 0.77),
    ("resnet50", "mmce"): (87.73, 2.74, 0.59, 2.58),
    ("mobilenet_v2", "mmce"): (89.38, 1.2, 0.51, 0.94),
    ("resnet50", "mixup"): (88.49, 5.95, 1.63, 5.93),
    ("mobilenet_v2", "mixup"): (89.57, 9.42, 2.07, 9.41),
    ("resnet50", "crl"): (84.04, 10.3, 2.14, 10.29),
    ("mobilenet_v2", "crl"): (90.31, 2.92, 0.72, 2.81),
    ("resnet50", "pskd"): (88.01, 2.13, 0.84, 1.74),
    ("mobilenet_v2", "pskd"): (89.21, 3.27, 0.93, 3.25),
    ("resnet50", "mdca"): (87.16, 1.18, 0.75, 1.27),
    ("mobilenet_v2", "mdca"): (88.74, 0.99, 0.46, 0.8),
    ("resnet50", "adafocal"): (85.07, 1.08, 0.63, 1.17),
    ("mobilenet_v2", "adafocal"): (88.98, 0.79, 0.44, 0.86),
    ("resnet50", "cpc"): (88.3, 7.13, 1.47, 7.12),
    ("mobilenet_v2", "cpc"): (89.26, 3.47, 0.79, 3.44),
    ("resnet50", "mbls"): (88.19, 6.94, 1.43, 6.9),
    ("mobilenet_v2", "mbls"): (89.86, 2.83, 0.69, 2.78),
    ("resnet50", "acls"): (87.97, 5.83, 1.22, 5.86),
    ("mobilenet_v2", "acls"): (89.53, 1.8, 0.56, 2.66),
    ("resnet50", "kd from nll"): (89.01, 4.24, 0.91, 4.22),
    ("mobilenet_v2", "kd from nll"): (89.88, 0.99, 0.43, 0.82),
    ("resnet50", "kd from nll + temperature"): (88.91, 1.07, 0.44, 1.26),
    ("mobilenet_v2", "kd from nll + temperature"): (90.23, 0.51, 0.41, 0.59),
    ("resnet50", "kd from mmce"): (88.59, 1.02, 0.52, 0.9),
    ("mobilenet_v2", "kd from mmce"): (89.97, 0.85, 0.54, 0.84),
    ("resnet50", "kd from mdca"): (88.12, 0.66, 0.45, 0.77),
    ("mobilenet_v2", "kd from mdca"): (88.79, 0.48, 0.48, 0.54),
    ("resnet50", "kd from adafocal"): (88.71, 0.68, 0.49, 0.7),
    ("mobilenet_v2", "kd from adafocal"): (89.56, 0.63, 0.41, 0.65),
}

# CIFAR-100 top-1 by (teacher, student): KD and MLLD as mdistiller and the code of logit standardization print them, and
# RTC's gain over either: one number, or the range that the paper gives for its homogeneous pairs.
PAIRS: Mapping[tuple[str, str], Mapping[str, float | tuple[float, float]]] = {
    ("resnet56", "resnet20"): {"kd": 70.66, "mlld": 72.19, "kd gain": (0.13, 0.99), "mlld gain": (0.21, 0.45)},
    ("resnet110", "resnet32"): {"kd": 73.08, "mlld": 74.11, "kd gain": (0.13, 0.99), "mlld gain": (0.21, 0.45)},
    ("resnet32x4", "resnet8x4"): {"kd": 73.33, "mlld": 77.08, "kd gain": (0.13, 0.99), "mlld gain": (0.21, 0.45)},
    ("wrn_40_2", "wrn_16_2"): {"kd": 74.92, "mlld": 76.63, "kd gain": (0.13, 0.99), "mlld gain": (0.21, 0.45)},
    ("wrn_40_2", "wrn_40_1"): {"kd": 73.54, "mlld": 75.35, "kd gain": (0.13, 0.99), "mlld gain": (0.21, 0.45)},
    ("vgg13", "vgg8"): {"kd": 72.98, "mlld": 75.18, "kd gain": (0.13, 0.99), "mlld gain": (0.21, 0.45)},
    ("vgg13", "mobilenet_v2_half"): {"kd": 67.37, "mlld": 70.57, "kd gain": 2.17},
    ("resnet50", "mobilenet_v2_half"): {"kd": 67.35, "mlld": 71.04, "kd gain": 1.93},
    ("resnet32x4", "shufflenet_v1"): {"kd": 74.07},
    ("wrn_40_2", "shufflenet_v1"): {"kd": 74.83},
    ("resnet32x4", "shufflenet_v2"): {"kd": 74.45, "mlld": 78.44},
}

# CIFAR-100, 17 teachers: R² of a straight line through student top-1 over the teacher's column, by student.
CORRELATION: Mapping[str, Mapping[str, float]] = {
    "wrn_16_2": {"ace_classwise": 0.9229, "top1": 0.6751},
    "shufflenet_v2": {"ace_classwise": 0.8988, "top1": 0.5557},
}

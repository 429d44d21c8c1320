"""Names of published PyTorch `state_dict`s <-> modules of the networks for small images.

They are those of mdistiller's `models/cifar` and of the KD(C) authors' `models`, which name alike where both have a
network. DenseNet-121 has none: KD(C)'s transitions have no ReLU, and its weights would make another function here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

Module = tuple[str, ...]


class Style(NamedTuple):
    """How one code names the modules of a network.

    Attributes:
      whose: "mdistiller's and KD(C)'s", for refusals.
      outer: names of the modules outside of blocks.
      block: (stage, block), both from 1 -> the block's name.
      inner: block, from 1 -> names of the modules in it.
    """

    whose: str
    outer: Mapping[str, str]
    block: Callable[[int, int], str]
    inner: Callable[[int], Mapping[str, str]]

    def name(self, module: Module) -> str:
        """The name of a module, given by its keys in the parameter tree."""
        if match := re.fullmatch(r"stage(\d+)_(conv|norm)(\d+)", module[0]):  # VGG has no blocks
            stage, position = int(match[1]) - 1, 3 * (int(match[3]) - 1)
            return f"block{stage}.{position + (match[2] == 'norm')}"
        match = re.fullmatch(r"stage(\d+)_block(\d+)", module[0])
        if match is None:
            return self.outer[module[0]]
        stage, block = int(match[1]), int(match[2])
        return f"{self.block(stage, block)}.{self.inner(block)[module[1]]}"


_BOTH = "mdistiller's and KD(C)'s"
_STEM = {"stem": "conv1", "stem_norm": "bn1"}
_PAIRS = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"norm{i}": f"bn{i}" for i in (1, 2, 3)}


def _layer(stage: int, block: int) -> str:
    return f"layer{stage}.{block - 1}"


def _always(names: Mapping[str, str]) -> Callable[[int], Mapping[str, str]]:
    return lambda block: names


def _resnets() -> tuple[Style, ...]:
    """The two codes differ in the names of the shortcut and of the head, by network."""
    styles = []
    for shortcut, head in itertools.product(("downsample", "shortcut"), ("fc", "linear")):
        inner = {**_PAIRS, "shortcut": f"{shortcut}.0", "shortcut_norm": f"{shortcut}.1"}
        styles.append(Style(_BOTH, {**_STEM, "head": head}, _layer, _always(inner)))
    return tuple(styles)


def _sequence(*names: str) -> dict[str, str]:
    """Modules of an `nn.Sequential`, by position; "" stands for an activation."""
    return {name: str(i) for i, name in enumerate(names) if name}


_INVERTED = _sequence("expand", "expand_norm", "", "depthwise", "depthwise_norm", "", "project", "project_norm")
_SHUFFLE = {
    **{"conv1": "conv1", "norm1": "bn1", "depthwise": "conv2", "depthwise_norm": "bn2"},
    **{"conv2": "conv3", "norm2": "bn3"},
}
_SHUFFLE_DOWN = {
    **{"left_depthwise": "conv1", "left_depthwise_norm": "bn1", "left": "conv2", "left_norm": "bn2"},
    **{"conv1": "conv3", "norm1": "bn3", "depthwise": "conv4", "depthwise_norm": "bn4"},
    **{"conv2": "conv5", "norm2": "bn5"},
}


def _kdc_stage(stage: int, block: int) -> str:
    return f"stage{stage}" if stage in (1, 7) else f"stage{stage}.{block - 1}"


_STYLES: Mapping[str, tuple[Style, ...]] = {
    r"resnet(8|14|20|32|44|56|110|8x4|32x4|18|34|50|101|152|110_four_stages|\d+_bottleneck)": _resnets(),
    r"wrn_\d+_\d+": (
        Style(
            _BOTH,
            {"stem": "conv1", "norm": "bn1", "head": "fc"},
            lambda stage, block: f"block{stage}.layer.{block - 1}",
            _always({**_PAIRS, "shortcut": "convShortcut"}),
        ),
    ),
    r"vgg\d+": (Style("mdistiller's (vgg*_bn)", {"head": "classifier"}, _layer, _always({})),),
    "mobilenet_v2_half": (
        Style(
            "mdistiller's",
            {
                "stem": "conv1.0",
                "stem_norm": "conv1.1",
                "last": "conv2.0",
                "last_norm": "conv2.1",
                "head": "classifier.0",
            },
            lambda stage, block: f"blocks.{stage - 1}.{block - 1}.conv",
            _always(_INVERTED),
        ),
    ),
    "mobilenet_v2": (
        Style(
            "KD(C)'s",
            {"stem": "pre.0", "stem_norm": "pre.1", "last": "conv1.0", "last_norm": "conv1.1", "head": "conv2"},
            lambda stage, block: f"{_kdc_stage(stage, block)}.residual",
            _always(_INVERTED),
        ),
    ),
    "shufflenet_v1": (Style("mdistiller's", {**_STEM, "head": "linear"}, _layer, _always(_SHUFFLE)),),
    "shufflenet_v2": (
        Style(
            "mdistiller's",
            {**_STEM, "last": "conv2", "last_norm": "bn2", "head": "linear"},
            _layer,
            lambda block: _SHUFFLE_DOWN if block == 1 else _SHUFFLE,
        ),
    ),
}
KNOWN = "resnet*, wrn_*, vgg*, mobilenet_v2, mobilenet_v2_half, shufflenet_v1, shufflenet_v2"


def styles(model: str) -> tuple[Style, ...]:
    """The ways in which a network's tensors are named in published code; () of a network that has none."""
    return next((found for pattern, found in _STYLES.items() if re.fullmatch(pattern, model)), ())

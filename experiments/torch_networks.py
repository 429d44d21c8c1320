"""Networks of `kdjax.models` as PyTorch modules, for the peers of the benchmarks. Nothing here imports torch."""

from __future__ import annotations

import re
from typing import Any


class Absent(Exception):
    """A peer that cannot run here; its text says why."""


def network(torch: Any, name: str, num_classes: int) -> Any:
    """`wrn_<d>_<k>` or `resnet<d>` (8, 14, 20, ...) of `kdjax.models`, its layers in the order of the forward pass.

    Args:
      torch: the module.

    Raises:
      Absent: any other name.
    """
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        return _wide(torch, int(match[1]), int(match[2]), num_classes)
    if (match := re.fullmatch(r"resnet(\d+)", name)) and int(match[1]) % 6 == 2 and name not in _FOUR_STAGES:
        return _residual(torch, int(match[1]), num_classes)
    raise Absent(f"the PyTorch peer knows wrn_<d>_<k> and resnet<6n+2> only, not {name}")


_FOUR_STAGES = ("resnet50", "resnet152")


def _wide(torch: Any, depth: int, width: int, num_classes: int) -> Any:
    """WRN-d-k: pre-activation blocks, 1x1 shortcuts on the activated input."""
    nn, relu = torch.nn, torch.nn.functional.relu

    class Block(nn.Module):
        def __init__(self, inside: int, out: int, stride: int):
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(out)
            self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.shortcut = nn.Conv2d(inside, out, 1, stride, bias=False) if inside != out else None

        def forward(self, x: Any) -> Any:
            active = relu(self.norm1(x))
            y = self.conv2(relu(self.norm2(self.conv1(active))))
            return y + (x if self.shortcut is None else self.shortcut(active))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths, blocks = [16, 16 * width, 32 * width, 64 * width], []
            for stage in (1, 2, 3):
                for block in range((depth - 4) // 6):
                    inside = widths[stage - 1] if block == 0 else widths[stage]
                    blocks.append(Block(inside, widths[stage], 2 if stage > 1 and block == 0 else 1))
            self.stem, self.blocks = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.Sequential(*blocks)
            self.norm, self.head = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], num_classes)

        def forward(self, x: Any) -> Any:
            return self.head(relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))

    return Network()


def _residual(torch: Any, depth: int, num_classes: int) -> Any:
    """ResNet-d of three stages, d = 6n + 2: two convolutions a block, shortcuts that change the shape 1x1 with norm."""
    nn, relu = torch.nn, torch.nn.functional.relu

    class Block(nn.Module):
        def __init__(self, inside: int, out: int, stride: int):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.shortcut = nn.Conv2d(inside, out, 1, stride, bias=False) if inside != out else None
            self.shortcut_norm = nn.BatchNorm2d(out) if inside != out else nn.Identity()

        def forward(self, x: Any) -> Any:
            y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
            return relu(y + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths, blocks = [16, 16, 32, 64], []
            for stage in (1, 2, 3):
                for block in range((depth - 2) // 6):
                    inside = widths[stage - 1] if block == 0 else widths[stage]
                    blocks.append(Block(inside, widths[stage], 2 if stage > 1 and block == 0 else 1))
            self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(64, num_classes)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(relu(self.stem_norm(self.stem(x)))).mean((2, 3)))

    return Network()

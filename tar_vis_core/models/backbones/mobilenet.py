"""MobileNetV2 with the head of DeepLabV3, batch norm already folded into the biases.

Source: MobileNetV2 (Sandler et al. 2018) and DeepLabV3 (Chen et al. 2017). Convolutions pad as TensorFlow's SAME
does (a stride-2 convolution pads right and bottom only), because the published weights expect it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tar_vis_core.models.layers import Conv, load_in_order

# expansion, channels, repeats, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int):
        super().__init__()
        hidden = cin * expansion
        self.expand = Conv(cin, hidden, 1, activation='relu6') if expansion > 1 else None
        self.depthwise = Conv(hidden, hidden, 3, stride, groups=hidden, activation='relu6', same=True)
        self.project = Conv(hidden, cout, 1)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        return self.project(self.depthwise(y), x if self.residual else None)


class MobileNetV2(nn.Module):
    """Feature maps at strides 4, 8, 16, 32; the head of the 20 Pascal VOC classes is there for its weights alone."""

    channels = (24, 32, 96, 256)

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2, activation='relu6', same=True)
        blocks, cin = [], 32
        for expansion, cout, repeats, stride in STAGES:
            for r in range(repeats):
                blocks.append(InvertedResidual(cin, cout, expansion, stride if r == 0 else 1))
                cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.image_pool = Conv(cin, 256, 1, activation='relu')
        self.aspp = Conv(cin, 256, 1, activation='relu')
        self.fuse = Conv(512, 256, 1, activation='relu')
        self.semantic = Conv(256, 21, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x (N, 3, H, W)`` with H, W multiples of 32, in -1..1. Gives res2..res5."""
        x = self.stem(x)
        maps = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            maps[i] = x
        pooled = self.image_pool(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        context = self.fuse(torch.cat((pooled, self.aspp(x)), 1))
        return maps[2], maps[5], maps[12], context

    def convolutions(self) -> list[nn.Conv2d]:
        """Return all convolutions in execution order."""
        found = [self.stem]
        for block in self.blocks:
            found += [c for c in (block.expand, block.depthwise, block.project) if c is not None]
        return [*found, self.aspp, self.image_pool, self.fuse, self.semantic]

    def load_deeplab(self, path: str | Path) -> None:
        """Start from a DeepLabV3 file whose tensors are named ``conv00.weight`` .. in execution order."""
        load_in_order(self.convolutions(), path)

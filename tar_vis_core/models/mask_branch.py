"""The pixel decoder of a detector: its neck's maps to the levels that a decoder attends to, and to mask features.

No attention over pixels: the detector's neck has already mixed the levels. Mask features are made at stride 8 from
three levels, and refined at stride 4 with the detector's stem. They hold where a pixel is, too: a query that knows its
box so finds its own object among several that look alike.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import ACTIVATIONS, Conv, bilinear, sine_encoding


class Pointwise(Conv):
    """A 1x1 convolution, computed as a linear map of the channels: on one thread PyTorch's own is slow backwards."""

    def __init__(self, inputs: int, outputs: int, activation: str = 'none') -> None:
        super().__init__(inputs, outputs, 1, activation=activation)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)
        return ACTIVATIONS[self.activation](x if added is None else x + added)


class Refine(nn.Module):
    """A residual depthwise-separable block."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = Conv(dim, dim, 5, groups=dim)
        self.expand = Pointwise(dim, hidden, activation='relu')
        self.project = Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.expand(self.depthwise(x)), x)


class MaskBranch(nn.Module):
    """``in_channels`` are those of strides 4, 8, 16, 32; levels have ``dim`` channels, mask features ``mask_dim``."""

    def __init__(self, in_channels: tuple[int, int, int, int], dim: int, mask_dim: int, blocks: int = 3) -> None:
        super().__init__()
        stem, *rest = in_channels
        self.levels = nn.ModuleList(Pointwise(channels, dim) for channels in reversed(rest))
        self.blocks = nn.Sequential(*(Refine(dim, dim) for _ in range(blocks)))
        self.reduce = Pointwise(dim, mask_dim)
        self.lateral = Pointwise(stem, mask_dim)
        self.output = Refine(mask_dim, mask_dim)
        self.mask_features = Pointwise(mask_dim, mask_dim)
        self.place, self.mask_dim = nn.Linear(mask_dim, mask_dim, bias=False), mask_dim

    def forward(self, stem: Tensor, *maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return mask features ``(N, mask_dim, h, w)`` at stride 4 and the levels of strides 32, 16, 8."""
        x, levels = self.joined(stem, *maps)
        return self.mask_features(self.output(x), self.places(stem)), levels

    def joined(self, stem: Tensor, *maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return all maps in one at stride 4, ``(N, mask_dim, h, w)``, and the levels of strides 32, 16, 8."""
        levels = [project(x) for project, x in zip(self.levels, reversed(maps), strict=True)]
        size = levels[-1].shape[-2:]
        x = self.blocks(self.enlarged(levels[0], size, self.enlarged(levels[1], size, levels[2])))
        return self.lateral(stem, self.enlarged(self.reduce(x), stem.shape[-2:])), levels

    @staticmethod
    def enlarged(x: Tensor, size: tuple[int, int], added: Tensor | None = None) -> Tensor:
        """Return a map resized to ``size`` (h, w), another added."""
        x = bilinear(x, size)
        return x if added is None else added + x

    def places(self, stem: Tensor) -> Tensor:
        """Return what the place of each pixel adds to its mask features, ``(1, mask_dim, h, w)``."""
        h, w = stem.shape[-2:]
        # a copy: the encoding may have been made in inference mode, which a gradient cannot pass
        encoding = sine_encoding(h, w, self.mask_dim, stem.device).clone().permute(1, 2, 0)
        return self.place(encoding).permute(2, 0, 1)[None]

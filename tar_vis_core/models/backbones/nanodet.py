"""NanoDet-Plus-m, a detector of 1.2 M parameters: trunk, neck and head, with batch norms folded into the convolutions.

The trunk is ShuffleNetV2 1.0x (Ma et al. 2018), the neck a Ghost-PAN: a path aggregation network whose blocks make
half of their channels by a cheap depthwise convolution from the other half (GhostNet, Han et al. 2020). The head says
for every cell of four levels how likely each class is and how far the sides of the object are, as a distribution over
0..7 strides (Generalized Focal Loss, Li et al. 2020). Written from these papers and from the wiring of the published
network (RangiLyu/nanodet, Apache-2.0), whose outputs it reproduces.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tar_vis_core.models.layers import Conv, bilinear, load_in_order

STAGES = (116, 4), (232, 8), (464, 4)   # channels and units of strides 8, 16, 32
STEM, NECK = 24, 96
BINS = 8                                # of a distance: 0..7 strides
STRIDES = 8, 16, 32, 64
LEAKY = 'leaky_relu'


class DetectorMaps(NamedTuple):
    """What the detector gives for N pictures."""

    fine: Tensor              # (N, 24, H/2, W/2)
    stem: Tensor              # (N, 24, H/4, W/4) the same, pooled
    levels: list[Tensor]      # (N, 96, h, w) of the neck at strides 8, 16, 32, 64
    cells: list[Tensor]       # (N, 96, h, w) what the head reads classes and distances from, at the same strides
    predictions: list[Tensor]  # (N, classes + 4 * BINS, h, w) class logits, then distances left, top, right, bottom


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, each with its activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, inner: str = LEAKY, outer: str = LEAKY,
                 ) -> None:
        super().__init__(Conv(inputs, inputs, kernel, stride, groups=inputs, activation=inner),
                         Conv(inputs, outputs, 1, activation=outer))


def shuffled(a: Tensor, b: Tensor) -> Tensor:
    """Both maps ``(N, C, h, w)`` joined, their channels in turn."""
    return torch.stack((a, b), 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass, half are convolved; with ``stride`` 2 all of them are."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.shortcut = Separable(inputs, half, 3, 2, inner='none') if stride == 2 else None
        self.expand = Conv(inputs if stride == 2 else half, half, 1, activation=LEAKY)
        self.convolve = Separable(half, half, 3, stride, inner='none')

    def forward(self, x: Tensor) -> Tensor:
        passed, own = (self.shortcut(x), x) if self.shortcut is not None else x.chunk(2, 1)
        return shuffled(passed, self.convolve(self.expand(own)))

    def convolutions(self) -> list[nn.Conv2d]:
        """Its convolutions in the order of execution of the published file."""
        (depthwise, project), shortcut = self.convolve, self.shortcut
        if shortcut is None:
            return [self.expand, depthwise, project]
        return [shortcut[0], self.expand, depthwise, shortcut[1], project]


class GhostBlock(nn.Module):
    """Two ghost modules and a depthwise-separable shortcut: ``(N, 192, h, w)`` to ``(N, 96, h, w)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.primary1 = Conv(inputs, half, 1, activation=LEAKY)
        self.cheap1 = Conv(half, half, 3, groups=half, activation=LEAKY)
        self.primary2 = Conv(outputs, half, 1)
        self.cheap2 = Conv(half, half, 3, groups=half)
        self.shortcut = Separable(inputs, outputs, 5, inner='none', outer='none')

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary1(x)
        y = self.primary2(torch.cat((y, self.cheap1(y)), 1))
        return torch.cat((y, self.cheap2(y)), 1) + self.shortcut(x)

    def convolutions(self) -> list[nn.Conv2d]:
        """Its convolutions in the order of execution."""
        return [self.primary1, self.cheap1, self.primary2, self.cheap2, *self.shortcut]


class NanoDet(nn.Module):
    """Pictures to the maps of a detector's neck and to its predictions; see :class:`DetectorMaps`."""

    channels = (STEM, NECK, NECK, NECK)     # of strides 4, 8, 16, 32

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.classes = classes
        self.stem = Conv(3, STEM, 3, 2, activation=LEAKY)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], STEM
        for outputs, units in STAGES:
            stages.append(nn.Sequential(*(ShuffleUnit(outputs if i else inputs, outputs, 1 if i else 2)
                                          for i in range(units))))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.reduce = nn.ModuleList(Conv(channels, NECK, 1, activation=LEAKY) for channels, _ in STAGES)
        self.top_down = nn.ModuleList(GhostBlock(2 * NECK, NECK) for _ in range(2))     # to strides 8, 16
        self.bottom_up = nn.ModuleList(GhostBlock(2 * NECK, NECK) for _ in range(2))    # to strides 16, 32
        self.down = nn.ModuleList(Separable(NECK, NECK, 5, 2) for _ in range(2))
        self.extra = nn.ModuleList(Separable(NECK, NECK, 5, 2) for _ in range(2))       # to stride 64
        self.towers = nn.ModuleList(nn.Sequential(Separable(NECK, NECK, 5), Separable(NECK, NECK, 5)) for _ in STRIDES)
        self.heads = nn.ModuleList(Conv(NECK, classes + 4 * BINS, 1) for _ in STRIDES)

    def forward(self, x: Tensor) -> DetectorMaps:
        """Return the maps of ``x (N, 3, H, W)``, normalised RGB; H, W are multiples of 32."""
        fine = self.stem(x)
        stem, *maps = self.maps(fine)
        return DetectorMaps(fine, stem, maps[:4], maps[4:8], maps[8:])

    def maps(self, fine: Tensor) -> tuple[Tensor, ...]:
        """Return what :class:`DetectorMaps` holds of the stem's map ``(N, 24, H/2, W/2)``, one after the other."""
        stem = y = self.pool(fine)
        laterals = []
        for stage, reduce in zip(self.stages, self.reduce, strict=True):
            y = stage(y)
            laterals.append(reduce(y))
        levels = self.neck(laterals)
        cells = [tower(level) for tower, level in zip(self.towers, levels, strict=True)]
        return stem, *levels, *cells, *(head(cell) for head, cell in zip(self.heads, cells, strict=True))

    def neck(self, laterals: list[Tensor]) -> list[Tensor]:
        """Ghost-PAN: maps of strides 8, 16, 32 to maps of strides 8, 16, 32, 64, all of 96 channels."""
        fine, middle, coarse = laterals
        middle = self.top_down[1](self.joined(coarse, middle))
        fine = self.top_down[0](self.joined(middle, fine))
        middle = self.bottom_up[0](self.joined(self.down[0](fine), middle))
        deep = self.bottom_up[1](self.joined(self.down[1](middle), coarse))
        return [fine, middle, deep, self.added(self.extra[0](coarse), self.extra[1](deep))]

    added = staticmethod(torch.add)

    @staticmethod
    def joined(coarse: Tensor, fine: Tensor) -> Tensor:
        """Return the channels of a map that is enlarged if need be, then those of another one."""
        return torch.cat((bilinear(coarse, fine.shape[-2:]), fine), 1)

    def convolutions(self) -> list[nn.Conv2d]:
        """Return all convolutions in the published file's order of execution."""
        found = [self.stem]
        for stage in self.stages:
            for unit in stage:
                found += unit.convolutions()
        found += [self.reduce[2], self.reduce[1], *self.top_down[1].convolutions(), self.reduce[0],
                  *self.top_down[0].convolutions()]
        for down, block in zip(self.down, self.bottom_up, strict=True):
            found += [*down, *block.convolutions()]
        found += [*self.extra[0], *self.extra[1], *(conv for tower in self.towers for conv in tower[0])]
        for tower, head in reversed(list(zip(self.towers, self.heads, strict=True))):
            found += [*tower[1], head]
        return found

    @torch.no_grad()
    def load_published(self, path: str | Path) -> None:
        """Copy the weights of a file with tensors ``conv000.weight`` .. in the order of execution.

        The published network reads BGR, this one RGB. Raise ValueError for other numbers or shapes of tensors.
        """
        load_in_order(self.convolutions(), path)
        self.stem.weight.copy_(self.stem.weight.flip(1))

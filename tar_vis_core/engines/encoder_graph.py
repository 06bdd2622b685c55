"""The image encoder as a static graph, for images of one size.

The decoder is none: its layers run or not, frame by frame. So the encoder ends before a choice is made; what of a
detector's cells becomes a query is chosen by PyTorch from the graph's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from tar_vis_core.engines.static_graph import StaticGraph
from tar_vis_core.models.backbones import NanoDet
from tar_vis_core.models.backbones.nanodet import STRIDES, DetectorMaps
from tar_vis_core.models.proposals import propose
from tar_vis_core.models.video_model import Features, VideoInstanceModel

INPUT = 'images'    # (1, 3, height, width), normalised and padded as ``VideoInstanceModel.prepare`` does it
LEVELS = 'mask_features', 'level_32', 'level_16', 'level_8'


class EncoderGraph(StaticGraph):
    """A copy of a model's backbone and pixel decoder, from images to what :meth:`features` reads."""

    def __init__(self, model: VideoInstanceModel) -> None:
        super().__init__()
        self.backbone, self.pixel_decoder = copy.deepcopy(model.backbone), copy.deepcopy(model.pixel_decoder)
        self.detects, self.queries = isinstance(model.backbone, NanoDet), model.config.queries
        self.outputs = LEVELS
        if self.detects:
            self.outputs = (*LEVELS, 'fine', *(f'{what}_{stride}' for what in ('cells', 'predictions')
                                               for stride in STRIDES))
        self.eval().requires_grad_(True)

    def inputs(self, height: int, width: int) -> dict[str, Tensor]:
        return {INPUT: torch.randn(1, 3, height, width)}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(images)
        if not self.detects:
            mask_features, levels = self.pixel_decoder(*maps)
            return mask_features, *levels
        mask_features, levels = self.pixel_decoder(maps.stem, *maps.levels[:3])
        return mask_features, *levels, maps.fine, *maps.cells, *maps.predictions

    def features(self, outputs: Sequence[Tensor]) -> Features:
        """Return the model's features of the graph's outputs."""
        mask_features, *levels = outputs[:4]
        if not self.detects:
            return Features(mask_features, levels)
        fine, rest = outputs[4], list(outputs[5:])
        maps = DetectorMaps(fine, fine, [], rest[:len(STRIDES)], rest[len(STRIDES):])
        return Features(mask_features, levels, propose(maps, self.backbone.classes, self.queries))

"""Parts of a decoder as static graphs: one layer, the heads, and what TAR adds.

Which layers run is decided frame by frame, so whoever runs the files in another runtime decides between them. Tensors
have the names that the encoder's file gives them, so the output of one file is the input of the next.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tar_vis_core.engines.static_graph import StaticGraph
from tar_vis_core.errors import TarVisError
from tar_vis_core.models.frame_memory import level_memory
from tar_vis_core.models.temporal_routing import EXECUTE, Routers
from tar_vis_core.models.video_model import VideoInstanceModel

LEVELS = ('level_32', 32), ('level_16', 16), ('level_8', 8)     # name and stride; the layers attend to them in turn


class DecoderGraph(StaticGraph):
    """A copy of a model's decoder."""

    def __init__(self, model: VideoInstanceModel) -> None:
        """Raise TarVisError if the decoder is no chain of static parts."""
        super().__init__()
        if model.decoder.seeds is not None or model.decoder.permutes:
            raise TarVisError("the queries of this model start from a detector's boxes or change their slots from "
                              'frame to frame: no static graph holds that; expected part encoder')
        self.decoder = copy.deepcopy(model.decoder)
        self.eval().requires_grad_(True)

    def queries(self) -> Tensor:
        """Return random queries, of the size of normalised ones."""
        return torch.randn(1, *self.decoder.query_feat.shape)

    def mask_features(self, height: int, width: int) -> Tensor:
        return torch.randn(1, self.decoder.mask_embed.layers[-1].out_features, height // 4, width // 4)


class LayerGraph(DecoderGraph):
    """A layer: from queries, mask features and the layer's level to queries. The first one begins by itself."""

    outputs = ('refined',)

    def __init__(self, model: VideoInstanceModel, layer: int) -> None:
        super().__init__(model)
        if layer not in range(len(self.decoder.layers)):
            raise TarVisError(f'--layer is {layer}, expected 0 to {len(self.decoder.layers) - 1}')
        self.layer = layer

    def inputs(self, height: int, width: int) -> dict[str, Tensor]:
        name, stride = LEVELS[self.layer % 3]
        return {**({'queries': self.queries()} if self.layer else {}),
                'mask_features': self.mask_features(height, width),
                name: torch.randn(1, self.decoder.level_embed.shape[1], height // stride, width // stride)}

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        *queries, mask_features, level = given
        memory = level_memory(self.layer % 3, level, mask_features, self.decoder.level_embed)
        first, position = self.decoder.begin(1, None)
        return self.decoder.attended(self.layer, queries[0] if queries else first, position, *memory),


class HeadsGraph(DecoderGraph):
    """The heads: from queries and mask features to classes, masks, and the embeddings that trackers match."""

    outputs = 'class_logits', 'mask_logits', 'embeddings'

    def inputs(self, height: int, width: int) -> dict[str, Tensor]:
        return {'queries': self.queries(), 'mask_features': self.mask_features(height, width)}

    def forward(self, queries: Tensor, mask_features: Tensor) -> tuple[Tensor, ...]:
        out = self.decoder.output(queries, None)
        masks = (out.mask_embeddings @ mask_features.flatten(2)).unflatten(-1, mask_features.shape[-2:])
        return out.logits, masks, out.embeddings


class RoutingGraph(DecoderGraph):
    """The Synchronizer (Eq. 2-3) or the Routers (Eq. 4-7): from queries and the last frame's to theirs."""

    def __init__(self, model: VideoInstanceModel, part: str) -> None:
        super().__init__(model)
        self.part = getattr(self.decoder, part)
        if self.part is None or (part == 'routers' and not isinstance(self.part, Routers)):
            raise TarVisError(f"these weights have no {part} of the paper's form; expected weights with TAR, or an "
                              '--adapter')
        self.outputs = ('synchronized',) if part == 'synchronizer' else ('execute_probability',)

    def inputs(self, height: int, width: int) -> dict[str, Tensor]:
        return {'queries': self.queries(), 'previous': self.queries()}

    def forward(self, queries: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        out = self.part(queries, previous)
        return out.softmax(-1)[..., EXECUTE] if isinstance(self.part, Routers) else out,

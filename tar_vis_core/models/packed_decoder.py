"""The decoder's layers and first queries as one call of the compiled kernels each."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.frame_memory import FrameMemory
from tar_vis_core.models.layers import sine_encoding
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.packed_layers import small
from tar_vis_core.models.proposals import FREQUENCIES, LEAST_SIDE, Proposals, QuerySeeds
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels.maps import PANEL, enlarge
from tar_vis_core.runtime.kernels.rows import attend, attended_cells, layer_norm
from tar_vis_core.runtime.kernels.tapes import Tapes


class PackedSeeds(QuerySeeds):
    """``QuerySeeds``, which ask for all products in one call."""

    def forward(self, proposals: Proposals) -> tuple[Tensor, Tensor]:
        return self.tapes(self.rows, encoded(proposals.boxes), proposals.content, proposals.logits.sigmoid())

    def rows(self, boxes: Tensor, content: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and positions of encoded boxes, content and chances of classes."""
        position = self.place(boxes)
        x = self.content(content, self.names(names, self.shape(position)))
        return layer_norm(x, self.norm)[0], position


def encoded(boxes: Tensor) -> Tensor:
    """Return :func:`proposals.box_encoding` by numpy: PyTorch's logarithm, sine and cosine wake other threads."""
    low, high = np.split(boxes.numpy(), 2, -1)
    values = np.concatenate(((low + high) / 2, -np.log(np.maximum(high - low, LEAST_SIDE)) / 7), -1)
    octaves = np.float32(np.pi) * np.exp2(np.arange(FREQUENCIES, dtype=np.float32))
    angles = (values[..., None] * octaves).reshape(*boxes.shape[:-1], -1)
    return torch.from_numpy(np.concatenate((np.sin(angles), np.cos(angles)), -1))


class PackedDecoder(MaskedDecoder):
    """``MaskedDecoder``, whose layers read a level itself: what its places add to keys and values is constant."""

    @staticmethod
    def does(decoder: MaskedDecoder, dtype: torch.dtype) -> bool:
        """Return whether the compiled kernels can compute all of a decoder's layers."""
        attention = decoder.layers[0].cross_attn
        dim, mask_dim = len(attention.out_proj.weight), len(decoder.mask_embed.layers[-1].weight)
        parts = [m for part in (decoder.layers, decoder.mask_embed) for m in part.modules() if isinstance(m, nn.Linear)]
        return (all(small(part.weight, getattr(part, 'activation', 'none'), dtype) for part in parts)
                and dim % PANEL == mask_dim % PANEL == 0 and kernels.attends(dim // attention.heads))

    @classmethod
    def of(cls, decoder: MaskedDecoder) -> PackedDecoder:
        """Return the same decoder in this form, before its layers are packed."""
        # (2, D, D) of each layer: the projections of keys and values
        decoder.weights = [layer.cross_attn.in_proj_weight.detach().unflatten(0, (3, -1))[1:]
                           for layer in decoder.layers]
        decoder.__class__, decoder.tapes = cls, [Tapes() for _ in decoder.layers]
        if decoder.seeds is not None:
            decoder.seeds.__class__, decoder.seeds.tapes = PackedSeeds, Tapes()
        return decoder

    @staticmethod
    def level_memory(level: int, x: Tensor, mask_features: Tensor, level_embed: Tensor) -> tuple[None, None, Tensor]:
        """Return the mask features alone, ``(N, D, S)``."""
        return None, None, enlarge(mask_features, x.shape[-2:]).flatten(2)

    def run_layer(self, i: int, x: Tensor, memory: FrameMemory, position: Tensor | None = None) -> Tensor:
        position = (self.query_embed if position is None else position).expand(x.shape)
        level, boxes = memory.levels[i % 3], () if memory.proposals is None else (memory.proposals.boxes,)
        reduced = memory.reduced(i % 3).unflatten(2, level.shape[-2:])
        return self.tapes[i](functools.partial(self.rows, i), x, x + position, position, level, reduced, *boxes)[0]

    def rows(self, i: int, x: Tensor, asking: Tensor, position: Tensor, level: Tensor, reduced: Tensor, *boxes: Tensor,
             ) -> tuple[Tensor]:
        """Return the queries ``x (N, Q, D)`` after layer ``i``; ``asking`` is their sum with their positions."""
        layer, (n, _, h, w) = self.layers[i], level.shape
        of_values = self.level_embed[i % 3].expand(h * w, -1)
        of_keys = of_values + sine_encoding(h, w, x.shape[-1], x.device).flatten(1).t()
        added = [F.linear(place, weight).expand(n, -1, -1).contiguous()
                 for place, weight in zip((of_keys, of_values), self.weights[i], strict=True)]
        cells = level.permute(0, 2, 3, 1).flatten(1, 2)
        keep = attended_cells(self.mask_embed(layer_norm(x, self.decoder_norm)[0]), reduced.permute(0, 2, 3, 1), *boxes)
        query, key, value = layer.cross_attn.projections
        found = attend(query(asking), key(cells, added[0]), value(cells, added[1]), layer.cross_attn.heads, keep)
        x, asking = layer_norm(layer.cross_attn.out_proj(found, x), layer.cross_norm, position)
        found = attend(*layer.self_attn.project(asking, asking, x), layer.self_attn.heads)
        x, _ = layer_norm(layer.self_attn.out_proj(found, x), layer.self_norm)
        return layer_norm(layer.linear2(layer.linear1(x), x), layer.ffn_norm)[:1]

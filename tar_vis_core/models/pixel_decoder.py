"""Pixel decoder: a multi-scale deformable encoder over strides 32, 16, 8 and one FPN step to stride 4.

Source: Deformable DETR (deformable attention) and Mask2Former (pixel decoder), as MinVIS uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tar_vis_core.models.deformable import DeformableAttention, Shapes, reference_points
from tar_vis_core.models.layers import Linear, NormAndSum, bilinear, sine_encoding


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward network, post-norm."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn: int):
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads, levels, points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, ffn, 'relu')
        self.linear2 = Linear(ffn, dim)
        self.norm2 = NormAndSum(dim)

    def forward(self, x: Tensor, asking: Tensor, position: Tensor, reference: Tensor, shapes: Shapes,
                ) -> tuple[Tensor, Tensor]:
        """Return the next ``x (N, S, D)`` and ``asking``, its sum with ``position (S, D)``."""
        x = self.norm1(self.self_attn(asking, x, reference, shapes, x))
        return self.norm2(self.linear2(self.linear1(x), x), position)


class PixelDecoder(nn.Module):
    """Backbone maps in; mask features at stride 4 and three encoded levels out.

    ``in_channels`` are those of res2..res5 (strides 4, 8, 16, 32). ``separable`` puts a depthwise-separable
    convolution into the FPN step, for small models.
    """

    def __init__(self, in_channels: tuple[int, int, int, int], dim: int = 256, layers: int = 6, heads: int = 8,
                 points: int = 4, ffn: int = 1024, separable: bool = False):
        super().__init__()
        res2, *rest = in_channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, 1), nn.GroupNorm(32, dim)) for c in reversed(rest))
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, 3, points, ffn) for _ in range(layers))
        self.lateral = nn.Sequential(nn.Conv2d(res2, dim, 1, bias=False), nn.GroupNorm(32, dim))
        conv = [nn.Conv2d(dim, dim, 3, padding=1, bias=False)]
        if separable:
            conv = [nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False), nn.Conv2d(dim, dim, 1, bias=False)]
        self.output = nn.Sequential(*conv, nn.GroupNorm(32, dim), nn.ReLU(inplace=True))
        self.mask_features = nn.Conv2d(dim, dim, 1)

    def forward(self, res2: Tensor, res3: Tensor, res4: Tensor, res5: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return mask features ``(N, D, h, w)`` at stride 4 and the levels of strides 32, 16, 8."""
        maps = [proj(x) for proj, x in zip(self.input_proj, (res5, res4, res3), strict=True)]
        shapes: Shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        # the level embedding belongs to the position encoding here, not to the features
        position = torch.cat([
            sine_encoding(h, w, m.shape[1], m.device).flatten(1).t() + embed
            for (h, w), m, embed in zip(shapes, maps, self.level_embed, strict=True)])
        reference = reference_points(shapes, res2.device)
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        asking = x + position
        for layer in self.layers:
            x, asking = layer(x, asking, position, reference, shapes)
        parts = x.split([h * w for h, w in shapes], 1)
        levels = [p.unflatten(1, s).permute(0, 3, 1, 2) for p, s in zip(parts, shapes, strict=True)]
        y = self.lateral(res2)
        y = y + bilinear(levels[-1], (y.shape[-2], y.shape[-1]))
        return self.mask_features(self.output(y)), levels

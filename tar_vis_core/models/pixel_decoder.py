"""Pixel decoder: a multi-scale deformable encoder over strides 32, 16, 8 and one FPN step to stride 4.

Source: Deformable DETR (deformable attention) and Mask2Former (pixel decoder), as MinVIS uses them.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import bilinear, sine_encoding

Shapes = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=16)
def reference_points(shapes: Shapes, device: torch.device) -> Tensor:
    """Centres of all cells of all levels as (x, y) in 0..1, ``(sum h*w, 2)``."""
    levels = []
    for h, w in shapes:
        y = (torch.arange(h, dtype=torch.float32, device=device) + 0.5) / h
        x = (torch.arange(w, dtype=torch.float32, device=device) + 0.5) / w
        levels.append(torch.stack((x.repeat(h), y.repeat_interleave(w)), -1))
    return torch.cat(levels)


class DeformableAttention(nn.Module):
    """Each query samples ``points`` positions per head and level around its reference point."""

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # heads look in evenly spread directions, the p-th point p pixels away (Deformable DETR, appendix)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * steps[None, None, :, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """``query, value (N, S, D)``, ``reference (S, 2)``; gives ``(N, S, D)``."""
        n, s, _ = query.shape
        n, s, _ = query.shape
        offsets = self.sampling_offsets(query).view(n, s, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(n, s, self.heads, -1).softmax(-1).view(offsets.shape[:-1])
        # measured on CPUs: gathering rows is two to three times as fast forwards, grid_sample is backwards
        gather = query.device.type == 'cpu' and not torch.is_grad_enabled()
        sample = sample_by_rows if gather else sample_by_grid
        return self.output_proj(sample(self.value_proj(value), offsets, weights, reference, shapes))


def sample_by_grid(value: Tensor, offsets: Tensor, weights: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
    """Weighted bilinear samples through ``grid_sample``, zero outside.

    ``value (N, S, D)``, ``offsets (N, S, heads, levels, points, 2)`` in cells of their level, ``weights`` of the same
    shape without the last axis, ``reference (S, 2)``; gives ``(N, S, D)``.
    """
    n, s, heads = offsets.shape[:3]
    values = value.transpose(1, 2).split([h * w for h, w in shapes], -1)
    sampled = []
    for level, ((h, w), v) in enumerate(zip(shapes, values, strict=True)):
        # grid_sample wants -1..1 with align_corners False: 2 * (reference + offset / size) - 1
        scale = offsets.new_tensor((2.0 / w, 2.0 / h))
        grid = offsets[:, :, :, level] * scale + (2 * reference - 1)[None, :, None, None]
        grid = grid.transpose(1, 2).flatten(0, 1)
        v = v.reshape(n * heads, -1, h, w)
        sampled.append(F.grid_sample(v, grid.to(v.dtype), 'bilinear', 'zeros', align_corners=False))
    stacked = torch.cat(sampled, -1)                              # (N*heads, d, S, levels*points)
    weights = weights.flatten(3).transpose(1, 2).reshape(n * heads, s, -1)
    return torch.einsum('bdsk,bsk->bds', stacked, weights).reshape(n, -1, s).transpose(1, 2)


def sample_by_rows(value: Tensor, offsets: Tensor, weights: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
    """The same as :func:`sample_by_grid`: four corners a sample, all gathered as rows of one table.

    A bag is the weighted sum of ``levels * points * 4`` rows of ``D / heads`` channels, which lie together in memory.
    """
    n, s, heads = offsets.shape[:3]
    size, first, slot = _row_constants(shapes, n, heads, value.device)
    position = reference[:, None, None, None] * size[:, None] + (offsets - 0.5)
    corner = position.floor()
    fraction = position - corner
    rows, parts = [], []
    w, h = size[:, 0, None], size[:, 1, None]
    for dy in (0, 1):
        y = corner[..., 1] + dy
        wy = (fraction[..., 1] if dy else 1 - fraction[..., 1]) * weights
        wy = wy * ((y >= 0) & (y < h))
        y = y.clamp(min=0).minimum(h - 1) * w + first
        for dx in (0, 1):
            x = corner[..., 0] + dx
            wx = fraction[..., 0] if dx else 1 - fraction[..., 0]
            parts.append(wy * wx * ((x >= 0) & (x < w)))
            x = x.clamp(min=0).minimum(w - 1)
            rows.append((y + x).int() * heads + slot)
    rows_, parts_ = torch.stack(rows, -1).view(n * s * heads, -1), torch.stack(parts, -1).view(n * s * heads, -1)
    table = value.reshape(n * s * heads, -1)
    return F.embedding_bag(rows_, table, per_sample_weights=parts_.to(table.dtype), mode='sum').view(n, s, -1)


@functools.lru_cache(maxsize=16)
def _row_constants(shapes: Shapes, n: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Level sizes (w, h), first cell of each level, and the row offset of each (frame, head)."""
    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=device)
    cells = [h * w for h, w in shapes]
    first = torch.tensor([[sum(cells[:i])] for i in range(len(cells))], dtype=torch.float32, device=device)
    frame = torch.arange(n, dtype=torch.int32, device=device)[:, None, None, None, None] * (sum(cells) * heads)
    slot = frame + torch.arange(heads, dtype=torch.int32, device=device)[:, None, None]
    return size, first, slot


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward network, post-norm."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, ffn: int):
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads, levels, points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn)
        self.linear2 = nn.Linear(ffn, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        x = self.norm1(x + self.self_attn(x + position, x, reference, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


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
        self.output = nn.Sequential(*conv, nn.GroupNorm(32, dim), nn.ReLU())
        self.mask_features = nn.Conv2d(dim, dim, 1)

    def forward(self, res2: Tensor, res3: Tensor, res4: Tensor, res5: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gives mask features ``(N, D, h, w)`` at stride 4 and the levels of strides 32, 16, 8."""
        maps = [proj(x) for proj, x in zip(self.input_proj, (res5, res4, res3), strict=True)]
        shapes: Shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        # the level embedding belongs to the position encoding here, not to the features
        position = torch.cat([
            sine_encoding(h, w, m.shape[1], m.device).flatten(1).t() + embed
            for (h, w), m, embed in zip(shapes, maps, self.level_embed, strict=True)])
        reference = reference_points(shapes, res2.device)
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        for layer in self.layers:
            x = layer(x, position, reference, shapes)
        parts = x.transpose(1, 2).split([h * w for h, w in shapes], -1)
        levels = [p.unflatten(-1, s) for p, s in zip(parts, shapes, strict=True)]
        y = self.lateral(res2)
        y = y + bilinear(levels[-1], (y.shape[-2], y.shape[-1]))
        return self.mask_features(self.output(y)), levels

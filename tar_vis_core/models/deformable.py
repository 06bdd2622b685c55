"""Deformable attention: queries sample a few learned positions of value maps (Deformable DETR, section 4.1).

Sampling positions are float32 even if the network runs in half precision: bfloat16 has steps of 1/256 of a map.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import Linear
from tar_vis_core.runtime import kernels

Shapes = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=16)
def reference_points(shapes: Shapes, device: torch.device) -> Tensor:
    """Return the centres of all cells of all levels as (x, y) in 0..1, ``(sum h*w, 2)``."""
    levels = []
    for h, w in shapes:
        y = (torch.arange(h, dtype=torch.float32, device=device) + 0.5) / h
        x = (torch.arange(w, dtype=torch.float32, device=device) + 0.5) / w
        levels.append(torch.stack((x.repeat(h), y.repeat_interleave(w)), -1))
    return torch.cat(levels)


class DeformableAttention(nn.Module):
    """Each query samples ``points`` positions per head and value level around its reference point."""

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
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

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: Shapes,
                added: Tensor | None = None) -> Tensor:
        """Sample ``value (N, Sv, D)`` for ``query (N, Sq, D)`` at ``reference (Sq, 2)``.

        Return ``(N, Sq, D)``, plus ``added``.

        ``shapes`` are the ``(h, w)`` of the value levels, which lie one after the other in ``Sv``; ``reference`` is
        (x, y) in 0..1 and the same point in every level.
        """
        offsets, logits = self.ask(query)
        logits = logits.unflatten(-1, (self.heads, self.levels, self.points))
        offsets = offsets.unflatten(-1, (*logits.shape[2:], 2))
        way = sampler(query.device, value.shape[-1] // self.heads)
        if way != 'compiled kernel':        # which reads bfloat16 itself
            offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        return self.output_proj(SAMPLERS[way](self.value_proj(value), offsets, logits, reference, shapes), added)

    def ask(self, query: Tensor) -> Sequence[Tensor]:
        """Return offsets and logits of the samples of ``query (N, Sq, D)``, each ``(N, Sq, ..)``."""
        return self.sampling_offsets(query), self.attention_weights(query)


def head_widths(model: nn.Module) -> set[int]:
    """Return the numbers of channels that heads of deformable attention have in a model."""
    return {module.value_proj.out_features // module.heads for module in model.modules()
            if isinstance(module, DeformableAttention)}


def sampler(device: torch.device, width: int) -> str:
    """Return which of ``SAMPLERS`` samples ``width`` channels on a device (docs/reference/benchmark.md)."""
    if torch.is_grad_enabled():
        return 'grid_sample'
    if device.type == 'cuda':
        return 'Triton kernel' if kernels.samples_on_gpu(width, device) else 'grid_sample'
    if device.type == 'cpu':
        return 'compiled kernel' if kernels.compiled() else 'embedding_bag'
    return 'grid_sample'


def sample_weights(logits: Tensor) -> Tensor:
    """Return the weight of each sample of a query and head: softmax over levels and points, the last two axes."""
    return logits.flatten(-2).softmax(-1).view(logits.shape)


def sample_by_grid(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
    """Return bilinear samples by ``grid_sample``, zero outside, weighted by a softmax for each query and head.

    ``value (N, Sv, D)``, ``offsets (N, Sq, heads, levels, points, 2)`` in cells of their level, ``logits`` of the
    same shape without the last axis, ``reference (Sq, 2)``. The result is ``(N, Sq, D)``.
    """
    n, s, heads = offsets.shape[:3]
    weights = sample_weights(logits)
    values = value.transpose(1, 2).split([h * w for h, w in shapes], -1)
    position = reference[:, None, None, None] + offsets / level_sizes(shapes, value.device)[:, None]
    # levels, N * heads, points, Sq: summed over an axis that is not the last, the samples need not be copied
    grids = (2 * position - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights = weights.permute(3, 0, 2, 4, 1).flatten(1, 2).to(grids.dtype)
    out = torch.zeros((), dtype=grids.dtype, device=value.device)
    for (h, w), v, grid, weight in zip(shapes, values, grids.unbind(), weights.unbind(), strict=True):
        # the operator wants one type for both, and the positions must not be the ones to lose digits
        v = v.reshape(n * heads, -1, h, w).to(grid.dtype)
        sampled = F.grid_sample(v, grid, 'bilinear', 'zeros', align_corners=False)     # (N * heads, d, points, Sq)
        out = out + (sampled * weight[:, None]).sum(2)
    return out.to(value.dtype).reshape(n, -1, s).transpose(1, 2)


def sample_by_rows(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
    """Return the same as :func:`sample_by_grid`: four corners for each sample, gathered as rows of one table.

    A bag is the weighted sum of ``levels * points * 4`` rows of ``D / heads`` channels, which lie together in memory.
    """
    n, s, heads = offsets.shape[:3]
    weights = sample_weights(logits)
    size = level_sizes(shapes, value.device)
    first, slot = _row_constants(shapes, n, heads, value.device)
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
    table = value.reshape(n * value.shape[1] * heads, -1)
    return F.embedding_bag(rows_, table, per_sample_weights=parts_.to(table.dtype), mode='sum').view(n, s, -1)


SAMPLERS = {
    'compiled kernel': kernels.sample_deformable,   # C++, forwards only
    'Triton kernel': kernels.sample_on_gpu,         # forwards only
    'embedding_bag': sample_by_rows,                # two to three times as fast as grid_sample forwards on a CPU
    'grid_sample': sample_by_grid,                  # everywhere, and with a gradient
}


@functools.lru_cache(maxsize=16)
def level_sizes(shapes: Shapes, device: torch.device) -> Tensor:
    """Return the levels' (w, h), ``(levels, 2)``."""
    with torch.inference_mode(False):  # kept for training as well, which cannot use tensors of inference mode
        return torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=16)
def _row_constants(shapes: Shapes, n: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first cell of each level, and the row offset of each (frame, head)."""
    cells = [h * w for h, w in shapes]
    first = torch.tensor([[sum(cells[:i])] for i in range(len(cells))], dtype=torch.float32, device=device)
    frame = torch.arange(n, dtype=torch.int32, device=device)[:, None, None, None, None] * (sum(cells) * heads)
    slot = frame + torch.arange(heads, dtype=torch.int32, device=device)[:, None, None]
    return first, slot

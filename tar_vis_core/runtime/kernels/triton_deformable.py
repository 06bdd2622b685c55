"""Deformable samples on a GPU in one Triton kernel: positions, softmax and the sums, for a block of queries at once.

Triton comes with PyTorch's builds for CUDA; import this module only if it is there. ``TRITON_INTERPRET=1`` runs the
kernel without a GPU, element by element, which is how it is tested.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from tar_vis_core.runtime.kernels import TRITON_WIDTHS

BLOCK = 16                      # queries of a program


@triton.jit
def _sample(value, offsets, logits, reference, levels, out, queries, cells,
            heads: tl.constexpr, level_count: tl.constexpr, points: tl.constexpr, width: tl.constexpr,
            block: tl.constexpr):
    query = tl.program_id(0) * block + tl.arange(0, block)
    head, frame = tl.program_id(1), tl.program_id(2)
    there, channel = query < queries, tl.arange(0, width)
    samples: tl.constexpr = level_count * points
    first = ((frame * queries + query) * heads + head) * samples      # of the query's samples of this head
    ref_x = tl.load(reference + 2 * query, there, 0.0)
    ref_y = tl.load(reference + 2 * query + 1, there, 0.0)

    most = tl.full((block,), float('-inf'), tl.float32)
    for i in range(samples):
        most = tl.maximum(most, tl.load(logits + first + i, there, 0.0).to(tl.float32))
    total = tl.zeros((block,), tl.float32)
    sums = tl.zeros((block, width), tl.float32)
    for level in range(level_count):
        height, across = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(points):
            i = level * points + point
            share = tl.exp(tl.load(logits + first + i, there, 0.0).to(tl.float32) - most)
            total += share
            x = ref_x * across + (tl.load(offsets + 2 * (first + i), there, 0.0) - 0.5)
            y = ref_y * height + (tl.load(offsets + 2 * (first + i) + 1, there, 0.0) - 0.5)
            # false for what is not a number, too: such a sample is outside
            inside = there & (x > -1) & (y > -1) & (x < across) & (y < height)
            x, y = tl.where(inside, x, 0.0), tl.where(inside, y, 0.0)
            left, top = tl.floor(x), tl.floor(y)
            right, below = x - left, y - top
            for corner in tl.static_range(4):
                column, row = left.to(tl.int32) + corner % 2, top.to(tl.int32) + corner // 2
                part = (right if corner % 2 else 1 - right) * (below if corner // 2 else 1 - below)
                hit = inside & (column >= 0) & (column < across) & (row >= 0) & (row < height)
                cell = frame * cells + start + row * across + column
                place = (cell[:, None].to(tl.int64) * heads + head) * width + channel[None]
                sums += (share * part)[:, None] * tl.load(value + place, hit[:, None], 0.0).to(tl.float32)
    place = ((frame * queries + query)[:, None].to(tl.int64) * heads + head) * width + channel[None]
    tl.store(out + place, (sums / total[:, None]).to(out.dtype.element_ty), there[:, None])


@functools.lru_cache(maxsize=16)
def _levels(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return height, width and first cell of each level, int32 ``(levels, 3)``."""
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    return torch.tensor([(h, w, s) for (h, w), s in zip(shapes, starts, strict=True)], dtype=torch.int32, device=device)


def sample_by_triton(value: Tensor, offsets: Tensor, logits: Tensor, reference: Tensor,
                     shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the samples of the samplers in ``models/deformable.py``, in the dtype of ``value``; sums are float32.

    There is no gradient. Raise ValueError if the channels of a head are none of ``TRITON_WIDTHS``.
    """
    n, s, heads, levels, points, _ = offsets.shape
    width = value.shape[-1] // heads
    if width not in TRITON_WIDTHS:
        raise ValueError(f'{width} channels a head, expected one of {TRITON_WIDTHS}')
    out = value.new_empty(n, s, heads * width)
    with torch.cuda.device_of(value):       # where Triton starts it
        _sample[(triton.cdiv(s, BLOCK), heads, n)](
            value.contiguous(), offsets.float().contiguous(), logits.contiguous(), reference.contiguous(),
            # through an operator of torch: what a CUDA graph reads is kept for it (models/cuda_graphs.py)
            _levels(shapes, value.device).detach(), out, s, value.shape[1], heads=heads, level_count=levels,
            points=points, width=width, block=BLOCK)
    return out

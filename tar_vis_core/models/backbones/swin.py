"""Swin Transformer, by default Swin-L with windows of 12, the trunk of the official Swin-L checkpoints.

Source: Swin Transformer (Liu et al. 2021), with stochastic depth (Huang et al. 2016) in training.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import FeedForward

MASKED = -100.0   # added to the logits of pairs that the cyclic shift brought together


def relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for each (query, key) of a window, int64 ``(window**2, window**2)``.

    Offsets ``query - key`` run from ``1 - window`` to ``window - 1`` in each direction; vertical ones count by rows of
    ``2 * window - 1``.
    """
    row, column = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    down, right = row[:, None] - row, column[:, None] - column
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut ``(N, H, W, C)`` with H, W multiples of the window into ``(N * windows, window**2, C)``."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def from_windows(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Return the inverse of :func:`to_windows` for a map of ``size (H, W)``."""
    h, w = size
    x = x.view(-1, h // window, w // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, h, w, x.shape[-1])


@functools.lru_cache(maxsize=32)
def shift_mask(size: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """Return the term of the attention logits in each window of a shifted map, ``(windows, 1, window**2, window**2)``.

    The shift by half a window wraps the map around. Neighbours across the seam are not neighbours in the picture: rows
    and columns fall into those left of the last window, its first half, and its wrapped half.
    """
    def regions(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - window).float() + (place >= length - window // 2).float()

    region = regions(size[0])[:, None] * 3 + regions(size[1])
    region = to_windows(region[None, :, :, None], window).squeeze(-1)
    return (region[:, :, None] != region[:, None, :]).float()[:, None] * MASKED


class WindowAttention(nn.Module):
    """Multi-head self-attention among the cells of a window, with a learned bias for each relative position."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer('relative_position_index', relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in ``x (N * windows, cells, C)``, with ``mask`` of :func:`shift_mask` or None; the shape stays."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask.to(bias.dtype)
        bias = bias.expand(len(x) // len(bias), *bias.shape).flatten(0, 1)   # a copy only for batches of several frames
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(y.transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Pre-norm window attention and feed-forward network; every second block of a stage shifts its windows."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` of any size, also below a window's."""
        x = x + self._drop(self._attend(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        # the padding is a key like any other, as in the published models: its key and value are the bias of qkv
        x = F.pad(x, (0, 0, 0, -w % self.window, 0, -h % self.window))
        size, mask = x.shape[1:3], None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(tuple(size), self.window, x.device)
        x = from_windows(self.attn(to_windows(x, self.window), mask), self.window, size)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :h, :w]

    def _drop(self, branch: Tensor) -> Tensor:
        """Apply stochastic depth: in training, a frame loses the branch with probability ``drop_path``."""
        if not (self.training and self.drop_path):
            return branch
        keep = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1 - self.drop_path)
        return branch * keep / (1 - self.drop_path)


class PatchMerging(nn.Module):
    """2x2 cells become one of twice the channels; odd sizes are padded with zeros, right and bottom."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, ceil(H/2), ceil(W/2), 2C)``."""
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), -1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks of one resolution and, except in the last stage, the merging that follows."""

    def __init__(self, dim: int, heads: int, window: int, mlp_ratio: int, drop_paths: list[float], last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(SwinBlock(dim, heads, window, index % 2 * (window // 2), mlp_ratio, rate)
                                      for index, rate in enumerate(drop_paths)))
        self.downsample = None if last else PatchMerging(dim)


class PatchEmbed(nn.Module):
    """4x4 pixels become one cell; sizes that 4 does not divide are padded with zeros, right and bottom."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to ``(N, ceil(H/4), ceil(W/4), C)``."""
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinL(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32, the sizes rounded up.

    Module and tensor names are those of the official checkpoints, so that they load by name; their
    ``relative_position_index`` is computed here (:func:`relative_position_index`) and not in the state dict.
    ``drop_path`` is the stochastic depth of the last block; it rises linearly from 0 at the first.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, embed_dim: int = 192, depths: tuple[int, ...] = (2, 2, 18, 2),
                 heads: tuple[int, ...] = (6, 12, 24, 48), window: int = 12, mlp_ratio: int = 4,
                 drop_path: float = 0.3) -> None:
        super().__init__()
        self.channels = tuple(embed_dim * 2 ** index for index in range(len(depths)))
        self.patch_embed = PatchEmbed(embed_dim)
        rates = [drop_path * block / max(sum(depths) - 1, 1) for block in range(sum(depths))]
        self.layers = nn.ModuleList()
        for index, (channels, depth) in enumerate(zip(self.channels, depths, strict=True)):
            first, last = sum(depths[:index]), index == len(depths) - 1
            self.layers.append(
                Stage(channels, heads[index], window, mlp_ratio, rates[first:first + depth], last))
            self.add_module(f'norm{index}', nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map a normalised image ``(N, 3, H, W)`` to res2 ``(N, 192, H/4, W/4)`` ... res5 ``(N, 1536, H/32, W/32)``."""
        x = self.patch_embed(x)
        maps = []
        for index, stage in enumerate(self.layers):
            x = stage.blocks(x)
            # contiguous: convolutions over channels-last maps round four times as coarsely on CPUs (measured)
            maps.append(self.get_submodule(f'norm{index}')(x).permute(0, 3, 1, 2).contiguous())
            x = x if stage.downsample is None else stage.downsample(x)
        return tuple(maps)

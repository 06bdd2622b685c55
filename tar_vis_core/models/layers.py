"""Small parts that the networks share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


@functools.lru_cache(maxsize=32)
def sine_encoding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return the normalised 2-D sine position encoding of a map, ``(dim, height, width)``.

    The first half of the channels encodes y, the second x; positions count from 1 and are scaled to 2 pi
    (DETR, temperature 10000). It depends on the size alone, so it is computed once per size. Channels lie last.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=device)
    period = 10000 ** (2 * torch.div(k, 2, rounding_mode='floor') / half)

    def encode(size: int) -> Tensor:
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        angle = (position / (size + 1e-6) * 2 * math.pi)[:, None] / period
        return torch.where(k.long() % 2 == 0, angle.sin(), angle.cos())

    y = encode(height).t()[:, :, None].expand(half, height, width)
    x = encode(width).t()[:, None, :].expand(half, height, width)
    return torch.cat((y, x)).permute(1, 2, 0).contiguous().permute(2, 0, 1)


ACTIVATIONS = {'none': nn.Identity(), 'relu': nn.ReLU(), 'relu6': nn.ReLU6(), 'gelu': nn.GELU(),
               'leaky_relu': nn.LeakyReLU(0.1)}


class Linear(nn.Linear):
    """A linear map, a residual added to its result, and the activation that follows.

    One kernel in the inference form (``models/packed.py``).
    """

    def __init__(self, inputs: int, outputs: int, activation: str = 'none') -> None:
        super().__init__(inputs, outputs)
        self.activation = activation

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        return ACTIVATIONS[self.activation](x if added is None else x + added)


class NormAndSum(nn.LayerNorm):
    """A layer norm of ``(N, S, C)``, and its sum with what is added to it, ``(S, C)``."""

    def forward(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        x = super().forward(x)
        return x, x + added


class Conv(nn.Conv2d):
    """A convolution, a residual added to its result, and the activation that follows; one kernel in the inference form.

    ``same`` pads as TensorFlow's SAME does for even inputs and stride 2: right and bottom only.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True,
                 activation: str = 'none', same: bool = False) -> None:
        self.same = same and stride == 2
        super().__init__(inputs, outputs, kernel, stride, padding=0 if self.same else kernel // 2, groups=groups,
                         bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = super().forward(F.pad(x, (0, 1, 0, 1)) if self.same else x)
        return ACTIVATIONS[self.activation](x if added is None else x + added)


class Attention(nn.Module):
    """Multi-head attention with packed projections and a boolean keep mask."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None,
                added: Tensor | None = None) -> Tensor:
        """Attend from ``query (N, Q, D)`` to ``key, value (N, S, D)``; ``keep (N, Q, S)`` is True where allowed.

        ``added (N, Q, D)`` is added to the result.
        """
        return self.out_proj(self.attend(*self.project(query, key, value), keep), added)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        """Return the attention of all heads over projected queries, keys and values."""
        q, k, v = (self._split(part) for part in (query, key, value))
        mask = None if keep is None else keep[:, None]
        if q.device.type == 'cpu' and q.dtype == torch.bfloat16:
            # measured: backwards it takes twice as long in bfloat16 as in float32 on a CPU
            with torch.autocast('cpu', enabled=False):
                out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return the query, key and value projections, each of the shape of its input."""
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        return [F.linear(x, weight, bias) for x, weight, bias in parts]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Cross-attention, self-attention, feed-forward; each followed by residual and LayerNorm."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.cross_attn = Attention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads)
        self.self_norm = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, ffn, 'relu')
        self.linear2 = Linear(ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None,
                position: Tensor | None = None) -> Tensor:
        """Attend from ``query`` to ``key`` and ``value``, and add the result to ``x (N, Q, D)``.

        ``keep`` as in :class:`Attention`; ``position (Q, D)`` is added to queries and keys among themselves.
        """
        x = self.cross_norm(self.cross_attn(query, key, value, keep, x))
        asking = x if position is None else x + position
        x = self.self_norm(self.self_attn(asking, asking, x, added=x))
        return self.ffn_norm(self.linear2(self.linear1(x), x))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them, as vision transformers name them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, 'gelu')
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden: int, out: int, depth: int):
        super().__init__()
        sizes = [dim, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(Linear(a, b, 'relu' if i < depth - 1 else 'none')
                                    for i, (a, b) in enumerate(itertools.pairwise(sizes)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(N, C, h, w)`` bilinearly with half-pixel centres, without antialiasing."""
    return F.interpolate(x, size=size, mode='bilinear', align_corners=False)


@torch.no_grad()
def load_in_order(convolutions: Sequence[nn.Conv2d], path: str | Path) -> None:
    """Copy weights and biases of a file whose tensors are named ``conv00.weight`` .. in the order of execution.

    Numbers have as many digits as the last one. Raise ValueError for another number or shape of tensors.
    """
    tensors, digits = load_file(path), len(str(len(convolutions) - 1))
    if len(tensors) != 2 * len(convolutions):
        raise ValueError(f'{path}: {len(tensors)} tensors, expected {2 * len(convolutions)} (weight and bias of '
                         f'{len(convolutions)} convolutions)')
    for i, conv in enumerate(convolutions):
        for kind, parameter in (('weight', conv.weight), ('bias', conv.bias)):
            name = f'conv{i:0{digits}d}.{kind}'
            if tensors[name].shape != parameter.shape:
                raise ValueError(f'{path}: {name} is {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}')
            parameter.copy_(tensors[name])

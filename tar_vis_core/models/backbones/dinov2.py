"""The DINOv2 vision transformer (Oquab et al. 2023) without register tokens.

Module and tensor names are those of the official files, so that they load by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import FeedForward


class ViTAttention(nn.Module):
    """Multi-head self-attention with one packed projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Self-attention and a feed-forward network, pre-norm, each scaled before it is added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ViTAttention(dim, heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 4 * dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """One token for each patch."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """The transformer, which returns the patch tokens after each quarter of the blocks.

    ``grid`` is the side in patches of the images of its pre-training. ``mask_token`` and the final ``norm`` are unused
    here and kept because the official files hold them.
    """

    def __init__(self, dim: int = 1024, depth: int = 24, heads: int = 16, patch: int = 16, grid: int = 37) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + grid * grid, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbedding(dim, patch)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def position(self, height: int, width: int) -> Tensor:
        """Return position embedding of the class token and ``height x width`` patches, ``(1, 1 + height*width, D)``."""
        if height == width == self.grid:
            return self.pos_embed
        # DINOv2 adds 0.1 patch against rounding down, and the factor with it also scales the sampling coordinates
        factor = ((height + 0.1) / self.grid, (width + 0.1) / self.grid)
        patches = self.pos_embed[:, 1:].transpose(1, 2).unflatten(-1, (self.grid, self.grid))
        patches = F.interpolate(patches, scale_factor=factor, mode='bicubic', align_corners=False)
        return torch.cat((self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)), 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return four maps ``(N, H/patch * W/patch, D)``, before any norm; H, W are multiples of the patch."""
        height, width = image.shape[-2] // self.patch, image.shape[-1] // self.patch
        x = torch.cat((self.cls_token.expand(len(image), -1, -1), self.patch_embed(image)), 1)
        x = x + self.position(height, width)
        quarter = len(self.blocks) // 4
        features = []
        for index, block in enumerate(self.blocks, 1):
            x = block(x)
            if index % quarter == 0:
                features.append(x[:, 1:])
        return features

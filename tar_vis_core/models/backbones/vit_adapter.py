"""DINOv2 ViT-L with an adapter that gives maps of four strides, the trunk of DVIS++ ViT-L.

Source: ViT-Adapter (Chen et al. 2023). As in DVIS++ nothing is injected back into the transformer: its features are
extracted only, so it runs first and can stay frozen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.backbones.dinov2 import DinoV2
from tar_vis_core.models.deformable import DeformableAttention, Shapes, reference_points
from tar_vis_core.models.layers import bilinear


def tokens(x: Tensor) -> Tensor:
    """Map ``(N, D, h, w)`` to ``(N, h*w, D)``."""
    return x.flatten(2).transpose(1, 2)


def split_maps(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """Split ``(N, sum h*w, D)`` into a map ``(N, D, h, w)`` for each shape."""
    parts = x.transpose(1, 2).split([h * w for h, w in shapes], -1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def normed_conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """Return 3x3 convolution, batch norm and ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True)]


class SpatialPrior(nn.Module):
    """A small convolutional network beside the transformer, which knows no strides under 16."""

    def __init__(self, inner: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*normed_conv(3, inner, 2), *normed_conv(inner, inner, 1),
                                  *normed_conv(inner, inner, 1), nn.MaxPool2d(3, 2, padding=1))
        self.conv2 = nn.Sequential(*normed_conv(inner, 2 * inner, 2))
        self.conv3 = nn.Sequential(*normed_conv(2 * inner, 4 * inner, 2))
        self.conv4 = nn.Sequential(*normed_conv(4 * inner, 4 * inner, 2))
        self.fc1 = nn.Conv2d(inner, dim, 1)
        self.fc2 = nn.Conv2d(2 * inner, dim, 1)
        self.fc3 = nn.Conv2d(4 * inner, dim, 1)
        self.fc4 = nn.Conv2d(4 * inner, dim, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return maps ``(N, D, h, w)`` of strides 4, 8, 16 and 32."""
        c1 = self.stem(image)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


class TokenConv(nn.Module):
    """A depthwise 3x3 convolution on the map of each level."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        return torch.cat([tokens(self.dwconv(level)) for level in split_maps(x, shapes)], 1)


class ConvFeedForward(nn.Module):
    """Two linear layers with a depthwise convolution and GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = TokenConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), shapes)))


class Extractor(nn.Module):
    """The adapter's tokens sample the transformer's feature map, then mix with their neighbours."""

    def __init__(self, dim: int, heads: int, points: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, heads, 1, points)
        self.ffn = ConvFeedForward(dim, dim // 4)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, c: Tensor, x: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Let ``c (N, S, D)`` of all ``shapes`` attend to ``x (N, S', D)`` of stride 16. Return ``(N, S, D)``."""
        c = c + self.attn(self.query_norm(c), self.feat_norm(x), reference, shapes[1:2])
        return c + self.ffn(self.ffn_norm(c), shapes)


class Interaction(nn.Module):
    """One extractor, and ``extra`` more after it, on the features of one quarter of the transformer."""

    def __init__(self, dim: int, heads: int, points: int, extra: int) -> None:
        super().__init__()
        self.extractor = Extractor(dim, heads, points)
        self.extra_extractors = nn.ModuleList(Extractor(dim, heads, points) for _ in range(extra))

    def forward(self, c: Tensor, x: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        for extractor in (self.extractor, *self.extra_extractors):
            c = extractor(c, x, reference, shapes)
        return c


class ViTAdapterL(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32, all of ``embed_dim`` channels.

    ``grid`` is the side in patches of the transformer's pre-training images. With ``freeze_vit`` no gradient reaches
    the transformer. Module and tensor names are those of the official checkpoints, so that they load by name.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, embed_dim: int = 1024, depth: int = 24, heads: int = 16, grid: int = 37, inner: int = 64,
                 deform_heads: int = 16, points: int = 4, freeze_vit: bool = True) -> None:
        super().__init__()
        self.channels = (embed_dim,) * 4
        self.freeze_vit = freeze_vit
        self.vit_module = DinoV2(embed_dim, depth, heads, 16, grid)
        self.spm = SpatialPrior(inner, embed_dim)
        self.level_embed = nn.Parameter(torch.randn(3, embed_dim))
        self.interactions = nn.ModuleList(Interaction(embed_dim, deform_heads, points, extra) for extra in (0, 0, 0, 2))
        self.up = nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2)
        for index in range(1, 5):
            self.add_module(f'norm{index}', nn.BatchNorm2d(embed_dim))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return res2 ``(N, D, H/4, W/4)`` to res5 ``(N, D, H/32, W/32)`` of a normalised image ``(N, 3, H, W)``.

        Raise ValueError if H or W is no multiple of 32.
        """
        height, width = image.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f'image of {width}x{height}: pad both sides to multiples of 32')
        shapes = tuple((height // stride, width // stride) for stride in (8, 16, 32))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_vit):
            features = self.vit_module(image)
        c1, *levels = self.spm(image)
        c = torch.cat([tokens(level) + embed for level, embed in zip(levels, self.level_embed, strict=True)], 1)
        reference = reference_points(shapes, image.device)
        for interaction, x in zip(self.interactions, features, strict=True):
            c = interaction(c, x, reference, shapes)
        c2, c3, c4 = split_maps(c, shapes)
        c1 = c1 + self.up(c2)
        x1, x2, x3, x4 = (x.transpose(1, 2).unflatten(-1, shapes[1]) for x in features)
        return (self.norm1(c1 + bilinear(x1, (height // 4, width // 4))), self.norm2(c2 + bilinear(x2, shapes[0])),
                self.norm3(c3 + x3), self.norm4(c4 + bilinear(x4, shapes[2])))

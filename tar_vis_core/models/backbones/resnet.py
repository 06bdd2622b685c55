"""ResNet-50 with frozen batch norm, the trunk of the official R50 checkpoints (He et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import ACTIVATIONS, Conv


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine terms are constants: ``(x - mean) / sqrt(var + eps) * weight + bias``."""

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer('weight', torch.ones(channels))
        self.register_buffer('bias', torch.zeros(channels))
        self.register_buffer('running_mean', torch.zeros(channels))
        self.register_buffer('running_var', torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the same map as ``x * scale + shift``, each ``(channels,)``."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift()
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)


class NormedConv(Conv):
    """A convolution without bias, frozen batch norm, residual sum and ReLU; :meth:`fold` leaves one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, activation: str = 'none') -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False, activation=activation)
        self.norm: nn.Module = FrozenBatchNorm(outputs)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = self.norm(nn.Conv2d.forward(self, x))
        return ACTIVATIONS[self.activation](x if added is None else x + added)

    @torch.no_grad()
    def fold(self) -> None:
        """Move the norm into the kernel and a bias; do nothing the second time."""
        if isinstance(self.norm, FrozenBatchNorm):
            scale, shift = self.norm.scale_and_shift()
            self.weight.mul_(scale.view(-1, 1, 1, 1))
            self.bias = nn.Parameter(shift, requires_grad=False)
            self.norm = nn.Identity()


class Stem(nn.Module):
    """7x7 convolution and 3x3 max pooling, each of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = NormedConv(3, 64, 7, 2, 'relu')

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride), 1x1 with a shortcut around them."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = NormedConv(inputs, outputs, 1, stride) if inputs != outputs else None
        self.conv1 = NormedConv(inputs, middle, 1, activation='relu')
        self.conv2 = NormedConv(middle, middle, 3, stride, 'relu')
        self.conv3 = NormedConv(middle, outputs, 1, activation='relu')

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)), x if self.shortcut is None else self.shortcut(x))


class ResNet50(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32.

    Module and tensor names are those of the official checkpoints, so that they load by name.
    """

    channels = (256, 512, 1024, 2048)
    strides = (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        inputs = 64
        for index, (blocks, outputs) in enumerate(zip((3, 4, 6, 3), self.channels, strict=True)):
            stride = 1 if index == 0 else 2
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(inputs, outputs // 4, outputs, stride if block == 0 else 1))
                inputs = outputs
            self.add_module(f'res{index + 2}', nn.Sequential(*stage))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map a normalised image ``(B, 3, H, W)`` to res2 ``(B, 256, H/4, W/4)`` ... res5 ``(B, 2048, H/32, W/32)``."""
        res2 = self.res2(self.stem(x))
        res3 = self.res3(res2)
        res4 = self.res4(res3)
        return res2, res3, res4, self.res5(res4)

    def fold(self) -> ResNet50:
        """Fold every norm into its convolution, for inference; the state dict then no longer fits a checkpoint."""
        for module in self.modules():
            if isinstance(module, NormedConv):
                module.fold()
        return self

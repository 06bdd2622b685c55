"""Layers of the inference form on a CPU, one operator each, with activation and residual sum in the same pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import NormAndSum
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels import maps

# by what the compiled kernel multiplies what is negative
SLOPES = {'none': 1.0, 'relu': 0.0, 'leaky_relu': 0.1}
# an activation's name and constants in oneDNN's operators
ONEDNN_ACTIVATIONS: dict[str, tuple[str, list[float], str]] = {
    'none': ('none', [], ''), 'relu': ('relu', [], ''), 'relu6': ('hardtanh', [0.0, 6.0], ''),
    'gelu': ('gelu', [], 'none'), 'leaky_relu': ('leaky_relu', [0.1], '')}

# what may follow a residual sum
IN_PLACE = {'none': lambda x: x, 'relu': F.relu_}


def packable() -> tuple[torch.dtype, ...]:
    """Return the dtypes of packed layers: none if this build of torch lacks their operators."""
    operators = ('_linear_pointwise', '_reorder_linear_weight', '_convolution_pointwise',
                 '_reorder_convolution_weight')
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return ()
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if fast else (torch.float32,)


def small(weight: Tensor, activation: str, dtype: torch.dtype) -> bool:
    """Return whether the compiled kernel computes a linear map with ``weight (outputs, inputs)`` as fast as oneDNN.

    A call of it takes less time, and it does not wake another thread for what one does as fast.
    """
    return (dtype == torch.float32 and activation in SLOPES and kernels.compiled() is not None
            and len(weight) >= maps.PANEL and min(weight.shape) <= 128 and weight.numel() <= 2 ** 16)


def product(weight: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype = torch.float32,
            ) -> tuple[Tensor, Tensor, float]:
    """Return a linear map with ``weight (outputs, inputs)`` as one of ``maps.Convolution.products``."""
    weight = weight.detach().float()
    return (maps.panels(weight, dtype), torch.zeros(len(weight)) if bias is None else bias.detach().float(),
            SLOPES[activation])


class PackedLinears(nn.Module):
    """``layers.Linear`` one after the other, all of them :func:`small`, in one call of the compiled kernel."""

    def __init__(self, *products: tuple[Tensor, Tensor, float]) -> None:
        super().__init__()
        self.how = maps.Convolution(products[0][0].shape[1], None, products)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        found = maps.convolve(as_column(x), self.how, () if added is None else (as_column(added),))
        return found.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


def as_column(x: Tensor) -> Tensor:
    """Return rows ``(..., C)`` as a map ``(1, C, rows, 1)``."""
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def packed_linear(weight: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype) -> nn.Module:
    """Return ``layers.Linear`` from ``(..., inputs)`` to ``(..., outputs)`` in one call of the kernel or of oneDNN."""
    if small(weight, activation, dtype):
        return PackedLinears(product(weight, bias, activation))
    return PackedLinear(weight, bias, activation, dtype)


class PackedLinear(nn.Module):
    """``layers.Linear`` as one oneDNN operator from ``(..., inputs)`` to ``(..., outputs)``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.dtype, self.activation = dtype, activation

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = x.to(self.dtype)
        if added is None:
            return torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, *ONEDNN_ACTIVATIONS[self.activation])
        x = torch.ops.mkldnn._linear_pointwise.binary(x, added.to(self.dtype), self.weight, self.bias, 'add')
        return IN_PLACE[self.activation](x)


class PackedConv(nn.Module):
    """A convolution, a residual sum and the activation (``layers.Conv``) as one oneDNN operator."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.same, self.dtype = getattr(conv, 'same', False), dtype
        self.activation = ONEDNN_ACTIVATIONS[getattr(conv, 'activation', 'none')]
        self.geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, None)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = (F.pad(x, (0, 1, 0, 1)) if self.same else x).to(self.dtype, memory_format=torch.channels_last)
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, *self.activation)
        added = added.to(self.dtype, memory_format=torch.channels_last)
        activation = (None, [], None) if self.activation[0] == 'none' else self.activation
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, added, self.weight, self.bias, *self.geometry, 'add', 1.0, *activation)


class PackedPointwise(nn.Module):
    """A 1x1 convolution as a linear map of the channels, which lie last in memory: steadily fast at any size."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride = conv.stride
        self.linear = packed_linear(conv.weight[:, :, 0, 0], conv.bias, getattr(conv, 'activation', 'none'), dtype)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = x[:, :, ::self.stride[0], ::self.stride[1]].permute(0, 2, 3, 1)
        return self.linear(x, None if added is None else added.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedGroupNorm(nn.Module):
    """Group norm of a map with its channels last, without PyTorch's loss of digits there."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


class PackedNormAndSum(nn.Module):
    """``layers.NormAndSum`` in one pass."""

    def __init__(self, norm: NormAndSum) -> None:
        super().__init__()
        self.norm = norm

    @staticmethod
    def does(norm: NormAndSum) -> bool:
        """Return whether the compiled kernel can compute it."""
        return kernels.compiled() is not None and len(norm.weight) % maps.PANEL == 0

    def forward(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.layer_norm(x, self.norm.weight, self.norm.bias, self.norm.eps, added)

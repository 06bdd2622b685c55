"""Layers of the inference form on a CPU, one operator each, with activation and residual sum in the same pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.runtime import kernels

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
        self.linear = PackedLinear(conv.weight[:, :, 0, 0], conv.bias, getattr(conv, 'activation', 'none'), dtype)

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

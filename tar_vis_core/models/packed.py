"""The inference form of a model: the same weights, laid out and joined for speed.

Batch norms are folded into their convolutions, and maps have their channels last. On a CPU weights lie as oneDNN's
kernels want them, with activation and residual sum in the same pass. docs/reference/benchmark.md has the
speed. Results differ from the plain form by rounding alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.cuda_graphs import CudaRecorder, record_parts
from tar_vis_core.models.layers import Attention, Linear
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import use_full_float32

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


class PackedAttention(Attention):
    """:class:`Attention` with packed projections and, if it was built, the compiled kernel between them."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.heads = attention.heads
        self.projections = nn.ModuleList(
            PackedLinear(weight, bias, 'none', dtype) for weight, bias in zip(
                attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True))
        self.out_proj = packed(attention.out_proj, dtype)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        return [projection(x) for projection, x in zip(self.projections, (query, key, value), strict=True)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        if kernels.attends(query.shape[-1] // self.heads):
            return kernels.attention(query, key, value, self.heads, keep)
        return super().attend(query, key, value, keep)


def packed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the packed form of a layer; of another module, the module with its layers packed in place."""
    if type(module) in (nn.Linear, Linear):
        return PackedLinear(module.weight, module.bias, getattr(module, 'activation', 'none'), dtype)
    if isinstance(module, nn.Conv2d):
        return (PackedPointwise if module.kernel_size == (1, 1) else PackedConv)(module, dtype)
    if isinstance(module, nn.GroupNorm):
        return PackedGroupNorm(module)
    if type(module) is Attention:
        return PackedAttention(module, dtype)
    for name, child in module.named_children():
        setattr(module, name, packed(child, dtype))
    return module


def with_weights_in(model: VideoInstanceModel, dtype: torch.dtype) -> VideoInstanceModel:
    """Return the model with the weights of its products in ``dtype``, as mixed precision would cast them every time."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(dtype)
        elif isinstance(module, Attention):
            for name in ('in_proj_weight', 'in_proj_bias'):
                parameter = getattr(module, name)
                parameter.data = parameter.data.to(dtype)
    return model


def inference_form(model: VideoInstanceModel, device: torch.device, dtype: torch.dtype = torch.float32,
                   ) -> VideoInstanceModel:
    """Return the model for inference on ``device``, computing in ``dtype``, changed in place.

    It cannot be trained any more, and its state dict fits no file. On a GPU, float32 is full float32 from then on in
    the whole process (:func:`use_full_float32`).
    """
    model = model.eval().requires_grad_(False).to(device)
    if isinstance(model.backbone, ResNet50):
        model.backbone.fold()
    if device.type != 'cpu':
        use_full_float32()
        record_parts(with_weights_in(model.to(memory_format=torch.channels_last), dtype), CudaRecorder(device))
    elif dtype in packable():
        tracker = model.tracker
        projection = tracker and tracker.mask_feature_proj
        packed(model, dtype)
        if tracker:     # the tracker reads the weights of this one and never calls it
            tracker.mask_feature_proj = projection
    return model

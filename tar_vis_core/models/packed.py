"""The inference form of a model: the same weights, laid out and joined for speed.

Batch norms are folded into their convolutions, and maps have their channels last. On a CPU weights lie as oneDNN's
kernels want them, with activation and residual sum in the same pass. docs/reference/benchmark.md has the
speed. Results differ from the plain form by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tar_vis_core.models.backbones.nanodet import NanoDet
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.cuda_graphs import CudaRecorder, record_parts
from tar_vis_core.models.deformable import DeformableAttention
from tar_vis_core.models.layers import MLP, Attention, Linear, NormAndSum
from tar_vis_core.models.masked_decoder import MaskedDecoder
from tar_vis_core.models.packed_decoder import PackedDecoder
from tar_vis_core.models.packed_layers import (
    PackedConv,
    PackedGroupNorm,
    PackedLinears,
    PackedNormAndSum,
    PackedPointwise,
    packable,
    packed_linear,
    product,
    small,
)
from tar_vis_core.models.packed_units import UNITS, PackedChain, PackedNanoDet
from tar_vis_core.models.presets import ModelConfig
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import pick_precision, use_full_float32


class PackedAttention(Attention):
    """:class:`Attention` with packed projections and, if it was built, the compiled kernel between them."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.heads = attention.heads
        self.projections = nn.ModuleList(
            packed_linear(weight, bias, 'none', dtype) for weight, bias in zip(
                attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True))
        self.out_proj = packed(attention.out_proj, dtype)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        return [projection(x) for projection, x in zip(self.projections, (query, key, value), strict=True)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        if kernels.attends(query.shape[-1] // self.heads):
            return kernels.attention(query, key, value, self.heads, keep)
        return super().attend(query, key, value, keep)


class PackedDeformable(DeformableAttention):
    """:class:`DeformableAttention` with one product for offsets and logits."""

    def __init__(self, attention: DeformableAttention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.heads, self.levels, self.points = attention.heads, attention.levels, attention.points
        asked = attention.sampling_offsets, attention.attention_weights
        self.sizes = [part.out_features for part in asked]
        self.asked = packed_linear(*(torch.cat([getattr(part, name) for part in asked]) for name in ('weight', 'bias')),
                                   'none', dtype)
        self.value_proj, self.output_proj = (packed(part, dtype) for part in (attention.value_proj,
                                                                             attention.output_proj))

    def ask(self, query: Tensor) -> Sequence[Tensor]:
        return self.asked(query).split(self.sizes, -1)


def packed(module: nn.Module, dtype: torch.dtype, units: torch.dtype = torch.float32) -> nn.Module:
    """Return the packed form of a layer; of another module, the module with its layers packed in place.

    ``dtype`` is that of layers, ``units`` that of the products of units of several convolutions, if layers are float32.
    """
    if type(module) in (nn.Linear, Linear):
        return packed_linear(module.weight, module.bias, getattr(module, 'activation', 'none'), dtype)
    if type(module) is MLP and all(small(layer.weight, layer.activation, dtype) for layer in module.layers):
        return PackedLinears(*(product(layer.weight, layer.bias, layer.activation) for layer in module.layers))
    if isinstance(module, nn.Conv2d):
        return (PackedPointwise if module.kernel_size == (1, 1) else PackedConv)(module, dtype)
    if type(module) in UNITS and dtype == torch.float32 and PackedChain.does(module):
        return UNITS[type(module)](module, units)
    if isinstance(module, nn.GroupNorm):
        return PackedGroupNorm(module)
    if type(module) is NormAndSum and PackedNormAndSum.does(module):
        return PackedNormAndSum(module)
    if type(module) is DeformableAttention:
        return PackedDeformable(module, dtype)
    if type(module) is Attention:
        return PackedAttention(module, dtype)
    if type(module) is MaskedDecoder and PackedDecoder.does(module, dtype):
        PackedDecoder.of(module)
    for name, child in module.named_children():
        setattr(module, name, packed(child, dtype, units))
    if type(module) is NanoDet and dtype == torch.float32 and kernels.compiled() is not None:
        return PackedNanoDet.of(module)
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


def inference_dtype(precision: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the dtype for :func:`inference_form`. Raise ValueError for a precision that is none.

    ``auto`` is bfloat16 for the default model on a CPU that multiplies it faster, where it costs 0.3 AP at most. Other
    models lose more: whole layers would round, and attention masks with them.
    """
    fast = config.backbone == 'nanodet' and device.type == 'cpu' and torch.bfloat16 in packable()
    if precision == 'auto' and fast and kernels.fast_bfloat16():
        return torch.bfloat16
    return pick_precision(precision)


def inference_form(model: VideoInstanceModel, device: torch.device, dtype: torch.dtype = torch.float32,
                   ) -> VideoInstanceModel:
    """Return the model for inference on ``device``, computing in ``dtype``, changed in place.

    On a CPU, bfloat16 is for what a detector's units of convolutions multiply, if the model starts from one.

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
        if isinstance(model.backbone, NanoDet) and dtype == torch.bfloat16 and kernels.compiled() is not None:
            packed(model, torch.float32, dtype)
            model.mixes = True
        else:
            packed(model, dtype)
        model.channels_last = True
        if tracker:     # the tracker reads the weights of this one and never calls it
            tracker.mask_feature_proj = projection
    return model

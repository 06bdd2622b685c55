"""The inference form of a model: the same weights, laid out and joined for speed.

Batch norms are folded into their convolutions, and maps have their channels last. On a CPU weights lie as oneDNN's
kernels want them, with activation and residual sum in the same pass. docs/reference/benchmark.md has the
speed. Results differ from the plain form by rounding alone.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.backbones.nanodet import GhostBlock, NanoDet, Separable, ShuffleUnit
from tar_vis_core.models.backbones.resnet import ResNet50
from tar_vis_core.models.box_masks import AT_ONCE, GRID, BoxMasks, grid_in
from tar_vis_core.models.cuda_graphs import CudaRecorder, record_parts
from tar_vis_core.models.layers import Attention, Linear, bilinear
from tar_vis_core.models.mask_branch import MaskBranch, Refine
from tar_vis_core.models.proposals import wider
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.device import use_full_float32

# an activation's name and constants in oneDNN's operators
ONEDNN_ACTIVATIONS: dict[str, tuple[str, list[float], str]] = {
    'none': ('none', [], ''), 'relu': ('relu', [], ''), 'relu6': ('hardtanh', [0.0, 6.0], ''),
    'gelu': ('gelu', [], 'none'), 'leaky_relu': ('leaky_relu', [0.1], '')}

# by what the compiled kernel multiplies what is negative
SLOPES = {'none': 1.0, 'relu': 0.0, 'leaky_relu': 0.1}

KEPT_SIZES = 8      # of images, whose constants are kept

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


class PackedChain(nn.Module):
    """Convolutions one after the other by the compiled kernel in float32: a depthwise one if it is first, then 1x1."""

    def __init__(self, *convolutions: nn.Conv2d) -> None:
        super().__init__()
        filters, first, products = None, convolutions[0], []
        for conv in convolutions:
            bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
            slope, weight = SLOPES[conv.activation], conv.weight.detach().float()
            if conv.groups > 1:
                filters = weight[:, 0].permute(1, 2, 0).contiguous(), bias, slope
            else:
                products.append((kernels.panels(weight[:, :, 0, 0]), bias, slope))
        self.how = kernels.Convolution(first.in_channels, filters, tuple(products), first.stride[0])

    @staticmethod
    def does(unit: nn.Module) -> bool:
        """Return whether all convolutions of a unit can be computed so, but that which makes one channel of many."""
        return kernels.compiled() is not None and all(
            min(conv.in_channels, conv.out_channels) >= kernels.PANEL and conv.activation in SLOPES and not conv.same
            and (conv.groups == conv.in_channels == conv.out_channels or (
                conv.groups == 1 and conv.kernel_size == (1, 1) and conv.stride == (1, 1)))
            for conv in unit.modules() if isinstance(conv, nn.Conv2d) and conv.out_channels > 1)

    def forward(self, x: Tensor, *added: Tensor | None, passed: Tensor | None = None, out: Tensor | None = None,
                ) -> Tensor:
        return kernels.convolve(x, self.how, added, passed, out)


class PackedShuffleUnit(nn.Module):
    """``ShuffleUnit``, whose last product puts its channels between those that pass."""

    def __init__(self, unit: ShuffleUnit) -> None:
        super().__init__()
        self.shortcut = None if unit.shortcut is None else PackedChain(*unit.shortcut)
        self.expand, self.convolve = PackedChain(unit.expand), PackedChain(*unit.convolve)

    def forward(self, x: Tensor) -> Tensor:
        passed, own = (self.shortcut(x), x) if self.shortcut is not None else x.chunk(2, 1)
        return self.convolve(self.expand(own), passed=passed)


class PackedGhostBlock(nn.Module):
    """``GhostBlock``, whose halves write into one map."""

    def __init__(self, block: GhostBlock) -> None:
        super().__init__()
        self.halves = nn.ModuleList(PackedChain(conv) for conv in (
            block.primary1, block.cheap1, block.primary2, block.cheap2))
        self.shortcut = PackedChain(*block.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for primary, cheap in (self.halves[:2], self.halves[2:]):
            both = kernels.empty_map(y, 2 * primary.how.outputs)
            halves = both.chunk(2, 1)
            cheap(primary(y, out=halves[0]), out=halves[1])
            y = both
        return self.shortcut(x, y)


class PackedNanoDet(NanoDet):
    """``NanoDet``, which enlarges a map into a part of another."""

    @staticmethod
    def joined(coarse: Tensor, fine: Tensor) -> Tensor:
        channels = coarse.shape[1]
        both = kernels.empty_map(fine, channels + fine.shape[1])
        kernels.enlarge(coarse, fine.shape[-2:], out=both[:, :channels])
        both[:, channels:] = fine
        return both


class PackedRefine(nn.Module):
    """``Refine`` in one call."""

    def __init__(self, block: Refine, *more: nn.Conv2d) -> None:
        super().__init__()
        self.chain = PackedChain(block.depthwise, block.expand, block.project, *more)

    def forward(self, x: Tensor, *added: Tensor) -> Tensor:
        return self.chain(x, None, x, *added)


class PackedMaskBranch(MaskBranch):
    """``MaskBranch`` whose refined map becomes mask features before it leaves the cache."""

    def __init__(self, branch: MaskBranch) -> None:
        nn.Module.__init__(self)
        self.mask_dim, self.place = branch.mask_dim, PackedLinear(branch.place.weight, None, 'none', torch.float32)
        self.levels = nn.ModuleList(map(PackedChain, branch.levels))
        self.blocks = nn.Sequential(*map(PackedRefine, branch.blocks))
        self.reduce, self.lateral = PackedChain(branch.reduce), PackedChain(branch.lateral)
        self.output = PackedRefine(branch.output, branch.mask_features)
        self.enlarged = kernels.enlarge
        self.kept: dict[tuple[int, int, int], Tensor] = {}      # what places add to the maps of some sizes

    def forward(self, stem: Tensor, *maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, levels = self.joined(stem, *maps)
        size = len(stem), *stem.shape[-2:]
        if size not in self.kept:
            if len(self.kept) >= KEPT_SIZES:
                self.kept.clear()
            self.kept[size] = self.places(stem).expand_as(x).contiguous(memory_format=torch.channels_last)
        return self.output(x, self.kept[size]), levels


class PackedBoxMasks(BoxMasks):
    """``BoxMasks`` with one product of the mask features in place of two, its weights another for each query.

    W1 (f * e) + W2 f = (W1 diag(e) + W2) f
    """

    def __init__(self, net: BoxMasks) -> None:
        nn.Module.__init__(self)
        self.place = net.place
        self.products = nn.ParameterList(part.weight.detach()[:, :, 0, 0].t().contiguous()
                                         for part in (net.agreement, net.mask))
        fine = copy.deepcopy(net.fine)
        fine.bias.data += net.agreement.bias + net.mask.bias
        self.fine, self.down, self.up = PackedChain(fine), PackedChain(*net.down), PackedChain(net.up)
        self.blocks, self.sharpen = nn.Sequential(*map(PackedRefine, net.blocks)), PackedRefine(net.sharpen)
        self.logit = PackedPointwise(net.logit, torch.float32)
        self.places = bilinear(net.place[None], (GRID, GRID)).repeat(AT_ONCE, 1, 1, 1).contiguous(
            memory_format=torch.channels_last)

    @staticmethod
    def sampled(features: Tensor, boxes: Tensor) -> Tensor:
        places = (grid_in(wider(boxes)).flatten(0, 1) + 1) / 2
        return kernels.sample_map(features[None], places)[0].unflatten(1, (-1, GRID)).transpose(0, 1)

    def forward(self, embeddings: Tensor, mask: Tensor, fine: Tensor) -> Tensor:
        agreement, plain = self.products
        x = self.fine(fine, self.places[:len(fine)])
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        pixels.baddbmm_(mask.permute(0, 2, 3, 1).flatten(1, 2), torch.addcmul(plain, embeddings[..., None], agreement))
        x = kernels.enlarge(self.up(self.blocks(self.down(F.relu_(x)))), (GRID, GRID), x)
        return self.logit(self.sharpen(x))[:, 0]


# units and their packed form, if the compiled kernel can compute their convolutions
UNITS = {BoxMasks: PackedBoxMasks, MaskBranch: PackedMaskBranch, ShuffleUnit: PackedShuffleUnit,
         GhostBlock: PackedGhostBlock, Refine: PackedRefine, Separable: lambda pair: PackedChain(*pair)}


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
    if type(module) in UNITS and dtype == torch.float32 and PackedChain.does(module):
        return UNITS[type(module)](module)
    if isinstance(module, nn.GroupNorm):
        return PackedGroupNorm(module)
    if type(module) is Attention:
        return PackedAttention(module, dtype)
    for name, child in module.named_children():
        setattr(module, name, packed(child, dtype))
    if type(module) is NanoDet and dtype == torch.float32 and kernels.compiled() is not None:
        module.__class__ = PackedNanoDet
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

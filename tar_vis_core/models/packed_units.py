"""Units of several convolutions as one call of the compiled kernel each, a piece of a map at a time."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.backbones.nanodet import GhostBlock, NanoDet, Separable, ShuffleUnit
from tar_vis_core.models.box_masks import AT_ONCE, GRID, BoxMasks
from tar_vis_core.models.layers import bilinear
from tar_vis_core.models.mask_branch import MaskBranch, Pointwise, Refine
from tar_vis_core.models.packed_layers import SLOPES, PackedLinear, product
from tar_vis_core.runtime import kernels
from tar_vis_core.runtime.kernels import maps
from tar_vis_core.runtime.kernels.rows import draw, grid_in
from tar_vis_core.runtime.kernels.tapes import Tapes


class PackedChain(nn.Module):
    """Convolutions one after the other by the compiled kernel: a depthwise one if it is first, then 1x1.

    Maps and sums are float32; ``dtype`` is that of what 1x1 convolutions multiply.
    """

    def __init__(self, *convolutions: nn.Conv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        filters, first, products = None, convolutions[0], []
        for conv in convolutions:
            if conv.groups == 1:
                products.append(product(conv.weight[:, :, 0, 0], conv.bias, conv.activation, dtype))
                continue
            bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
            weight = conv.weight.detach().float()[:, 0].permute(1, 2, 0).contiguous()
            filters = weight, bias, SLOPES[conv.activation]
        self.how = maps.Convolution(first.in_channels, filters, tuple(products), first.stride[0])

    @staticmethod
    def does(unit: nn.Module) -> bool:
        """Return whether all convolutions of a unit can be computed so, but that which makes one channel of many."""
        return kernels.compiled() is not None and all(
            min(conv.in_channels, conv.out_channels) >= maps.PANEL and conv.activation in SLOPES and not conv.same
            and (conv.groups == conv.in_channels == conv.out_channels or (
                conv.groups == 1 and conv.kernel_size == (1, 1) and conv.stride == (1, 1)))
            for conv in unit.modules() if isinstance(conv, nn.Conv2d) and conv.out_channels > 1)

    def forward(self, x: Tensor, *added: Tensor | None, passed: Tensor | None = None, out: Tensor | None = None,
                ) -> Tensor:
        return maps.convolve(x, self.how, added, passed, out)


class PackedShuffleUnit(nn.Module):
    """``ShuffleUnit``, whose last product puts its channels between those that pass."""

    def __init__(self, unit: ShuffleUnit, dtype: torch.dtype) -> None:
        super().__init__()
        self.shortcut = None if unit.shortcut is None else PackedChain(*unit.shortcut, dtype=dtype)
        self.expand, self.convolve = PackedChain(unit.expand, dtype=dtype), PackedChain(*unit.convolve, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        passed, own = (self.shortcut(x), x) if self.shortcut is not None else x.chunk(2, 1)
        return self.convolve(self.expand(own), passed=passed)


class PackedGhostBlock(nn.Module):
    """``GhostBlock``, whose halves write into one map."""

    def __init__(self, block: GhostBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.halves = nn.ModuleList(PackedChain(conv, dtype=dtype) for conv in (
            block.primary1, block.cheap1, block.primary2, block.cheap2))
        self.shortcut = PackedChain(*block.shortcut, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for primary, cheap in (self.halves[:2], self.halves[2:]):
            both = maps.empty_map(y, 2 * primary.how.outputs)
            halves = both.chunk(2, 1)
            cheap(primary(y, out=halves[0]), out=halves[1])
            y = both
        return self.shortcut(x, y)


class PackedNanoDet(NanoDet):
    """``NanoDet``, which writes maps that are joined into one and asks for all that follows its stem in one call."""

    @classmethod
    def of(cls, net: NanoDet) -> PackedNanoDet:
        """Return the same network in this form."""
        net.__class__, net.tapes = cls, Tapes()
        return net

    def maps(self, fine: Tensor) -> tuple[Tensor, ...]:
        return self.tapes(super().maps, fine)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        return maps.convolve(x, maps.Convolution(x.shape[1], None, (), 2, True))

    @staticmethod
    def added(a: Tensor, b: Tensor) -> Tensor:
        return maps.enlarge(a, b.shape[-2:], b)

    @staticmethod
    def joined(coarse: Tensor, fine: Tensor) -> Tensor:
        channels = coarse.shape[1]
        both = maps.empty_map(fine, channels + fine.shape[1])
        maps.enlarge(coarse, fine.shape[-2:], out=both[:, :channels])
        maps.enlarge(fine, fine.shape[-2:], out=both[:, channels:])
        return both


class PackedRefine(nn.Module):
    """``Refine`` in one call."""

    def __init__(self, block: Refine, dtype: torch.dtype, *more: nn.Conv2d) -> None:
        super().__init__()
        self.chain = PackedChain(block.depthwise, block.expand, block.project, *more, dtype=dtype)

    def forward(self, x: Tensor, *added: Tensor) -> Tensor:
        return self.chain(x, None, x, *added)


class PackedReduce(nn.Module):
    """A ``Refine`` and the product that follows it, which has fewer outputs: R (P h + x) = (R P) h + R x."""

    def __init__(self, block: Refine, reduce: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        both, own = copy.deepcopy(block.project), copy.deepcopy(reduce)
        both.weight.data = torch.einsum('oi...,ik...->ok...', reduce.weight, block.project.weight)
        both.bias.data = reduce.bias + reduce.weight[:, :, 0, 0] @ block.project.bias
        own.bias.data.zero_()
        self.chain = PackedChain(block.depthwise, block.expand, both, dtype=dtype)
        self.own = PackedChain(own, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x, None, self.own(x))


class PackedMaskBranch(MaskBranch):
    """``MaskBranch`` whose refined map becomes mask features before it leaves the cache."""

    def __init__(self, branch: MaskBranch, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.mask_dim, self.place = branch.mask_dim, PackedLinear(branch.place.weight, None, 'none', torch.float32)
        self.levels = nn.ModuleList(PackedChain(level, dtype=dtype) for level in branch.levels)
        self.blocks = nn.Sequential(*(PackedRefine(block, dtype) for block in branch.blocks[:-1]))
        self.reduce = PackedReduce(branch.blocks[-1], branch.reduce, dtype)
        self.lateral = PackedChain(branch.lateral, dtype=dtype)
        self.output = PackedRefine(branch.output, dtype, branch.mask_features)
        self.enlarged = maps.enlarge
        self.tapes = Tapes()

    def forward(self, stem: Tensor, *maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        features, *levels = self.tapes(self.pieces, stem, *maps)
        return features, levels

    def pieces(self, stem: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        """Return mask features and levels; what places add to the maps of some sizes is a constant of the tape."""
        places = self.places(stem).expand(len(stem), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x, levels = self.joined(stem, *maps)
        return self.output(x, places), *levels


class PackedBoxMasks(BoxMasks):
    """``BoxMasks`` in one call, with one product of the mask features in place of two, other weights for each query.

    W1 (f * e) + W2 f = (W1 diag(e) + W2) f
    """

    def __init__(self, net: BoxMasks, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.place, self.tapes = net.place, Tapes(2 * AT_ONCE)
        self.products = nn.ParameterList(nn.Parameter(maps.panels(part.weight.detach()[:, :, 0, 0]), False)
                                         for part in (net.agreement, net.mask))
        fine, logit = copy.deepcopy(net.fine), Pointwise(net.logit.in_channels, maps.PANEL)
        fine.bias.data += net.agreement.bias + net.mask.bias
        for own, one in ((logit.weight, net.logit.weight), (logit.bias, net.logit.bias)):
            own.data = F.pad(one.data, (0, 0) * (one.dim() - 1) + (0, maps.PANEL - 1))      # the kernel's least
        self.fine, self.down, self.up = (PackedChain(*part, dtype=dtype) for part in ([fine], net.down, [net.up]))
        self.blocks = nn.Sequential(*(PackedRefine(block, dtype) for block in net.blocks))
        self.sharpen = PackedRefine(net.sharpen, dtype, logit)
        self.places = bilinear(net.place[None], (GRID, GRID)).permute(0, 2, 3, 1).repeat(1, AT_ONCE, 1, 1)
        self.nothing = torch.zeros(len(net.place))

    def drawn(self, products: Tensor, boxes: Tensor, embeddings: Tensor, features: Tensor, fine: Tensor) -> Tensor:
        agreement, plain = self.products
        weights = torch.addcmul(plain, embeddings[:, None, :, None], agreement).flatten(1, 2)       # no map
        return self.tapes(self.pieces, features[None], fine[None], weights, products, boxes)[0]

    def pieces(self, features: Tensor, fine: Tensor, weights: Tensor, products: Tensor, boxes: Tensor) -> tuple[Tensor]:
        """Return :meth:`drawn` of K masks with ``weights (K, ..)`` as panels."""
        count, places = len(weights), grid_in(boxes, GRID)
        added = self.fine(maps.sample_map(fine, places, made=True), self.places[:, :count * GRID].permute(0, 3, 1, 2))
        inside, x = maps.sample_map(features, places, made=True), maps.empty_map(added, added.shape[1])
        for own, *rows in zip(weights, *(part.split(GRID, 2) for part in (inside, added, x)), strict=True):
            how = maps.Convolution(inside.shape[1], None, ((own, self.nothing, 0.0),))
            maps.convolve(rows[0], how, rows[1:2], out=rows[2])
        x = x.permute(0, 2, 3, 1).unflatten(1, (count, GRID))[0].permute(0, 3, 1, 2)
        x = maps.enlarge(self.up(self.blocks(self.down(x))), (GRID, GRID), x)
        return draw(self.sharpen(x).permute(0, 2, 3, 1), boxes, products),


# units and their packed form, if the compiled kernel can compute their convolutions
UNITS = {BoxMasks: PackedBoxMasks, MaskBranch: PackedMaskBranch, ShuffleUnit: PackedShuffleUnit,
         GhostBlock: PackedGhostBlock, Refine: PackedRefine,
         Separable: lambda pair, dtype: PackedChain(*pair, dtype=dtype)}

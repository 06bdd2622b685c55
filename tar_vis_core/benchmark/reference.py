"""The plain model run as the published implementations run it, for ``tar-vis bench`` and ``tar-vis study operations``.

Full-size masks and all heads after every layer, attention as separate products, deformable attention as Deformable
DETR's pure PyTorch form, on GPUs fused. The weights and the results are the model's own, up to rounding; only the work
differs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tar_vis_core.instances import RoutingTrace
from tar_vis_core.models.deformable import DeformableAttention, Shapes
from tar_vis_core.models.frame_memory import FrameMemory
from tar_vis_core.models.layers import bilinear, sine_encoding
from tar_vis_core.models.masked_decoder import DecoderOutput, MaskedDecoder
from tar_vis_core.models.pixel_decoder import PixelDecoder
from tar_vis_core.models.proposals import Proposals
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime import kernels


class UnreducedMemory(FrameMemory):
    """Keys and values of a frame; mask features stay at stride 4."""

    def __getitem__(self, level: int) -> tuple[Tensor, Tensor, None]:
        """Return ``key (N, S, D)`` and ``value (N, S, D)``."""
        if level not in self._made:
            x = self.levels[level]
            value = x.flatten(2).transpose(1, 2) + self.level_embed[level]
            position = sine_encoding(*x.shape[-2:], x.shape[1], x.device).flatten(1).t()
            self._made[level] = value + position.to(value.dtype), value, None
        return self._made[level]


def unfused_attention() -> contextlib.AbstractContextManager:
    """Compute all attention as separate products and softmax while the block runs."""
    return sdpa_kernel(SDPBackend.MATH)


class ReferenceDecoder(MaskedDecoder):
    """Runs all heads before each layer and after the last one, with masks of stride 4.

    Each layer's attention mask is made of these (Mask2Former). Rows without a pixel are found by indexing, which waits
    for the device.
    """

    def memory(self, mask_features: Tensor, levels: list[Tensor], proposals: Proposals | None = None
               ) -> UnreducedMemory:
        """Return what the layers attend to in a frame, and keep it for the heads."""
        self.frame = UnreducedMemory(mask_features, levels, self.level_embed, proposals=proposals)
        return self.frame

    def run_layer(self, i: int, x: Tensor, memory: UnreducedMemory, position: Tensor | None = None) -> Tensor:
        """Run layer ``i`` on queries ``(N, Q, D)``, which attend where their own mask is positive."""
        position = self.query_embed if position is None else position
        key, value, _ = memory[i % 3]
        blocked = self.blocked_by_heads(x, memory, i % 3)
        inside = memory.inside(i % 3)
        if inside is None:
            blocked[torch.where(blocked.all(-1))] = False
        else:
            blocked |= ~inside
            blocked = torch.where(blocked.all(-1, keepdim=True), ~inside, blocked)
        return self.layers[i](x, x + position, key, value, ~blocked, position)

    def output(self, x: Tensor, trace: RoutingTrace, memory: FrameMemory | None = None) -> DecoderOutput:
        """Return what the last queries say, after the heads of a layer that does not come."""
        self.blocked_by_heads(x, self.frame, len(self.layers) % 3)
        return super().output(x, trace, memory)

    def blocked_by_heads(self, x: Tensor, memory: UnreducedMemory, level: int) -> Tensor:
        """Run all heads on queries; return where their masks are negative at a level, ``(N, Q, S)``."""
        embeddings = self.heads(x)[-1]
        masks = torch.einsum('nqd,ndhw->nqhw', embeddings, memory.mask_features)
        return bilinear(masks, memory.levels[level].shape[-2:]).flatten(2).sigmoid() < 0.5


def fused(device: torch.device, width: int) -> bool:
    """Return whether deformable attention is one operator, as it is on GPUs."""
    return device.type == 'cuda' and kernels.samples_on_gpu(width, device)


def sampler(device: torch.device, width: int) -> str:
    """Return the name of the sampler."""
    return 'Triton kernel, fused as published ones' if fused(device, width) else 'grid_sample, as published'


class PublishedAttention(DeformableAttention):
    """Deformable attention in the steps of the published form."""

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: Shapes,
                added: Tensor | None = None) -> Tensor:
        """Sample by ``grid_sample`` level by level; all samples are stacked in memory, weighted, summed.

        Published implementations have a fused operator for GPUs, so there the kernel of ours takes the samples.
        """
        n, s, _ = query.shape
        heads, levels, points = self.heads, self.levels, self.points
        offsets = self.sampling_offsets(query).view(n, s, heads, levels, points, 2)
        if fused(query.device, value.shape[-1] // heads):
            logits = self.attention_weights(query).view(offsets.shape[:-1])
            samples = kernels.sample_on_gpu(self.value_proj(value), offsets.float(), logits, reference, shapes)
            return self.output_proj(samples, added)
        weights = self.attention_weights(query).view(n, s, heads, -1).softmax(-1)
        # float32, and with them the positions, also within a backbone in mixed precision
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=query.device)
        grids = 2 * (reference[:, None, None, None] + offsets / sizes[:, None]) - 1
        values, sampled = self.value_proj(value).to(grids.dtype), []
        for level, ((h, w), part) in enumerate(zip(shapes, values.split([h * w for h, w in shapes], 1), strict=True)):
            maps = part.transpose(1, 2).reshape(n * heads, -1, h, w)
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(maps, grid, 'bilinear', 'zeros', align_corners=False))  # (N * heads, d, Sq, P)
        weights = weights.transpose(1, 2).reshape(n * heads, 1, s, levels * points)
        out = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
        out = self.output_proj(out.view(n, -1, s).transpose(1, 2).contiguous())
        return out if added is None else added + out


class Float32PixelDecoder(PixelDecoder):
    """Leaves mixed precision, as the pixel decoder of Mask2Former does."""

    def forward(self, *maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the result of :class:`PixelDecoder` in float32."""
        with torch.autocast(maps[0].device.type, enabled=False):
            return super().forward(*(m.float() for m in maps))


STYLE = {MaskedDecoder: ReferenceDecoder, DeformableAttention: PublishedAttention, PixelDecoder: Float32PixelDecoder}


def in_reference_style(model: VideoInstanceModel, style: Mapping[type, type] = STYLE) -> VideoInstanceModel:
    """Return a plain model with other parts around the same weights: by default all of the reference style."""
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for part in made.modules():
        part.__class__ = style.get(type(part), type(part))
    return made

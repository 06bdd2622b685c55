"""The plain model run as the published implementations run it, for ``tar-vis bench`` and ``tar-vis study operations``.

Full-size masks and all heads after every layer, attention as separate products, deformable attention as Deformable
DETR's pure PyTorch form, on GPUs fused. The weights and the results are the model's own, up to rounding; only the work
differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tar_vis_core.instances import RoutingTrace
from tar_vis_core.models import deformable, masked_decoder
from tar_vis_core.models.deformable import DeformableAttention, Shapes
from tar_vis_core.models.layers import bilinear, sine_encoding
from tar_vis_core.models.masked_decoder import DecoderOutput, FrameMemory, MaskedDecoder
from tar_vis_core.models.pixel_decoder import PixelDecoder
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime import kernels


class UnreducedMemory(FrameMemory):
    """Keys and values of a frame; mask features stay at stride 4."""

    def __getitem__(self, level: int) -> tuple[Tensor, Tensor, None]:
        """``key (N, S, D)`` and ``value (N, S, D)``."""
        if level not in self._made:
            x = self.levels[level]
            value = x.flatten(2).transpose(1, 2) + self.level_embed[level]
            position = sine_encoding(*x.shape[-2:], x.shape[1], x.device).flatten(1).t()
            self._made[level] = value + position.to(value.dtype), value, None
        return self._made[level]


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """All attention as separate products and softmax while the block runs."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def full_size_masks(decoder: MaskedDecoder) -> Iterator[None]:
    """While the block runs, all heads run before each layer and after the last one, with masks of stride 4.

    Each layer's attention mask is made of these (Mask2Former). Rows without a pixel are found by indexing, which waits
    for the device.
    """
    frame: UnreducedMemory | None = None
    plain_output = decoder.output

    def blocked_by_heads(x: Tensor, memory: UnreducedMemory, level: int) -> Tensor:
        normed = decoder.decoder_norm(x)
        decoder.class_embed(normed)
        masks = torch.einsum('nqd,ndhw->nqhw', decoder.mask_embed(normed), memory.mask_features)
        return bilinear(masks, memory.levels[level].shape[-2:]).flatten(2).sigmoid() < 0.5

    def run_layer(i: int, x: Tensor, memory: UnreducedMemory, position: Tensor) -> Tensor:
        nonlocal frame
        frame = memory
        key, value, _ = memory[i % 3]
        blocked = blocked_by_heads(x, memory, i % 3)
        blocked[torch.where(blocked.all(-1))] = False
        return decoder.layers[i](x, x + position, key, value, ~blocked, position)

    def output(x: Tensor, trace: RoutingTrace) -> DecoderOutput:
        if frame is not None:       # for a layer that does not come
            blocked_by_heads(x, frame, len(decoder.layers) % 3)
        return plain_output(x, trace)

    with mock.patch.object(masked_decoder, 'FrameMemory', UnreducedMemory), \
            mock.patch.object(decoder, 'run_layer', run_layer), mock.patch.object(decoder, 'output', output):
        yield


def published_attention(module: DeformableAttention, query: Tensor, value: Tensor, reference: Tensor, shapes: Shapes,
                        added: Tensor | None = None) -> Tensor:
    """``DeformableAttention.forward`` in the steps of the published form.

    ``grid_sample`` level by level, all samples stacked in memory, weighted, summed. Published implementations have a
    fused operator for GPUs, so there the kernel of ours takes the samples.
    """
    n, s, _ = query.shape
    heads, levels, points = module.heads, module.levels, module.points
    offsets = module.sampling_offsets(query).view(n, s, heads, levels, points, 2)
    if fused(query.device, value.shape[-1] // heads):
        logits = module.attention_weights(query).view(offsets.shape[:-1])
        samples = kernels.sample_on_gpu(module.value_proj(value), offsets.float(), logits, reference, shapes)
        return module.output_proj(samples, added)
    weights = module.attention_weights(query).view(n, s, heads, -1).softmax(-1)
    # float32, and with them the positions, also within a backbone in mixed precision
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=query.device)
    grids = 2 * (reference[:, None, None, None] + offsets / sizes[:, None]) - 1
    values, sampled = module.value_proj(value).to(grids.dtype), []
    for level, ((h, w), part) in enumerate(zip(shapes, values.split([h * w for h, w in shapes], 1), strict=True)):
        maps = part.transpose(1, 2).reshape(n * heads, -1, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, 'bilinear', 'zeros', align_corners=False))  # (N * heads, d, Sq, P)
    weights = weights.transpose(1, 2).reshape(n * heads, 1, s, levels * points)
    out = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
    out = module.output_proj(out.view(n, -1, s).transpose(1, 2).contiguous())
    return out if added is None else added + out


def fused(device: torch.device, width: int) -> bool:
    """Return whether deformable attention is one operator, as it is on GPUs."""
    return device.type == 'cuda' and kernels.samples_on_gpu(width, device)


def sampler(device: torch.device, width: int) -> str:
    """Return what samples, in words."""
    return 'Triton kernel, fused as published ones' if fused(device, width) else 'grid_sample, as published'


@contextlib.contextmanager
def published_sampling() -> Iterator[None]:
    """All deformable attention by :func:`published_attention` while the block runs."""
    with mock.patch.object(DeformableAttention, 'forward', published_attention), \
            mock.patch.object(deformable, 'sampler', sampler):
        yield


@contextlib.contextmanager
def float32_pixel_decoder(decoder: PixelDecoder) -> Iterator[None]:
    """The pixel decoder leaves mixed precision while the block runs, as it does in Mask2Former."""
    plain = decoder.forward

    def forward(*maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(maps[0].device.type, enabled=False):
            return plain(*(m.float() for m in maps))

    with mock.patch.object(decoder, 'forward', forward):
        yield


@contextlib.contextmanager
def reference_style(model: VideoInstanceModel) -> Iterator[None]:
    """A plain model computes in the reference's style while the block runs."""
    with unfused_attention(), published_sampling(), full_size_masks(model.decoder), \
            float32_pixel_decoder(model.pixel_decoder):
        yield

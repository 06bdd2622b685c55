"""The decoder as the published implementations run it: full-size masks after every layer, unfused attention.

The weights and the results are the model's own, up to rounding; only the work differs. For the study of operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tar_vis_core.models import masked_decoder
from tar_vis_core.models.layers import bilinear, sine_encoding
from tar_vis_core.models.masked_decoder import FrameMemory, MaskedDecoder


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
    """While the block runs, all heads run before each layer, and its attention mask is made at stride 4 (Mask2Former).

    Rows without a pixel are found by indexing, which waits for the device.
    """
    def run_layer(i: int, x: Tensor, memory: UnreducedMemory, position: Tensor) -> Tensor:
        key, value, _ = memory[i % 3]
        normed = decoder.decoder_norm(x)
        decoder.class_embed(normed)
        masks = torch.einsum('nqd,ndhw->nqhw', decoder.mask_embed(normed), memory.mask_features)
        blocked = bilinear(masks, memory.levels[i % 3].shape[-2:]).flatten(2).sigmoid() < 0.5
        blocked[torch.where(blocked.all(-1))] = False
        return decoder.layers[i](x, x + position, key, value, ~blocked, position)

    with mock.patch.object(masked_decoder, 'FrameMemory', UnreducedMemory), \
            mock.patch.object(decoder, 'run_layer', run_layer):
        yield

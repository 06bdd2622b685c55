"""Decoder outputs without a decoder."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tar_vis_core.models.masked_decoder import DecoderOutput


def decoder_output(logits: Tensor, mask_embeddings: Tensor, embeddings: Tensor, reid: Tensor | None = None,
                   ) -> DecoderOutput:
    """Frames with these predictions, every tensor ``(T, Q, .)``."""
    return DecoderOutput(embeddings, embeddings, reid, logits, mask_embeddings, None)


def some_of(frames: DecoderOutput, which: slice) -> DecoderOutput:
    """A part of the frames."""
    fields = {f.name: getattr(frames, f.name) for f in dataclasses.fields(frames)}
    return DecoderOutput(**{name: value[which] if isinstance(value, Tensor) else value
                            for name, value in fields.items()})


def permuted(frames: DecoderOutput, orders: Tensor) -> DecoderOutput:
    """Every frame's queries in another order, ``orders (T, Q)``."""
    fields = {f.name: getattr(frames, f.name) for f in dataclasses.fields(frames)}
    return DecoderOutput(**{
        name: torch.stack([x[order] for x, order in zip(value, orders, strict=True)]) if isinstance(value, Tensor)
        else value for name, value in fields.items()})


def drifting_objects(frames: int, queries: int, seed: int = 0, noise: float = 0.1) -> DecoderOutput:
    """Queries that change a little from frame to frame, in one order; each has a cell of its own as its mask.

    To be seen with mask features ``one_cell_each``.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    base = 4 * normal(queries, 32)
    embeddings = base + noise * normal(frames, queries, 32)
    logits = 2 * normal(queries, 6) + noise * normal(frames, queries, 6)
    cells = (2 * torch.eye(queries) - 1).expand(frames, -1, -1)
    return decoder_output(logits, cells, embeddings, 4 * normal(queries, 16) + noise * normal(frames, queries, 16))


def one_cell_each(frames: int, queries: int) -> Tensor:
    """Mask features ``(T, Q, 1, Q)`` whose channel ``q`` is one in cell ``q``."""
    return torch.eye(queries)[None, :, None].expand(frames, -1, -1, -1)

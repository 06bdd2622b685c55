"""Decoder outputs without a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.models.masked_decoder import DecoderOutput


def decoder_output(logits: Tensor, mask_embeddings: Tensor, embeddings: Tensor, reid: Tensor | None = None,
                   ) -> DecoderOutput:
    """Frames with these predictions, every tensor ``(T, Q, .)``."""
    return DecoderOutput(embeddings, embeddings, reid, logits, mask_embeddings, None)


def changed(frames: DecoderOutput, change: Callable[[Tensor], Tensor]) -> DecoderOutput:
    """The same change to all that is known of the queries."""
    values = {field.name: getattr(frames, field.name) for field in fields(frames)}
    return DecoderOutput(**{name: change(value) if isinstance(value, Tensor) else value
                            for name, value in values.items()})


def permuted(frames: DecoderOutput, orders: Tensor) -> DecoderOutput:
    """Every frame's queries in another order, ``orders (T, Q)``."""
    return changed(frames, lambda x: torch.stack([row[order] for row, order in zip(x, orders, strict=True)]))


def random_orders(frames: int, queries: int, seed: int = 0) -> Tensor:
    """``(T, Q)``"""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(queries, generator=generator) for _ in range(frames)])


def drifting_objects(frames: int, queries: int, dim: int = 16, noise: float = 0.1, seed: int = 0) -> DecoderOutput:
    """Queries that change a little from frame to frame, in one order; each has a cell of its own as its mask.

    To be seen with mask features ``one_cell_each``.
    """
    generator = torch.Generator().manual_seed(seed)

    def drifting(width: int, scale: float) -> Tensor:
        base = F.normalize(torch.randn(queries, width, generator=generator), dim=1)  # none outshines another
        return scale * width ** 0.5 * base + noise * torch.randn(frames, queries, width, generator=generator)

    cells = (2 * torch.eye(queries) - 1).expand(frames, -1, -1)
    cells = torch.cat((cells, torch.zeros(frames, queries, max(0, dim - queries))), -1)[..., :max(dim, queries)]
    return decoder_output(drifting(6, 1), cells, drifting(dim, 1), drifting(dim, 3))


def one_cell_each(frames: int, queries: int) -> Tensor:
    """Mask features ``(T, Q, 1, Q)`` whose channel ``q`` is one in cell ``q``."""
    return torch.eye(queries)[None, :, None].expand(frames, -1, -1, -1)

"""What the layers of a masked decoder attend to in a frame, made when a layer first asks for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tar_vis_core.models.layers import bilinear, sine_encoding
from tar_vis_core.models.proposals import Proposals


def level_memory(level: int, x: Tensor, mask_features: Tensor, level_embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for a level ``x (N, D, h, w)``: ``key (N, S, D)``, ``value (N, S, D)``, mask features ``(N, D, S)``.
    """
    h, w = x.shape[-2:]
    value = x.flatten(2).transpose(1, 2) + level_embed[level]
    key = value + sine_encoding(h, w, x.shape[1], x.device).flatten(1).t().to(value.dtype)
    key, value = key.to(x.dtype), value.to(x.dtype)     # as mixed precision would for every layer
    # resize(e . F) = e . resize(F): one resize per level instead of one per layer and query.
    # The attention mask carries no gradient.
    return key, value, bilinear(mask_features.detach(), (h, w)).flatten(2)


class FrameMemory:
    """The :func:`level_memory` of a frame, made when a layer first asks for its level."""

    def __init__(self, mask_features: Tensor, levels: list[Tensor], level_embed: Tensor,
                 make: Callable[..., tuple[Tensor, Tensor, Tensor]] = level_memory,
                 proposals: Proposals | None = None):
        self.mask_features, self.levels, self.level_embed, self._make = mask_features, levels, level_embed, make
        self.proposals = proposals
        self._made: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._inside: dict[int, Tensor] = {}

    def __getitem__(self, level: int) -> tuple[Tensor, Tensor, Tensor]:
        if level not in self._made:
            self._made[level] = self._make(level, self.levels[level], self.mask_features, self.level_embed)
        return self._made[level]

    def reduced(self, level: int) -> Tensor:
        """Return the mask features at a level's size, ``(N, D, S)``, also if its memory is made without them."""
        made = self[level][2]
        return bilinear(self.mask_features, self.levels[level].shape[-2:]).flatten(2) if made is None else made

    def inside(self, level: int) -> Tensor | None:
        """Return which cells of a level each query's box touches, ``(N, Q, S)``; None for queries without boxes."""
        if self.proposals is not None and level not in self._inside:
            self._inside[level] = self.proposals.inside(self.levels[level].shape[-2:])
        return self._inside.get(level)

    def reorder(self, order: Tensor) -> None:
        """Put the proposals in another order, ``(N, Q)`` indices."""
        if self.proposals is not None:
            self.proposals, self.order, self._inside = self.proposals.ordered(order), order, {}

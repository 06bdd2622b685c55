"""Routers that look at the picture; not part of the paper.

The paper's Routers compare the queries of two frames. Behind the Synchronizer these hardly tell whether the picture
changed. These Routers ask what the last frame's queries find in the *new* picture: each of them still makes a mask, on
the mask features of both frames at stride 16, and the two masks are compared. So do the features inside the mask.

Layers stand in for each other, and which of them run matters as much as how many. So layers come in an order, with
those first that look at the finest level. A frame runs none of them or the first half; the other half takes away
hardly any loss, and a single layer gives queries that are poor to go on from. Training measures how much of the loss
behind the Synchronizer the first half takes away (compare ECO-M2F, Yao et al. 2024). It runs if that is worth the price
of its layers. The price is set afterwards, and the skip bias moves it: e times the price for a bias of 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

LEVEL = 1               # of the decoder's levels, the one at stride 16
EVIDENCE = 12           # numbers, see ``evidence``
LEAST_WORTH = 1e-3      # units of loss
SURE = 0.3              # probability of an object from which on a query's mask counts in the maxima


class Past(NamedTuple):
    """What the decoder takes over from the last frame."""

    queries: Tensor                 # (N, Q, D) of the last layer
    # For Routers that look at the picture:
    seen: Tensor | None = None      # (N, D', S) mask features at stride 16
    objects: Tensor | None = None   # (N, Q) probability that a query is an object

    @classmethod
    def of(cls, previous: Past | Tensor) -> Past:
        """Return the past itself, or that of queries alone."""
        return previous if isinstance(previous, Past) else cls(previous)

    def unless(self, skipped: Tensor, before: Past) -> Past:
        """Return the past of a batch of frames, but ``before`` for those in which nothing was refined, ``(N,)``."""
        return Past(*(torch.where(skipped.view(-1, *[1] * (own.dim() - 1)), old, own)
                      for own, old in zip(self, before, strict=True)))


class HandsOn:
    """The output of a frame, of which the next one takes something over."""

    queries: Tensor
    seen: Tensor | None
    objects: Tensor | None
    kept: Past | None

    @property
    def past(self) -> Past:
        """Return what the next frame takes over."""
        return self.kept or Past(self.queries, self.seen, self.objects)


def relative(change: Tensor, of: Tensor) -> Tensor:
    """Return a change as a share of what changed."""
    return change / of.clamp(min=1e-6)


def evidence(objects: Tensor, embeddings: Tensor, before: Tensor, now: Tensor, similarity: Tensor) -> Tensor:
    """Return what the last frame's queries find in the new picture, ``(N, EVIDENCE)``; nothing changed is about 0.

    ``objects (N, Q)`` is the probability that a query is an object; ``embeddings (N, Q, D')`` makes its mask;
    ``before, now (N, D', S)`` are the mask features; ``similarity (N, Q)`` is its cosine with the most similar query of
    the new frame.
    """
    masks, found = (embeddings @ before).sigmoid(), (embeddings @ now).sigmoid()
    areas, found_areas = masks.sum(-1), found.sum(-1)
    inside, found_inside = ((masks @ features.mT) / areas.clamp(min=1e-6)[..., None] for features in (before, now))
    by_query = torch.stack((
        1 - relative(torch.minimum(masks, found).sum(-1), torch.maximum(masks, found).sum(-1)),     # masks
        relative(masks.square().sum(-1), areas) - relative(found.square().sum(-1), found_areas),    # how sure they are
        relative((found_inside - inside).norm(dim=-1), inside.norm(dim=-1)),                        # what is inside
        relative((found_areas - areas).abs(), torch.maximum(found_areas, areas)),                   # their areas
        1 - similarity), -1)
    weights = relative(objects, objects.sum(-1, keepdim=True))[..., None]
    greatest = torch.where((objects > SURE)[..., None], by_query, 0.0).amax(1)
    change = (now - before).norm(dim=1)
    of_picture = relative(torch.stack((change.mean(-1), change.amax(-1)), -1), before.norm(dim=1).mean(-1)[:, None])
    return torch.cat(((weights * by_query).sum(1), greatest, of_picture), -1)


class SeeingRouters(nn.Module):
    """From the evidence of a frame to the worth of the first half of the routable layers."""

    def __init__(self, layers: int, first: int = 1, hidden: int = 32) -> None:
        """Make fresh weights for decoder layers ``first`` to ``first + layers - 1``."""
        super().__init__()
        # The level of layer 3 k + 2 is the finest. Of the others, those in the middle were found to be worth the most.
        order = sorted(range(layers), key=lambda i: (first + i) % 3 != 2 and 1 + abs(2 * i - layers + 1))
        # (layers,) where in the order each layer stands
        self.register_buffer('place', torch.tensor(order).argsort(), persistent=False)
        self.half = (layers + 1) // 2
        self.inner = nn.Linear(2 * EVIDENCE, hidden)
        self.worth = nn.Linear(hidden, 1)
        nn.init.zeros_(self.worth.weight)
        nn.init.constant_(self.worth.bias, 0.2)
        self.register_buffer('price', torch.tensor(0.05))       # of a layer, in units of loss

    def forward(self, found: Tensor) -> Tensor:
        """Return the worth of the first half of the layers, in units of loss, ``(N,)``."""
        size = (found.abs() + 1e-3).log()
        return self.worth(torch.relu(self.inner(torch.cat((found, size / 4), -1))))[:, 0]

    def scores(self, found: Tensor) -> Tensor:
        """Return scores (skip, execute) of all Routers ``(N, layers, 2)``: the logarithms of price and worth."""
        worth = (self(found) / self.half)[:, None].where(self.place < self.half, LEAST_WORTH)
        worth = worth.clamp(min=LEAST_WORTH).log()
        return torch.stack((self.price.log().expand_as(worth), worth), -1)

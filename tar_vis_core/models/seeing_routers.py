"""Routers that look at the picture; not part of the paper.

The paper's Routers compare the queries of two frames. Behind the Synchronizer these hardly tell whether the picture
changed. These Routers ask what the last frame's queries find in the *new* picture: each of them still makes a mask, on
the mask features of both frames at stride 16, and the two masks are compared. So do the features inside the mask.

A Router says how much the loss would rise if its layer and all that follow were left out. A layer runs if that is worth
its price. Training measures this worth: it runs all layers, and the loss at every depth is known (compare ECO-M2F, Yao
et al. 2024). The price is set afterwards, and the skip bias moves it: e times the price for a bias of 1.
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
    """From the evidence of a frame to the worth of each routable layer with all that follow it."""

    def __init__(self, layers: int, hidden: int = 32) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * EVIDENCE, hidden)
        self.worth = nn.Linear(hidden, layers)
        nn.init.zeros_(self.worth.weight)
        nn.init.ones_(self.worth.bias)
        self.register_buffer('price', torch.tensor(0.05))       # units of loss

    def forward(self, found: Tensor) -> Tensor:
        """Return the worth of each routable layer with all that follow, in units of loss, ``(N, layers)``."""
        size = (found.abs() + 1e-3).log()
        return self.worth(torch.relu(self.inner(torch.cat((found, size / 4), -1))))

    def scores(self, found: Tensor) -> Tensor:
        """Return scores (skip, execute) of all Routers ``(N, layers, 2)``: the logarithms of price and worth."""
        worth = self(found).clamp(min=LEAST_WORTH).log()
        return torch.stack((self.price.log().expand_as(worth), worth), -1)

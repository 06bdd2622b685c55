"""TAR, temporal-aware query routing: the Synchronizer and the Router of the paper.

Notation: Q_t^i are the queries of frame t after decoder layer i (1..M), M^s the number of warm-up layers,
Q_{t-1}^M the previous frame's output queries, in the decoder's own slot order.

    synchronizer   Q_t^{M^s} <- LN(Q_{t-1}^M + Attention(Q_{t-1}^M, Q_t^{M^s}, Q_t^{M^s}))        (Eq. 2-3)
    router i       s = mean over queries of MLP_i([Q, Q_{t-1}^M, Q - Q_{t-1}^M]),  Q = Q_t^{i-1}   (Eq. 4-6)
    decision       execute layer i  iff  s_1 >= s_0                                                 (Eq. 7)
    training       g = onehot(argmax s) + softmax(s) - stopgrad(softmax(s))                         (Eq. 8-9)
                   Q_t^i = g_1 * layer_i(Q_t^{i-1}) + g_0 * Q_t^{i-1}                               (Eq. 10)

Where the paper leaves a choice: the router reads the layer's input (the figure; the equation's index says output);
scores are averaged, not summed (the text; the sum saturates the softmax in training); every routable layer has
its own router; a tie executes.

Other forms (``presets.SYNCHRONIZERS``): instead of by attention, the queries may come into the last frame's slots by a
permutation (Table 3, 'bipartite'), their positions with them, or not at all ('none').
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tar_vis_core.models.layers import Attention
from tar_vis_core.models.query_matching import match_embeddings

SKIP, EXECUTE = 0, 1


class Synchronizer(nn.Module):
    """Aligns this frame's queries with the previous frame's slots (Eq. 2-3)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, previous: Tensor) -> Tensor:
        """Synchronize ``queries (N, Q, D)`` with ``previous``: slot j of the result continues its slot j."""
        return self.norm(previous + self.attention(previous, queries, queries))


def into_slots(queries: Tensor, previous: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reorder ``queries (N, Q, D)`` so that each stands in the slot of ``previous`` that it is nearest to.

    They are matched one to one by cosine. Return the queries, their rows of ``position`` (``(Q, D)`` or ``(N, Q, D)``)
    in the same order, and the order ``(N, Q)``.
    """
    order = torch.stack([match_embeddings(p, q) for p, q in zip(previous, queries)])
    places = position.expand(len(queries), -1, -1)
    return queries.take_along_dim(order[..., None], 1), places.take_along_dim(order[..., None], 1), order


class Routers(nn.Module):
    """One two-way classifier per routable layer (Eq. 4-7), stored stacked so that many answer in one call."""

    def __init__(self, layers: int, dim: int):
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(layers, 3 * dim, dim))
        self.bias1 = nn.Parameter(torch.zeros(layers, 1, dim))
        self.weight2 = nn.Parameter(torch.zeros(layers, dim, 2))
        # zero weights and this bias: every layer starts out executed, with probability 0.73
        self.bias2 = nn.Parameter(torch.tensor([0.0, 1.0]).repeat(layers, 1, 1))
        for weight in self.weight1:
            nn.init.xavier_uniform_(weight)

    def forward(self, queries: Tensor, previous: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return the scores (skip, execute) of routers ``first..last-1`` on the same queries, ``(N, routers, 2)``."""
        n, q, _ = queries.shape
        x = torch.cat((queries, previous, queries - previous), -1).flatten(0, 1)
        x = torch.matmul(x, self.weight1[first:last]) + self.bias1[first:last]
        # the second linear map and the mean over queries commute
        x = x.relu().unflatten(1, (n, q)).mean(2)
        return (torch.matmul(x, self.weight2[first:last]) + self.bias2[first:last]).transpose(0, 1)


def straight_through(scores: Tensor) -> Tensor:
    """Return gates ``(N, 2)`` that are one-hot forwards and softmax backwards (Eq. 8-9); a tie executes."""
    probability = scores.softmax(-1)
    execute = (scores[..., EXECUTE] >= scores[..., SKIP]).to(scores.dtype)
    hard = torch.stack((1 - execute, execute), -1)
    return hard + (probability - probability.detach())   # the difference is exactly zero

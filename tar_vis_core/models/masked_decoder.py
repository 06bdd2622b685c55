"""Masked transformer decoder (Mask2Former), frame by frame, with layers that TAR may skip.

Two forms of the same module:
* ``forward``      inference: a skipped layer does not run, and heads run only where their result is used;
* ``supervised``   training and study: every layer and every head runs, routers mix by straight-through gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tar_vis_core.instances import RoutingTrace
from tar_vis_core.models.layers import MLP, DecoderLayer, bilinear, sine_encoding
from tar_vis_core.models.presets import ROUTINGS, SYNCHRONIZERS
from tar_vis_core.models.proposals import Proposals, QuerySeeds
from tar_vis_core.models.temporal_routing import EXECUTE, SKIP, Routers, Synchronizer, into_slots, straight_through

# Of a layer: the probabilities that it and each one after it execute.
Gate = Callable[[int], Sequence[float]]
# cosine of a query with the last frame's in its slot, below which it is another object's
SAME_OBJECT = 0.5


@dataclass
class DecoderOutput:
    """The decoder's output for each frame."""

    queries: Tensor          # (N, Q, D) after the last layer, before the norm: the next frame's ``previous``
    normed: Tensor           # (N, Q, D) after the norm
    reid: Tensor | None      # (N, Q, D) re-identification embeddings, where the decoder has that head
    logits: Tensor           # (N, Q, classes + 1), the last column is no-object
    mask_embeddings: Tensor  # (N, Q, D): their product with the mask features gives mask logits
    trace: RoutingTrace
    boxes: Tensor | None = None     # (N, Q, 4) where queries start from a detector's boxes: no mask leaves its box

    @property
    def embeddings(self) -> Tensor:
        """Return the embeddings that trackers match: ``normed``, then ``reid`` if any, ``(N, Q, D or 2 D)``."""
        return self.normed if self.reid is None else torch.cat((self.normed, self.reid), -1)

    @property
    def raw_embeddings(self) -> Tensor:
        """Return the same with the queries before the norm."""
        return self.queries if self.reid is None else torch.cat((self.queries, self.reid), -1)


@dataclass
class SupervisedOutput:
    """All predictions of a training pass: heads after 0..M layers."""

    logits: list[Tensor]           # each (N, Q, classes + 1)
    mask_embeddings: list[Tensor]  # each (N, Q, D)
    queries: Tensor                # (N, Q, D)
    proposals: Proposals | None    # what the queries started from, in their order
    execute: Tensor | None         # (N, routers) softmax execute probability; None without routing
    executed: Tensor | None        # (N, routers) hard decisions, 0 or 1


def level_memory(level: int, x: Tensor, mask_features: Tensor, level_embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for a level ``x (N, D, h, w)``: ``key (N, S, D)``, ``value (N, S, D)``, mask features ``(N, D, S)``.
    """
    h, w = x.shape[-2:]
    value = x.flatten(2).transpose(1, 2) + level_embed[level]
    key = value + sine_encoding(h, w, x.shape[1], x.device).flatten(1).t().to(value.dtype)
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

    def inside(self, level: int) -> Tensor | None:
        """Return which cells of a level each query's box touches, ``(N, Q, S)``; None for queries without boxes."""
        if self.proposals is not None and level not in self._inside:
            self._inside[level] = self.proposals.inside(self.levels[level].shape[-2:])
        return self._inside.get(level)

    def reorder(self, order: Tensor) -> None:
        """Put the proposals in another order, ``(N, Q)`` indices."""
        if self.proposals is not None:
            self.proposals, self.order, self._inside = self.proposals.ordered(order), order, {}


class MaskedDecoder(nn.Module):
    """``layers`` decoder layers over three levels in turn, shared heads, and TAR if ``routing`` is set."""

    def __init__(self, dim: int, heads: int, ffn: int, queries: int, classes: int, layers: int = 9,
                 warmup_layers: int = 1, routing: bool = True, reid: bool = False, synchronizer: str = 'attention',
                 seeds: int = 0, mask_dim: int = 0):
        """Make fresh weights.

        ``seeds`` are the channels of a detector's cells, from which queries start; 0 means learned queries.
        ``mask_dim`` are the channels of the mask features; 0 means ``dim``.
        """
        super().__init__()
        if synchronizer not in SYNCHRONIZERS:
            raise ValueError(f'synchronizer is {synchronizer!r}, expected one of {", ".join(SYNCHRONIZERS)}')
        self.warmup_layers = warmup_layers
        self.permutes = synchronizer == 'bipartite'
        self.seeds = QuerySeeds(dim, classes, seeds) if seeds else None
        if not seeds:
            self.query_feat = nn.Parameter(torch.randn(queries, dim))
            self.query_embed = nn.Parameter(torch.randn(queries, dim))
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, ffn) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(dim)
        # queries from a detector have its classes, and only learn whether there is an object: it has seen far more
        self.class_embed = nn.Linear(dim, 1 if seeds else classes + 1)
        if seeds:
            nn.init.zeros_(self.class_embed.weight)
            nn.init.zeros_(self.class_embed.bias)
        self.mask_embed = MLP(dim, dim, mask_dim or dim, 3)
        self.reid_embed = MLP(dim, dim, dim, 3) if reid else None   # of CTVIS and DVIS++
        self.synchronizer = Synchronizer(dim, heads) if routing and synchronizer == 'attention' else None
        self.routers = Routers(layers - warmup_layers, dim) if routing else None

    level_memory = staticmethod(level_memory)

    def memory(self, mask_features: Tensor, levels: list[Tensor], proposals: Proposals | None = None) -> FrameMemory:
        """Return what the layers attend to in a frame."""
        return FrameMemory(mask_features, levels, self.level_embed, self.level_memory, proposals)

    def begin(self, batch: int, proposals: Proposals | None) -> tuple[Tensor, Tensor]:
        """Return the first queries ``(N, Q, D)`` and their positions, ``(Q, D)`` or ``(N, Q, D)``."""
        if self.seeds is not None:
            return self.seeds(proposals)
        return self.query_feat.expand(batch, -1, -1), self.query_embed

    def forward(self, mask_features: Tensor, levels: list[Tensor], previous: Tensor | None = None,
                routing: str = 'full', fixed_layers: int = 9, skip_bias: float = 0.0, gate: Gate | None = None,
                proposals: Proposals | None = None) -> DecoderOutput:
        """Decode a frame, or with ``routing='full'`` a batch of independent frames.

        ``previous (1, Q, D)`` are the last frame's ``queries``; without them (a first frame) all layers run.
        ``full`` is the plain decoder, ``fixed`` its first ``fixed_layers`` layers, ``adaptive`` is TAR.
        ``skip_bias`` is added to the routers' skip score; ``gate`` decides in their place. Deterministic.
        """
        if routing not in ROUTINGS:
            raise ValueError(f'routing is {routing!r}, expected one of {", ".join(ROUTINGS)}')
        memory = self.memory(mask_features, levels, proposals)
        x, position = self.begin(mask_features.shape[0], proposals)
        count = len(self.layers)
        executed = [False] * count
        probability = np.full(count, np.nan, np.float32)

        def run(i: int, x: Tensor) -> Tensor:
            executed[i] = True
            return self.run_layer(i, x, memory, position)

        if routing != 'adaptive' or previous is None:
            for i in range(min(fixed_layers, count) if routing == 'fixed' else count):
                x = run(i, x)
        else:
            if self.routers is None:
                raise ValueError("routing is 'adaptive', but this model has no routers; use 'full' or 'fixed'")
            if x.shape[0] != 1:
                raise ValueError(f'adaptive routing decodes one frame at a time, got a batch of {x.shape[0]}')
            for i in range(self.warmup_layers):
                x = run(i, x)
            x, position, previous = self.synchronize(x, previous, position, memory)
            i = self.warmup_layers
            while i < count:
                # A skip leaves the queries as they are, so every router up to the next executed layer reads
                # the same input: ask all that remain at once and take the first that says execute.
                ahead = gate(i) if gate else self.execute_probability(x, previous, i, skip_bias)
                skips = next((k for k, p in enumerate(ahead) if p >= 0.5), len(ahead))
                asked = ahead[:skips + 1]
                probability[i:i + len(asked)] = asked
                i += skips
                if i < count:
                    x = run(i, x)
                    i += 1
        return self.output(x, RoutingTrace(tuple(executed), probability), memory.proposals)

    def output(self, x: Tensor, trace: RoutingTrace, proposals: Proposals | None = None) -> DecoderOutput:
        """Return what the heads say of the last queries ``(N, Q, D)``."""
        normed, reid, logits, mask_embeddings = self.heads(x)
        if proposals is None:
            return DecoderOutput(x, normed, reid, logits, mask_embeddings, trace)
        return DecoderOutput(x, normed, reid, proposals.with_no_object(logits), mask_embeddings, trace, proposals.boxes)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return queries after the norm, re-identification embeddings if any, class logits, mask embeddings."""
        normed = self.decoder_norm(x)
        reid = None if self.reid_embed is None else self.reid_embed(normed)
        return normed, reid, self.class_embed(normed), self.mask_embed(normed)

    def synchronize(self, x: Tensor, previous: Tensor, position: Tensor, memory: FrameMemory
                    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries ``(N, Q, D)`` in the slots of the last frame's, their positions, and their past.

        Positions are ``(Q, D)`` or ``(N, Q, D)``; the past is what routers compare the queries with. Queries that start
        from boxes first go, with their boxes, into the slots that they are nearest to. One that is near to none is a
        new object's: it has no past but itself.
        """
        if self.permutes or self.seeds is not None:
            x, position, order = into_slots(x, previous, position)
            memory.reorder(order)
        if self.seeds is not None:
            known = torch.cosine_similarity(x, previous, dim=-1) >= SAME_OBJECT
            previous = torch.where(known[..., None], previous, x)
        if self.synchronizer is not None:
            x = self.synchronizer(x, previous)
        return x, position, previous

    def scores(self, x: Tensor, previous: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return scores (skip, execute) of routers ``first..last-1`` on queries ``(N, Q, D)``, ``(N, routers, 2)``."""
        return self.routers(x, previous, first, last)

    def execute_probability(self, x: Tensor, previous: Tensor, layer: int, skip_bias: float = 0.0) -> list[float]:
        """Return probabilities that routers of layers ``layer, layer + 1, ..`` execute, all on ``x``; one transfer."""
        scores = self.scores(x, previous, layer - self.warmup_layers)[0].float().cpu()
        # sigmoid of the difference is the softmax over two; exactly 0.5 (a tie) executes
        return torch.sigmoid(scores[:, EXECUTE] - scores[:, SKIP] - skip_bias).tolist()

    def run_layer(self, i: int, x: Tensor, memory: FrameMemory, position: Tensor | None = None) -> Tensor:
        """Run layer ``i`` on queries ``(N, Q, D)``, which attend where their own mask is positive.

        ``position`` are the queries' positions if they are in other slots than the decoder's own.
        """
        return self.attended(i, x, self.query_embed if position is None else position, *memory[i % 3],
                             memory.inside(i % 3))

    def attended(self, i: int, x: Tensor, position: Tensor, key: Tensor, value: Tensor, reduced: Tensor,
                 inside: Tensor | None = None) -> Tensor:
        """Run layer ``i`` as :meth:`run_layer` does, with its level's memory."""
        with torch.no_grad():
            embedding = self.mask_embed(self.decoder_norm(x))
            keep = torch.matmul(embedding, reduced) >= 0
            # a query with an empty mask attends everywhere, or in all of its box; without indexing, so without a
            # device sync
            if inside is None:
                keep |= ~keep.any(-1, keepdim=True)
            else:
                keep &= inside
                keep |= inside & ~keep.any(-1, keepdim=True)
        return self.layers[i](x, x + position, key, value, keep, position)

    def supervised(self, mask_features: Tensor, levels: list[Tensor], previous: Tensor | None = None,
                   tau: float = 0.0, proposals: Proposals | None = None) -> SupervisedOutput:
        """Run all layers and heads. With ``previous (N, Q, D)`` straight-through gates route each sample (Eq. 10)."""
        memory = FrameMemory(mask_features, levels, self.level_embed, proposals=proposals)
        x, position = self.begin(mask_features.shape[0], proposals)
        states = [x]
        execute, executed = [], []
        for i in range(len(self.layers)):
            before, router = x, i - self.warmup_layers
            x = self.run_layer(i, before, memory, position)
            if previous is not None and router >= 0:
                scores = self.scores(before, previous, router, router + 1)[:, 0]
                gate = straight_through(scores, tau)
                x = gate[:, EXECUTE, None, None] * x + gate[:, SKIP, None, None] * before
                execute.append(scores.softmax(-1)[:, EXECUTE])
                executed.append(gate[:, EXECUTE].detach())
            if previous is not None and i == self.warmup_layers - 1:
                x, position, previous = self.synchronize(x, previous, position, memory)
                if memory.proposals is not None:
                    states = [s.take_along_dim(memory.order[..., None], 1) for s in states]
            states.append(x)
        normed = [self.decoder_norm(s) for s in states]
        logits = [self.class_embed(n) for n in normed]
        if memory.proposals is not None:
            logits = [memory.proposals.with_no_object(z) for z in logits]
        return SupervisedOutput(
            logits, [self.mask_embed(n) for n in normed], x, memory.proposals,
            torch.stack(execute, 1) if execute else None, torch.stack(executed, 1) if executed else None)

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
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.instances import RoutingTrace
from tar_vis_core.models.box_masks import BoxMasks, BoxShapes
from tar_vis_core.models.frame_memory import FrameMemory, level_memory
from tar_vis_core.models.layers import MLP, DecoderLayer
from tar_vis_core.models.presets import ROUTINGS, SYNCHRONIZERS
from tar_vis_core.models.proposals import Proposals, QuerySeeds
from tar_vis_core.models.seeing_routers import LEVEL, HandsOn, Past, SeeingRouters, evidence
from tar_vis_core.models.temporal_routing import EXECUTE, SKIP, Routers, Synchronizer, into_slots, straight_through

# Of a layer: the probabilities that it and each one after it execute.
Gate = Callable[[int], Sequence[float]]
# cosine of a query with the last frame's in its slot, below which it is another object's
SAME_OBJECT = 0.5


@dataclass
class DecoderOutput(HandsOn):
    """The decoder's output for each frame."""

    queries: Tensor          # (N, Q, D) after the last layer, before the norm: the next frame's ``previous``
    normed: Tensor           # (N, Q, D) after the norm
    reid: Tensor | None      # (N, Q, D) re-identification embeddings, if the decoder has that head
    logits: Tensor           # (N, Q, classes + 1), the last column is no-object
    mask_embeddings: Tensor  # (N, Q, D): their product with the mask features gives mask logits
    trace: RoutingTrace
    shapes: BoxShapes | None = None     # if queries start from a detector's boxes
    seen: Tensor | None = None          # (N, D, S) what routers that look at the picture compare the next one with
    objects: Tensor | None = None       # (N, Q) how likely queries are objects, for the same routers
    kept: Past | None = None            # what the next frame takes over in place of this frame's

    @property
    def embeddings(self) -> Tensor:
        """Return the embeddings that trackers match: ``normed``, then ``reid`` if any, ``(N, Q, D or 2 D)``."""
        return self.normed if self.reid is None else torch.cat((self.normed, self.reid), -1)

    @property
    def raw_embeddings(self) -> Tensor:
        """Return the same with the queries before the norm."""
        return self.queries if self.reid is None else torch.cat((self.queries, self.reid), -1)


@dataclass
class SupervisedOutput(HandsOn):
    """All predictions of a training pass: heads after 0..M layers."""

    logits: list[Tensor]           # each (N, Q, classes + 1)
    mask_embeddings: list[Tensor]  # each (N, Q, D)
    queries: Tensor                # (N, Q, D)
    proposals: Proposals | None    # what the queries started from, in their order
    execute: Tensor | None         # (N, routers) softmax execute probability; None without routing
    executed: Tensor | None        # (N, routers) hard decisions, 0 or 1
    worth: Tensor | None = None    # (N,) what routers that look at the picture say of the first half of the layers
    seen: Tensor | None = None     # as in :class:`DecoderOutput`
    objects: Tensor | None = None  # the same
    kept: Past | None = None       # the same


class MaskedDecoder(nn.Module):
    """``layers`` decoder layers over three levels in turn, shared heads, and TAR if ``routing`` is set."""

    def __init__(self, dim: int, heads: int, ffn: int, queries: int, classes: int, layers: int = 9,
                 warmup_layers: int = 1, routing: bool = True, reid: bool = False, synchronizer: str = 'attention',
                 seeds: int = 0, mask_dim: int = 0, routers: str = 'separate'):
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
        # queries from a detector keep its classes: it has seen far more pictures than the decoder
        self.class_embed = None if seeds else nn.Linear(dim, classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim or dim, 3)
        self.box_masks = BoxMasks(mask_dim or dim, 24) if seeds else None
        self.reid_embed = MLP(dim, dim, dim, 3) if reid else None   # of CTVIS and DVIS++
        self.synchronizer = Synchronizer(dim, heads) if routing and synchronizer == 'attention' else None
        form = {'separate': lambda: Routers(layers - warmup_layers, dim),
                'seeing': lambda: SeeingRouters(layers - warmup_layers, warmup_layers)}[routers]
        self.routers = form() if routing else None

    level_memory = staticmethod(level_memory)

    def memory(self, mask_features: Tensor, levels: list[Tensor], proposals: Proposals | None = None) -> FrameMemory:
        """Return what the layers attend to in a frame."""
        return FrameMemory(mask_features, levels, self.level_embed, self.level_memory, proposals)

    def begin(self, batch: int, proposals: Proposals | None) -> tuple[Tensor, Tensor]:
        """Return the first queries ``(N, Q, D)`` and their positions, ``(Q, D)`` or ``(N, Q, D)``."""
        if self.seeds is not None:
            return self.seeds(proposals)
        return self.query_feat.expand(batch, -1, -1), self.query_embed

    def forward(self, mask_features: Tensor, levels: list[Tensor], previous: Past | Tensor | None = None,
                routing: str = 'full', fixed_layers: int = 9, skip_bias: float = 0.0, gate: Gate | None = None,
                proposals: Proposals | None = None) -> DecoderOutput:
        """Decode a frame, or with ``routing='full'`` a batch of independent frames.

        ``previous`` is the last frame's ``past``, or its queries alone; without it (a first frame) all layers run.
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
            past = Past.of(previous)
            found = self.evidence(x, past, memory)
            x, position, known = self.synchronize(x, past.queries, position, memory)
            i = self.warmup_layers
            while i < count:
                # A skip leaves the queries as they are, so every router up to the next executed layer reads
                # the same input: ask all that remain at once and take the first that says execute.
                ahead = gate(i) if gate else self.execute_probability(x, known, i, skip_bias, found)
                skips = next((k for k, p in enumerate(ahead) if p >= 0.5), len(ahead))
                asked = ahead[:skips + 1]
                probability[i:i + len(asked)] = asked
                i += skips
                if i < count:
                    x = run(i, x)
                    i += 1
        out = self.output(x, RoutingTrace(tuple(executed), probability), memory)
        if out.seen is not None and previous is not None and not any(executed[self.warmup_layers:]):
            # nothing was refined: the next frame goes on from the last one that was, so that changes add up
            out.kept = Past.of(previous)
        return out

    def output(self, x: Tensor, trace: RoutingTrace, memory: FrameMemory | None = None) -> DecoderOutput:
        """Return what the heads say of the last queries ``(N, Q, D)``."""
        normed, reid, logits, mask_embeddings = self.heads(x)
        shapes = None
        if memory is not None and memory.proposals is not None:
            proposals = memory.proposals
            logits = proposals.class_logits()
            shapes = BoxShapes(proposals.boxes, proposals.fine, self.box_masks)
        return DecoderOutput(x, normed, reid, logits, mask_embeddings, trace, shapes, *self.seen(memory, logits))

    def seen(self, memory: FrameMemory | None, logits: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the mask features that the next frame is compared with and the chances of objects, if routers look."""
        if memory is None or not isinstance(self.routers, SeeingRouters):
            return None, None
        return memory.reduced(LEVEL).clone(), 1 - logits.float().softmax(-1)[..., -1]

    def evidence(self, x: Tensor, previous: Past, memory: FrameMemory) -> Tensor | None:
        """Return what the last frame's queries find in this one, if routers look at it; ``x`` are this frame's."""
        if not isinstance(self.routers, SeeingRouters):
            return None
        if previous.seen is None:
            raise ValueError('these routers look at the picture: give the `past` of the last output, not its queries')
        embeddings = self.mask_embed(self.decoder_norm(previous.queries))
        similarity = (F.normalize(previous.queries, dim=-1) @ F.normalize(x, dim=-1).mT).amax(-1)
        return evidence(previous.objects, embeddings.float(), previous.seen.float(),
                        memory.reduced(LEVEL).float(), similarity.float())

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """Return queries after the norm, re-identification embeddings if any, class logits if any, mask embeddings."""
        normed = self.decoder_norm(x)
        reid = None if self.reid_embed is None else self.reid_embed(normed)
        return normed, reid, None if self.class_embed is None else self.class_embed(normed), self.mask_embed(normed)

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

    def execute_probability(self, x: Tensor, previous: Tensor, layer: int, skip_bias: float = 0.0,
                            found: Tensor | None = None) -> list[float]:
        """Return probabilities that routers of layers ``layer, layer + 1, ..`` execute, all on ``x``; one transfer.

        ``found`` is the evidence for routers that look at the picture.
        """
        first = layer - self.warmup_layers
        scores = self.scores(x, previous, first) if found is None else self.routers.scores(found)[:, first:]
        scores = scores[0].float().cpu()
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
            # of a batch PyTorch makes copies on a CPU, of one product it does not
            keep = ((embedding[0] @ reduced[0])[None] if len(embedding) == 1 else embedding @ reduced) >= 0
            # a query with an empty mask attends everywhere, or in all of its box; without indexing, so without a
            # device sync
            if inside is None:
                keep = keep | ~keep.any(-1, keepdim=True)       # not in place, which no exported graph holds
            else:
                keep &= inside
                keep |= inside & ~keep.any(-1, keepdim=True)
        return self.layers[i](x, x + position, key, value, keep, position)

    def supervised(self, mask_features: Tensor, levels: list[Tensor], previous: Past | Tensor | None = None,
                   counts: Tensor | int | None = None, proposals: Proposals | None = None) -> SupervisedOutput:
        """Run all layers and heads. With ``previous`` straight-through gates route each sample (Eq. 10).

        Routers that look at the picture do not gate: they say what layers are worth. The first ``counts``, one or
        ``(N,)``, of the routable layers in their order run then; None: all.
        """
        memory = FrameMemory(mask_features, levels, self.level_embed, proposals=proposals)
        x, position = self.begin(mask_features.shape[0], proposals)
        states = [x]
        execute, executed = [], []
        known, worth, sees = None, None, isinstance(self.routers, SeeingRouters)
        for i in range(len(self.layers)):
            before, router = x, i - self.warmup_layers
            x = self.run_layer(i, before, memory, position)
            if previous is not None and router >= 0:
                if not sees:
                    scores = self.scores(before, known, router, router + 1)[:, 0]
                    gate = straight_through(scores)
                    x = gate[:, EXECUTE, None, None] * x + gate[:, SKIP, None, None] * before
                    execute.append(scores.softmax(-1)[:, EXECUTE])
                    executed.append(gate[:, EXECUTE].detach())
                elif counts is not None:
                    x = torch.where((self.routers.place[router] < counts).view(-1, 1, 1), x, before)
            if previous is not None and i == self.warmup_layers - 1:
                past = Past.of(previous)
                if sees:
                    worth = self.routers(self.evidence(x, past, memory))
                x, position, known = self.synchronize(x, past.queries, position, memory)
                if memory.proposals is not None:
                    states = [s.take_along_dim(memory.order[..., None], 1) for s in states]
            states.append(x)
        normed = [self.decoder_norm(s) for s in states]
        logits = [self.class_embed(n) if memory.proposals is None else memory.proposals.class_logits() for n in normed]
        return SupervisedOutput(
            logits, [self.mask_embed(n) for n in normed], x, memory.proposals,
            torch.stack(execute, 1) if execute else None, torch.stack(executed, 1) if executed else None, worth,
            *self.seen(memory, logits[-1]))

"""The referring tracker of DVIS++ (Zhang et al. 2023), online: last frame's objects ask this frame's queries.

    reference    r_t = MLP(x_{t-1}^L)                                       (the objects as they were)
    layer j      x_t^j = FFN(SA(LN(x_t^{j-1} + Attention(r_t, n_t, n_t))))  with x_t^0 = n_t in matched order
    heads        class of [r_t, LN(x_t^L)], mask of LN(x_t^L)

n_t are the decoder's queries before the norm, followed by their re-identification embeddings. The residual is the
object's own state, not the reference (the query of the attention). In a stream's first frame every layer takes its own
input as reference.

Training may disturb x_t^0: in some frames each slot starts from a mixture of two queries, independent of the matching.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tar_vis_core.models.layers import MLP, DecoderLayer
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.query_matching import match_embeddings
from tar_vis_core.models.tracked import Tracked


@dataclass
class ReferringMemory:
    """The last frame as the tracker left it, in slot order."""

    output: Tensor      # (Q, E) after the last layer, before the norm
    embeddings: Tensor  # (Q, E) the decoder's normed embeddings


@dataclass
class SupervisedTracks:
    """All predictions of a training pass over T frames: heads after each of L layers; rows are slots."""

    logits: list[Tensor]           # L of (T, Q, classes + 1)
    mask_embeddings: list[Tensor]  # L of (T, Q, D): their product with ``mask_feature_proj`` of the features are masks
    references: Tensor             # (T, Q, E) what asked
    orders: Tensor                 # (T, Q) the decoder query that each slot started from


class ReferringTracker(nn.Module):
    """Slots that carry their objects from frame to frame. ``dim`` is the decoder's; the tracker works on twice it."""

    contrasts = True        # in training references are told apart from those of other objects
    shares_slots = False    # in training a slot that has its object may be given a second one

    def __init__(self, dim: int, heads: int, ffn: int, layers: int, classes: int):
        super().__init__()
        wide = 2 * dim
        self.ref_proj = MLP(wide, wide, wide, 3)
        self.layers = nn.ModuleList(DecoderLayer(wide, heads, ffn) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(wide)
        self.class_embed = nn.Linear(2 * wide, classes + 1)
        self.mask_embed = MLP(wide, wide, dim, 3)
        self.mask_feature_proj = nn.Conv2d(dim, dim, 1)

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: ReferringMemory | None,
              ) -> tuple[Tracked, ReferringMemory]:
        """See ``tracking.tracker.Tracker``; rows are slots."""
        outputs, references = [], []
        for current, embeddings in zip(*self.read(frames), strict=True):
            states, reference, _, memory = self.step(current, embeddings, memory)
            outputs.append(states[-1])
            references.append(reference)
        x = torch.stack(outputs)
        logits, embedding = self.heads(x, torch.stack(references))
        slots = np.tile(np.arange(x.shape[1]), (len(x), 1))
        return Tracked(logits, *self.on_plain_features(embedding), x, slots), memory

    def recordable(self) -> list[nn.Module]:
        """Return the parts that are of one size in all frames, so that they can be recorded."""
        return [*self.layers, self.ref_proj, self.mask_embed]

    @staticmethod
    def read(frames: DecoderOutput) -> tuple[Tensor, Tensor]:
        """Return the inputs of T frames: queries as the layers leave them, and normed for matching, ``(T, Q, E)``."""
        return frames.raw_embeddings, frames.embeddings

    def heads(self, x: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and mask embeddings of states ``x (..., E)`` that ``references (..., E)`` asked for."""
        normed = self.decoder_norm(x)
        return self.class_embed(torch.cat((references, normed), -1)), self.mask_embed(normed)

    def on_plain_features(self, embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mask embeddings and biases for the decoder's own mask features instead of the projected ones."""
        # e . (W F + b) = (W' e) . F + e . b: no convolution over the whole map, only over the queries
        weight, bias = self.mask_feature_proj.weight[:, :, 0, 0], self.mask_feature_proj.bias
        return embedding @ weight, embedding @ bias

    def supervised(self, raw_embeddings: Tensor, embeddings: Tensor, noise: float = 0.0) -> SupervisedTracks:
        """Return one clip in training, ``(T, Q, E)`` before and after the norm.

        With probability ``noise`` a frame after the first starts from mixed queries.
        """
        frames, references, orders, memory = [], [], [], None
        for current, normed in zip(raw_embeddings, embeddings, strict=True):
            states, reference, order, memory = self.step(current, normed, memory, noise)
            frames.append(torch.stack(states))
            references.append(reference)
            orders.append(order)
        reference = torch.stack(references)
        logits, mask_embeddings = zip(*(self.heads(x, reference) for x in torch.stack(frames, 1)), strict=True)
        return SupervisedTracks(list(logits), list(mask_embeddings), reference, torch.stack(orders))

    def step(self, current: Tensor, embeddings: Tensor, memory: ReferringMemory | None, noise: float = 0.0,
             ) -> tuple[list[Tensor], Tensor, Tensor, ReferringMemory]:
        """Return track one frame, all ``(Q, E)``: its queries before the norm and normed.

        Return the state after each layer, the reference, and the query ``(Q,)`` that each slot started from.
        """
        order = match_embeddings(embeddings if memory is None else memory.embeddings, embeddings)
        own, x = current[None], current[order][None]
        if noise and memory is not None and torch.rand(()) < noise:
            order, x = mixed(own)
        reference = self.ref_proj(own if memory is None else memory.output[None])
        asking, states = reference, []
        for j, layer in enumerate(self.layers):
            if memory is None and j:
                asking = self.ref_proj(x)
            x = layer(x, asking, own, own)
            states.append(x[0])
        return states, reference[0], order, ReferringMemory(x[0], embeddings[order])


def mixed(queries: Tensor) -> tuple[Tensor, Tensor]:
    """Mix ``queries (1, Q, E)`` each with a random other one: DVIS++'s training noise 'weighted average'.

    Return the one that weighs more, ``(Q,)``, and the mixture. It does not depend on the matching.
    """
    count, device = queries.shape[1], queries.device
    other, weight = torch.randperm(count, device=device), torch.rand(count, 1, device=device)
    order = torch.where(weight[:, 0] < 0.5, other, torch.arange(count, device=device))
    return order, weight * queries + (1 - weight) * queries[:, other]

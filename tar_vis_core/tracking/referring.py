"""The referring tracker of DVIS++ (Zhang et al. 2023), online: last frame's objects ask this frame's queries.

    reference    r_t = MLP(x_{t-1}^L)                                       (the objects as they were)
    layer j      x_t^j = FFN(SA(LN(x_t^{j-1} + Attention(r_t, n_t, n_t))))  with x_t^0 = n_t in matched order
    heads        class of [r_t, LN(x_t^L)], mask of LN(x_t^L)

n_t are the decoder's queries before the norm, followed by their re-identification embeddings. The residual is the
object's own state, not the reference that asks. In a stream's first frame every layer refers to its own input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar_vis_core.models.layers import MLP, Attention
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.tracking.matching import match_embeddings
from tar_vis_core.tracking.tracker import Tracked


@dataclass
class ReferringMemory:
    """The last frame as the tracker left it, in slot order."""

    output: Tensor      # (Q, E) after the last layer, before the norm
    embeddings: Tensor  # (Q, E) the decoder's normed embeddings


class ReferringLayer(nn.Module):
    """Referring cross-attention, self-attention, feed-forward; each followed by residual and LayerNorm."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.cross_attn = Attention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads)
        self.self_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn)
        self.linear2 = nn.Linear(ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, reference: Tensor, current: Tensor) -> Tensor:
        x = self.cross_norm(x + self.cross_attn(reference, current, current))
        x = self.self_norm(x + self.self_attn(x, x, x))
        return self.ffn_norm(x + self.linear2(F.relu(self.linear1(x))))


class ReferringTracker(nn.Module):
    """Slots that carry their objects from frame to frame. ``dim`` is the decoder's; the tracker works on twice it."""

    def __init__(self, dim: int, heads: int, ffn: int, layers: int, classes: int):
        super().__init__()
        wide = 2 * dim
        self.ref_proj = MLP(wide, wide, wide, 3)
        self.layers = nn.ModuleList(ReferringLayer(wide, heads, ffn) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(wide)
        self.class_embed = nn.Linear(2 * wide, classes + 1)
        self.mask_embed = MLP(wide, wide, dim, 3)
        self.mask_feature_proj = nn.Conv2d(dim, dim, 1)

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: ReferringMemory | None,
              ) -> tuple[Tracked, ReferringMemory]:
        """See :class:`~tar_vis_core.tracking.tracker.Tracker`; rows are slots."""
        outputs, references = [], []
        for current, embeddings in zip(frames.raw_embeddings, frames.embeddings, strict=True):
            x, reference, memory = self.step(current, embeddings, memory)
            outputs.append(x)
            references.append(reference)
        x = torch.stack(outputs)
        normed = self.decoder_norm(x)
        logits = self.class_embed(torch.cat((torch.stack(references), normed), -1))
        # e . (W F + b) = (W' e) . F + e . b: no convolution over the whole map, only over the queries
        embedding = self.mask_embed(normed)
        weight, bias = self.mask_feature_proj.weight[:, :, 0, 0], self.mask_feature_proj.bias
        slots = np.tile(np.arange(x.shape[1]), (len(x), 1))
        return Tracked(logits, embedding @ weight, embedding @ bias, x, slots), memory

    def step(self, current: Tensor, embeddings: Tensor, memory: ReferringMemory | None,
             ) -> tuple[Tensor, Tensor, ReferringMemory]:
        """One frame, all ``(Q, E)``: its queries before the norm and normed; gives output and reference."""
        order = match_embeddings(embeddings if memory is None else memory.embeddings, embeddings)
        own, x = current[None], current[order][None]
        reference = self.ref_proj(own if memory is None else memory.output[None])
        asking = reference
        for j, layer in enumerate(self.layers):
            if memory is None and j:
                asking = self.ref_proj(x)
            x = layer(x, asking, own)
        return x[0], reference[0], ReferringMemory(x[0], embeddings[order])

"""The referring tracker of DVIS (Zhang et al., ICCV 2023), online: last frame's objects attend to this frame's.

    start        x_t^0 = e_t in placed order
    layer j      x_t^j = FFN(SA(LN(x_t^{j-1} + Attention(r_t, e_t, e_t))))
    reference    r_t = x_{t-1}^L, the same for all layers; in a stream's first frame r = x^{j-1}
    heads        n = LN(x_t^L): class of n, mask of n on the decoder's mask features

e_t are the decoder's normed queries. Unlike its successor (DVIS++, ``models/referring.py``) this tracker has the
decoder's width, projects neither references nor mask features, and reads no re-identification embeddings.

Placement. The Hungarian assignment pairs each query c with a slot s = sigma(c), whose last embedding is most alike.
Slot s should start from the query that was assigned to it. The published tracker starts it from query sigma(s), which
is the inverse permutation. Its weights were trained and scored so, and so it is done here. Where sigma is its own
inverse, as the identity is, both agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tar_vis_core.models.layers import MLP, DecoderLayer
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.query_matching import match_embeddings
from tar_vis_core.models.referring import ReferringMemory, ReferringTracker


class ReferringTracker2023(ReferringTracker):
    """Slots that carry their objects from frame to frame, as wide as the decoder; ``track`` is that of DVIS++."""

    contrasts = False
    shares_slots = True     # the published training means to bar taken slots, and never fills its list of them

    def __init__(self, dim: int, heads: int, ffn: int, layers: int, classes: int):
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, ffn) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, classes + 1)
        self.mask_embed = MLP(dim, dim, dim, 3)
        self.mask_feature_proj = nn.Identity()

    def recordable(self) -> list[nn.Module]:
        """See :meth:`ReferringTracker.recordable`."""
        return [*self.layers, self.mask_embed]

    @staticmethod
    def read(frames: DecoderOutput) -> tuple[Tensor, Tensor]:
        """See :meth:`ReferringTracker.read`; both are the normed queries ``(T, Q, D)``."""
        return frames.normed, frames.normed

    def heads(self, x: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and mask embeddings of states ``x (..., D)``; the references have no say."""
        normed = self.decoder_norm(x)
        return self.class_embed(normed), self.mask_embed(normed)

    def on_plain_features(self, embedding: Tensor) -> tuple[Tensor, None]:
        """Return mask embeddings as they are, because the mask features are the decoder's own."""
        return embedding, None

    def step(self, current: Tensor, embeddings: Tensor, memory: ReferringMemory | None, noise: float = 0.0,
             ) -> tuple[list[Tensor], Tensor, Tensor, ReferringMemory]:
        """Track one frame, of which only the normed queries ``embeddings (Q, D)`` are read; ``noise`` has no effect.

        Return the state after each layer, the reference, and the query ``(Q,)`` that each slot started from.
        """
        if memory is None:
            order = torch.arange(len(embeddings), device=embeddings.device)
        else:   # argsort is the inverse permutation, see above
            order = match_embeddings(memory.embeddings, embeddings).argsort()
        own, x = embeddings[None], embeddings[order][None]
        reference, states = x if memory is None else memory.output[None], []
        for layer in self.layers:
            x = layer(x, x if memory is None else reference, own, own)
            states.append(x[0])
        return states, reference[0], order, ReferringMemory(x[0], embeddings[order])

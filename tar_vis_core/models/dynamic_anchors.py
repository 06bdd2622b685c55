"""The network of DVIS-DAQ (Zhou et al., ECCV 2024), online: tracks and dynamic anchors are decoded together.

    place      P(m) = MLP(mean of F over the pixels where the mask logits m are positive)       (of 0 for an empty mask)
    anchors    one learned vector, once for each decoder query; anchor i has the place a_i = P(mask of query i)
    rows       X = [tracks as they left the last frame; anchors],  Z = [places of the tracks; a]
    layer      X <- FFN(SA(LN(X + Attention(X + Z, e + a, e))))
    heads      n = LN(X): class of n, mask of n on the projected mask features

e are the decoder's normed queries, F its mask features. All anchors begin as the same vector, so only its
place distinguishes an anchor. In a stream's first frame the decoder's queries are the rows, without places.

Slots look for evidence that a track is still there. Their rows are B = [tracks; 5 learned background slots] with places
Z; S starts as the rows of the decoder's learned queries that B is most alike to:

    layer      u = Attention(S + B, e, e),  A = softmax over slots of K(S + u) . Y(Z) / sqrt(D),  S <- FFN(LN(S + v))
               v_m = mean of u over its rows, weighted by column m of A

A track whose slot says no-object has gone, whatever the track itself says (``tracking/anchored_tracks.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tar_vis_core.models.layers import MLP, Attention, DecoderLayer, Linear
from tar_vis_core.runtime.assignment import linear_sum_assignment

BACKGROUND_SLOTS = 5
EPSILON = 1e-6      # of norms in the matching, and added to every weight of the slots' attention
EQUAL = 1e-5        # costs that differ by less are equal but for rounding


class SlotLayer(nn.Module):
    """Cross-attention of the slots, its distribution among them, feed-forward."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.cross_attn = Attention(dim, heads)
        self.input_norm = nn.LayerNorm(dim)
        self.project_inputs = nn.Linear(dim, dim, bias=False)
        self.place_norm = nn.LayerNorm(dim)
        self.project_places = nn.Linear(dim, dim, bias=False)
        self.slot_norm = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, ffn, 'relu')
        self.linear2 = Linear(ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, slots: Tensor, rows: Tensor, places: Tensor, embeddings: Tensor) -> Tensor:
        """Update ``slots (1, M, D)``; ``rows`` and ``places (1, M, D)`` are B and Z, ``embeddings (1, Q, D)`` e."""
        answers = self.cross_attn(slots + rows, embeddings, embeddings)
        inputs = self.project_inputs(self.input_norm(slots + answers))
        weights = inputs @ self.project_places(self.place_norm(places)).transpose(1, 2) / math.sqrt(inputs.shape[-1])
        weights = weights.float().softmax(-1) + EPSILON
        weights = (weights / weights.sum(1, keepdim=True)).to(answers.dtype)
        slots = self.slot_norm(slots + weights.transpose(1, 2) @ answers)
        return self.ffn_norm(self.linear2(self.linear1(slots), slots))


class DynamicAnchorNetwork(nn.Module):
    """Layers for rows, layers for slots, and the heads that they share. Rows may be any number."""

    def __init__(self, dim: int, heads: int, ffn: int, layers: int, classes: int):
        super().__init__()
        self.new_ins_embeds = nn.Parameter(torch.randn(1, dim))
        self.bg_slots = nn.Parameter(torch.randn(BACKGROUND_SLOTS, dim))
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, ffn) for _ in range(layers))
        self.slot_layers = nn.ModuleList(SlotLayer(dim, heads, ffn) for _ in range(layers))
        self.pos_embed = MLP(dim, dim, dim, 3)
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, classes + 1)
        self.mask_embed = MLP(dim, dim, dim, 3)
        self.mask_feature_proj = nn.Conv2d(dim, dim, 1)

    def recordable(self) -> list[nn.Module]:
        """Return no parts: all of them depend on how many tracks there are."""
        return []

    def first(self, embeddings: Tensor) -> Tensor:
        """Return the rows ``(Q, D)`` of a stream's first frame, one of each decoder query ``embeddings (Q, D)``."""
        x = embeddings[None]
        for layer in self.layers:
            x = layer(x, x, embeddings[None], embeddings[None])
        return x[0]

    def forward(self, tracks: Tensor, track_places: Tensor, embeddings: Tensor, places: Tensor) -> Tensor:
        """Return the rows ``(N + Q, D)`` of a later frame: its tracks, then its anchors.

        ``tracks`` and ``track_places (N, D)`` come from the frames before. ``embeddings`` and ``places (Q, D)`` are the
        decoder's normed queries and the places of their masks.
        """
        x = torch.cat((tracks, self.new_ins_embeds.expand_as(embeddings)))[None]
        position, key, value = torch.cat((track_places, places)), (embeddings + places)[None], embeddings[None]
        for layer in self.layers:
            x = layer(x, x + position, key, value)
        return x[0]

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits ``(R, classes + 1)``, mask embeddings ``(R, D)`` and mask biases ``(R,)`` of rows.

        The mask logits are the product of the embeddings with the decoder's own mask features, plus the bias.
        """
        normed = self.decoder_norm(x)
        embedding = self.mask_embed(normed)
        # e . (W F + b) = (W' e) . F + e . b: no convolution over the whole map, only over the rows
        weight, bias = self.mask_feature_proj.weight[:, :, 0, 0], self.mask_feature_proj.bias
        return self.class_embed(normed), embedding @ weight, embedding @ bias

    def places(self, masks: Tensor, mask_features: Tensor) -> Tensor:
        """Return the places ``(R, D)`` of mask logits ``(R, h, w)`` on ``mask_features (D, h, w)``.

        Only the signs of the logits count. The whole padded map takes part.
        """
        with torch.autocast(mask_features.device.type, enabled=False):      # sums of many pixels need all digits
            inside, pixels = (masks > 0).flatten(1).float(), mask_features.float().flatten(1)
            mean = inside @ pixels.t() / (inside.sum(1, keepdim=True) + 1e-8)
        return self.pos_embed(mean)

    def slots(self, tracks: Tensor, places: Tensor, embeddings: Tensor, query_feat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class logits ``(N + 5, classes + 1)`` of the slots of ``tracks (N, D)`` and of the background.

        Also the row of ``query_feat (Q, D)``, the decoder's learned queries, that each slot starts from.
        """
        rows = torch.cat((tracks, self.bg_slots))
        match = slot_starts(rows, query_feat)
        x, rows, places = query_feat[match][None], rows[None], torch.cat((places, self.bg_slots))[None]
        for layer in self.slot_layers:
            x = layer(x, rows, places, embeddings[None])
        return self.class_embed(self.decoder_norm(x[0])), match


def slot_starts(rows: Tensor, query_feat: Tensor) -> Tensor:
    """Return the learned query ``(M,)`` that each of ``rows (M, D)`` starts from, out of ``query_feat (Q, D)``.

    One to one by the Hungarian assignment of greatest cosines. Of more rows than queries, those that the assignment
    leaves out take the query nearest to them, which another row has, too. Equal rows choose in their order.
    """
    with torch.autocast(rows.device.type, enabled=False):
        unit = [x.float() / (x.float().norm(dim=1, keepdim=True) + EPSILON) for x in (rows, query_feat)]
        cost = 1 - (unit[0] @ unit[1].t()).nan_to_num(0, 0, 0)
    cost = cost.detach().cpu()
    # All anchors with an empty mask have one place, so the tracks that they open are equal but for rounding. Rounding,
    # which is another on each machine, must not choose between them.
    first_equal = (torch.cdist(cost, cost, p=math.inf) < EQUAL).numpy().argmax(1)
    cost = cost.numpy()[first_equal]
    match = cost.argmin(1)
    some, found = linear_sum_assignment(cost)
    match[some] = found
    return torch.from_numpy(match).to(rows.device)

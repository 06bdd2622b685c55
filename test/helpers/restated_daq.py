"""DVIS-DAQ's online tracker once more, row by row and as plainly as it can be said, on the same weights.

Tracks are objects in a list, attention is PyTorch's own module, nothing is batched over tracks or kept in rings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn


@dataclass
class PlainTrack:
    number: int
    query: Tensor
    place: Tensor
    places: list[Tensor]
    logits: list[Tensor]
    hidden: int = 0


@dataclass
class PlainFrame:
    """What became of a frame's rows."""

    logits: Tensor              # (R, classes + 1)
    masks: Tensor               # (R, h, w)
    numbers: list[int]          # of each row; -1 for none
    seen: list[bool]            # of each row
    places: list[Tensor]        # of the tracks after the frame
    queries: list[Tensor]


def attend(module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention ``(R, D)`` by PyTorch's own module with our weights."""
    dim = module.in_proj_weight.shape[1]
    own = nn.MultiheadAttention(dim, module.heads)
    own.load_state_dict(module.state_dict())
    return own(query[:, None], key[:, None], value[:, None], need_weights=False)[0][:, 0]


def decoder_layer(layer, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    x = layer.cross_norm(x + attend(layer.cross_attn, query, key, value))
    x = layer.self_norm(x + attend(layer.self_attn, x, x, x))
    return layer.ffn_norm(x + layer.linear2(layer.linear1(x)))


def heads(network, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    normed = network.decoder_norm(x)
    projected = network.mask_feature_proj(features[None])[0]
    return network.class_embed(normed), torch.einsum('rd,dhw->rhw', network.mask_embed(normed), projected)


def place(network, mask: Tensor, features: Tensor) -> Tensor:
    inside = (mask > 0).float()
    if not inside.any():
        return network.pos_embed(torch.zeros(1, len(features)))[0]
    return network.pos_embed(((features * inside).sum((1, 2)) / inside.sum())[None])[0]


def score(logits: Tensor) -> float:
    return float(logits.softmax(0)[:-1].max())


def slot_logits(network, tracks: list[PlainTrack], embeddings: Tensor, table: Tensor) -> Tensor:
    dim = embeddings.shape[1]
    b = torch.stack([t.query for t in tracks] + list(network.bg_slots))
    z = torch.stack([t.place for t in tracks] + list(network.bg_slots))
    cost = np.array([[1 - float(x) for x in table @ r / ((table.norm(dim=1) + 1e-6) * (r.norm() + 1e-6))] for r in b])
    for k, row in enumerate(cost):      # rounding does not choose between equal rows
        cost[k] = next(other for other in cost if np.abs(row - other).max() < 1e-5)
    start = [int(row.argmin()) for row in cost]
    for row, column in zip(*linear_sum_assignment(cost), strict=True):
        start[row] = int(column)
    s = torch.stack([table[i] for i in start])
    for layer in network.slot_layers:
        u = attend(layer.cross_attn, s + b, embeddings, embeddings)
        keys = layer.input_norm(s + u) @ layer.project_inputs.weight.T
        asked = layer.place_norm(z) @ layer.project_places.weight.T
        shares = torch.stack([torch.softmax(asked @ k / dim ** 0.5, 0) + 1e-6 for k in keys])     # a row of u each
        v = torch.stack([(column / column.sum()) @ u for column in shares.T])                    # a slot each
        s = layer.slot_norm(s + v)
        s = layer.ffn_norm(s + layer.linear2(layer.linear1(s)))
    return network.class_embed(network.decoder_norm(s))[:len(tracks)]


def moved(track: PlainTrack, new: Tensor) -> None:
    before = track.places[-9:]
    cosines = [float(F.normalize(new, dim=0) @ F.normalize(p, dim=0)) for p in before]
    beta = max(0.0, sum(cosines) / len(cosines))
    track.place = (1 - beta) * track.place + beta * new
    track.places.append(new)


def restated(network, table: Tensor, threshold: float, slots_decide: bool, frames) -> list[PlainFrame]:
    """A whole video; each of ``frames`` is (embeddings, segmenter's logits, segmenter's masks, mask features)."""
    tracks, opened, found = [], 0, []
    for t, (embeddings, logits, masks, features) in enumerate(frames):
        if t == 0:
            x = embeddings
            for layer in network.layers:
                x = decoder_layer(layer, x, x, embeddings, embeddings)
        else:
            anchors = torch.stack([place(network, mask, features) for mask in masks])
            x = torch.stack([track.query for track in tracks] + [network.new_ins_embeds[0]] * len(embeddings))
            position = torch.stack([track.place for track in tracks] + list(anchors))
            for layer in network.layers:
                x = decoder_layer(layer, x, x + position, embeddings + anchors, embeddings)
        own, own_masks = heads(network, x, features)
        says = slot_logits(network, tracks, embeddings, table) if t and tracks and slots_decide else None
        numbers, seen, after = [], [], []
        for row in range(len(x)):
            track = tracks[row] if row < len(tracks) else None
            visible = score(own[row]) > threshold if t else score(logits[row]) > 0.01
            if track and says is not None:
                visible = visible and score(says[row]) > 0.01
            if track is None and visible:
                track = PlainTrack(opened, x[row], place(network, own_masks[row], features), [], [])
                track.places.append(track.place)
                opened += 1
            elif visible:
                track.hidden = 0
                moved(track, place(network, own_masks[row], features))
            elif track:
                track.hidden += 1
                if track.hidden >= 8:
                    track = None
            seen.append(visible)
            numbers.append(track.number if track else -1)
            if track:
                track.query = x[row]
                track.logits.append(own[row])
                after.append(track)
        tracks = after
        found.append(PlainFrame(own, own_masks, numbers, seen, [k.place for k in tracks], [k.query for k in tracks]))
    return found

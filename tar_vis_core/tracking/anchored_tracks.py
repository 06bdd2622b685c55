"""Tracks that open and close, of DVIS-DAQ (Zhou et al., ECCV 2024), online; the network is in ``models``.

    first frame   a track is opened for each row whose decoder query scores more than FIRST_SCORE
    later         a track is seen if its row scores more than the threshold T and, where slots decide, its slot more
                  than SLOT_SCORE; an anchor whose row scores more than T opens a track
    unseen        a track stays hidden for HIDDEN_FRAMES frames at most and keeps its row; seen in time, it is the same
                  track again; in the next frame it is dead, and its object comes back as a new track
    place         moved at each sighting by how alike the new place is to the last PLACES (``guided_means.py``)

A score is the probability of the likeliest class. That an anchor does not open a second track of an object is learned:
nothing compares masks. T, and whether slots decide, belong to a data set. Of a track is kept what the next frame reads,
and no history, so that memory does not grow with time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tar_vis_core.models.dynamic_anchors import DynamicAnchorNetwork
from tar_vis_core.models.masked_decoder import DecoderOutput
from tar_vis_core.models.tracked import Tracked, stacked
from tar_vis_core.tracking.guided_means import move_means

FIRST_SCORE, SLOT_SCORE = 0.01, 0.01
# T, and whether slots decide, of the published models by class set; sets without one take those of OVIS
RULES, OTHER_RULES = dict.fromkeys(('youtube_vis_2019', 'youtube_vis_2021'), (0.01, False)), (0.1, True)
HIDDEN_FRAMES = 7
PLACES = 9              # earlier places that a new one is compared with
MAX_TRACKS = 1000       # alive at a time; far more than a trained network opens, an untrained one stops there


@dataclass(frozen=True)
class Tracks:
    """The N tracks that are alive, in order of opening."""

    queries: Tensor         # (N, D) the row's last output, before the norm
    places: Tensor          # (N, D) the running mean
    recent_places: Tensor   # (N, PLACES, D) the last ones at unit length, in a ring; zero if there is none yet
    logit_sums: Tensor      # (N, classes + 1) float32, over all frames of the track, hidden ones too
    frames: np.ndarray      # (N,) int64 frames of the track so far
    sightings: np.ndarray   # (N,) int64 in how many of them it was seen
    hidden: np.ndarray      # (N,) int64 frames since the last of these
    numbers: np.ndarray     # (N,) int64 track numbers, rising
    next_number: int        # no track had it yet


class AnchoredTracker:
    """``query_feat (Q, D)`` are the decoder's learned queries, also if its layers start from others (TAR).

    ``threshold`` is T; with ``slots_decide`` the slots count as well.
    """

    def __init__(self, network: DynamicAnchorNetwork, query_feat: Tensor, threshold: float, slots_decide: bool):
        self.network, self.query_feat = network, query_feat
        self.threshold, self.slots_decide = threshold, slots_decide

    def track(self, frames: DecoderOutput, mask_features: Tensor, memory: Tracks | None) -> tuple[Tracked, Tracks]:
        """Track frames, see :class:`~tar_vis_core.tracking.tracker.Tracker`; slots are track numbers.

        A frame's rows are the tracks before it and one row for each decoder query. A hidden track keeps its slot; the
        rows of anchors that open no track, and of tracks that have died, stand for none.
        """
        tracked = []
        for normed, logits, embeddings, features in zip(
                frames.normed, frames.logits, frames.mask_embeddings, mask_features, strict=True):
            masks = None if memory is None else exact_masks(embeddings, features)
            one, memory = self.step(normed, logits, masks, features, memory)
            tracked.append(one)
        return stacked(tracked), memory

    def step(self, embeddings: Tensor, logits: Tensor, masks: Tensor | None, mask_features: Tensor,
             tracks: Tracks | None) -> tuple[Tracked, Tracks]:
        """Track one frame. The decoder's queries have ``embeddings`` and ``logits (Q, .)``, ``masks (Q, h, w)``.

        ``mask_features (D, h, w)``. A stream's first frame, which has no ``tracks``, needs no masks.
        """
        network = self.network
        if tracks is None:
            tracks, x = no_tracks(embeddings, logits), network.first(embeddings)
            own, seen = network.heads(x), best_score(logits) > FIRST_SCORE
        else:
            x = network(tracks.queries, tracks.places, embeddings, network.places(masks, mask_features))
            own = network.heads(x)
            seen = best_score(own[0]) > self.threshold
            count = len(tracks.numbers)
            if self.slots_decide and count:
                slots, _ = network.slots(tracks.queries, tracks.places, embeddings, self.query_feat)
                seen[:count] &= best_score(slots[:count]) > SLOT_SCORE
        return self.remember(tracks, without_surplus(seen.cpu().numpy(), len(tracks.numbers)), x, own, mask_features)

    def remember(self, tracks: Tracks, seen: np.ndarray, x: Tensor, own: tuple[Tensor, Tensor, Tensor],
                 mask_features: Tensor) -> tuple[Tracked, Tracks]:
        """Return a frame's rows ``x (R, D)``, of which some are ``seen (R,)``, and the tracks after it.

        ``own`` are the rows' class logits, mask embeddings and mask biases.
        """
        device, count = x.device, len(tracks.numbers)
        hidden = np.where(seen[:count], 0, tracks.hidden + 1)
        alive = np.flatnonzero(hidden <= HIDDEN_FRAMES)
        new = count + np.flatnonzero(seen[count:])
        kept = np.append(alive, new)
        of_alive, of_kept = torch.from_numpy(alive).to(device), torch.from_numpy(kept).to(device)

        def carried(values: Tensor) -> Tensor:
            return torch.cat((values[of_alive], values.new_zeros(len(new), *values.shape[1:])))

        def counts(values: np.ndarray) -> np.ndarray:
            return np.append(values[alive], np.zeros(len(new), np.int64))

        places, recent, sightings = carried(tracks.places), carried(tracks.recent_places), counts(tracks.sightings)
        visible = np.flatnonzero(seen[kept])
        if len(visible):
            _, embeddings, bias = (value[of_kept[visible]] for value in own)
            shown = self.network.places(exact_masks(embeddings, mask_features, bias), mask_features).float()
            move_means(places, recent, *(torch.from_numpy(v).to(device) for v in (visible, sightings[visible])), shown)
        sightings[visible] += 1
        numbers = np.append(tracks.numbers[alive], tracks.next_number + np.arange(len(new)))
        after = Tracks(x[of_kept].float(), places, recent, carried(tracks.logit_sums) + own[0][of_kept].float(),
                       counts(tracks.frames) + 1, sightings, counts(hidden), numbers, tracks.next_number + len(new))

        slots, unseen, so_far = np.full(len(seen), -1), np.zeros(len(seen), bool), own[0].float().clone()
        slots[kept], unseen[kept] = numbers, ~seen[kept]
        so_far[of_kept] = after.logit_sums / torch.from_numpy(after.frames).to(device)[:, None]
        return Tracked(*(value[None] for value in own), x[None], slots[None], unseen[None], so_far[None]), after


def no_tracks(embeddings: Tensor, logits: Tensor) -> Tracks:
    """Return the state before a first frame of which the decoder says ``embeddings (Q, D)`` and ``logits (Q, .)``."""
    rows, none = embeddings[:0].float(), np.zeros(0, np.int64)
    return Tracks(rows, rows, rows.new_zeros(0, PLACES, rows.shape[1]), logits[:0].float(), none, none, none, none, 0)


def without_surplus(seen: np.ndarray, tracks: int) -> np.ndarray:
    """Return ``seen (R,)`` without the anchors for which there is no room beside that many ``tracks``."""
    new = tracks + np.flatnonzero(seen[tracks:])
    surplus = new[max(0, MAX_TRACKS - tracks):]
    if len(surplus):
        warnings.warn(f'{MAX_TRACKS} tracks are open, which hardly are all objects; no more open until some end',
                      RuntimeWarning, stacklevel=2)
        seen = seen.copy()
        seen[surplus] = False
    return seen


def exact_masks(mask_embeddings: Tensor, mask_features: Tensor, mask_bias: Tensor | None = None) -> Tensor:
    """Return mask logits ``(R, h, w)`` in float32, because their signs decide.

    ``mask_embeddings (R, D)``, ``mask_features (D, h, w)``, ``mask_bias (R,)``.
    """
    with torch.autocast(mask_features.device.type, enabled=False):
        masks = torch.einsum('rd,dhw->rhw', mask_embeddings.float(), mask_features.float())
        return masks if mask_bias is None else masks + mask_bias.float()[:, None, None]


def best_score(logits: Tensor) -> Tensor:
    """Return the probability of the likeliest class, no-object left out, float32 ``(R,)`` of ``(R, classes + 1)``."""
    return F.softmax(logits.float(), -1)[:, :-1].amax(-1)
